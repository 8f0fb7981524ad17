"""Checks of what a posterior is made from: data, params, scales and losses, before anything is computed with them."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from llc.posterior.mask import path_name
from llc.posterior.rows import mean_loss

_SUM_PROBE = 64  # examples on which a summed loss is told from a mean loss


def leading_axis(data: PyTree) -> int:
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


def checked_scale(name: str, value: Any) -> Any:
    """`value` as a float64 array, if it is a finite number: > 0 as nβ needs it, >= 0 for γ. Tracers are not checked."""
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


def check_center(center: PyTree) -> None:
    """Raises ValueError if an array of the params is not of real floating-point numbers, or if there is none."""
    arrays = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(center) if eqx.is_array(leaf)]
    wrong = {path_name(path): str(leaf.dtype) for path, leaf in arrays if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if wrong:
        raise ValueError(
            f"params need real floating-point array leaves, got {wrong}; "
            "cast them, or keep integer and complex state outside of params (close over it in loss_fn)."
        )
    if sum(leaf.size for _, leaf in arrays) == 0:
        raise ValueError("params need at least one floating-point array with elements, got none; check the pytree.")


def check_finite(position: PyTree) -> None:
    """Raises ValueError if a parameter that moves is not finite. One that stays (a causal mask of −∞) need not be."""
    leaves = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(position) if not isinstance(x, Tracer)]
    if wrong := [path_name(path) or "params" for path, x in leaves if not np.isfinite(np.asarray(x, np.float64)).all()]:
        raise ValueError(f"params need finite values, got nan or infinity in {wrong}; check the training run.")


def check_loss(loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, data: PyTree) -> bool:
    """Whether the loss comes per example; raises ValueError if it is neither that nor a mean, or not finite at w*."""
    probe = jax.tree.map(lambda x: x[:_SUM_PROBE], data)
    per_example = _comes_per_example(loss_fn, center, probe)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((center, data))):
        return per_example
    loss = mean_loss(loss_fn, center, data)
    if not math.isfinite(loss):
        raise ValueError(f"the loss at w* needs to be finite, got {loss}; check params, data and loss_fn.")
    if not per_example:
        _check_mean(loss_fn, center, probe)
    return per_example


def _comes_per_example(loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, probe: PyTree) -> bool:
    """Whether the loss of the batch `probe` has one value an example; raises ValueError if it is no loss at all."""
    size = leading_axis(probe)
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
    return shape != ()


def _check_mean(loss_fn: Callable[[PyTree, PyTree], Array], center: PyTree, probe: PyTree) -> None:
    """Raises ValueError if a scalar loss is a sum: it doubles with the batch. At an exact fit both would be 0."""
    once, doubled = map(float, _once_and_doubled(loss_fn, center, probe))
    if once == 0:
        once, doubled = map(float, _once_and_doubled(loss_fn, _moved(center), probe))
    if once != 0 and abs(doubled / once - 2) < 1e-3:
        raise ValueError(
            "loss_fn needs to return the mean loss of a batch, got a sum (it doubles when the batch is doubled); "
            "divide by the batch size, or return one loss per example."
        )


@eqx.filter_jit
def _once_and_doubled(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> tuple[Array, Array]:
    return loss_fn(params, batch), loss_fn(params, jax.tree.map(lambda x: jnp.concatenate([x, x]), batch))


def _moved(params: PyTree) -> PyTree:
    """Params moved away from w* at random, by a tenth of their size or of 1."""
    rng = np.random.default_rng(0)

    def move(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        size = 0.1 * max(1.0, float(jnp.sqrt(jnp.mean(leaf.astype(jnp.float32) ** 2))) if leaf.size else 1.0)
        return leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(move, params)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of a pytree's arrays by path, for messages."""
    return {path_name(path) or "itself": np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
