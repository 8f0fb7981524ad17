"""Local float64: where curvature, ranks and L(w*) are decided, whatever the user's global JAX configuration."""

import contextlib
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Local float64; the user's global JAX configuration stays as it is.

    Raises:
        ValueError: if the body fails because `loss_fn` uses a NumPy float64 array directly. JAX 0.12 remembers such an
            array in the precision in which it met it first, and then can't use it in the other one.
    """
    try:
        with jax.enable_x64(True):  # noqa: FBT003
            yield
    except (TypeError, jax.errors.JaxRuntimeError) as error:
        if "requires arguments to have the same dtypes" in str(error) or "RuntimeProgramInputMismatch" in str(error):
            raise ValueError(
                "loss_fn needs to work in float32 and in float64, but it fails in float64: it probably uses a NumPy "
                "float64 array directly. Pass that array as part of data."
            ) from error
        raise


def as_float64(tree: PyTree) -> PyTree:
    """`tree` with its floating-point arrays in float64, for use under `float64()`."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if eqx.is_inexact_array(x) else x, tree)
