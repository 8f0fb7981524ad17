"""Local float64, in which curvature, ranks and L(w*) are computed whatever the user's global JAX configuration is."""

import contextlib
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


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


def as_float64(tree: PyTree) -> PyTree:
    """`tree` with its floating-point arrays in float64, for use under `float64()`."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if eqx.is_inexact_array(x) else x, tree)
