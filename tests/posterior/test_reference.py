"""The loss of a model that has learnt nothing: a constant's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.reference import reference_loss


def network(params, batch):
    x, y = batch
    logits = jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]
    return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]


RNG = np.random.default_rng(0)
PARAMS = {"in": RNG.normal(size=(3, 5)), "out": RNG.normal(size=(5, 4)), "bias": np.zeros(4)}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
DATA = RNG.normal(size=(50, 3)).astype(np.float32), RNG.integers(0, 4, 50)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, "out", "bias"])
def test_that_of_a_classifier_is_the_log_of_its_classes(mask):
    """Whatever moves: a head that is masked out is as far from chance as the network is."""
    assert reference_loss(llc.LocalPosterior(network, PARAMS, DATA, mask=mask)) == pytest.approx(np.log(4), abs=1e-12)


def test_that_of_a_regression_is_the_mean_square_of_some_rows():
    """With more rows than are looked at, within four standard errors of all of them."""
    targets = RNG.normal(size=20_000).astype(np.float32)
    posterior = llc.LocalPosterior(lambda w, y: (w - y) ** 2, jnp.float32(targets.mean()), targets)
    squares = targets.astype(float) ** 2
    assert abs(reference_loss(posterior) - squares.mean()) < 4 * squares.std() / np.sqrt(8192)


def test_there_is_none_where_the_loss_at_zero_is_not_finite():
    posterior = llc.LocalPosterior(lambda w, x: jnp.log(w) ** 2 + 0 * x, jnp.float32(1.0), np.zeros(100, np.float32))
    assert reference_loss(posterior) is None
    draws = llc.sample(jax.random.key(0), posterior.with_scale(gamma=1.0), llc.SGLD(1e-3), num_warmup=0, num_draws=4)
    assert "reference_loss" not in draws["constant_data"]
    with jax.debug_nans(True):
        assert reference_loss(posterior) is None
