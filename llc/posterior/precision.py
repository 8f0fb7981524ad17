"""Local float64, in which curvature, ranks and L(w*) are computed whatever the user's global JAX configuration is."""

import contextlib
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """A context with float64 switched on, after which the user's global JAX configuration is as it was.

    Raises:
        ValueError: if the body fails because `loss_fn` uses a NumPy float64 array directly. JAX 0.12 remembers such an
            array in the precision in which it is used first, and fails to use it in the other one.
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
