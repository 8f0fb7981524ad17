"""The model file that commands are given in tests."""

MODEL = """
import jax.numpy as jnp
import numpy as np
import llc

def regression():
    inputs = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    return llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(3), inputs, gamma=1.0)

posterior = regression()
number = 3

def saddle():
    def loss_fn(w, x):
        return 0.5 * w[0] ** 2 + 0.25 * (w[1] ** 2 - 1) ** 2 + 0 * jnp.sum(x)

    return llc.LocalPosterior(loss_fn, jnp.zeros(2), np.zeros((500, 1)), gamma=1.0)
"""
