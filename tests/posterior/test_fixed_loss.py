"""A loss is a fixed function: what changes it is found, and what is random is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from tests.support.losses import DATA, PARAMS, outputs, squares
from tests.support.tiers import weekly


class Tempered:
    def __init__(self, beta):
        self.beta = beta

    def loss(self, w, batch):
        return self.beta * squares(w, batch)


def test_a_changed_attribute_is_another_loss():
    model = Tempered(1.0)
    once = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    again = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    assert once.loss_fn == again.loss_fn
    first = once.init_loss()
    largest = llc.spectrum(once).largest
    model.beta = 10.0
    changed = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    assert changed.loss_fn != once.loss_fn
    np.testing.assert_allclose(changed.init_loss(), 10 * first, rtol=1e-12)
    np.testing.assert_allclose(llc.spectrum(changed).largest, 10 * largest, rtol=1e-6)


SCALE = 1.0
TABLE = jnp.ones(3)


def of_globals(w, batch):
    return SCALE * jnp.sum(TABLE * (outputs(w, batch) - batch["y"]) ** 2, axis=1)


@pytest.mark.parametrize(("name", "value"), [("SCALE", 3.0), ("TABLE", 3 * jnp.ones(3))])
def test_a_changed_global_is_another_loss(name, value, monkeypatch):
    first = LocalPosterior(of_globals, PARAMS, DATA, gamma=1.0).init_loss()
    monkeypatch.setitem(globals(), name, value)
    np.testing.assert_allclose(LocalPosterior(of_globals, PARAMS, DATA, gamma=1.0).init_loss(), 3 * first, rtol=1e-12)


WEIGHT = [1.0]


def weigh(x):
    return WEIGHT[0] * x


def weighed_squares(w, batch):
    return WEIGHT[0] * squares(w, batch)


@jax.custom_vjp
def weigh_by_hand(x):
    return WEIGHT[0] * x


weigh_by_hand.defvjp(lambda x: (WEIGHT[0] * x, None), lambda _, g: (WEIGHT[0] * g,))
JITTED, CHECKPOINTED = jax.jit(weighed_squares), jax.checkpoint(weighed_squares)
KEPT = {  # functions within the loss that JAX finds by their identity
    "jit": JITTED,
    "checkpoint": CHECKPOINTED,
    "partial of a jit": functools.partial(jax.jit(lambda _, w, batch: weighed_squares(w, batch)), 0),
    "a jitted part": lambda w, batch: JITTED(w, batch),
    "a checkpointed part": lambda w, batch: CHECKPOINTED(w, batch),
    "body of a map": lambda w, batch: jax.lax.map(weigh, squares(w, batch)),
    "branches": lambda w, batch: jax.lax.cond(w["b"][0] > -100, weigh, lambda x: x, squares(w, batch)),
    "body of a loop": lambda w, batch: jax.lax.fori_loop(0, 1, lambda _, x: weigh(x), squares(w, batch)),
    "custom_vjp": lambda w, batch: weigh_by_hand(squares(w, batch)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(KEPT, but=("jit", "checkpoint", "branches", "custom_vjp")))
def test_a_changed_function_that_jax_keeps_is_another_loss(name):
    try:
        first = LocalPosterior(KEPT[name], PARAMS, DATA, gamma=1.0)
        before = first.init_loss()
        WEIGHT[0] = 3.0
        second = LocalPosterior(KEPT[name], PARAMS, DATA, gamma=1.0)
        assert second.loss_fn != first.loss_fn
        np.testing.assert_allclose(second.init_loss(), 3 * before, rtol=1e-12)
    finally:
        WEIGHT[0] = 1.0


NOISE = np.random.default_rng(5)
COUNT = [0]


def counting(w, batch):
    COUNT[0] += 1
    return COUNT[0] * squares(w, batch)


def called_back(w, batch):
    noise = jax.pure_callback(lambda: np.float32(NOISE.normal()), jax.ShapeDtypeStruct((), jnp.float32))
    return squares(w, batch) + noise


CHAIN = [jax.random.key(1)]


def splitting(w, batch):
    """A key that is kept from call to call."""
    CHAIN[0], key = jax.random.split(CHAIN[0])
    return squares(w, batch) + jax.random.normal(key, (3,)) @ w["b"]


DRAWING = jax.jit(lambda w, batch: squares(w, batch) * NOISE.normal())
RANDOM = {
    "a key that is split": splitting,
    "np.random in a jitted part": lambda w, batch: DRAWING(w, batch),
    "np.random in a body": lambda w, batch: jax.lax.map(lambda x: x * NOISE.normal(), squares(w, batch)),
    "np.random": lambda w, batch: squares(w, batch) * NOISE.normal(),
    "np.random array": lambda w, batch: squares(w, batch) + NOISE.normal(size=3) @ w["b"],
    "a counter": counting,
    "a callback": called_back,
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_loss_that_is_no_fixed_function_is_refused(name):
    with pytest.raises(ValueError, match=r"loss_fn needs to be a fixed function"):
        LocalPosterior(RANDOM[name], PARAMS, DATA, gamma=1.0)
