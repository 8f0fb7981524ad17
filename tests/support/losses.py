"""Data, params and honest losses, of which other losses are made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

_RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
N = 300
INPUTS = _RNG.normal(size=(N, 4)).astype(np.float32)
TARGETS = _RNG.normal(size=(N, 3)).astype(np.float32)
LABELS = _RNG.integers(0, 3, N)
DATA = {"x": INPUTS, "y": TARGETS, "label": LABELS}
PARAMS = {"w": jnp.asarray(_RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.asarray(_RNG.normal(size=3), jnp.float32)}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def outputs(w, batch):
    return batch["x"] @ w["w"] + w["b"]


def squares(w, batch):
    return 0.5 * jnp.sum((outputs(w, batch) - batch["y"]) ** 2, axis=1)


def mean_square(w, batch):
    return jnp.mean(squares(w, batch))


def cross_entropies(w, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs(w, batch), batch["label"])


def in_float32(w, batch):
    w = jax.tree.map(lambda x: x.astype(jnp.float32), w)
    return jnp.mean(jax.nn.relu(100 + cross_entropies(w, batch)).astype(jnp.float32))
