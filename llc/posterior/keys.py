"""What a key of JAX is."""

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: object) -> None:
    """Raises ValueError if `key` is not a key of JAX."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    legacy = dtype == np.uint32 and shape == jax.random.key_data(jax.random.key(0)).shape
    if not (typed or legacy):
        raise ValueError(f"key needs to be jax.random.key(seed), got {key!r}.")
