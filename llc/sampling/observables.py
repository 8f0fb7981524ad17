r"""Functions of the params that are recorded beside the loss: φ(w) − φ(w*) of every draw, or its running moments.

A function has two forms: `fn(params)`, and `fn(params, batch)` over fixed data. Data are walked over in pieces that
fit in memory: values with an axis of rows are joined along it, and a value without one has to be a mean over the rows
where the rows do not fit at once. The value at w* is taken on the same rows and in the same precision, so that the
difference has the rounding of neither.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import Loss, fixed
from llc.posterior.memory import require_memory
from llc.posterior.rows import Rows, even_length, in_pieces, num_rows, rows_that_fit
from llc.sampling.comoments import Comoments, empty_comoments
from llc.sampling.observable import RESERVED, Observable, OfParams, as_records, data_of
from llc.sampling.run_lengths import RunLengths

_ROWS_AT_ONCE = 2048  # where values come by rows; bounds the memory, not the result
_DRAWS_KEPT = 2**30  # bytes of all draws together, up to which they are kept one by one
_COPIES = 1.3  # of the draws: what is recorded, and the buffers of a segment
_COPIES_OF_MOMENTS = 26  # of a value, in each chain: mean, variance and covariance in ten blocks, less in flight
_FEW = (2, 3)  # rows that tell whether a value has an axis of rows
_CHECKED_ROWS = 64  # on which a mean is told from a sum


class Recorded(eqx.Module):
    """One observable as it is evaluated.

    Attributes:
        fn: of (params, batch).
        rows: its data; None for a function of the params alone.
        center: the value at w*.
        by_rows: whether the first axis of the value is that of the rows.
        dims: names of the axes.
        moments: whether running moments are kept instead of the draws.
        partners: observables whose covariances with this one are kept.
    """

    fn: Loss = eqx.field(static=True)
    rows: Rows | None
    center: Array
    by_rows: bool = eqx.field(static=True)
    dims: tuple[str, ...] = eqx.field(static=True)
    moments: bool = eqx.field(static=True)
    partners: tuple[str, ...] = eqx.field(static=True)

    def difference(self, params: PyTree) -> Array:
        """φ(w) − φ(w*)."""
        return _value(self.fn, self.rows, params, by_rows=self.by_rows) - self.center


def prepare_observables(
    observables: Mapping[str, Callable[..., Any] | Observable] | None, posterior: LocalPosterior, lengths: RunLengths
) -> dict[str, Recorded]:
    """Observables as they are evaluated, looked through at w*.

    Args:
        observables: functions or `Observable`s by name; None stands for none.
        posterior: on its device.
        lengths: of the run, which tell how much memory the draws take.

    Raises:
        ValueError: if a name is taken, a function does not return real, finite numbers of one shape at w*, or what is
            kept does not fit in the memory that is free; the message names the observable.
    """
    records = as_records(observables)
    partners = {other for record in records.values() for other in record.covariance_with}
    recorded = {}
    for name, record in records.items():
        needs = name in partners or bool(record.covariance_with)
        recorded[name] = _prepare(name, record, posterior, lengths, needs_moments=needs)
    _check_dims(recorded)
    _check_memory(recorded, lengths)
    return recorded


def _prepare(
    name: str, record: Observable, posterior: LocalPosterior, lengths: RunLengths, *, needs_moments: bool
) -> Recorded:
    center, data = posterior.params_at(posterior.position), data_of(record, posterior)
    fn = fixed(OfParams(record.fn) if data is None else record.fn, center, data, f"observable {name!r}")
    size = math.prod(_shape(name, fn, center, data).shape)
    _require(name, size, lengths, moments=record.moments is not False)  # before that much is computed
    by_rows = data is not None and _comes_by_rows(name, fn, center, data)
    rows = None if data is None else _in_pieces(name, fn, center, data, by_rows=by_rows)
    value = _at_center(fn, rows, center, by_rows=by_rows)
    if wrong := int(np.sum(~np.isfinite(np.asarray(value)))):
        raise ValueError(
            f"observable {name!r} needs finite values at w*, got {wrong} of {value.size} that are not; its difference "
            "to w* would be undefined in every draw."
        )
    dims = _dims(name, record, value.ndim, by_rows=by_rows)
    moments = record.moments
    if moments is False and needs_moments:
        raise ValueError(f"observable {name!r} needs moments=True, or None, where covariance_with asks for it.")
    if moments is None:
        moments = needs_moments or value.itemsize * value.size * _num_values(lengths) > _DRAWS_KEPT
    return Recorded(fn, rows, value, by_rows, dims, moments, tuple(record.covariance_with))


def _shape(name: str, fn: Loss, center: PyTree, data: PyTree) -> jax.ShapeDtypeStruct:
    """The shape of what a function returns on all its data.

    Raises:
        ValueError: if it raises something itself, or returns no array of real numbers.
    """
    try:
        found = eqx.filter_eval_shape(fn, center, data)
    except Exception as error:  # the user's function may raise anything
        reason, form = str(error).partition("\n")[0], "(params)" if data is None else "(params, batch)"
        raise ValueError(
            f"observable {name!r} needs to be a function of {form} that JAX can trace, with a result of fixed shape, "
            f"but at w* it raises {type(error).__name__}: {reason}"
        ) from error
    return _real(name, found)


def _real(name: str, value: Any) -> jax.ShapeDtypeStruct:
    """The shape of what a function returns.

    Raises:
        ValueError: if it is no array of real numbers.
    """
    dtype = getattr(value, "dtype", None)
    real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not real:
        got = type(value).__name__ if dtype is None else str(dtype)
        raise ValueError(f"observable {name!r} needs to return one array of real numbers, got {got}.")
    return value


def _comes_by_rows(name: str, fn: Loss, center: PyTree, data: PyTree) -> bool:
    """Whether the first axis of the value follows the number of rows."""

    def shape_of(size: int) -> tuple[int, ...]:
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), data)
        return _real(name, eqx.filter_eval_shape(fn, center, batch)).shape

    try:
        first, second = (shape_of(size) for size in _FEW)
    except Exception:  # it works on all the data only, which is no mistake
        return False
    if first == second:
        return False
    if first[:1] == _FEW[:1] and second[:1] == _FEW[1:] and first[1:] == second[1:]:
        return True
    raise ValueError(
        f"observable {name!r} needs a result of fixed shape, or with the rows of the batch as its first axis, got "
        f"{first} from {_FEW[0]} rows and {second} from {_FEW[1]}."
    )


def _in_pieces(name: str, fn: Loss, center: PyTree, data: PyTree, *, by_rows: bool) -> Rows:
    total = num_rows(data)
    most = min(total, _ROWS_AT_ONCE) if by_rows else total
    fit = rows_that_fit(lambda batch: fn(center, batch), data, most)
    rows = in_pieces(data, even_length(total, math.ceil(total / fit)))
    if not by_rows and rows.num_rows > rows.length:
        few = jax.tree.map(lambda x: x[:_CHECKED_ROWS], data)
        cut = in_pieces(few, max(1, num_rows(few) // 3))
        both = in_pieces(few, num_rows(few)), cut
        whole, parts = (np.asarray(_at_center(fn, x, center, by_rows=False)) for x in both)
        if not np.allclose(whole, parts, rtol=1e-3, atol=1e-3 * float(np.max(np.abs(whole), initial=0.0))):
            raise ValueError(
                f"observable {name!r} needs to return a mean over the rows of its batch, or a value for each row, as "
                f"its {total} rows do not fit in memory at once, but the mean of its parts is another value; divide "
                "sums by the number of rows, or give fewer rows as data."
            )
    return rows


@eqx.filter_jit
def _at_center(fn: Loss, rows: Rows | None, params: PyTree, *, by_rows: bool) -> Array:
    return _value(fn, rows, params, by_rows=by_rows)


def _value(fn: Loss, rows: Rows | None, params: PyTree, *, by_rows: bool) -> Array:
    """The value over all rows, in float32 or float64."""

    def real(batch: PyTree) -> Array:
        value = jnp.asarray(fn(params, batch))
        return value if value.dtype in (jnp.float32, jnp.float64) else value.astype(jnp.float32)

    if rows is None:
        return real(None)
    if by_rows:
        return rows.map(real)
    shape = jax.eval_shape(real, jax.tree.map(lambda x: x[0], rows.pieces))
    return rows.mean(real, jnp.zeros(shape.shape, shape.dtype))


def _dims(name: str, record: Observable, ndim: int, *, by_rows: bool) -> tuple[str, ...]:
    if record.dims is None:
        return tuple(f"{name}_row" if by_rows and k == 0 else f"{name}_dim_{k}" for k in range(ndim))
    if len(record.dims) != ndim or set(record.dims) & set(RESERVED):
        raise ValueError(
            f"observable {name!r} needs dims to name the {ndim} axes of what it returns, none of them {RESERVED}, got "
            f"{tuple(record.dims)}."
        )
    return tuple(record.dims)


def _check_dims(recorded: Mapping[str, Recorded]) -> None:
    """Raises ValueError if a dimension has two sizes, or the name of an observable."""
    sizes: dict[str, int] = {}
    for name, one in recorded.items():
        for dim, size in zip(one.dims, one.center.shape, strict=True):
            if sizes.setdefault(dim, size) != size or dim in recorded:
                clash = (
                    "is also the name of an observable" if dim in recorded else f"has {sizes[dim]} entries elsewhere"
                )
                raise ValueError(
                    f"observable {name!r} needs dims of its own, but {dim!r} ({size} entries) {clash}; give other dims."
                )


def _num_values(lengths: RunLengths) -> int:
    """How often a number is recorded."""
    return lengths.num_chains * (lengths.num_warmup_draws + lengths.num_draws)


def _check_memory(recorded: Mapping[str, Recorded], lengths: RunLengths) -> None:
    for name, one in recorded.items():
        pairs = sum(recorded[other].center.size for other in one.partners)
        _require(name, one.center.size, lengths, moments=one.moments, pairs=pairs)


def _require(name: str, size: int, lengths: RunLengths, *, moments: bool, pairs: int = 0) -> None:
    """Raises ValueError if what is kept of an observable of `size` numbers does not fit in the free memory."""
    if not moments:
        require_memory(
            int(_COPIES * 4 * size * _num_values(lengths)),
            f"the draws of observable {name!r}, {size:,} numbers each,",
            "llc.Observable(…, moments=True), fewer num_draws, or a larger thinning",
        )
        return
    require_memory(
        _COPIES_OF_MOMENTS * 4 * size * lengths.num_chains * (1 + pairs // 3),
        f"the moments of observable {name!r}, {size:,} numbers and {pairs:,} covariances of each,",
        "fewer rows in its data, fewer num_chains, or no covariance_with",
    )


def differences(recorded: Mapping[str, Recorded], params: PyTree) -> dict[str, Array]:
    """φ(w) − φ(w*) of every observable at the full `params`."""
    return {name: one.difference(params) for name, one in recorded.items()}


def kept_draws(recorded: Mapping[str, Recorded], values: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the values whose draws are kept."""
    return {name: values[name] for name, one in recorded.items() if not one.moments}


def start_comoments(recorded: Mapping[str, Recorded], zero: Array) -> Comoments | None:
    """Moments of no draws yet, in the precision of `zero` (the loss); None where no observable is kept so."""
    centers = {name: one.center for name, one in recorded.items() if one.moments}
    pairs = [(name, other) for name, one in recorded.items() for other in one.partners]
    return empty_comoments(centers, pairs, zero) if centers else None
