"""λ from the best of m losses against the exact expectation at finite m, and against λ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import llc
from llc.geometry.selection.best_of import _subset_weights
from tests.support.tiers import weekly

pytestmark = pytest.mark.optimized
KEY = jax.random.key(1)


def _population(loss, dim):
    return llc.LocalPosterior(lambda w, batch: loss(w) + 0 * jnp.sum(batch), np.zeros(dim), np.zeros((10, 1)))


def _exact(survival, size):
    """E log K_min of `size` losses, by parts in x = log K: with S = P(log K > x)^size, ∫ (S − 1[x < 0]) dx."""
    x = np.linspace(-60, 12, 200_001)
    return scipy.integrate.trapezoid(survival(np.exp(x)) ** size - (x < 0), x)


def _product_survival():
    """P((z₁z₂)² > k): the density of |z₁z₂| is 2 K₀ / π."""
    log_a = np.linspace(-40, 4, 40_001)
    a = np.exp(log_a)
    below = scipy.integrate.cumulative_trapezoid(2 / np.pi * scipy.special.k0(a) * a, log_a, initial=0)
    return lambda k: 1 - np.interp(0.5 * np.log(k), log_a, below, right=1.0)


MODELS = {  # loss, d, λ, P(K > k) up to the scale of K, which no slope sees
    "w^2": (lambda w: w[0] ** 2, 1, 0.5, lambda k: scipy.stats.chi2.sf(k, 1)),
    "w^4": (lambda w: w[0] ** 4, 1, 0.25, lambda k: scipy.stats.chi2.sf(np.sqrt(k), 1)),
    "|w|^4, one flat": (lambda w: jnp.sum(w[:2] ** 2) ** 2, 3, 0.5, lambda k: scipy.stats.chi2.sf(np.sqrt(k), 2)),
    "(w1 w2)^2": (lambda w: (w[0] * w[1]) ** 2, 2, 0.5, _product_survival()),
    "regular, 5": (lambda w: jnp.sum(w**2), 5, 2.5, lambda k: scipy.stats.chi2.sf(k, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(MODELS, but=("w^2", "(w1 w2)^2")))
def test_slope_is_that_of_order_statistics(name):
    loss, dim, coefficient, survival = MODELS[name]
    result = llc.best_of_slope(KEY, _population(loss, dim), sigma=0.1, progress=False)
    # The scale: K = σ^{2k} K(z) only shifts the logarithm.
    ends = [_exact(survival, size) for size in (64, 256, 1024)]
    first, second = (np.log(4) / -np.diff(ends)).tolist()
    expected = np.log(16) / (ends[0] - ends[2])
    assert abs(result.value - expected) < 4 * result.stderr
    assert abs(result.value - 1.5 * expected) > 4 * result.stderr
    assert abs(result.bend - (second - first)) < 4 * result.bend_stderr
    # λ itself: a bias of the order m^(−1/λ), or 1/log m for a multiplicity.
    assert abs(expected / coefficient - 1) < (0.2 if name == "(w1 w2)^2" else 0.1)
    assert not result.message


def test_a_large_coefficient_is_named():
    result = llc.best_of_slope(KEY, _population(lambda w: jnp.sum(w**2), 12), sigma=0.1, num_groups=16, progress=False)
    assert result.value < 6 - 4 * result.stderr
    assert result.message


def test_weights_are_those_of_random_subsets():
    rng = np.random.default_rng(0)
    weights = _subset_weights(12, np.array([3, 12, 1]))
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(weights[:, 1], np.arange(12) == 0, atol=1e-12)
    np.testing.assert_allclose(weights[:, 2], 1 / 12, rtol=1e-12)
    least = np.min([rng.permutation(12)[:3] for _ in range(20_000)], axis=1)
    shares = np.bincount(least, minlength=12) / 20_000
    assert np.all(np.abs(shares - weights[:, 0]) <= 4 * np.sqrt(weights[:, 0] * (1 - weights[:, 0]) / 20_000))


@pytest.mark.slow
@pytest.mark.study
def test_a_few_losses_that_are_not_finite_are_no_matter():
    good, bad = (
        _population(lambda w, far=far: jnp.where(w[0] > far, jnp.nan, w[0] ** 2 + w[1] ** 2), 2) for far in (9.0, 0.03)
    )
    whole, some = (llc.best_of_slope(KEY, posterior, sigma=0.01) for posterior in (good, bad))
    assert abs(some.value - whole.value) < whole.stderr, "far losses are no minima"
    assert abs(whole.value - 1) < 4 * whole.stderr + abs(whole.bend), "d / 2, up to what the bend tells"
    mostly = _population(lambda w: jnp.where(jnp.abs(w[0]) > 1e-3, jnp.nan, w[0] ** 2), 1)
    with pytest.raises(ValueError, match="need to be finite, got too many others"):
        llc.best_of_slope(KEY, mostly, sigma=0.01)


def test_errors():
    posterior = _population(lambda w: w[0] ** 2, 1)
    with pytest.raises(ValueError, match="num_candidates needs an integer >= 256"):
        llc.best_of_slope(KEY, posterior, sigma=0.1, num_candidates=100)
    with pytest.raises(ValueError, match="sigma needs to be given"):
        llc.best_of_slope(KEY, posterior)
    with pytest.raises(ValueError, match="no minimum"):
        llc.best_of_slope(KEY, _population(lambda w: w[0], 1), sigma=0.1, progress=False)
