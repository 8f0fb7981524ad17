"""What enters the covariance of selected samples, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import llc
from llc.geometry.selection import sampling as selection
from llc.posterior.precision import float64
from tests.support.bowls import KEY, assert_same, flat, quadratic

# What enters


def test_only_comparisons_enter():
    posterior = quadratic([1.0, 3.0, 0.0])
    settings = {"sigma": 0.1, "num_winners": 200, "progress": False}
    plain = llc.selected_covariance(KEY, posterior, **settings)
    ordered = llc.selected_covariance(
        KEY, posterior, noisy_loss_fn=lambda key, w: jnp.arctan(5 + 1e3 * (w[0] ** 2 + 3 * w[1] ** 2)), **settings
    )
    assert_same(plain, ordered, rtol=0, atol=1e-12)
    other = llc.selected_covariance(KEY, posterior, noisy_loss_fn=lambda key, w: w[0] ** 2 + 4 * w[1] ** 2, **settings)
    assert np.abs(plain.halves - other.halves).max() > 1e-3


def test_memory_does_not_matter(monkeypatch):
    """Small chunks, losses one at a time: the same to the float32 rounding of z, because draws belong to groups."""
    posterior = llc.LocalPosterior(
        lambda w, batch: (batch @ w["a"] + w["b"] ** 2) ** 2,
        {"a": np.zeros(2), "b": np.zeros(1)},
        np.random.default_rng(0).normal(size=(1500, 2)),  # two pieces and no rest, of different rows
    )
    settings = {"sigma": 0.1, "num_winners": 103, "progress": False}
    whole = llc.selected_covariance(KEY, posterior, **settings)
    monkeypatch.setattr(selection, "_CHUNK_BYTES", 32 * 5 * 3 * 10)
    with float64():
        assert selection.losses_around(posterior, None).batch == 1
    assert_same(whole, llc.selected_covariance(KEY, posterior, **settings), rtol=0, atol=1e-6)
    assert whole.num_evaluations == 515
    assert whole.failed == 0


def test_loss_is_that_of_all_the_data():
    rng = np.random.default_rng(0)
    inputs, offset = rng.normal(size=(2500, 3)), np.array([0.3, -0.2, 0.1])  # pieces and a rest
    posterior = llc.LocalPosterior(lambda w, batch: (batch @ w["w"]) ** 2, {"w": np.ones(3)}, inputs)
    with float64():
        losses = selection.losses_around(posterior, None)
        found = losses.at(jax.random.split(KEY, 1), jnp.asarray(offset)[None])
    # The posterior's data keep the precision in which they came.
    np.testing.assert_allclose(found[0], np.mean((inputs @ (1 + offset)) ** 2), rtol=1e-12)


def test_masked_parameters_stay():
    def loss(w, batch):
        return 0.5 * jnp.sum(w["a"] ** 2) + 1e3 * jnp.sum((w["b"] - 1) ** 2) + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss, {"a": np.zeros(2), "b": np.ones(3)}, np.zeros((10, 1)), mask="a")
    masked = llc.selected_covariance(KEY, posterior, sigma=0.1, progress=False)
    assert masked.dim == 2
    assert_same(masked, llc.selected_covariance(KEY, flat(2, 2), sigma=0.1, progress=False), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_noise_hides_and_does_not_feign():
    """Noise of 3 times the spread of the loss divides the score's mean by √(1 + 9), and adds no direction."""
    dim, rank, ratio = 12, 4, 3.0
    spread = 0.5 * 0.1**2 * np.sqrt(2 * rank)

    def noisy(key, w):
        return 0.5 * jnp.sum(w[:rank] ** 2) + ratio * spread * jax.random.normal(key)

    settings = {"sigma": 0.1, "num_winners": 4000, "progress": False}
    clean = llc.selected_covariance(KEY, flat(dim, rank), **settings)
    heavy = llc.selected_covariance(KEY, flat(dim, rank), noisy_loss_fn=noisy, **settings)
    assert (clean.rank, clean.stein_rank) == (rank, rank)
    assert heavy.stein_rank == rank
    assert clean.rank >= heavy.rank
    means = [np.diagonal(x.stein)[:rank].mean() for x in (clean, heavy)]
    # Exact for a normal loss; a χ²(4) has a skewness of √2, of which scores lose a part only without noise.
    assert means[1] / means[0] == pytest.approx(1 / np.sqrt(1 + ratio**2), rel=0.25)
    only = llc.selected_covariance(
        KEY, flat(dim, rank), noisy_loss_fn=lambda key, w: jax.random.normal(key), **settings
    )
    assert (only.rank, only.certified_rank, only.stein_rank) == (0, 0, 0)
    assert only.complete


def test_infinite_losses_lose():
    posterior = flat(3, 1)
    settings = {"sigma": 0.1, "num_winners": 400, "progress": False}
    walled = llc.selected_covariance(
        KEY, posterior, noisy_loss_fn=lambda key, w: jnp.where(w[0] > 0.1, jnp.nan, 1.0), **settings
    )
    share = scipy.stats.norm.sf(1)
    assert abs(walled.failed - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert not walled.centered
    with pytest.raises(ValueError, match="need to be finite"):
        llc.selected_covariance(KEY, posterior, noisy_loss_fn=lambda key, w: w[0] * jnp.inf, **settings)


def test_a_slope_is_found():
    slope = llc.selected_covariance(
        KEY, flat(3, 0), noisy_loss_fn=lambda key, w: w[0], sigma=0.1, num_winners=200, progress=False
    )
    assert not slope.centered


# Refusals


@pytest.mark.parametrize(
    ("posterior", "settings", "message"),
    [
        (lambda: flat(3, 1), {}, "sigma needs to be given where w\\* = 0"),
        (lambda: flat(3, 1), {"sigma": 0.0}, "sigma needs a finite number > 0"),
        (lambda: flat(3, 1), {"sigma": 0.1, "num_candidates": 1}, "num_candidates needs an integer >= 2"),
        (lambda: flat(100, 1), {"sigma": 0.1, "num_winners": 300}, "num_winners needs at least 400"),
        (lambda: flat(5000, 1), {"sigma": 0.1}, "beyond 4,096 .* got d = 5,000; .* llc.spectrum"),
    ],
    ids=["no scale", "sigma", "m", "R", "d"],
)
def test_refusals(posterior, settings, message):
    with pytest.raises(ValueError, match=message):
        llc.selected_covariance(KEY, posterior(), progress=False, **settings)
