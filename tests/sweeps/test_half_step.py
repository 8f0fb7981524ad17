"""An item of a sweep whose energies are not Gamma-distributed: a run at half the step tells that it is the shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis import schema

LENGTHS = {"num_warmup": 100, "num_draws": 500, "thinning": 5}


def quartic():
    """Σ w⁴ under γ = 200 at nβ = 145: the mean energy is about nine times its variance."""
    rows = np.zeros((1000, 1), np.float32)
    return llc.LocalPosterior(lambda w, batch: jnp.sum(w**4) + 0 * batch[:, 0], jnp.zeros(20), rows, gamma=200.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "shown"),
    [
        pytest.param(None, True, marks=pytest.mark.study),
        (llc.SGHMC(2.5e-3), True),
        (llc.SGLD(2.5e-3, preconditioner=llc.RMSProp()), False),
    ],
)
def test_a_sweep_tells_the_shape_from_the_step(sampler, shown):
    """RMSProp has no half step, and is the control."""
    tree = llc.sweep(jax.random.key(0), {"point": quartic()}, sampler=sampler, progress=False, **LENGTHS)
    draws = tree["draws"]["point"]
    checks = {check.name: check.passed for check in llc.report(draws).checks}
    assert (schema.half_step_run(draws) is not None) == shown
    assert checks["mean_variance"] == shown
    assert (str(tree["verdict"].item()) != "UNRESOLVED") == shown
