"""NUTS, HMC and MALA against exact finite-n values (checked themselves in tests/validation/test_exact.py)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from arviz_stats import mcse
from exact import independent, log_grid, quadratic, reduced_rank

import llc
from tests.support.tiers import weekly_cases

# ---- The samplers -----------------------------------------------------------------------------------------------

NBETA = 1000 / math.log(1000)
CURVATURES = np.logspace(-3, 1, 8)
CROSS = log_grid(lambda a, b: (a * b) ** 2 / 2, 2, NBETA)
BOWL = log_grid(lambda a, b: (a**2 + b**2) ** 2 / 2, 2, NBETA)
MIXED = log_grid(lambda a, b: (a**2 + b**4) / 2, 2, NBETA)
QUARTIC = log_grid(lambda w: w**4 / 2, 1, NBETA)


def quartic(w):
    return 0.5 * w[0] ** 4


def cross(w):
    return 0.5 * (w[0] * w[1]) ** 2


def bowl(w):
    return 0.5 * (w[0] ** 2 + w[1] ** 2) ** 2


def mixed(w):
    return 0.5 * (w[0] ** 2 + w[1] ** 4)


def linear_network(w):
    return 0.5 * jnp.sum((w[:4].reshape(2, 2) @ w[4:].reshape(2, 2)) ** 2)


def blocks(w):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES, w.dtype) * w[:8] ** 2) + cross(w[8:10]) + bowl(w[10:])


# K, its dimension, λ, and the exact moments of nβK at n = 1000, γ = 1
LOSSES = {
    "w^4/2": (quartic, 1, 1 / 4, QUARTIC),
    "(w1 w2)^2/2": (cross, 2, 1 / 2, CROSS),
    "(w1^2+w2^4)/2": (mixed, 2, 3 / 4, MIXED),
    "(w1^2+w2^2)^2/2": (bowl, 2, 1 / 2, BOWL),
    "|BA|^2/2": (linear_network, 8, 3 / 2, reduced_rank(2, 2, NBETA)),
    "12 dimensions": (blocks, 12, 5, independent(quadratic(CURVATURES, NBETA), CROSS, BOWL)),
}
# A step that suits the wide middle of a degenerate valley is refused in its narrow arms, and a chain that gets stuck
# there needs many more draws before its own standard error is right. One leapfrog step (MALA) is not enough for the
# arms of (w1 w2)²: 1 of 24 seeds was off by 4.7 standard errors, at an acceptance above its default, too.
SAMPLERS = {
    "NUTS": (llc.NUTS(), 5000),
    "HMC": (llc.HMC(), 5000),
    "MALA": (llc.MALA(target_accept=0.95), 50_000),
}
CASES = [
    (sampler, name)
    for sampler in SAMPLERS
    for name in LOSSES
    if name != ("(w1 w2)^2/2" if sampler == "MALA" else "(w1^2+w2^4)/2")
]


# What CI draws: a few seconds each, and all samplers on w⁴/2.
QUICK = ("NUTS-w^4/2", "HMC-w^4/2", "HMC-(w1 w2)^2/2", "HMC-|BA|^2/2", "MALA-w^4/2", "MALA-(w1^2+w2^2)^2/2")
EVERY = weekly_cases({f"{sampler}-{name}": (sampler, name) for sampler, name in CASES}, but=QUICK)


def draw(sampler, name, num_draws, seed=20):
    """`llc` and the statistics of each draw, in float32 as users sample."""
    loss, dim, *_ = LOSSES[name]
    data = np.zeros((2, 1), np.float32)  # K does not depend on it
    posterior = llc.LocalPosterior(lambda w, batch: loss(w) + 0 * batch[0, 0], jnp.zeros(dim), data, NBETA, gamma=1.0)
    draws = llc.sample(jax.random.key(seed), posterior, sampler, num_warmup=1000, num_draws=num_draws, progress=False)
    return draws["sample_stats"].to_dataset().assign(llc=draws["posterior"]["llc"])


@pytest.fixture(scope="module")
def sampled():
    """Draws of each sampler on each K, made once."""
    cache = {}

    def get(sampler, name):
        if (sampler, name) not in cache:
            cache[sampler, name] = draw(SAMPLERS[sampler][0], name, SAMPLERS[sampler][1])
        return cache[sampler, name]

    return get


def estimate(values):
    """Mean over the draws and its Monte Carlo standard error."""
    return float(values.mean()), float(mcse(xr.Dataset({"values": values}))["values"])


def moments(draws):
    """Mean and variance of nβK, each with its standard error."""
    values = draws["llc"]
    return estimate(values), estimate((values - values.mean()) ** 2)


def agrees(estimated, exact):
    value, error = estimated
    return abs(value - exact) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "name"), EVERY)
def test_exact_values(sampled, sampler, name):
    mean, variance = moments(sampled(sampler, name))
    exact = LOSSES[name][3]
    assert mean[1] <= 0.03 * exact.mean
    assert variance[1] <= 0.1 * exact.variance
    assert agrees(mean, exact.mean)
    assert agrees(variance, exact.variance)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "name"), EVERY)
def test_virial_is_one(sampled, sampler, name):
    """E[x·∇U] / d = 1 for the exact target, whatever K is."""
    assert agrees(estimate(sampled(sampler, name)["virial"]), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_acceptance_is_recorded(sampled, sampler):
    acceptance = sampled(sampler, "w^4/2")["acceptance_rate"]
    assert acceptance.dtype == np.float64
    assert 0 <= acceptance.min() < acceptance.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "name"),
    weekly_cases(
        {f"{name}-{sampler}": (sampler, name) for name in ("|BA|^2/2", "12 dimensions") for sampler in SAMPLERS},
        but=("|BA|^2/2-HMC",),
    ),
)
def test_the_learning_coefficient_is_rejected(sampled, sampler, name):
    """Negative control: λ, the limit n → ∞, is off by 9 and 31 %, and the same tolerance tells."""
    mean, _ = moments(sampled(sampler, name))
    assert not agrees(mean, LOSSES[name][2])


def test_a_biased_run_is_rejected():
    """Negative control: Euler–Maruyama at εa = 1 gives w1² a variance 4/3 times too large."""
    name = "(w1^2+w2^4)/2"
    mean, variance = moments(draw(llc.SGLD(1 / (NBETA + 1), integrator="euler_maruyama"), name, 20_000))
    exact = LOSSES[name][3]
    assert mean[1] <= 0.03 * exact.mean
    assert not agrees(mean, exact.mean)
    assert not agrees(variance, exact.variance)


REFUSED = {
    "MALA step": (llc.MALA, {"step_size": 0.0}, r"step_size needs"),
    "HMC step": (llc.HMC, {"step_size": -1.0}, "step_size needs"),
    "NUTS step": (llc.NUTS, {"step_size": math.nan}, "step_size needs"),
    "MALA acceptance": (llc.MALA, {"target_accept": 1.0}, "MALA needs 0 < target_accept < 1, got 1.0"),
    "HMC acceptance": (llc.HMC, {"target_accept": 0.0}, "target_accept"),
    "NUTS acceptance": (llc.NUTS, {"target_accept": -0.1}, "target_accept"),
    "HMC steps": (llc.HMC, {"num_steps": 0}, r"num_steps needs"),
    "HMC trajectory": (llc.HMC, {"trajectory_length": 0.0}, "trajectory_length needs"),
    "NUTS depth": (llc.NUTS, {"max_tree_depth": 0}, "max_tree_depth needs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    sampler, settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        sampler(**settings)
