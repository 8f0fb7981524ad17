"""Local float64, in which curvature, ranks and L(w*) are computed whatever the user's global JAX configuration is."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """A context in which JAX promotes dtypes and ranks and moves arrays to its device as it does by default.

    The flags that forbid it (`jax_numpy_dtype_promotion`, `jax_numpy_rank_promotion`, `jax_transfer_guard`) are
    there to find slips in the user's own program, and are as they were afterwards.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.transfer_guard("allow"):
        yield


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """A context with float64 switched on, after which the user's global JAX configuration is as it was.

    Raises:
        ValueError: as of `either_precision`.
    """
    with either_precision(), jax.enable_x64(True), lenient():  # noqa: FBT003
        yield


@contextlib.contextmanager
def either_precision() -> Iterator[None]:
    """A context in which the loss is traced.

    Raises:
        ValueError: if the body fails because `loss_fn` uses a wide NumPy array that `tables` does not find. JAX 0.12
            remembers such an array in the precision in which it is used first, and fails to use it in the other one.
    """
    try:
        yield
    except (TypeError, jax.errors.JaxRuntimeError) as error:
        if "requires arguments to have the same dtypes" in str(error) or "RuntimeProgramInputMismatch" in str(error):
            raise ValueError(
                "loss_fn needs to work in float32 and in float64, but not in one after the other: it probably uses a "
                "NumPy array of int64 or float64 where it can't be found (inside of a library's object). Make it "
                "int32 or float32, x.astype(np.float32), or pass it as part of data."
            ) from error
        raise


def check_single(name: str, value: float | np.ndarray) -> None:
    """Refuses a number above 0 in whose place float32 has 0 or infinity.

    Raises:
        ValueError: that calls it `name`.
    """
    limits = np.finfo(np.float32)
    if not limits.tiny <= value <= limits.max:
        raise ValueError(
            f"{name} needs a number that float32 can hold, from {limits.tiny:.3g} to {limits.max:.3g}, got {value}: "
            "chains would compute with 0 or infinity in its place. Change the unit of the loss or of the params."
        )


def as_float64(tree: PyTree) -> PyTree:
    """`tree` with its floating-point arrays in float64, for use under `float64()`; complex ones stay complex."""
    return as_precision(tree, jnp.float64)


def as_precision(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """`tree` with its floating-point arrays as `dtype`, and its complex ones as the complex numbers of that precision.

    Args:
        tree: params, data or an operator; what else it holds stays.
        dtype: a real one.
    """

    def cast(leaf: object) -> object:
        if not eqx.is_inexact_array(leaf):
            return leaf
        array = jnp.asarray(leaf)
        is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
        return array.astype(jnp.result_type(dtype, jnp.complex64) if is_complex else dtype)

    return jax.tree.map(cast, tree)


@dataclass(frozen=True)
class InFloat32:
    """A function of (params, batch) that takes no float64, on arguments of any precision: computed in float32.

    Recurrent layers are such functions, as far as their libraries start the state in float32. Derivatives pass through
    the casts, with the accuracy of float32.
    """

    fn: Callable[[PyTree, PyTree], Array]

    @property
    def no_gradient(self) -> str | None:
        """As of `loss.Loss`."""
        return getattr(self.fn, "no_gradient", None)

    @property
    def convolves(self) -> bool:
        """As of `loss.Loss`."""
        return getattr(self.fn, "convolves", False)

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        """What the function gives on float32."""
        return self.fn(*jax.tree.map(_at_most_float32, (params, batch)))


def _at_most_float32(leaf: object) -> object:
    if not eqx.is_inexact_array(leaf):
        return leaf
    array = jnp.asarray(leaf)
    narrow = {"float64": jnp.float32, "complex128": jnp.complex64}.get(array.dtype.name)
    return leaf if narrow is None else array.astype(narrow)
