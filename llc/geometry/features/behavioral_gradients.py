r"""Behavioral gradients: how the outputs of each input change with the params, and what follows from their rank.

$$ G = \big[ \nabla_w f_c(w^*, x_i) \big]_{ic} \in R^{N \times nk}, \qquad
   \dim \{ w : f = f(w^*) \} \le N - \operatorname{rank} G, \qquad
   \tfrac1n G G^\top = \big( \langle \partial_a f, \partial_b f \rangle_{L^2(\text{data})} \big)_{ab} , $$

with one column for each of the k outputs of each of the n inputs. The squared loss
$\tfrac{s}{2n} \sum_i \lVert f(x_i) - y_i \rVert^2$ has
$H = \tfrac sn G G^\top + \tfrac sn \sum_{ic} (f_{ic} - y_{ic}) \nabla^2 f_{ic}$, with s = 2 where it has no ½. At an
exact fit rank H = rank G, and with residuals the two may differ (Bushnaq et al. 2024, arXiv 2405.10927).

Ranks are counted from singular values of G in float64, which are resolved down to ε σ_max; eigenvalues of H or of a
Gram matrix are their squares, and resolve σ only down to √ε σ_max. At a singular point N − rank G is larger than the
dimension (for f = ab at 0 it is 2 instead of 1).
"""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from llc.geometry.curvature.operators import (
    JacobianOperator,
    check_inputs,
    jacobian_operator,
)
from llc.geometry.features.kernels import output_gradients
from llc.posterior.arguments import require_callable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.outputs import checked_predict_fn
from llc.posterior.placement import on_common_devices
from llc.posterior.precision import float64
from llc.posterior.validation import check_data, check_finite

_DENSE_BYTES = 4 * 2**30
FLOOR = 16.0  # round-off of G, measured on nets of 2 to 9 layers: up to 4 ε σ_max
_DEPENDENT = 1e-10  # 1 − leverage; round-off leaves 1e-15
_MIXED = 1e-8  # ‖Gᵀv − J v‖ / ‖J v‖ where the outputs of an input depend on the other inputs of its batch
_ROUNDOFF = float(np.finfo(np.float64).eps)
_GAP_DECADES = 2.0  # below it, a change of the threshold changes the rank


@dataclasses.dataclass(frozen=True)
class BehavioralGradients:
    """G at w*, as products and, where it is needed, as a dense matrix; build it with `behavioral_gradients`.

    Attributes:
        operator: J = Gᵀ in float64, to be used under `float64()`.
        precision: relative error ε with which w* is known, that of the dtype of its params.
    """

    operator: JacobianOperator
    precision: float

    @property
    def dim(self) -> int:
        """N, the number of parameters that move."""
        return self.operator.dim

    @property
    def num_inputs(self) -> int:
        """Number n of inputs."""
        return self.operator.num_inputs

    def product(self, weights: Shaped[Array | np.ndarray, "output"]) -> Float[np.ndarray, "dim"]:
        """G u, the gradient of u · f, without forming G."""
        with float64():
            return np.asarray(_transpose_product(self.operator, jnp.asarray(weights, jnp.float64)))

    def transpose_product(self, vector: Shaped[Array | np.ndarray, "dim"]) -> Float[np.ndarray, "output"]:
        """Gᵀ v, the change of each output of each input along v, without forming G."""
        with float64():
            return np.asarray(_product(self.operator, jnp.asarray(vector, jnp.float64)))

    @functools.cached_property
    def matrix(self) -> Float[np.ndarray, "dim output"]:
        """G, the outputs of an input next to each other.

        Raises:
            ValueError: if it takes more than 4 GiB, or the outputs of an input depend on the others of its batch.
        """
        size = 8 * self.dim * self.operator.num_outputs
        if size > _DENSE_BYTES:
            raise ValueError(
                f"the dense {self.dim} × {self.operator.num_outputs} matrix needs {size / 2**30:.1f} GiB, got a limit "
                "of 4 GiB; take fewer inputs or a mask, or use product and transpose_product."
            )
        probe = np.random.default_rng(0).normal(size=self.dim)
        with float64():
            gradients = output_gradients(self.operator, self.operator.rows.joined())
            matrix = np.asarray(gradients).reshape(-1, self.dim).T
        exact = self.transpose_product(probe)
        if not np.linalg.norm(probe @ matrix - exact) <= _MIXED * np.linalg.norm(exact):
            raise ValueError(
                "predict_fn needs to be differentiable and to treat every input by itself, but its derivatives are not "
                "finite, or differ between a batch and its inputs one by one; switch batch statistics off."
            )
        return matrix

    @functools.cached_property
    def singular_values(self) -> Float[np.ndarray, "value"]:
        """Of G, largest first; min(N, nk) of them."""
        return np.linalg.svdvals(self.matrix)

    @property
    def threshold(self) -> float:
        """16 ε σ_max: a smaller singular value may be zero at the exact point of which w* is a rounded version."""
        return FLOOR * self.precision * float(self.singular_values[0])

    @property
    def rank(self) -> int:
        """Number of singular values above `threshold`: of independent features, or of directions that change f."""
        return int(np.sum(self.singular_values > self.threshold))

    @property
    def gap(self) -> float:
        """Decades between the smallest singular value that `rank` counts and the next one; nan if there is none.

        Below two decades the rank depends on the threshold; use `num_features` at the scale of interest.
        """
        if not 0 < self.rank < len(self.singular_values):
            return np.nan
        above, below = self.singular_values[self.rank - 1], self.singular_values[self.rank]
        return float(np.log10(above / max(below, _ROUNDOFF * self.singular_values[0])))

    @property
    def max_manifold_dim(self) -> int:
        """N − rank G, an upper bound on the dimension of the manifold of params with the same outputs."""
        return self.dim - self.rank

    @property
    def feature_gram(self) -> Float[np.ndarray, "dim dim"]:
        """(1/n) G Gᵀ, products of the functions ∂f/∂w_a in L²(data), summed over outputs."""
        return self.matrix @ self.matrix.T / self.num_inputs

    @property
    def feature_sizes(self) -> Float[np.ndarray, "value"]:
        """Its eigenvalues σ²/n, largest first, accurate to ε σ_max in σ; the others of N are 0."""
        return self.singular_values**2 / self.num_inputs

    def num_features(self, scale: float) -> int:
        """Number of features larger than `scale`. A sampler sees those with s σ²/n > γ/nβ (s = 2 without a ½).

        Raises:
            ValueError: if the scale is not positive: `rank` counts what stands above round-off.
        """
        if not scale > 0:
            raise ValueError(f"num_features needs a scale > 0, got {scale}; `rank` counts those above round-off.")
        return int(np.sum(self.feature_sizes > scale))

    @functools.cached_property
    def leverage(self) -> Float[np.ndarray, "input ..."]:
        """Of each output of each input: 0 for a zero gradient, 1 for an independent one; they add up to the rank."""
        _, _, columns = scipy.linalg.svd(self.matrix, full_matrices=False)
        return np.sum(columns[: self.rank] ** 2, axis=0).reshape(self.num_inputs, *self.operator.output_shape)

    @property
    def dependent_inputs(self) -> Bool[np.ndarray, "input ..."]:
        """Outputs whose gradient is a linear combination of the others; in general all of them if nk > N."""
        return self.leverage < 1 - _DEPENDENT

    def __str__(self) -> str:
        clear = f"gap of {self.gap:.1f} decades" if self.gap >= _GAP_DECADES else "no gap in the singular values"
        gap = "none below" if np.isnan(self.gap) else clear
        columns, sizes = self.operator.num_outputs, self.feature_sizes
        return (
            f"rank G     {self.rank} of {self.dim} × {columns}  at σ = {self.threshold:.2g}, {gap}\n"
            f"manifold   at most {self.max_manifold_dim} of {self.dim} dimensions\n"
            f"features   {self.rank}, of size σ²/n from {sizes[0]:.3g} to {sizes[max(self.rank, 1) - 1]:.3g}\n"
            f"dependent  {int(self.dependent_inputs.sum())} of {columns} outputs of inputs"
        )


def behavioral_gradients(
    predict_fn: Callable[[PyTree, PyTree], Array], params: PyTree, inputs: PyTree, *, mask: PyTree = None
) -> BehavioralGradients:
    """Behavioral gradients of a model at `params`, in float64.

    Args:
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …).
        params: w*, as for `LocalPosterior`.
        inputs: a pytree of arrays with the same leading axis of n inputs.
        mask: which parameters move, as for `LocalPosterior`.

    Raises:
        ValueError: if the params, the mask or the outputs can't define gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> gradients = behavioral_gradients(lambda w, x: w[0] * w[1] * x, jnp.ones(2), jnp.arange(3.0))
        >>> gradients.rank, gradients.max_manifold_dim
        (1, 1)
    """
    require_callable("predict_fn", predict_fn, "a function of (params, inputs)")
    if inputs is None:
        raise ValueError("inputs needs arrays with a leading axis of n inputs, got None.")
    check_data(inputs, "inputs")
    check_finite(eqx.filter(inputs, eqx.is_inexact_array), "inputs")
    params, inputs = on_common_devices(params, inputs)
    with float64():
        # The posterior serves for its params and mask only: there is no loss, and the inputs are given below.
        posterior = LocalPosterior(_no_loss, params, np.zeros(2), mask=mask)
        check_inputs(inputs)
        object.__setattr__(
            posterior, "predict_fn", checked_predict_fn(predict_fn, posterior.center, inputs, of="inputs")
        )
        return BehavioralGradients(jacobian_operator(posterior, inputs=inputs), relative_rounding(posterior))


def relative_rounding(posterior: LocalPosterior) -> float:
    """Relative rounding of w*, the coarsest of its leaves."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(posterior.position))


def _no_loss(_params: PyTree, batch: Array) -> Array:
    return jnp.zeros(len(batch))


@eqx.filter_jit
def _product(operator: JacobianOperator, vector: Array) -> Array:
    return operator.product(vector)


@eqx.filter_jit
def _transpose_product(operator: JacobianOperator, cotangent: Array) -> Array:
    return operator.transpose_product(cotangent)
