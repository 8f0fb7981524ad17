"""Checks of what a posterior is made from: data, params, scales and losses, before anything is computed with them."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from llc.posterior.arguments import is_no_number
from llc.posterior.cures import ANY_SIZE, CURES, NO_AXIS, NO_DROPOUT, first_line
from llc.posterior.mask import path_name
from llc.posterior.precision import check_single
from llc.posterior.tables import fresh_tables

_SHOWN = 8  # leaves in a message
_LONG = 300  # characters of another program's message
_FIRST_ROWS = 64  # on which the shape of the loss is found


def check_data(data: PyTree, name: str = "data") -> None:
    """Raises ValueError if a leaf of the data is no array of numbers, naming it and its type."""
    num_scalars, scalar = 0, None
    for path, leaf in _leaves_with_path(data):
        if isinstance(leaf, bool | int | float | complex | np.generic):
            num_scalars, scalar = num_scalars + 1, scalar or path
            continue
        if reason := _no_array(leaf):
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} needs to be an array of numbers, {reason}")
    if num_scalars > 1 and scalar is not None:
        raise ValueError(
            f"{name} need arrays, got {num_scalars} numbers in lists or tuples, the first at "
            f"{name}{jax.tree_util.keystr(scalar)}: each would be an array of its own. Make one array of them by "
            "np.asarray."
        )


def _leaves_with_path(tree: PyTree) -> list[tuple[tuple[Any, ...], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of JAX, that an iterator is a leaf: it is refused here
        try:
            return jax.tree_util.tree_leaves_with_path(tree)
        except ValueError as error:
            raise ValueError(
                f"params and data need dicts whose keys can be sorted, all text for instance, got others: {error}"
            ) from error


def _no_array(leaf: Any) -> str | None:
    """Why a leaf is no array of numbers, and the cure; None if it is one."""
    name = type(leaf).__name__
    if not hasattr(leaf, "__array__") and not hasattr(leaf, "dtype"):
        if isinstance(leaf, str | bytes):
            return f"got {name}; encode text as integers (tokens, labels) first."
        if hasattr(leaf, "__iter__") or hasattr(leaf, "__next__") or hasattr(leaf, "__getitem__"):
            return (
                f"got {name}, which is iterated over and is no array; read its batches into arrays, "
                "llc.read_batches(loader), or give llc.stream(loader) where they do not fit in memory."
            )
        return f"got {name}; leave out of data what has no row for each example (loss_fn may close over it)."
    if isinstance(leaf, np.ma.MaskedArray):
        return "got a masked array; give x.filled(…), and the mask as another array that loss_fn takes into account."
    dtype = leaf.dtype if isinstance(leaf, jax.Array | np.ndarray) else np.asarray(leaf).dtype
    if dtype == np.bool_ or jnp.issubdtype(dtype, jnp.number):
        return None
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "got keys of JAX; give jax.random.key_data(keys), and take jax.random.wrap_key_data of it in loss_fn."
    cure = {
        "O": "convert it, or pad rows of different lengths and put a mask beside them",
        "M": "take numbers of seconds or days, x.astype('int64')",
        "m": "take numbers of seconds or days, x.astype('int64')",
        "U": "encode text as integers (tokens, labels) first",
        "S": "encode text as integers (tokens, labels) first",
    }.get(dtype.kind, "convert it to numbers")
    return f"got {name} of dtype {dtype}; {cure}."


def native(leaf: Any) -> Any:
    """A NumPy array in a dtype that JAX knows: in the byte order of this machine, and no wider than 128 bits."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    widest = {"f": np.float64, "c": np.complex128}.get(leaf.dtype.kind)
    if widest is not None and leaf.dtype.itemsize > np.dtype(widest).itemsize:
        return leaf.astype(widest)
    return leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))


def leading_axis(data: PyTree) -> int:
    """Length of the leading axis that all the data share."""
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in _leaves_with_path(data)}
    if not shapes:
        raise ValueError("data needs at least one array with a leading axis of n examples, got an empty pytree.")
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) > 1 or () in shapes.values():
        shown = dict(list(shapes.items())[:_SHOWN])
        raise ValueError(
            f"all data leaves need the same leading axis, got shapes {shown} in {len(shapes)} arrays; make them agree "
            "on axis 0, and stack rows in lists to one array (np.stack)."
        )
    (length,) = lengths
    if length < 2:
        raise ValueError(
            f"data needs n >= 2 examples along axis 0, even if nbeta is given, got n = {length}; errors and "
            "minibatches come from rows. If the data are one object of many parts, give the parts as rows (x[0] in "
            "place of x)."
        )
    return length


def checked_scale(name: str, value: Any) -> Any:
    """`value` as a float64 array, if it is a finite number: > 0 as nβ needs it, >= 0 for γ. Tracers are not checked."""
    if isinstance(value, Tracer):
        return value
    least = ">" if name == "nbeta" else ">="
    try:
        number = np.asarray(np.nan if is_no_number(value) else value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        number = np.asarray(np.nan)
    if number.shape != () or not np.isfinite(number) or number < 0 or (least == ">" and number == 0):
        raise ValueError(f"{name} needs a finite number {least} 0, got {value!r}.")
    if number:
        check_single(name, number)
    return number


def check_center(center: PyTree) -> None:
    """Raises ValueError if an array of the params is not of real floating-point numbers, or if there is none."""
    leaves = _leaves_with_path(center)
    arrays = [(path, leaf) for path, leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    wrong = {path_name(path): str(leaf.dtype) for path, leaf in arrays if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if wrong:
        raise ValueError(
            f"params need real floating-point array leaves, got {wrong}; "
            "cast them, or keep integer and complex state, keys and counters outside of params (close over it in "
            "loss_fn). Of an nnx model take nnx.state(model, nnx.Param)."
        )
    if sum(leaf.size for _, leaf in arrays) == 0:
        kinds = sorted({type(leaf).__name__ for _, leaf in leaves})
        raise ValueError(
            f"params need at least one floating-point array with elements, got none, but leaves of type {kinds}; "
            "numbers in lists become one by jnp.asarray."
        )


def note_buffers(center: PyTree, mask: PyTree) -> None:
    """Warns if running averages of batch normalization are among what moves: they are no parameters of the loss."""

    def is_buffer(x: Any) -> bool:
        return getattr(getattr(x, "type", type(x)), "__name__", "") == "BatchStat"

    found = [path for path, x in jax.tree_util.tree_leaves_with_path(center, is_leaf=is_buffer) if is_buffer(x)]
    found += [path for path, _ in jax.tree_util.tree_leaves_with_path(center) if path_name(path[:1]) == "batch_stats"]
    if mask is not None:
        moves = [path for path, m in jax.tree_util.tree_leaves_with_path(mask) if m is not False]
        found = [path for path in found if any(other[: len(path)] == path for other in moves)]
    if found:
        names = sorted({path_name(path) for path in found})
        warnings.warn(
            f"params contain running averages of batch normalization, {names[:6]}, which move like parameters here; "
            "keep them fixed, with mask or by nnx.state(model, nnx.Param).",
            UserWarning,
            stacklevel=4,
        )


def check_finite(position: PyTree, name: str = "params") -> None:
    """Raises ValueError if a parameter that moves is not finite. One that stays (a causal mask of −∞) need not be."""
    leaves = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(position) if not isinstance(x, Tracer)]
    if wrong := [path_name(path) or name for path, x in leaves if not np.isfinite(np.asarray(x, np.float64)).all()]:
        raise ValueError(f"{name} need finite values, got nan or infinity in {wrong}; check the training run.")


def comes_per_example(loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, data: PyTree) -> bool:
    """Whether the loss has one value an example; raises ValueError if it is no loss of (params, batch) at all."""
    if not callable(loss_fn):
        raise ValueError(f"loss_fn needs to be a function of (params, batch), got {type(loss_fn).__name__}.")
    probe = jax.tree.map(lambda x: x[:_FIRST_ROWS], data)
    size = leading_axis(probe)
    try:
        out = _shape_of(loss_fn, center, probe)
    except Exception as error:  # the user's function may raise anything
        raise ValueError(
            f"loss_fn needs to be a function of (params, batch), but on params {_shapes(center)} and a batch "
            f"{_shapes(probe)} it raises {type(error).__name__}: {first_line(error)}"
            f"{_cure(error, loss_fn, center, data)}"
        ) from error
    if out is None or isinstance(out, (tuple, list, dict)):
        kind = f"a {type(out).__name__}" if out is not None else "None; is its return missing?"
        hint = "; leave auxiliary values and gradients out (no value_and_grad)" if isinstance(out, tuple) else ""
        raise ValueError(
            f"loss_fn needs to return a scalar (the mean loss) or shape (batch,) = ({size},), got {kind}{hint}."
        )
    shape, dtype = getattr(out, "shape", ()), getattr(out, "dtype", None)
    if shape not in ((), (size,)):
        raise ValueError(
            f"loss_fn needs to return a scalar (the mean loss) or shape (batch,) = ({size},), got {shape}; "
            "reduce over outputs, not over examples, or take the mean."
        )
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"loss_fn needs to return real floating-point numbers, got {dtype or type(out).__name__}: counts of errors "
            "and booleans have no gradient. Take a loss that has one, such as the negative log likelihood."
        )
    return shape != ()


def _shape_of(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> Any:
    with fresh_tables(loss_fn, params):
        return eqx.filter_eval_shape(loss_fn, params, batch)


def _works(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> bool:
    try:
        _shape_of(loss_fn, params, batch)
    except Exception:  # of the user's function
        return False
    return True


def _cure(error: Exception, loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, data: PyTree) -> str:
    """What to change about a loss that fails on some rows, with a dash before it; empty if that is not known."""
    if type(error).__name__ in CURES:
        return CURES[type(error).__name__]
    words = f"{type(error).__name__} {error}".lower()
    if "rng" in words or "dropout" in words:
        return NO_DROPOUT
    if "unbound axis name" in words:
        return NO_AXIS
    if _works(loss_fn, data, center):
        return " — its arguments are the other way round; take lambda params, batch: loss_fn(batch, params)."
    return ANY_SIZE if _works(loss_fn, center, data) else ""


def fails_in_float64_alone(
    error: Exception, loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, data: PyTree
) -> bool:
    """Whether a loss that failed in float64 works in the precision of its arguments."""
    told = isinstance(error, ValueError) and str(error).startswith(("loss_fn needs", "batch needs"))
    return not told and not isinstance(error, jax.errors.UnexpectedTracerError) and _works(loss_fn, center, data)


def why_not(error: Exception, loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, data: PyTree) -> ValueError:
    """What to raise of a loss that fails in float64 on all the data; what names its cure stays as it is."""
    if isinstance(error, ValueError) and str(error).startswith(("loss_fn needs", "batch needs")):
        return error
    seen = f"raises {type(error).__name__}: {first_line(error)[:_LONG]}"
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return ValueError(f"loss_fn needs to be a fixed function, but it {seen}{CURES[type(error).__name__]}")
    if fails_in_float64_alone(error, loss_fn, center, data):
        return ValueError(
            "loss_fn needs to work in float64 too, in which L(w*) and curvature are computed, but there it "
            f"{seen} — take the dtypes of constants and of the initial values of loops from params and batch. Leave "
            "out a state with counters, as batch normalization has in training mode; use its running averages."
        )
    return ValueError(
        f"loss_fn needs to work on batches of any size, but on {leading_axis(data)} rows it {seen}{ANY_SIZE}"
    )


def _shapes(tree: PyTree) -> str:
    """Shapes of a pytree's arrays by path, for messages: those of the first ones."""
    leaves = _leaves_with_path(tree)
    shown = {path_name(path) or "itself": np.shape(leaf) for path, leaf in leaves[:_SHOWN]}
    if len(leaves) <= _SHOWN:
        return str(shown)
    return f"{shown} and {len(leaves) - _SHOWN} more (rows in a list become one array by np.stack)"
