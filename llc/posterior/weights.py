r"""Rows with weights: the loss is $L(w) = \frac1n \sum_i w_i\, \ell_i(w)$ with weights of mean one over the $n$ rows.

The weights travel with their rows, so that every part of the program (minibatches, pieces, subsets) has those of the
rows that it looks at, and w_i ℓ_i is the loss of example i to all of them. A mean over some of the rows, drawn at
random, is then an estimate of L without bias, which a mean divided by the weights of those rows is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree


class WeightedRows(NamedTuple):
    """Data and the weights of its rows.

    Attributes:
        rows: what `loss_fn` gets as its batch.
        weights: of mean one over all the data.
    """

    rows: PyTree
    weights: Float[Array | np.ndarray, "row"]


@dataclass(frozen=True)
class Weighted:
    """w_i ℓ_i of a function ℓ of (params or outputs, batch), on a batch of `WeightedRows`."""

    fn: Callable[[PyTree, PyTree], Array]

    @property
    def no_gradient(self) -> str | None:
        """As of `loss.Loss`."""
        return getattr(self.fn, "no_gradient", None)

    @property
    def convolves(self) -> bool:
        """As of `loss.Loss`."""
        return getattr(self.fn, "convolves", False)

    def __call__(self, at: PyTree, batch: PyTree) -> Float[Array, "row"]:
        """Weighted losses of the rows of `batch`."""
        if not isinstance(batch, WeightedRows):
            raise ValueError(
                "batch needs the weights of its rows, as this posterior has weights, got "
                f"{type(batch).__name__}; take it from posterior.data: jax.tree.map(lambda x: x[rows], posterior.data)."
            )
        losses = self.fn(at, batch.rows)
        return losses * jnp.asarray(batch.weights, losses.dtype)


@dataclass(frozen=True)
class OfRows:
    """A function of (params, batch) that knows of no weights, such as `predict_fn`, on a batch with or without them."""

    fn: Callable[[PyTree, PyTree], Array]

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        """What the function gives on the rows of `batch`."""
        return self.fn(params, batch.rows if isinstance(batch, WeightedRows) else batch)


def normalized_weights(weights: Any, num_data: int) -> Any:
    """`weights` divided by their mean.

    Args:
        weights: one of each row, finite and >= 0, not all zero; numbers, counts or a mask.
        num_data: n.

    Raises:
        ValueError: if they are something else.
    """
    if isinstance(weights, Tracer):
        return weights / jnp.mean(weights)
    try:
        array = np.asarray(jax.device_get(weights))
        values = array.astype(np.float64) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):
        values = None
    shape = getattr(weights, "shape", None)
    if values is None or values.shape != (num_data,):
        raise ValueError(
            f"weights need one number for each of the n rows, shape ({num_data},), got "
            f"{type(weights).__name__ if shape is None else f'shape {shape} of {weights.dtype}'}; weights of tokens "
            "belong in data, and into the loss of their row."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not (np.isfinite(values).all() and (values >= 0).all() and np.isfinite(total) and total > 0):
        raise ValueError(
            f"weights need finite numbers >= 0 with a mean above 0, got values from {values.min():.4g} to "
            f"{values.max():.4g}; leave rows out by a weight of 0."
        )
    return values / values.mean()
