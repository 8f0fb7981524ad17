"""Errors of fitted control variates, on chains whose law is known."""

import numpy as np
import pytest

from llc.analysis import fitting
from llc.analysis.fitting import batch_means, fitted_coefficients, fitted_error


def _chains(rng, rho, num_draws=150, num_chains=4):
    """An energy whose mean is zero, with a control variate that takes off four fifths of its variance."""
    steps = rng.normal(size=(num_draws, num_chains, 2)) * np.sqrt(1 - rho**2)
    state = rng.normal(size=(num_chains, 2))
    series = []
    for step in steps:
        state = rho * state + step
        series.append(state)
    slow, control = np.moveaxis(np.array(series), 0, 1)[..., 0], np.moveaxis(np.array(series), 0, 1)[..., 1]
    return np.stack([slow + 2 * control, control], axis=-1)


def _ratio(rho, num_sets=300):
    """Standard deviation of the estimate over sets of chains, by the root mean square of its stated error."""
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(num_sets):
        series = _chains(rng, rho)
        batches = batch_means(series)
        values.append(series[..., 0].mean() - series[..., 1:].mean(axis=(0, 1)) @ fitted_coefficients(batches))
        errors.append(fitted_error(batches))
    return np.std(values) / np.sqrt(np.mean(np.square(errors)))


def test_chains_that_mix_slowly_have_fewer_batches():
    rng = np.random.default_rng(0)
    assert len(batch_means(_chains(rng, 0.0, num_draws=400))) == 4 * 10
    assert len(batch_means(_chains(rng, 0.9))) == 4 * 3


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_error_is_that_of_the_estimate(rho):
    """Within 20 %: at ρ = 0.9 a batch has 2.6 effective draws, and its neighbours share some of their chance."""
    assert 1 / 1.2 < _ratio(rho) < 1.2


def test_ten_batches_whatever_the_draws_would_be_seen(monkeypatch):
    monkeypatch.setattr(fitting, "_FEWEST_BATCHES", 10)
    assert _ratio(0.9) > 1.3
