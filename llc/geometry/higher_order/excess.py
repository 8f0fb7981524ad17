r"""The excess loss around w* as a function of the offset from it, in float64.

$$ K(x) = L(w^* + x) - L(w^*), \qquad\text{or, for a squared loss at exact fit,}\qquad
   K(x) = \frac{c}{n} \sum_i \lVert f(w^* + x, x_i) - f(w^*, x_i) \rVert^2 . $$

The two are the same function, but the first is known only to ε L(w*) and the second to the square of round-off. A part
of order t⁸ is then seen down to t = 10⁻³. Whether the second form holds is measured: it does where the two agree at
random points around w*, up to one constant c.

A cross-entropy has residuals too where its minimum over the outputs of each example is at those of w*, as with soft
targets that equal the model's probabilities. Its excess is then the Bregman divergence of ψ (output_loss.py), and

$$ K(x) = \frac{s}{n} \sum_i \big[\psi(f_i) - \psi(f_i^*) - \nabla\psi(f_i^*) \cdot (f_i - f_i^*)\big]
   \asymp \frac{1}{n} \sum_i \lVert A_i^{1/2} (f_i - f_i^*) \rVert^2 , $$

A_i the Hessian of s ψ at f_i*. The quotient of the two is bounded from both sides near w*, so they have the same λ, and
the Hessian at w* is the same. The sum of squares takes the place of K then.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.geometry.curvature.operators import (
    CurvatureOperator,
    GaussNewtonOperator,
    curvature_operator,
    gauss_newton_operator,
    require_predict_fn,
)
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.rows import Rows

_FLAT, _CURVED = 1e-13, 1e-8  # curvatures of an output loss, in units of its largest: zero below, counted above
_SAME = 1e-9  # relative: K at the probed distances is known to 1e-13, and a residual of 1e-8 shows
_PROBES = np.array([0.03, 0.1, 0.3, 0.3])  # distances of the points that decide on c, in units of the parameters
_TINY = 1e-9  # distance at which K in the kernel of H is round-off: a quartic part of 1e-36
_LEFT = 1e-10  # of the loss at a random point, up to which L(w*) is taken for what training left of zero
_NEAR, _SURE = 1e-6, 10.0  # the same where it only makes a bound wider; times what is left, that K has to be beyond
_RESOLVED = 100.0  # times the round-off of K: K is a square, so ten times that of the outputs

Offset = Float[Array, "dim"]


class Excess(eqx.Module):
    """K on flat offsets from w*, of the parameters that move. Build it with `excess_loss`."""

    operator: CurvatureOperator
    outputs: Array | None  # f(w*, x) of all the data; None where K is a difference of losses
    constant: Float[Array, ""]  # c, or L(w*)
    roots: Float[Array, "input k k"] | None = None  # A_i^½; None where it is the identity

    @property
    def dim(self) -> int:
        """d, the number of parameters that move."""
        return self.operator.dim

    @property
    def exact_fit(self) -> bool:
        """Whether K is a sum of squares, or is replaced by one that is equivalent to it."""
        return self.outputs is not None

    def value(self, offset: Offset) -> Float[Array, ""]:
        """K, in nats per example."""
        mean = self._batches.mean(lambda batch: self._of_batch(offset, batch), jnp.zeros(()))
        return mean - self.constant if self.outputs is None else mean

    def gradient(self, offset: Offset) -> Offset:
        """∇K, of one batch after the other."""
        return self._batches.mean(lambda batch: jax.grad(self._of_batch)(offset, batch), jnp.zeros_like(offset))

    def product(self, offset: Offset, vector: Offset) -> Offset:
        """Hessian of K at `offset`, times a vector."""
        return jax.jvp(self.gradient, (offset,), (vector,))[1]

    def metric_product(self, offset: Offset, vector: Offset) -> Offset:
        """`metric` times a vector, of one batch after the other; at an exact fit it has no negative eigenvalues."""
        if self.outputs is None:
            return self.product(offset, vector)

        def of_batch(batch: PyTree) -> Offset:
            def residuals(x: Offset) -> Array:
                return self._residuals_of_batch(x, batch)

            tangent = jax.jvp(residuals, (offset,), (vector,))[1]
            return 2 * self.constant / len(tangent) * jax.vjp(residuals, offset)[1](tangent)[0]

        return self._batches.mean(of_batch, jnp.zeros_like(offset))

    def residuals(self, offset: Offset) -> Float[Array, "output"]:
        """F with K = ½ |F|²; only at an exact fit."""
        params, posterior = self._params(offset), self.operator.posterior
        outputs = self.operator.rows.map(lambda batch: _predict(posterior, params, batch))
        fitted = jnp.zeros(()) if self.outputs is None else self.outputs
        return jnp.sqrt(2 * self.constant / self.num_data) * jnp.ravel(_weighted(outputs - fitted, self.roots))

    def metric(self, offset: Offset) -> Float[Array, "dim dim"]:
        """The dense Hessian of K; at an exact fit its Gauss–Newton part, which is the same wherever K = 0."""
        identity = jnp.eye(self.dim)
        if self.outputs is None:
            return jax.vmap(lambda vector: self.product(offset, vector))(identity)
        _, pushforward = jax.linearize(self.residuals, offset)
        jacobian = jax.vmap(pushforward)(identity)
        return jacobian @ jacobian.T

    @property
    def num_data(self) -> int:
        """The number of examples, n."""
        return self.operator.rows.num_rows

    @property
    def _batches(self) -> Rows:
        """The data, with the outputs at w* beside them where K is a sum of squares."""
        rows = self.operator.rows
        return rows if self.outputs is None else rows.beside((self.outputs, self.roots))

    def _of_batch(self, offset: Offset, batch: PyTree) -> Float[Array, ""]:
        if self.outputs is None:
            return self.operator.posterior.loss(self._params(offset), batch)
        difference = self._residuals_of_batch(offset, batch)
        return self.constant * (jnp.sum(difference**2) / difference.shape[0])

    def _residuals_of_batch(self, offset: Offset, batch: PyTree) -> Float[Array, "row *output"]:
        data, (fitted, roots) = batch
        return _weighted(_predict(self.operator.posterior, self._params(offset), data) - fitted, roots)

    def _params(self, offset: Offset) -> PyTree:
        posterior = self.operator.posterior
        flat, unravel = ravel_pytree(posterior.position)
        return posterior.params_at(unravel(flat + offset))


class Scale(NamedTuple):
    """What counts as near and as small at w*.

    Attributes:
        length: typical size of a parameter, the unit of all distances; 1 where all are zero.
        height: K at a random point at that distance.
        floor: K below it is round-off, or what training left of the loss.
        left: L(w*), where it is what training left of zero; else 0.
    """

    length: float
    height: float
    floor: float
    left: float = 0.0


def excess_loss(posterior: LocalPosterior, key: PRNGKeyArray) -> Excess:
    """K around w*, as a sum of squares where `predict_fn` shows an exact fit; to be called under `float64()`.

    Args:
        posterior: loss, data and w*.
        key: of the random points that decide on exact fit.
    """
    operator = curvature_operator(posterior)
    dim = posterior.num_params
    zero = jnp.zeros(dim)
    plain = Excess(operator, None, _value(Excess(operator, None, jnp.zeros(())), zero))
    if posterior.predict_fn is None:
        return plain
    squares = Excess(operator, _outputs(operator), jnp.ones(()))
    points = typical_size(plain) * jnp.asarray(_PROBES)[:, None] * jax.random.normal(key, (len(_PROBES), dim))
    ratios = np.array([float(_value(plain, x) / _value(squares, x)) for x in points])
    constant = float(np.median(ratios))
    if constant > 0 and np.abs(ratios / constant - 1).max() <= _SAME:
        return Excess(operator, squares.outputs, jnp.asarray(constant))
    return _as_sum_of_squares(posterior, plain, squares.outputs, points)


def _as_sum_of_squares(
    posterior: LocalPosterior, plain: Excess, outputs: Array | None, points: Float[Array, "point dim"]
) -> Excess:
    """The equivalent sum of squares where K is the Bregman divergence of a known output loss; `plain` elsewhere."""
    try:
        gauss_newton = gauss_newton_operator(posterior)
    except ValueError:  # another function of the outputs, or none
        return plain
    pairs = np.array([(float(_value(plain, x)), float(_divergence(plain, gauss_newton, x))) for x in points])
    if not np.abs(pairs[:, 0] - pairs[:, 1]).max() <= _SAME * np.abs(pairs[:, 0]).max():
        return plain
    curvatures, vectors = np.linalg.eigh(np.asarray(_output_curvature(gauss_newton)))
    sizes = curvatures.max(axis=1, keepdims=True)
    unclear = (curvatures > _FLAT * sizes) & (curvatures < _CURVED * sizes)  # a probability near zero
    if unclear.any():
        return plain
    roots = np.sqrt(np.where(curvatures > _FLAT * sizes, curvatures, 0.0))
    roots = np.einsum("nij,nj,nkj->nik", vectors, roots, vectors)
    return Excess(plain.operator, outputs, jnp.asarray(0.5), jnp.asarray(roots))


@eqx.filter_jit
def _output_curvature(operator: GaussNewtonOperator) -> Float[Array, "input k k"]:
    return operator.output_curvature()


@eqx.filter_jit
def _divergence(excess: Excess, operator: GaussNewtonOperator, offset: Offset) -> Float[Array, ""]:
    """Mean Bregman divergence of the output loss between the outputs at `offset` from w* and those at w*."""
    posterior = operator.posterior
    moved, at_center = excess._params(offset), excess._params(jnp.zeros_like(offset))

    def of_batch(batch: PyTree) -> Float[Array, ""]:
        outputs, fitted = (_predict(posterior, params, batch) for params in (moved, at_center))
        loss, slope = jax.jvp(lambda f: jnp.mean(operator.output_loss(f, batch)), (fitted,), (outputs - fitted,))
        return operator.scale * (jnp.mean(operator.output_loss(outputs, batch)) - loss - slope)

    return operator.rows.mean(of_batch, jnp.zeros(()))


def typical_size(excess: Excess) -> float:
    """Root mean square of the parameters; 1 where all are zero."""
    flat, _ = ravel_pytree(excess.operator.posterior.position)
    return float(jnp.sqrt(jnp.mean(flat**2))) or 1.0


def measure_scale(excess: Excess, on_kernel: Callable[[Array], Array], key: PRNGKeyArray) -> Scale:
    """Length, height and round-off of K around w*; `on_kernel` projects points, one a row, on the kernel of H."""
    points = _random_points(excess, key)
    height = _height(excess, points)
    noise = max(abs(float(_value(excess, jnp.asarray(_TINY * x)))) for x in np.asarray(on_kernel(points)))
    least = float(np.finfo(np.float64).tiny) + float(rounding(excess))  # four values may agree by chance
    left = _left(excess, height)
    return Scale(typical_size(excess), height, max(_RESOLVED * noise, least, _SURE * left), left)


def distance_left(excess: Excess, key: PRNGKeyArray) -> float:
    """About how far w* is from the minimum that training went to, in units of the parameters: (L(w*) / K)^½.

    Zero at an exact fit, and where it can't be told from L(w*).

    Args:
        excess: K around w*.
        key: of the random points whose K it is compared with.
    """
    height = _height(excess, _random_points(excess, key))
    return math.sqrt(_left(excess, height, _NEAR) / height) if height > 0 else 0.0


def _random_points(excess: Excess, key: PRNGKeyArray) -> Float[Array, "point dim"]:
    return typical_size(excess) * jax.random.normal(key, (4, excess.dim))


def _height(excess: Excess, points: Float[Array, "point dim"]) -> float:
    return float(np.median([float(_value(excess, x)) for x in points]))


def _left(excess: Excess, height: float, most: float = _LEFT) -> float:
    """L(w*) where it is next to nothing, what training left of zero: w* lies beside the set of zeros then. Else 0."""
    left = 0.0 if excess.exact_fit else abs(float(excess.constant))
    return left if left <= most * height else 0.0


def rounding(excess: Excess) -> Float[Array, ""]:
    """Ten roundings of the loss, or the square of ten roundings of the outputs."""
    error = 10 * np.finfo(np.float64).eps
    if not excess.exact_fit:
        return error * jnp.abs(excess.constant)
    return (
        excess.constant
        * sum(jnp.sum((error * leaf) ** 2) for leaf in jax.tree.leaves(excess.outputs))
        / excess.num_data
    )


@eqx.filter_jit
def dense_metric(excess: Excess, offset: Offset) -> Float[Array, "dim dim"]:
    """`excess.metric(offset)`; d Hessian products and d² numbers."""
    return excess.metric(offset)


@eqx.filter_jit
def _value(excess: Excess, offset: Offset) -> Float[Array, ""]:
    return excess.value(offset)


@eqx.filter_jit
def _outputs(operator: CurvatureOperator) -> Array:
    posterior = operator.posterior
    return operator.rows.map(lambda batch: _predict(posterior, posterior.center, batch))


def _predict(posterior: LocalPosterior, params: PyTree, batch: PyTree) -> Array:
    return jnp.asarray(require_predict_fn(posterior)(params, batch), jnp.float64)


def _weighted(differences: Array, roots: Float[Array, "row k k"] | None) -> Array:
    """A_i^½ times the differences of outputs of each example."""
    if roots is None:
        return differences
    return jnp.einsum("nij,nj->ni", roots, differences.reshape(len(differences), -1))
