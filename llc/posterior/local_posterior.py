r"""The localized tempered posterior: the density from which sampling and geometry both start.

$$ p(w) \propto \exp(-U(w)), \qquad U(w) = n\beta\, L_n(w) + \tfrac{\gamma}{2} \lVert w - w^* \rVert^2, $$

where $L_n$ is the mean loss over the $n$ data, and $n\beta = n / \log n$ unless it is given (WBIC temperature: Watanabe
2013, §3; localization: Lau et al. 2023, arXiv 2308.12108, eq. 12).
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import dtypes
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Real

from llc.posterior.cures import require_computable
from llc.posterior.loss import fixed
from llc.posterior.loss_probes import Probe, check_loss_function, check_precision
from llc.posterior.mask import moving, normalize_mask, with_moved
from llc.posterior.microbatches import microbatched
from llc.posterior.outputs import checked_predict_fn
from llc.posterior.placement import on_common_devices
from llc.posterior.precision import InFloat32, as_float64, float64, lenient
from llc.posterior.programs import supports_jvp
from llc.posterior.rows import mean_loss
from llc.posterior.scale import Scale as Scale
from llc.posterior.stream import Given, Stream, given_data
from llc.posterior.tilt import Whole
from llc.posterior.validation import (
    check_center,
    check_data,
    check_finite,
    checked_scale,
    comes_per_example,
    fails_in_float64_alone,
    leading_axis,
    native,
    note_buffers,
    why_not,
)
from llc.posterior.weights import OfRows, Weighted, WeightedRows, normalized_weights


class LocalPosterior(eqx.Module):
    r"""A loss, its data and a minimum w*, tempered by nβ and localized by γ.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss of a batch (a scalar) or one loss per example (shape
            `(batch,)`, which enables WAIC, the singular fluctuation and per-example weighting). The loss is in nats per
            example, a negative log likelihood up to a constant. Arrays that it uses belong in `data`: JAX 0.12 rounds a
            float64 array over which a function closes to float32, also where curvature needs float64.
        center: w*, any pytree with floating-point array leaves: a dict, an equinox or flax model, an `nnx.State`.
            Leaves that are no arrays (activation functions, Python numbers) stay as they are.
        data: any pytree of arrays with the same leading axis, the n examples; or `llc.stream(loader)` of data that do
            not fit in memory, of which the attribute `data` has the resident rows.
        nbeta: nβ, the inverse temperature times n. Default n / log n (Watanabe 2013).
        gamma: γ, the strength of the localization to w*, in the unit of nβ·loss per squared parameter. With None,
            calibration chooses it and reports it; sampling needs a number.
        mask: which parameters move (restricted LLC); the others stay at w*. It is a path or a list of paths such as
            `"layers.0.weight"` (a path stands for everything below it, and `*` matches any name), or a pytree prefix of
            `params` with booleans or boolean arrays as leaves. Default: all move.
        predict_fn: optional `predict_fn(params, batch)`, the outputs of the model, for everything that looks at them:
            the Gauss–Newton matrix, behavioral gradients, an exact fit.
        weights: of the rows, numbers >= 0 of shape `(n,)`; needs one loss per example. They are divided by their mean,
            and the loss of example i is w_i ℓ_i everywhere, also in WAIC. `data` are then pairs of rows and weights. n
            stays the number of rows; where a weight says how often a row was seen, give `nbeta` as N / log N with N
            the sum of the counts. Default: 1.
        microbatch_size: rows at a time of a loss whose gradient on a batch does not fit in memory: the gradient is the
            sum over pieces of so many rows, equal up to rounding, for about 4/3 of the time (see `llc.microbatched`).
            Default: sampling takes pieces by itself where the gradients of a step would need more than 2 GiB, or a
            quarter of the memory that is free or of a GPU's.

    Raises:
        ValueError: if the data, the params, the loss at w*, nβ, γ, the mask or the weights can't define a posterior.

    Example:
        >>> import jax.numpy as jnp
        >>> data = jnp.linspace(-1.0, 1.0, 100)
        >>> posterior = LocalPosterior(lambda w, x: 0.5 * (w["a"] * x) ** 2, {"a": jnp.zeros(())}, data)
        >>> posterior.num_data, posterior.num_params
        (100, 1)
    """

    loss_fn: Callable[[PyTree, PyTree], Array] = eqx.field(static=True)
    center: PyTree
    data: PyTree
    nbeta: Float[Array, ""]
    gamma: Float[Array, ""] | None
    mask: PyTree  # None, or one leaf for each leaf of center: True, False or the flat indices that move
    predict_fn: Callable[[PyTree, PyTree], Array] | None = eqx.field(static=True)
    # L and ∇L at w* over all rows of a stream of which `data` are a sample, where they are known.
    whole: Whole | None = eqx.field(init=False)
    stream: Stream | None = eqx.field(static=True, init=False)  # where the rows come from of which `data` are a sample
    per_example: bool = eqx.field(static=True, init=False)
    precision: str = eqx.field(static=True, init=False)  # the coarsest dtype in which the loss computes

    def __init__(
        self,
        loss_fn: Callable[[PyTree, PyTree], Array],
        center: PyTree,
        data: PyTree,
        nbeta: Real[ArrayLike, ""] | None = None,
        gamma: Real[ArrayLike, ""] | None = None,
        mask: PyTree = None,
        predict_fn: Callable[[PyTree, PyTree], Array] | None = None,
        weights: PyTree = None,
        microbatch_size: int | None = None,
    ) -> None:
        if microbatch_size is not None:
            loss_fn = microbatched(loss_fn, microbatch_size)
        with lenient():
            self._make(loss_fn, center, data, nbeta, gamma, mask, predict_fn, weights)

    def _make(
        self,
        loss_fn: Callable[[PyTree, PyTree], Array],
        center: PyTree,
        data: PyTree,
        nbeta: Real[ArrayLike, ""] | None,
        gamma: Real[ArrayLike, ""] | None,
        mask: PyTree,
        predict_fn: Callable[[PyTree, PyTree], Array] | None,
        weights: Any,
    ) -> None:
        given = given_data(data, weights)
        check_data(given.rows)
        check_center(center)
        center, data = on_common_devices(*jax.tree.map(native, (center, given.rows)))
        num_data = leading_axis(data) if given.num_data is None else given.num_data
        self.center = jax.tree.map(_strong_dtype, center)
        rows = jax.tree.map(lambda x: x if eqx.is_array(x) else np.asarray(x), data)
        self.nbeta = checked_scale("nbeta", num_data / math.log(num_data) if nbeta is None else nbeta)
        self.gamma = None if gamma is None else checked_scale("gamma", gamma)
        self.mask = normalize_mask(mask, self.center)
        note_buffers(self.center, self.mask)
        check_finite(self.position)
        self.per_example = comes_per_example(loss_fn, self.center, rows)
        self.loss_fn = fixed(loss_fn, self.center, rows)
        self.predict_fn = checked_predict_fn(predict_fn, self.center, rows)
        self.data, self.stream, self.whole = rows, given.stream, None
        if given.weights is not None:
            self._weigh(rows, given)
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((self.center, self.data)))
        self.precision = "float64" if traced else self._check_loss()

    def _weigh(self, rows: PyTree, given: Given) -> None:
        if not self.per_example:
            raise ValueError(
                "weights need one loss per example, of shape (batch,), but loss_fn returns a scalar, the mean over the "
                "batch; return the losses of the examples without taking their mean."
            )
        mean_one = given.weights if given.normalized else normalized_weights(given.weights, leading_axis(rows))
        self.data = WeightedRows(rows, mean_one)
        self.loss_fn = Weighted(self.loss_fn)
        self.predict_fn = None if self.predict_fn is None else OfRows(self.predict_fn)

    def _check_loss(self) -> str:
        try:
            loss = self.init_loss()
        except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
            require_computable(error)
            loss = self._loss_in_float32(error)
        if not math.isfinite(loss):
            raise ValueError(f"the loss at w* needs to be finite, got {loss}; check params, data and loss_fn.")
        nbeta = None if isinstance(self.nbeta, Tracer) else float(self.nbeta)
        probe = Probe(self.loss_fn, self.position, self.params_at, self._select, self.per_example, nbeta)
        return check_loss_function(probe, self.data, loss)

    def _loss_in_float32(self, error: Exception) -> float:
        """L(w*) of a loss that fails in float64 and works in float32, in which it is computed from now on."""
        refusal = why_not(error, self.loss_fn, self.center, self.data)
        if not fails_in_float64_alone(error, self.loss_fn, self.center, self.data):
            raise refusal from error
        self.loss_fn = InFloat32(self.loss_fn)
        self.predict_fn = None if self.predict_fn is None else InFloat32(self.predict_fn)
        try:
            loss = self.init_loss()
        except (TypeError, ValueError, IndexError, AssertionError, RuntimeError):
            raise refusal from error
        warnings.warn(
            f"loss_fn works in float32 alone ({type(error).__name__} in float64), so that L(w*) and curvature have the "
            "accuracy of float32; take dtypes of constants and of initial values of loops from params and batch.",
            stacklevel=5,
        )
        return loss

    def check_precision(self) -> None:
        """Raises ValueError if the loss is too coarse at this nβ; only one in half precision is evaluated for it."""
        if not isinstance(self.nbeta, Tracer) and self.precision not in ("float32", "float64"):
            check_precision(self.precision, float(self.nbeta), self.init_loss())

    @property
    def num_data(self) -> int:
        """n, the length of the data's leading axis, or that of a stream."""
        return leading_axis(self.data) if self.stream is None else self.stream.num_data

    def resident(self) -> "LocalPosterior":
        """The posterior of the resident rows of a stream as arrays, at the same nβ; of arrays it is the same one."""
        if self.stream is None:
            return self
        posterior = copy.copy(self)
        object.__setattr__(posterior, "stream", None)
        return posterior

    @property
    def num_params(self) -> int:
        """d, the number of parameters that move."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.position))

    @property
    def weights(self) -> Float[Array | np.ndarray, "n"] | None:
        """Weights of the rows, of mean one; None where all are 1."""
        return self.data.weights if isinstance(self.data, WeightedRows) else None

    @property
    def position(self) -> PyTree:
        """w* as the samplers see it: the parameters that move, and nothing else (see `params_at`)."""
        return self._select(self.center)

    @property
    def scale(self) -> Scale:
        """nβ and γ as numbers.

        Raises:
            ValueError: if the posterior has no γ.
        """
        if self.gamma is None:
            raise ValueError(
                "the posterior needs gamma, got None; give LocalPosterior(gamma=…), or let llc.calibrate choose it."
            )
        return Scale(float(self.nbeta), float(self.gamma))

    def with_scale(
        self, *, nbeta: Real[ArrayLike, ""] | None = None, gamma: Real[ArrayLike, ""] | None = None
    ) -> "LocalPosterior":
        """The same loss, data and w* at another nβ or γ; what is None stays.

        Raises:
            ValueError: if nbeta is not a finite number > 0, or gamma not one >= 0, or if the loss computes in half
                precision and is too coarse at this nβ.
        """
        posterior = self
        if nbeta is not None:
            posterior = eqx.tree_at(lambda p: p.nbeta, posterior, checked_scale("nbeta", nbeta))
            posterior.check_precision()
        if gamma is not None:
            new = checked_scale("gamma", gamma)
            posterior = eqx.tree_at(lambda p: p.gamma, posterior, new, is_leaf=lambda x: x is None)
        return posterior

    def params_at(self, position: PyTree) -> PyTree:
        """Full params with `position` in place of the parameters that move."""
        return with_moved(self.mask, self.center, position)

    def position_of(self, params: PyTree) -> PyTree:
        """The parameters that move, of full `params`: the inverse of `params_at`."""
        return self._select(params)

    @property
    def supports_jvp(self) -> bool:
        """Whether the loss has derivatives along a direction. Through a `jax.custom_vjp` there are gradients only."""
        few = jax.tree.map(lambda x: x[:2], self.data)
        return supports_jvp(lambda z: self.loss(self.params_at(z), few), self.position)

    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """Mean loss over `batch`, or over all the data; of a stream, its resident rows."""
        mean = jnp.mean(self.loss_fn(params, self.data if batch is None else batch))
        return mean if self.whole is None else mean + jnp.asarray(self.whole.added(self._select(params)), mean.dtype)

    def init_loss(self, rows: Int[np.ndarray, "row"] | None = None) -> float:
        """L(w*) over all the data, or the `rows` of these numbers, in float64; of a stream, over its resident rows."""
        with float64():
            data = self.data if rows is None else jax.tree.map(lambda x: x[rows], self.data)
            return mean_loss(self.loss_fn, as_float64(self.center), data, as_float64)

    def potential(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """U(w) = nβ L(w) + γ/2 ‖w − w*‖², the norm over the parameters that move."""
        if self.gamma is None:
            raise ValueError("potential needs gamma, got None; give LocalPosterior(gamma=…).")
        position = self._select(params)
        offset = optax.tree.sub(position, self.position)
        localization = optax.tree.norm(offset, squared=True)
        return self.nbeta * self.loss(params, batch) + 0.5 * self.gamma * localization

    def _select(self, params: PyTree) -> PyTree:
        return moving(self.mask, params)


def _strong_dtype(leaf: Any) -> Any:
    """`leaf`, as a JAX array of strong dtype if it is an array: a weak type would change in the first step."""
    return jnp.asarray(leaf, dtypes.canonicalize_dtype(leaf.dtype)) if eqx.is_array(leaf) else leaf
