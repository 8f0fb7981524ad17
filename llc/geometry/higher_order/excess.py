r"""The excess loss around w* as a function of the offset from it, in float64.

$$ K(x) = L(w^* + x) - L(w^*), \qquad\text{or, for a squared loss at exact fit,}\qquad
   K(x) = \frac{c}{n} \sum_i \lVert f(w^* + x, x_i) - f(w^*, x_i) \rVert^2 . $$

The two are the same function, but the first is known only to ε L(w*) and the second to the square of round-off. A part
of order t⁸ is then seen down to t = 10⁻³. Whether the second form holds is measured: it does where the two agree at
random points around w*, up to one constant c.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.geometry.curvature.operators import CurvatureOperator, curvature_operator, require_predict_fn
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.rows import Rows

_SAME = 1e-9  # relative: K at the probed distances is known to 1e-13, and a residual of 1e-8 shows
_PROBES = np.array([0.03, 0.1, 0.3, 0.3])  # distances, in units of the parameters, of the points that decide on c
_TINY = 1e-9  # distance at which K in the kernel of H is round-off: a quartic part of 1e-36
_RESOLVED = 100.0  # times the round-off of K: K is a square, so ten times that of the outputs

Offset = Float[Array, "dim"]


class Excess(eqx.Module):
    """K on flat offsets from w*, of the parameters that move. Build it with `excess_loss`."""

    operator: CurvatureOperator
    outputs: Array | None  # f(w*, x) of all the data; None where K is a difference of losses
    constant: Float[Array, ""]  # c, or L(w*)

    @property
    def dim(self) -> int:
        """d, the number of parameters that move."""
        return self.operator.dim

    @property
    def exact_fit(self) -> bool:
        """Whether the loss is a squared error with zero residuals, so that K is a sum of squares."""
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

    def residuals(self, offset: Offset) -> Float[Array, "output"]:
        """F with K = ½ |F|²; only at an exact fit."""
        params, posterior = self._params(offset), self.operator.posterior
        scale = jnp.sqrt(2 * self.constant / self.num_data)
        outputs = self.operator.rows.map(lambda batch: _predict(posterior, params, batch))
        fitted = jnp.zeros(()) if self.outputs is None else self.outputs
        return scale * jnp.ravel(outputs - fitted)

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
        return rows if self.outputs is None else rows.beside(self.outputs)

    def _of_batch(self, offset: Offset, batch: PyTree) -> Float[Array, ""]:
        params, posterior = self._params(offset), self.operator.posterior
        if self.outputs is None:
            return posterior.loss(params, batch)
        data, fitted = batch
        difference = _predict(posterior, params, data) - fitted
        return self.constant * (jnp.sum(difference**2) / difference.shape[0])

    def _params(self, offset: Offset) -> PyTree:
        posterior = self.operator.posterior
        flat, unravel = ravel_pytree(posterior.position)
        return posterior.params_at(unravel(flat + offset))


class Scale(NamedTuple):
    """What counts as near and as small at w*.

    Attributes:
        length: typical size of a parameter, the unit of all distances; 1 where all are zero.
        height: K at a random point at that distance.
        floor: K below it is round-off.
    """

    length: float
    height: float
    floor: float


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
    points = typical_size(plain) * _PROBES[:, None] * jax.random.normal(key, (len(_PROBES), dim))
    ratios = np.array([float(_value(plain, x) / _value(squares, x)) for x in points])
    constant = float(np.median(ratios))
    if constant > 0 and np.abs(ratios / constant - 1).max() <= _SAME:
        return Excess(operator, squares.outputs, jnp.asarray(constant))
    return plain


def typical_size(excess: Excess) -> float:
    """Root mean square of the parameters; 1 where all are zero."""
    flat, _ = ravel_pytree(excess.operator.posterior.position)
    return float(jnp.sqrt(jnp.mean(flat**2))) or 1.0


def measure_scale(excess: Excess, kernel: Float[np.ndarray, "dim dim"], key: PRNGKeyArray) -> Scale:
    """Length, height and round-off of K around w*; `kernel` projects on the kernel of H."""
    length = typical_size(excess)
    points = length * np.asarray(jax.random.normal(key, (4, excess.dim)))
    heights = [float(_value(excess, jnp.asarray(x))) for x in points]
    noise = max(abs(float(_value(excess, jnp.asarray(_TINY * x)))) for x in points @ kernel)
    least = float(np.finfo(np.float64).tiny) + float(_rounding(excess))  # four values may agree by chance
    return Scale(length, float(np.median(heights)), max(_RESOLVED * noise, least))


def _rounding(excess: Excess) -> Float[Array, ""]:
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
