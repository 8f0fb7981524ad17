"""Walks over the rows of the data in pieces that fit in memory."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_PIECE = 8192  # rows of data in one evaluation of L(w*); bounds the memory, not the result


def mean_loss(loss_fn: Callable, params: PyTree, data: PyTree, convert: Callable = lambda piece: piece) -> float:
    """Mean loss over `data`, in pieces that fit in memory and are converted there, each weighted by its size."""
    num_data, total = len(jax.tree.leaves(data)[0]), 0.0
    for start in range(0, num_data, _PIECE):
        piece = jax.tree.map(lambda x: x[start : start + _PIECE], data)  # noqa: B023 - used at once
        total += float(jnp.mean(_evaluate(loss_fn, params, convert(piece)))) * min(_PIECE, num_data - start)
    return total / num_data


@eqx.filter_jit
def _evaluate(loss_fn: Callable, params: PyTree, batch: PyTree) -> Array:
    return loss_fn(params, batch)
