r"""The localized tempered posterior: the one density that both roads to λ start from.

$$ p(w) \propto \exp(-U(w)), \qquad U(w) = n\beta\, L_n(w) + \tfrac{\gamma}{2} \lVert w - w^* \rVert^2, $$

with $L_n$ the mean loss over the $n$ data and $n\beta = n / \log n$ unless given (WBIC temperature: Watanabe
2013, §3; localization: Lau et al. 2023, arXiv 2308.12108, eq. 12).
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import dtypes
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from llc.mask import normalize_mask, path_name

_PIECE = 8192  # rows of data in one evaluation of L(w*); bounds the memory, not the result
_SUM_PROBE = 64  # examples with which a summed loss is told from a mean loss


class LocalPosterior(eqx.Module):
    r"""A loss, its data and a minimum w*, tempered by nβ and localized by γ.

    Args:
        loss_fn: `loss_fn(params, batch)`, the mean loss of a batch (a scalar) or one loss per example (shape
            `(batch,)`; enables WAIC, the singular fluctuation and per-example weighting). The loss is in nats per
            example, a negative log likelihood up to a constant. Arrays that it uses belong in `data`: JAX 0.12 keeps
            the values of a float64 array it closes over rounded to float32, also where curvature needs float64.
        center: w*, any pytree with floating-point array leaves: a dict, an equinox or flax model, an `nnx.State`.
            Leaves that are no arrays (activation functions, Python numbers) stay as they are.
        data: any pytree of arrays with the same leading axis, the n examples.
        nbeta: inverse temperature times n. Default n / log n (Watanabe 2013).
        gamma: strength of the tether to w*, in the unit of nβ·loss per squared parameter. None lets calibration
            choose it and report it; sampling needs a number.
        mask: which parameters move (restricted LLC; the others stay at w*). A path or a list of paths such as
            `"layers.0.weight"` (a path stands for all below it; `*` matches), or a pytree prefix of `params` with
            booleans or boolean arrays as leaves. Default: all move.
        predict_fn: optional `predict_fn(params, batch)`, the outputs; used by behavioral gradients.

    Raises:
        ValueError: if the data, the params, the loss at w*, nβ, γ or the mask can't define a posterior.

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
    per_example: bool = eqx.field(static=True)

    def __init__(
        self,
        loss_fn: Callable[[PyTree, PyTree], Array],
        center: PyTree,
        data: PyTree,
        nbeta: Real[ArrayLike, ""] | None = None,
        gamma: Real[ArrayLike, ""] | None = None,
        mask: PyTree = None,
        predict_fn: Callable[[PyTree, PyTree], Array] | None = None,
    ):
        num_data = _leading_axis(data)
        self.loss_fn = loss_fn
        self.center = jax.tree.map(_firm, center)
        _check_center(self.center)
        self.data = jax.tree.map(_as_array, data)
        self.nbeta = _scale("nbeta", num_data / math.log(num_data) if nbeta is None else nbeta)
        self.gamma = None if gamma is None else _scale("gamma", gamma)
        self.mask = normalize_mask(mask, self.center)
        self.predict_fn = predict_fn
        _check_finite(self.position)
        self.per_example = _check_loss(loss_fn, self.center, self.data)

    @property
    def num_data(self) -> int:
        """n, the length of the data's leading axis."""
        return _leading_axis(self.data)

    @property
    def num_params(self) -> int:
        """d, the number of parameters that move."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.position))

    @property
    def position(self) -> PyTree:
        """w* as the samplers see it: the parameters that move, and nothing else (see `params_at`)."""
        return self._select(self.center)

    def with_scale(
        self, *, nbeta: Real[ArrayLike, ""] | None = None, gamma: Real[ArrayLike, ""] | None = None
    ) -> "LocalPosterior":
        """The same loss, data and w* at another nβ or γ; what is None stays.

        Raises:
            ValueError: if nbeta is not a finite number > 0, or gamma not one >= 0.
        """
        posterior = self
        if nbeta is not None:
            posterior = eqx.tree_at(lambda p: p.nbeta, posterior, _scale("nbeta", nbeta))
        if gamma is not None:
            new = _scale("gamma", gamma)
            posterior = eqx.tree_at(lambda p: p.gamma, posterior, new, is_leaf=lambda x: x is None)
        return posterior

    def params_at(self, position: PyTree) -> PyTree:
        """Full params with `position` in place of the parameters that move."""
        if self.mask is None:
            _, rest = eqx.partition(self.center, eqx.is_inexact_array)
            return eqx.combine(position, rest)

        def put(moves, center, moved):
            if moves is True:
                return moved
            if moves is False:
                return center
            return jnp.ravel(center).astype(moved.dtype).at[moves].set(moved).reshape(jnp.shape(center))

        return jax.tree.map(put, self.mask, self.center, position)

    @property
    def has_slopes(self) -> bool:
        """Whether the loss can be differentiated along a direction: not through a `jax.custom_vjp`."""
        few = jax.tree.map(lambda x: x[:2], self.data)

        def along(z):
            return jax.jvp(lambda z: self.loss(self.params_at(z), few), (z,), (z,))

        try:
            return "custom_lin" not in str(jax.make_jaxpr(along)(self.position))  # what can't be compiled
        except TypeError:
            return False

    def loss(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """Mean loss over `batch`, or over all the data."""
        return jnp.mean(self.loss_fn(params, self.data if batch is None else batch))

    def init_loss(self, rows: np.ndarray | None = None) -> float:
        """L(w*) over all the data, or over `rows` of it, evaluated and accumulated in float64."""
        with float64():
            data = self.data if rows is None else jax.tree.map(lambda x: x[rows], self.data)
            return _mean_loss(self.loss_fn, as_float64(self.center), data, as_float64)

    def potential(self, params: PyTree, batch: PyTree = None) -> Float[Array, ""]:
        """U(w) = nβ L(w) + γ/2 ‖w − w*‖², the norm over the parameters that move."""
        if self.gamma is None:
            raise ValueError("potential needs gamma, got None; give LocalPosterior(gamma=…).")
        position = self._select(params)
        offset = optax.tree.sub(position, self.position)
        tether = optax.tree.norm(offset, squared=True)
        return self.nbeta * self.loss(params, batch) + 0.5 * self.gamma * tether

    def _select(self, params: PyTree) -> PyTree:
        if self.mask is None:
            return eqx.filter(params, eqx.is_inexact_array)

        def take(moves, leaf):
            if moves is True:
                return leaf
            return None if moves is False else jnp.ravel(leaf)[moves]

        return jax.tree.map(take, self.mask, params)


def _leading_axis(data: PyTree) -> int:
    """Length of the leading axis that all the data share."""
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(data)}
    if not shapes:
        raise ValueError("data needs at least one array with a leading axis of n examples, got an empty pytree.")
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) > 1 or () in shapes.values():
        raise ValueError(f"all data leaves need the same leading axis, got shapes {shapes}; make them agree on axis 0.")
    (length,) = lengths
    if length < 2:
        raise ValueError(f"data needs n >= 2 examples (nβ = n / log n is not defined below), got n = {length}.")
    return length


def _firm(leaf: Any) -> Any:
    """Arrays as JAX arrays of a firm dtype (a weak one would be another program after the first step)."""
    return jnp.asarray(leaf, dtypes.canonicalize_dtype(leaf.dtype)) if eqx.is_array(leaf) else leaf


def _as_array(leaf: Any) -> Any:
    return leaf if eqx.is_array(leaf) else np.asarray(leaf)


def _scale(name: str, value: Any) -> Any:
    """nβ > 0 or γ >= 0 as a float64 array."""
    if isinstance(value, Tracer):
        return value
    least = ">" if name == "nbeta" else ">="
    try:
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        number = np.asarray(np.nan)
    if number.shape != () or not np.isfinite(number) or number < 0 or (least == ">" and number == 0):
        raise ValueError(f"{name} needs a finite number {least} 0, got {value!r}.")
    return number


def _check_center(center: PyTree) -> None:
    arrays = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(center) if eqx.is_array(leaf)]
    wrong = {path_name(path): str(leaf.dtype) for path, leaf in arrays if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if wrong:
        raise ValueError(
            f"params need real floating-point array leaves, got {wrong}; "
            "cast them, or keep integer and complex state outside of params (close over it in loss_fn)."
        )
    if sum(leaf.size for _, leaf in arrays) == 0:
        raise ValueError("params need at least one floating-point array with elements, got none; check the pytree.")


def _check_finite(position: PyTree) -> None:
    """Raises ValueError if a parameter that moves is not finite; what stays (a causal mask of −∞) may be."""
    leaves = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(position) if not isinstance(x, Tracer)]
    if wrong := [path_name(path) or "params" for path, x in leaves if not np.isfinite(np.asarray(x, np.float64)).all()]:
        raise ValueError(f"params need finite values, got nan or infinity in {wrong}; check the training run.")


def _check_loss(loss_fn: Callable, center: PyTree, data: PyTree) -> bool:
    """Whether the loss comes per example; raises if it is neither that nor a finite mean."""
    num_data = _leading_axis(data)
    probe = jax.tree.map(lambda x: x[:_SUM_PROBE], data)
    size = min(num_data, _SUM_PROBE)
    try:
        shape = eqx.filter_eval_shape(loss_fn, center, probe)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"loss_fn needs to be a function of (params, batch), but on params {_shapes(center)} and a batch "
            f"{_shapes(probe)} it raises {type(error).__name__}: {reason}"
        ) from error
    shape = getattr(shape, "shape", shape)
    if shape not in ((), (size,)):
        raise ValueError(
            f"loss_fn needs to return a scalar (the mean loss) or shape (batch,) = ({size},), got {shape}; "
            "reduce over outputs, not over examples, or take the mean."
        )
    leaves = [x for x in jax.tree.leaves((center, data)) if eqx.is_array(x)]
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return shape != ()
    loss = _mean_loss(loss_fn, center, data)
    if not math.isfinite(loss):
        raise ValueError(f"the loss at w* needs to be finite, got {loss}; check params, data and loss_fn.")
    if shape == ():
        once, doubled = map(float, _once_and_doubled(loss_fn, center, probe))
        if once == 0:  # of an exact fit both are 0
            once, doubled = map(float, _once_and_doubled(loss_fn, _moved(center), probe))
        if once != 0 and abs(doubled / once - 2) < 1e-3:
            raise ValueError(
                "loss_fn needs to return the mean loss of a batch, got a sum (it doubles when the batch is doubled); "
                "divide by the batch size, or return one loss per example."
            )
    return shape != ()


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Local float64; the user's global JAX configuration stays as it is.

    Raises:
        ValueError: if the body fails because `loss_fn` uses a NumPy float64 array directly. JAX 0.12 remembers such an
            array in the precision in which it met it first, and then can't use it in the other one.
    """
    try:
        with jax.enable_x64(True):  # noqa: FBT003
            yield
    except (TypeError, jax.errors.JaxRuntimeError) as error:
        if "requires arguments to have the same dtypes" in str(error) or "RuntimeProgramInputMismatch" in str(error):
            raise ValueError(
                "loss_fn needs to work in float32 and in float64, but it fails in float64: it probably uses a NumPy "
                "float64 array directly. Pass that array as part of data."
            ) from error
        raise


def as_float64(tree: PyTree) -> PyTree:
    """`tree` with its floating-point arrays in float64, for use under `float64()`."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if eqx.is_inexact_array(x) else x, tree)


def _mean_loss(loss_fn: Callable, params: PyTree, data: PyTree, convert: Callable = lambda piece: piece) -> float:
    """Mean loss over `data`, in pieces that fit in memory and are converted there, each weighted by its size."""
    num_data, total = _leading_axis(data), 0.0
    for start in range(0, num_data, _PIECE):
        piece = jax.tree.map(lambda x: x[start : start + _PIECE], data)  # noqa: B023 - used at once
        total += float(jnp.mean(_evaluate(loss_fn, params, convert(piece)))) * min(_PIECE, num_data - start)
    return total / num_data


@eqx.filter_jit
def _evaluate(loss_fn: Callable, params: PyTree, batch: PyTree) -> Array:
    return loss_fn(params, batch)


@eqx.filter_jit
def _once_and_doubled(loss_fn: Callable, params: PyTree, batch: PyTree) -> tuple[Array, Array]:
    return loss_fn(params, batch), loss_fn(params, jax.tree.map(lambda x: jnp.concatenate([x, x]), batch))


def _moved(params: PyTree) -> PyTree:
    """Params away from w*, by a tenth of their size or of 1."""
    rng = np.random.default_rng(0)

    def move(leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        size = 0.1 * max(1.0, float(jnp.sqrt(jnp.mean(leaf.astype(jnp.float32) ** 2))) if leaf.size else 1.0)
        return leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(move, params)


def _shapes(tree: PyTree) -> Any:
    """Shapes of a pytree's arrays, for messages."""
    return {path_name(path) or "itself": np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
