"""L(w*) and ∇L(w*) over all the rows of a stream, from one pass over it."""

import hashlib
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import as_float64, float64
from llc.posterior.row_reader import RowReader
from llc.posterior.rows import mean_loss, num_rows, rows_that_fit, shapes_of
from llc.posterior.stream import Stream

_AT_ONCE = 2048  # rows of one evaluation; bounds the memory, not the result


class Whole(NamedTuple):
    """What is known of the loss over all rows.

    Attributes:
        loss: L(w*), in float64.
        gradient: ∇L(w*) by the parameters that move, in their precision.
    """

    loss: float
    gradient: PyTree


def over_stream(posterior: LocalPosterior) -> Whole | None:
    """L(w*) and ∇L(w*) over all rows of the posterior's stream, computed once for each w*; None of arrays."""
    stream = posterior.stream
    if stream is None:
        return None
    what = (posterior.loss_fn, _digest(posterior), jax.config.jax_enable_x64)
    return stream.remember(what, lambda: _one_pass(stream, posterior.resident()))


def with_gradient(posterior: LocalPosterior, whole: Whole | None) -> LocalPosterior:
    """The posterior of the resident rows, with the gradient over all rows beside them."""
    if whole is None:
        return posterior
    return eqx.tree_at(lambda p: p.stream_gradient, posterior.resident(), whole.gradient, is_leaf=lambda x: x is None)


def _one_pass(stream: Stream, resident: LocalPosterior) -> Whole:
    dtypes = jax.tree.map(lambda x: x.dtype, resident.data)
    program = ("gradient", resident.loss_fn, shapes_of(resident.center), shapes_of(resident.position))
    size = rows_that_fit(lambda batch: _gradient(resident, batch), resident.data, _AT_ONCE, program=program)
    reader, done, total, loss = RowReader(stream), 0, None, 0.0
    while done < stream.num_data:
        rows = reader.take(done, min(size, stream.num_data - done))
        rows = jax.tree.map(lambda x, dtype: np.asarray(x, dtype), rows, dtypes)
        weight = num_rows(rows) / stream.num_data
        total = _add(resident, rows, total, np.float64(weight))
        with float64():
            loss += weight * mean_loss(resident.loss_fn, as_float64(resident.center), rows, as_float64)
        done += num_rows(rows)
    return Whole(loss, total)


def _gradient(posterior: LocalPosterior, batch: PyTree) -> PyTree:
    return jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)


@eqx.filter_jit
def _add(posterior: LocalPosterior, batch: PyTree, total: PyTree, weight: jax.Array) -> PyTree:
    """`total`, or zero for None, with the gradient on a batch of that weight."""
    part = jax.tree.map(lambda g: jnp.asarray(weight, g.dtype) * g, _gradient(posterior, batch))
    return part if total is None else jax.tree.map(jnp.add, total, part)


def _digest(posterior: LocalPosterior) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves((posterior.center, posterior.mask)):
        digest.update(np.asarray(leaf).tobytes() if eqx.is_array(leaf) else repr(leaf).encode())
    return digest.hexdigest()
