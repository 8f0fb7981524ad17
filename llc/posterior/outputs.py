"""Whether `predict_fn` is a function of (params, batch) with an array of outputs for each example."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from llc.posterior.arguments import require_callable
from llc.posterior.cures import first_line
from llc.posterior.loss import Loss, fixed
from llc.posterior.tables import fresh_tables
from llc.posterior.validation import leading_axis

_ROWS = (3, 2)  # of two batches, whose outputs have another leading axis each


def checked_predict_fn(
    predict_fn: Callable[[PyTree, PyTree], Array] | None, params: PyTree, rows: PyTree, *, of: str = "batch"
) -> Loss | None:
    """`predict_fn` as `fixed` makes it; None if there is none.

    Its outputs are looked at in the abstract on two batches of a few rows, and computed on the smaller one.

    Args:
        predict_fn: as it was given.
        params: w*.
        rows: all the data, or inputs.
        of: what its second argument is called.

    Raises:
        ValueError: if it can't be called so, raises, or returns anything but finite real numbers of shape (batch, …).
    """
    require_callable("predict_fn", predict_fn, f"a function of (params, {of})", optional=True)
    if predict_fn is None:
        return None
    size, batch = 0, rows
    for size in sorted({min(size, leading_axis_of(rows)) for size in _ROWS}, reverse=True):
        batch = _first(rows, size)
        _check_shape(_called(predict_fn, params, batch, of, abstract=True), size, of)
    found = fixed(predict_fn, params, rows, "predict_fn")
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, rows))):
        outputs = np.asarray(_called(predict_fn, params, batch, of, abstract=False), np.float64)
        if not np.isfinite(outputs).all():
            raise ValueError(
                f"predict_fn needs to return finite numbers, got nan or infinity on the first {size} rows at w*; check "
                "params and data, and a division or logarithm in predict_fn."
            )
    return found


def _first(rows: PyTree, size: int) -> PyTree:
    return jax.tree.map(lambda x: x[:size] if np.ndim(x) else x, rows)


def leading_axis_of(rows: PyTree) -> int:
    """Length of the leading axis of inputs, which may be one row."""
    lengths = [np.shape(leaf)[0] for leaf in jax.tree.leaves(rows) if np.ndim(leaf)]
    return min(lengths) if lengths else leading_axis(rows)


def _called(
    predict_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree, of: str, *, abstract: bool
) -> Any:
    try:
        if not abstract:
            return predict_fn(params, jax.tree.map(jnp.asarray, batch))
        with fresh_tables(predict_fn, params):
            return eqx.filter_eval_shape(predict_fn, params, batch)
    except Exception as error:  # the user's function may raise anything
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        raise ValueError(
            f"predict_fn needs to be a function of (params, {of}), but on a {of} of shapes {shapes[:8]} it raises "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _check_shape(outputs: Any, size: int, of: str) -> None:
    shape, dtype = getattr(outputs, "shape", None), getattr(outputs, "dtype", None)
    if shape is not None and dtype is not None and shape[:1] == (size,) and jnp.issubdtype(dtype, jnp.floating):
        return
    seen = type(outputs).__name__ if shape is None or dtype is None else f"{dtype} of shape {shape}"
    raise ValueError(
        f"predict_fn needs to return an array of real numbers of shape (batch, …) = ({size}, …) on a {of} of {size} "
        f"rows, got {seen}; return the outputs of every example (logits, not classes) and nothing else."
    )
