"""A spectrum, its bounds and a report for all figures; and no figure stays open."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot
import numpy as np
import pytest

import llc
from tests.support.runs import GAMMA, HEALTHY, NBETA, make_report


@pytest.fixture(scope="module")
def spectrum():
    """Twelve eigenvalues: seven counted, two of round-off, one zero, two negative."""
    nodes = np.array([[3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 1e-9, 1e-12, 0.0, -1e-12, -4e-9]])
    return llc.Spectrum(
        nodes=nodes,
        weights=np.ones_like(nodes),
        dim=12,
        matrix="hessian",
        method="dense",
        gradient_nodes=np.zeros(1),
        gradient_weights=np.zeros(1),
    )


@pytest.fixture(scope="module")
def bounds(spectrum):
    return llc.rank_bounds(spectrum, nbeta=NBETA, gamma=GAMMA)


@pytest.fixture(scope="module")
def report(spectrum, bounds):
    return make_report(HEALTHY, bounds, spectrum)


@pytest.fixture(scope="module")
def sampled():
    """A real run with its geometry: w ∈ R³ of curvatures 1, 0.1 and 0."""
    curvature = jnp.array([1.0, 0.1, 0.0])
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.sum(curvature * w**2) + 0 * jnp.sum(batch),
        jnp.zeros(3),
        np.zeros((1000, 1)),
        gamma=1.0,
    )
    draws = llc.sample(
        jax.random.key(0), posterior, llc.SGLD(step_size=3e-3), num_chains=3, num_warmup=100, num_draws=400, thinning=2
    )
    return draws, posterior


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert matplotlib.pyplot.get_fignums() == []
