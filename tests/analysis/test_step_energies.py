"""λ̂ from steps and draws, on series with a known law: no sampler is involved."""

import numpy as np
import pytest
import xarray as xr

import llc
from tests.analysis.test_estimators import autoregressive, make_draws

DIMS, LLC, SPREAD = ("chain", "draw"), 5.0, 2.0


def with_steps(rng, *, thinning=10, num_draws=200, memory=0.9, row_noise=3.0, bias=0.0, **settings):
    """Energies of mean 5, one a step, with the noise of rows in those of steps; every tenth is that of a draw."""
    shape = 4, num_draws * thinning
    energies = LLC + SPREAD * autoregressive(rng, shape, memory)
    steps = energies + bias + row_noise * rng.normal(size=shape)
    draws = make_draws(energies[:, thinning - 1 :: thinning], **settings)
    stats = draws["sample_stats"].to_dataset()
    steps = steps.reshape(4, num_draws, thinning).mean(axis=2)
    draws["sample_stats"] = stats.assign(step_energy=(DIMS, steps))
    return draws


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("memory", "row_noise", "gain"), [(0.5, 1.0, 2.0), (0.7, 1.0, 1.3), (0.99, 3.0, 0.8), (0.9, 300.0, 0.8)]
)
def test_intervals_cover_and_are_not_longer_than_those_of_the_draws(memory, row_noise, gain):
    """Memories from less than a stretch to several, and rows so noisy that the steps say nothing."""
    rng, repeats, covered, variances = np.random.default_rng(0), 150, 0, []
    for _ in range(repeats):
        draws = with_steps(rng, memory=memory, row_noise=row_noise)
        found, plain = llc.combined_energy(draws), llc.mean_energy(draws)
        covered += abs(found.value - LLC) < 1.96 * found.mcse
        variances.append((found.mcse**2, plain.mcse**2, (found.value - LLC) ** 2, (plain.value - LLC) ** 2))
    stated, of_draws, error, plain_error = np.mean(variances, axis=0)
    assert covered / repeats > 0.95 - 4 * np.sqrt(0.95 * 0.05 / repeats)
    assert of_draws / stated > gain
    assert plain_error / error > gain * (1 - 4 * np.sqrt(2 / repeats)) if gain > 1 else error < 2 * plain_error
    assert stated < 2 * error, "not so wide that anything would be covered"


def test_the_report_leads_with_it_and_names_the_mean_energy_too():
    draws = with_steps(np.random.default_rng(1))
    assert llc.best_energy(draws) == llc.combined_energy(draws)
    report = llc.report(draws)
    assert [estimate.method for estimate in report.estimates[:2]] == ["steps and draws", "mean energy"]
    assert {check.name: check.passed for check in report.checks}["step_energies"]
    assert llc.combined_energy(make_draws(np.ones((4, 10)))) is None


def test_effective_draws_count_what_the_energies_of_steps_add():
    """60 draws a chain are too few alone; ten steps between them that forget in two are worth five draws or so."""
    draws = with_steps(np.random.default_rng(3), num_draws=60, memory=0.3, row_noise=0.5)
    checks = {check.name: check for check in llc.report(draws).checks}
    assert llc.mean_energy(draws).ess < checks["ess"].threshold < checks["ess"].value
    assert checks["ess"].value == pytest.approx(
        draws["posterior"]["llc"].values.var() / llc.combined_energy(draws).mcse ** 2
    )
    alone = {check.name: check for check in llc.report(make_draws(draws["posterior"]["llc"].values)).checks}
    assert not alone["ess"].passed


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_energies_of_steps_that_are_not_those_of_the_draws_fail_a_check(bias):
    report = llc.report(with_steps(np.random.default_rng(2), bias=bias))
    checks = {check.name: check for check in report.checks}
    assert not checks["step_energies"].passed
    assert abs(checks["step_energies"].value - bias) < 0.2
    assert report.verdict == "UNRESOLVED"


def test_on_a_subset_the_draws_are_left_out_and_the_smaller_error_is_taken():
    rng = np.random.default_rng(4)
    whole, some = (with_steps(np.random.default_rng(4), eval_size=size) for size in (None, 100))
    units = {name: (("block", "chain", "example"), np.ones((1, 4, 100))) for name in ("second", "exponential")}
    noise = 0.05 * rng.normal(size=(1, 4, 100))
    units |= {"first": (("block", "chain", "example"), noise), "num_draws": (("block",), [200.0])}
    some["pointwise"] = xr.DataTree(xr.Dataset(units))
    assert llc.combined_energy(some) != llc.combined_energy(whole)
    assert llc.best_energy(some) == llc.combined_energy(some)
    stats = some["sample_stats"].to_dataset()
    some["sample_stats"] = stats.assign(step_energy=stats.step_energy + 300 * rng.normal(size=(4, 200)))
    assert llc.best_energy(some).method != "steps and draws", "rows so noisy that the subset is better"


@pytest.mark.parametrize("kind", ["nan in steps", "nan in draws"])
def test_a_dead_chain_is_left_out(kind):
    draws = with_steps(np.random.default_rng(5))
    group, name = ("posterior", "llc") if kind == "nan in draws" else ("sample_stats", "step_energy")
    draws[group][name].values[1, 50:] = np.nan
    found = llc.combined_energy(draws)
    assert np.isnan(found.per_chain[1])
    assert abs(found.value - LLC) < 4 * found.mcse < 2


def test_control_variates_of_draws_take_part_until_a_trajectory_diverges():
    """They are all of the energy's spread here, so that without them it is back."""
    rng = np.random.default_rng(6)
    draws = with_steps(rng)
    energy = draws["posterior"]["llc"].to_numpy()
    stats = draws["sample_stats"].to_dataset()
    noise = 0.1 * rng.normal(size=energy.shape)
    stats = stats.assign(step_energy=(DIMS, energy + noise))
    stats = stats.assign(stein_curved=(DIMS, energy - LLC), stein_flat=(DIMS, rng.normal(size=energy.shape)))
    draws["constant_data"] = draws["constant_data"].to_dataset().assign(trace_curved=0.0)
    draws["sample_stats"] = stats
    found = llc.combined_energy(draws)
    assert abs(found.value - LLC) < 4 * found.mcse < 0.1
    diverging = np.zeros(energy.shape, bool)
    diverging[0, 0] = True
    draws["sample_stats"] = stats.assign(diverging=(DIMS, diverging))
    without = llc.combined_energy(draws)
    assert without.mcse > 5 * found.mcse
    assert abs(without.value - LLC) < 4 * without.mcse
