"""LocalPosterior: models of every library, data, masks, L(w*) and what construction refuses."""

import math

import equinox as eqx
import flax.linen
import flax.nnx
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
import llc.posterior
from llc import LocalPosterior

RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(20, 2)).astype(np.float32)
TARGETS = RNG.normal(size=(20, 1)).astype(np.float32)
DATA = {"x": INPUTS, "y": TARGETS}
KEY = jax.random.key(0)


def regression(w, batch):
    """Mean squared loss of y = x·w + b, half of it."""
    outputs = batch["x"] @ w["w"] + w["b"]
    return 0.5 * jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1))


def regression_in_numpy(w, batch):
    outputs = batch["x"].astype(np.float64) @ np.asarray(w["w"], np.float64) + np.asarray(w["b"], np.float64)
    return 0.5 * np.mean(np.sum((outputs - batch["y"]) ** 2, axis=1))


def center():
    return {"w": jnp.array([[0.5], [-1.0]]), "b": jnp.array([0.25])}


# ---- Models of every library ------------------------------------------------------------------------------------


def plain():
    return regression, center(), lambda w: DATA["x"] @ w["w"] + w["b"]


def equinox():
    model = eqx.nn.MLP(2, 1, 3, 1, key=KEY)
    return (lambda m, batch: squared(jax.vmap(m)(batch["x"]), batch)), model, lambda m: jax.vmap(m)(INPUTS)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(1)(jnp.tanh(flax.linen.Dense(3)(x)))


def linen():
    model = Linen()
    params = model.init(KEY, INPUTS)
    return (lambda p, batch: squared(model.apply(p, batch["x"]), batch)), params, lambda p: model.apply(p, INPUTS)


class Nnx(flax.nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = flax.nnx.Linear(2, 3, rngs=rngs), flax.nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def nnx_state():
    graph, state = flax.nnx.split(Nnx(flax.nnx.Rngs(0)), flax.nnx.Param)

    def predict(state, inputs):
        return flax.nnx.merge(graph, state)(inputs)

    return (lambda s, batch: squared(predict(s, batch["x"]), batch)), state, lambda s: predict(s, INPUTS)


def nnx_module():
    model = Nnx(flax.nnx.Rngs(0))
    return (lambda m, batch: squared(m(batch["x"]), batch)), model, lambda m: m(INPUTS)


def haiku_model():
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([3, 1], activation=jnp.tanh)(x)))
    params = model.init(KEY, INPUTS)
    return (lambda p, batch: squared(model.apply(p, batch["x"]), batch)), params, lambda p: model.apply(p, INPUTS)


def squared(outputs, batch):
    return 0.5 * jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1))


MODELS = {
    "dict": (plain, 3),
    "equinox": (equinox, 13),
    "linen": (linen, 13),
    "nnx.State": (nnx_state, 13),
    "nnx.Module": (nnx_module, 13),
    "haiku": (haiku_model, 13),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_library(name):
    make, num_params = MODELS[name]
    loss_fn, params, predict = make()
    posterior = LocalPosterior(loss_fn, params, DATA, nbeta=5.0, gamma=2.0)
    assert (posterior.num_data, posterior.num_params) == (20, num_params)
    assert jax.tree.structure(posterior.params_at(posterior.position)) == jax.tree.structure(params)

    outputs = np.asarray(predict(params), np.float64)
    loss = 0.5 * np.mean(np.sum((outputs - TARGETS) ** 2, axis=1))
    np.testing.assert_allclose(posterior.loss(params), loss, rtol=1e-5)  # float32: 20 rows, a few roundings each
    np.testing.assert_allclose(posterior.init_loss(), loss, rtol=1e-5)

    moved = jax.tree.map(lambda x: x + 0.1, posterior.position)
    outputs = np.asarray(predict(posterior.params_at(moved)), np.float64)
    expected = 5.0 * 0.5 * np.mean(np.sum((outputs - TARGETS) ** 2, axis=1)) + 0.5 * 2.0 * num_params * 0.1**2
    np.testing.assert_allclose(posterior.potential(posterior.params_at(moved)), expected, rtol=1e-5)

    draws = llc.sample(KEY, posterior, llc.SGLD(1e-2), num_chains=2, num_warmup=2, num_draws=8, progress=False)
    assert np.isfinite(draws["posterior"]["llc"]).all()
    assert draws["sample_stats"]["distance"].min() > 0
