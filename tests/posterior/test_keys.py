"""What is taken as a random key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.keys import check_key


@pytest.mark.parametrize("key", [0, np.zeros(2, np.float32), jax.random.split(jax.random.key(0), 3), None])
def test_what_is_no_key(key):
    with pytest.raises(ValueError, match=r"key needs to be jax.random.key\(seed\), got"):
        check_key(key)


def test_legacy_keys_are_keys():
    key = jax.random.PRNGKey(0)
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), np.ones(100), gamma=1.0)
    draws = llc.sample(key, posterior, llc.SGLD(1e-3), num_warmup=0, num_draws=3, progress=False)
    assert np.isfinite(draws["posterior"]["llc"]).all()
    check_key(np.asarray(key))
