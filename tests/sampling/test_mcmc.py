"""NUTS, HMC and MALA against exact finite-n values; the exact values against the table of known ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from arviz_stats import mcse
from exact import Moments, independent, log_grid, quadratic, reduced_rank

import llc

NBETA = 1000 / math.log(1000)
CURVATURES = np.logspace(-3, 1, 8)


def quartic(w):
    return 0.5 * w[0] ** 4


def cross(w):
    return 0.5 * (w[0] * w[1]) ** 2


def bowl(w):
    return 0.5 * (w[0] ** 2 + w[1] ** 2) ** 2


def linear_network(w):
    return 0.5 * jnp.sum((w[:4].reshape(2, 2) @ w[4:].reshape(2, 2)) ** 2)


def blocks(w):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, w.dtype) * w[:8] ** 2) + cross(w[8:10]) + bowl(w[10:])


# name: (K, dimension, λ, exact moments of nβK at nβ = 1000 / log 1000, γ = 1)
CROSS = log_grid(lambda a, b: 0.5 * (a * b) ** 2, 2, NBETA)
BOWL = log_grid(lambda a, b: 0.5 * (a**2 + b**2) ** 2, 2, NBETA)
LOSSES = {
    "w^4/2": (quartic, 1, 1 / 4, log_grid(lambda w: 0.5 * w**4, 1, NBETA)),
    "(w1 w2)^2/2": (cross, 2, 1 / 2, CROSS),
    "(w1^2+w2^2)^2/2": (bowl, 2, 1 / 2, BOWL),
    "|BA|^2/2": (linear_network, 8, 3 / 2, reduced_rank(2, 2, NBETA)),
    "12 dimensions": (blocks, 12, 8 / 2 + 1 / 2 + 1 / 2, independent(quadratic(CURVATURES, NBETA), CROSS, BOWL)),
}
# Above the default acceptance: a step adapted to it in the wide middle of a degenerate valley is refused in the
# valley's narrow arms, and such a chain needs many more draws until its standard error is right.
SAMPLERS = {
    "NUTS": (llc.NUTS(target_accept=0.95), 5000),
    "HMC": (llc.HMC(target_accept=0.95), 10_000),
    "MALA": (llc.MALA(target_accept=0.9), 50_000),
}


@pytest.fixture(scope="module")
def sampled():
    """`llc` of each sampler on each K, drawn once."""
    cache = {}

    def draw(sampler, name):
        if (sampler, name) not in cache:
            loss, dim, *_ = LOSSES[name]
            settings, num_draws = SAMPLERS[sampler]
            cache[sampler, name] = run(loss, dim, settings, num_draws)
        return cache[sampler, name]

    return draw


def run(loss, dim, sampler, num_draws, nbeta=NBETA):
    data = np.zeros((2, 1), np.float32)  # K does not depend on it
    posterior = llc.LocalPosterior(lambda w, batch: loss(w) + 0 * batch[0, 0], jnp.zeros(dim), data, nbeta, gamma=1.0)
    key = jax.random.key(20)
    return llc.sample(key, posterior, sampler, num_warmup=1000, num_draws=num_draws, progress=False)


def mean_and_error(draws: xr.DataTree, moment: int = 1) -> tuple[float, float]:
    """Mean (or variance, for `moment` 2) of nβK and its Monte Carlo standard error."""
    values = draws["posterior"]["llc"]
    if moment == 2:
        values = (values - values.mean()) ** 2
    return float(values.mean()), float(mcse(xr.Dataset({"value": values}))["value"])


def agrees(draws: xr.DataTree, exact: Moments) -> list[bool]:
    estimates = [mean_and_error(draws, moment) for moment in (1, 2)]
    return [abs(value - truth) < 4 * error for (value, error), truth in zip(estimates, exact, strict=True)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_values(sampled, sampler, name):
    draws = sampled(sampler, name)
    exact = LOSSES[name][3]
    (_, mean_error), (_, variance_error) = (mean_and_error(draws, moment) for moment in (1, 2))
    assert mean_error <= 0.03 * exact.mean
    assert variance_error <= 0.1 * exact.variance
    assert agrees(draws, exact) == [True, True]
