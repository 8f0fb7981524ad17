"""Rows of a minibatch: what they are predicted to heat, in closed form, and what the chains show of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.batch_size import predict_heating
from tests.support.regression import heating, regression
from tests.support.tiers import weekly


def test_the_predicted_heating_is_that_of_the_closed_form():
    posterior, step_size = regression().with_scale(gamma=5.0), 1e-3
    found = predict_heating(posterior, llc.spectrum(posterior), step_size, num_rows=posterior.num_data)
    assert found.of_gradients == pytest.approx(heating(posterior, step_size, 1), rel=1e-4)


@pytest.mark.parametrize("noise", weekly([0.3, 4.0], but=(4.0,)))
def test_control_variates_follow_the_noise(noise):
    posterior = regression(noise=noise)
    calibration = llc.calibrate(jax.random.key(0), posterior, num_draws=500)
    assert calibration.lengths.batch_size == 512
    without = heating(calibration.posterior, calibration.choices["step_size"].value, 512)
    assert (without > 2 * 0.03) == calibration.sampler.control_variates == (noise == 4.0)
    evidence = calibration.choices["sampler"].evidence
    assert ("rows_without_control_variates" in evidence) == (noise == 4.0)
    assert evidence.get("rows_without_control_variates", 2048) > 1024, "more than twice the rows"


def test_the_batch_follows_the_noise():
    """A sampler that is given stays as it is, so that only the rows are left to choose."""
    posterior = regression(num_data=20_000, noise=1.0).with_scale(gamma=5.0)
    sampler = llc.SGLD(0.5 / (float(posterior.nbeta) * 4 + 5))
    calibration = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
    rows = calibration.lengths.batch_size
    # From 512 of the examples: ± 4 √(2 / 512).
    assert heating(posterior, float(sampler.step_size), rows) < 0.03 * 1.25
    assert heating(posterior, float(sampler.step_size), rows // 2) > 0.03 / 1.25, "half as many would not do"
    assert rows > 512


@pytest.mark.slow
def test_a_batch_has_a_largest_size_and_says_what_it_heats():
    posterior = regression(num_data=20_000, noise=4.0).with_scale(gamma=5.0)
    sampler = llc.SGLD(0.5 / (float(posterior.nbeta) * 4 + 5))
    calibration = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
    choice = calibration.choices["batch_size"]
    assert choice.value == calibration.lengths.batch_size == 8192
    predicted = choice.evidence["heating"]
    assert predicted == pytest.approx(heating(posterior, float(sampler.step_size), 8192), rel=0.25)
    assert predicted > 0.03


def test_heating_is_seen_and_taken_away():
    """Minibatches of 16: as hot as predicted (.37–1 of it without replacement), and the estimate knows."""
    posterior = regression().with_scale(gamma=5.0)
    nbeta = float(posterior.nbeta)
    step_size = 0.5 / (4 * nbeta + 5)
    settings = {"batch_size": 16, "num_warmup": 500, "num_draws": 2000, "thinning": 5, "progress": False}
    spectrum = llc.spectrum(posterior)
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(step_size), spectrum=spectrum, **settings)
    report = llc.report(draws, spectrum=spectrum)
    plain = llc.mean_energy(draws)
    assert report.quad is not None
    hot, predicted = plain.value / report.quad - 1, heating(posterior, step_size, 16)
    assert predicted > 0.1
    assert abs(hot - predicted) < 4 * plain.mcse / report.quad + 0.15 * predicted
    assert abs(report.singular) < 4 * report.llc.mcse
    assert "virial_curved" in {check.name for check in report.failed}


@pytest.mark.study
def test_no_curvature_has_no_noise_to_heat():
    data = np.zeros((5000, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, x: jnp.sum(w**4) + 0 * x[:, 0], jnp.zeros(2), data, gamma=1.0)
    calibration = llc.calibrate(jax.random.key(0), posterior, num_draws=10, num_warmup=10)
    assert calibration.lengths.batch_size == 512
