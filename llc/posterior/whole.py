"""L(w*) and ∇L(w*) over all the rows of a stream, from one pass over it in float64."""

import hashlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import as_float64, float64
from llc.posterior.row_reader import RowReader
from llc.posterior.rows import batches, num_rows, rows_that_fit, shapes_of
from llc.posterior.stream import Stream
from llc.posterior.tilt import Whole

_AT_ONCE = 2048  # rows of one evaluation; bounds the memory, not the result


def over_stream(posterior: LocalPosterior) -> Whole | None:
    """L(w*) and ∇L(w*) over all rows of the posterior's stream, computed once for each w*; None of arrays."""
    stream = posterior.stream
    if stream is None:
        return None
    what = (posterior.loss_fn, _digest(posterior))
    return stream.remember(what, lambda: _one_pass(stream, posterior.resident()))


def loss_at_center(posterior: LocalPosterior) -> float:
    """L(w*) over all rows, those of a stream too, in float64."""
    whole = over_stream(posterior)
    return posterior.init_loss() if whole is None else float(whole.loss)


def with_whole(posterior: LocalPosterior) -> LocalPosterior:
    """The posterior on its resident rows, for batches of the whole stream; one of arrays is the same."""
    whole = over_stream(posterior)
    return posterior if whole is None else _put(posterior.resident(), whole)


def on_resident_rows(posterior: LocalPosterior) -> LocalPosterior:
    """The posterior of the resident rows, with L and ∇L of all rows at w* (see tilt.py); one of arrays is the same."""
    whole, stream = over_stream(posterior), posterior.stream
    if whole is None or stream is None:
        return posterior
    resident = posterior.resident()
    here = stream.remember(("resident", posterior.loss_fn, _digest(posterior)), lambda: _mean(resident, resident.data))
    slope = jax.tree.map(lambda a, b: a - b, whole.gradient, here.gradient)
    along = sum(float(np.vdot(g, z)) for g, z in zip(*map(jax.tree.leaves, (slope, _moving(resident))), strict=True))
    return _put(resident, whole._replace(slope=slope, constant=np.float64(whole.loss - here.loss - along)))


def _put(posterior: LocalPosterior, whole: Whole) -> LocalPosterior:
    return eqx.tree_at(lambda p: p.whole, posterior, whole, is_leaf=lambda x: x is None)


def _one_pass(stream: Stream, resident: LocalPosterior) -> Whole:
    reader, done, total = RowReader(stream), 0, None
    size = _rows_at_once(resident)
    while done < stream.num_data:
        rows = reader.take(done, min(size, stream.num_data - done))
        total = _plus(total, _sum(resident, rows))
        done += num_rows(rows)
    return _divided(total, done)._replace(share=np.float64(resident.num_data / done))


def _mean(posterior: LocalPosterior, data: PyTree) -> Whole:
    total = None
    for batch in batches(data, _rows_at_once(posterior)):
        total = _plus(total, _sum(posterior, batch))
    return _divided(total, num_rows(data))


def _rows_at_once(posterior: LocalPosterior) -> int:
    def gradient(batch: PyTree) -> PyTree:
        return jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)

    program = ("gradient", posterior.loss_fn, shapes_of(posterior.center), shapes_of(posterior.position))
    return rows_that_fit(gradient, posterior.data, _AT_ONCE, times=2.0, program=program)  # float64 is twice as wide


def _sum(posterior: LocalPosterior, rows: PyTree) -> Whole:
    """Sums over rows of the loss and the gradient at w*, in float64."""
    kept = eqx.tree_at(lambda p: p.data, posterior, None)
    with float64():
        loss, gradient = _loss_and_gradient(as_float64(kept), as_float64(rows))
        count = num_rows(rows)
        return Whole(count * float(loss), jax.tree.map(lambda g: count * np.asarray(g), gradient))


@eqx.filter_jit
def _loss_and_gradient(posterior: LocalPosterior, batch: PyTree) -> tuple[Float[Array, ""], PyTree]:
    return jax.value_and_grad(lambda z: jnp.mean(posterior.loss_fn(posterior.params_at(z), batch)))(posterior.position)


def _plus(total: Whole | None, part: Whole) -> Whole:
    if total is None:
        return part
    return Whole(total.loss + part.loss, jax.tree.map(np.add, total.gradient, part.gradient))


def _divided(total: Whole | None, count: int) -> Whole:
    if total is None:
        raise ValueError(f"a mean needs rows, got {count}.")
    return Whole(np.float64(total.loss / count), jax.tree.map(lambda g: g / count, total.gradient))


def _moving(posterior: LocalPosterior) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), posterior.position)


def _digest(posterior: LocalPosterior) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves((posterior.center, posterior.mask)):
        digest.update(np.asarray(leaf).tobytes() if eqx.is_array(leaf) else repr(leaf).encode())
    return digest.hexdigest()
