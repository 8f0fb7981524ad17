import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.higher_order.excess import excess_loss
from llc.geometry.higher_order.symmetry import symmetry_dimension
from llc.posterior.precision import float64

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 3))


def _net(activation, *, mask=None):
    """3 inputs, 4 hidden units with biases, 2 outputs with biases."""
    params = {
        "a": RNG.normal(size=(3, 4)),
        "b": RNG.normal(size=4),
        "c": RNG.normal(size=(4, 2)),
        "e": RNG.normal(size=2),
    }

    def loss(params, x):
        outputs = activation(x @ params["a"] + params["b"]) @ params["c"] + params["e"]
        return jnp.sum(jnp.sin(outputs) + outputs**2, axis=-1)

    return llc.LocalPosterior(loss, params, INPUTS, mask=mask)


def _attention():
    """One head of width 2 in a model of width 3, and a softmax over 5 classes, three tokens a row."""
    params = {name: RNG.normal(size=(3, 2)) for name in ("query", "key", "value")}
    params |= {"out": RNG.normal(size=(2, 3)), "logits": RNG.normal(size=(3, 5))}

    def loss(params, x):
        query, key, value = (x @ params[name] for name in ("query", "key", "value"))
        weights = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2), axis=-1)
        logits = jnp.tanh(weights @ value @ params["out"]) @ params["logits"]
        return -jnp.mean(jax.nn.log_softmax(logits, axis=-1)[..., 0], axis=1)

    return llc.LocalPosterior(loss, params, RNG.normal(size=(20, 3, 3)))


def _symmetry(posterior, *generators):
    with float64():
        return symmetry_dimension(excess_loss(posterior, jax.random.key(0)), jax.random.key(1), generators)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "dimension"),
    [
        (_net(lambda x: x), 26 - 8),  # the fibre of an affine map from 3 to 2, by GL(4) and moves of the biases
        (_net(jax.nn.relu), 4),
        (_net(jnp.tanh), 0),
        (_net(lambda x: x, mask=["a", "b"]), 0),
        (_net(lambda x: x, mask=["a", "c"]), 0),  # the biases are held, and exchange would have to move b
        (_attention(), 4 + 4 + 3),  # GL(2) twice, and each row of the last matrix shifts all logits
    ],
    ids=["linear", "relu", "tanh", "one layer moves", "held biases", "attention"],
)
def test_known_dimensions(posterior, dimension):
    assert _symmetry(posterior).dimension == dimension


@pytest.mark.slow
def test_given_generators_are_verified():
    def scale(params):
        return {"a": params["a"], "b": params["b"], "c": -params["c"], "e": 0 * params["e"]}

    def wrong(params):
        return jax.tree.map(jnp.ones_like, params)

    linear, curved = _net(lambda x: x), _net(jnp.tanh)
    both = _symmetry(linear, scale, wrong)
    assert (both.dimension, both.kinds["given"], both.rejected) == (18, 1, 1)  # the scale is one of GL(4)
    rejected = _symmetry(curved, scale)
    assert (rejected.dimension, rejected.kinds, rejected.rejected) == (0, {}, 1)
    rescaled = llc.LocalPosterior(lambda w, x: (w[0] * w[1] ** 2 - 1) ** 2 * jnp.mean(x**2), np.ones(2), INPUTS)
    assert _symmetry(rescaled).dimension == 0
    assert _symmetry(rescaled, lambda w: jnp.stack([2 * w[0], -w[1]])).dimension == 1


def test_held_parameters_stay():
    with pytest.raises(ValueError, match="generators need a zero tangent"):
        _symmetry(_net(jnp.tanh, mask="a"), lambda params: jax.tree.map(jnp.ones_like, params))


def test_the_orbit_is_that_of_the_point():
    """At A = 0 only the fields that move B are left: GL acts on B alone, with dimension outputs × rank B."""

    def loss(params, x):
        return jnp.sum((x @ params["a"] @ params["c"]) ** 2, axis=-1)

    params = {"a": np.zeros((3, 4)), "c": np.eye(4)[:, :2] @ RNG.normal(size=(2, 2))}
    assert _symmetry(llc.LocalPosterior(loss, params, INPUTS)).dimension == 8
