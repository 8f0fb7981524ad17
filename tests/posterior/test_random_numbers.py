"""Losses that draw random numbers of a fixed key: in float64 those of the default dtype are others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
Y = X.sum(axis=1)
SEEDS = np.arange(100, dtype=np.int32)


def _loss_with(draw):
    """Squared errors of inputs that are multiplied by what is drawn."""
    return lambda w, batch: (batch[0] * draw(batch) @ w - batch[1]) ** 2


def _of_rows(dtype):
    def noise(seed):
        return jax.random.normal(jax.random.fold_in(KEY, seed), (3,), dtype)

    return lambda batch: jax.vmap(noise)(batch[2])


DEFAULT = {
    "normal": lambda batch: jax.random.normal(KEY, (3,)),
    "bernoulli": lambda batch: jax.random.bernoulli(KEY, 0.5, (3,)),
    "of each row": _of_rows(None),
    "in a loop": lambda batch: jax.lax.scan(lambda c, k: (c + jax.random.uniform(k), 0), 0.0, jax.random.split(KEY))[0],
}
FIXED = {
    "normal": lambda batch: jax.random.normal(KEY, (3,), jnp.float32),
    "bernoulli": lambda batch: jax.random.bernoulli(KEY, jnp.float32(0.5), (3,)),
    "of each row": _of_rows(jnp.float32),
    "permutation": lambda batch: batch[0][:, jax.random.permutation(KEY, 3)],
}


@pytest.mark.parametrize("name", DEFAULT)
def test_numbers_of_the_default_dtype_are_refused(name):
    with pytest.raises(ValueError, match=r"random numbers of the default dtype.*dtype=jnp\.float32"):
        llc.LocalPosterior(_loss_with(DEFAULT[name]), jnp.ones(3), (X, Y, SEEDS))


@pytest.mark.parametrize("name", FIXED)
def test_numbers_of_a_fixed_dtype_make_one_function(name):
    posterior = llc.LocalPosterior(_loss_with(FIXED[name]), jnp.ones(3), (X, Y, SEEDS))
    assert posterior.init_loss() == pytest.approx(float(posterior.loss(posterior.center)), rel=1e-5)


def test_where_all_is_float64_they_are_the_same():
    with jax.enable_x64(True):
        posterior = llc.LocalPosterior(_loss_with(DEFAULT["normal"]), jnp.ones(3), (X, Y, SEEDS))
        assert posterior.init_loss() == pytest.approx(float(posterior.loss(posterior.center)), rel=1e-5)
