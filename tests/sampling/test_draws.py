"""The recorder: one array a leaf, and blocks of moments that stay few; runs that can't fit are refused."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

DATA = np.ones(1000, np.float32)


def posterior(dim, *, per_example=False):
    def loss(p, batch):
        return 0.5 * batch**2 * jnp.sum(p**2) if per_example else jnp.mean(0.5 * batch**2) * jnp.sum(p**2)

    return llc.LocalPosterior(loss, jnp.zeros(dim), DATA, gamma=1.0)


@pytest.mark.slow
@pytest.mark.study
def test_kept_params_are_in_memory_once():
    settings = {"num_draws": 200, "num_warmup": 0, "keep_params": True, "progress": False}
    tracemalloc.start()
    llc.sample(jax.random.key(0), posterior(20_000), llc.SGLD(1e-4), **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 4 * 200 * 20_000 * 4


@pytest.mark.parametrize(
    ("settings", "dim", "named"),
    [({"keep_params": True, "num_draws": 10**7}, 10**5, "keep_params"), ({"num_draws": 10**12}, 2, "num_draws")],
)
def test_what_can_not_fit_is_refused_before_it_starts(settings, dim, named):
    with pytest.raises(ValueError, match=named):
        llc.sample(jax.random.key(0), posterior(dim), llc.SGLD(1e-4), **settings)
