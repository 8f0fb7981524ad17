"""The minimum of U below w*, against a linear solve."""

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sweeps.reach import reach

CURVATURES = np.array([1.0, 0.3], np.float32)
MINIMUM = np.array([0.5, -2.0], np.float32)
NBETA, GAMMA = 10.0, 2.0


@pytest.mark.slow
@pytest.mark.parametrize("names", [("a", "b"), ("value", "grad")], ids=str)
def test_minimum_of_a_quadratic(names):
    """Whatever the parameters are called: optax keeps a value and a gradient of its own."""

    def loss_fn(params, batch):
        offsets = jnp.stack([params[name] for name in names]) - MINIMUM
        return 0.5 * jnp.sum(CURVATURES * offsets**2) + 0 * batch

    params = {name: jnp.zeros(()) for name in names}
    posterior = llc.LocalPosterior(loss_fn, params, np.ones(8, np.float32), nbeta=NBETA, gamma=GAMMA)
    found = reach(posterior)
    end = NBETA * CURVATURES * MINIMUM / (NBETA * CURVATURES + GAMMA)
    change = 0.5 * np.sum(CURVATURES * ((end - MINIMUM) ** 2 - MINIMUM**2))
    assert found.change == pytest.approx(change, rel=1e-3)
    assert found.distance == pytest.approx(np.linalg.norm(end), rel=1e-2)
