"""What λ̂ is at a point that is no minimum: the share of its slope, against exact Gaussians and sampled draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.check import Check
from llc.analysis.estimators import Estimate
from llc.analysis.slope import Slope, slope_check, slope_of
from llc.analysis.verdict import Findings, judge
from tests.support.tiers import weekly, weekly_cases

NUM_DATA = 500
LENGTHS = {"num_chains": 4, "num_warmup": 500, "num_draws": 2000, "progress": False}


def loss_fn(w, batch):
    """g·w + ½ Σ h w², with g and h in the data, so that all cases are one program."""
    gradient, curvatures = batch
    return gradient @ w + 0.5 * curvatures @ w**2


def quadratic(curvatures, gradient, gamma):
    rows = [np.tile(np.asarray(x, np.float32), (NUM_DATA, 1)) for x in (gradient, curvatures)]
    return llc.LocalPosterior(loss_fn, jnp.zeros(3), tuple(rows), gamma=gamma)


def exact(curvatures, gradient, gamma):
    """λ̂, and the part of it that comes from the slope, of the Gaussian by its mean and covariance."""
    nbeta = NUM_DATA / math.log(NUM_DATA)
    h, g = np.asarray(curvatures), np.asarray(gradient)
    precision = nbeta * h + gamma
    mean = -nbeta * g / precision
    share = nbeta * np.sum(g * mean + 0.5 * h * mean**2)
    return 0.5 * np.sum(nbeta * h / precision) + share, share


CASES = {
    "curved": ([1.0, 0.3, 0.1], [0.2, 0.05, 0.0], 10.0),
    "flat": ([1.0, 0.0, 0.0], [0.0, 0.3, 0.0], 40.0),
    "steep": ([2.0, 0.5, 0.0], [1.0, 0.6, 0.3], 60.0),
    "negative curvature": ([1.0, -0.1, 0.0], [0.1, 0.2, 0.0], 30.0),
}
CONVEX = [name for name, case in CASES.items() if min(case[0]) >= 0]


@functools.cache
def run(name):
    posterior = quadratic(*CASES[name])
    spectrum = llc.spectrum(posterior)
    return llc.sample(jax.random.key(0), posterior, llc.NUTS(), **LENGTHS), spectrum


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("name", CASES)
def test_share_is_that_of_the_gaussian_and_of_the_draws(name):
    draws, spectrum = run(name)
    value, share = exact(*CASES[name])
    found = slope_of(draws, spectrum)
    np.testing.assert_allclose(found.share, share, rtol=1e-5)
    np.testing.assert_allclose(found.grad_norm, np.linalg.norm(CASES[name][1]), rtol=1e-5)
    estimate = llc.mean_energy(draws)
    assert abs(estimate.value - value) < 4 * estimate.mcse
    assert abs(estimate.value - (value - share)) > 4 * estimate.mcse  # negative control: without the share


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(CONVEX, but=("curved",)))
def test_bound_of_gamma_alone_holds(name):
    draws, spectrum = run(name)
    without, found = slope_of(draws), slope_of(draws, spectrum)
    assert not without.is_known
    assert abs(found.share) <= without.most * (1 + 1e-5)
    assert found.variance <= without.most * (1 + 1e-5)
    variance = llc.energy_variance(draws)
    p = spectrum.sum(lambda h: 0.5 * (h / (h + found_scale(draws))) ** 2)
    assert abs(variance.value - p - found.variance) < 4 * variance.mcse


def found_scale(draws):
    return float(draws["constant_data"]["gamma"] / draws["constant_data"]["nbeta"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "with_spectrum"),
    weekly_cases(
        {f"{name}-{known}": (name, known) for name in CASES for known in (True, False) if known or name in CONVEX},
        but=("curved-True", "curved-False", "negative curvature-True"),
    ),
)
def test_a_checkpoint_on_a_slope_is_scale_dependent_by_its_slope(name, with_spectrum):
    draws, spectrum = run(name)
    report = llc.report(draws, spectrum=spectrum if with_spectrum else None)
    (check,) = (check for check in report.checks if check.kind == "slope")
    assert report.verdict == "SCALE_DEPENDENT", report.reason
    assert not check.passed
    assert report.reason == check.message


def test_at_a_minimum_there_is_no_slope():
    posterior = quadratic([1.0, 0.3, 0.1], [0.0, 0.0, 0.0], 1.0)
    draws = llc.sample(jax.random.key(0), posterior, llc.NUTS(), **LENGTHS)
    for spectrum in (None, llc.spectrum(posterior)):
        report = llc.report(draws, spectrum=spectrum)
        (check,) = (check for check in report.checks if check.kind == "slope")
        assert check.passed
        assert report.findings.slope_energy == 0


def test_a_steep_checkpoint_with_gradient_1_2_is_told_by_sample_and_report_alone():
    posterior = quadratic([1.0, 1.0, 0.5], [0.9, 0.7, 0.3742], 100.0)
    report = llc.report(llc.sample(jax.random.key(1), posterior, llc.NUTS(), **LENGTHS))
    assert report.llc.value < 0
    assert report.verdict == "SCALE_DEPENDENT"
    (check,) = (check for check in report.failed if check.kind == "slope")
    np.testing.assert_allclose(slope_of(report.draws).grad_norm, 1.2, rtol=1e-3)
    assert check.value == slope_of(report.draws).most


def judged(energy, value):
    """A report's judgement of λ̂ = `value` ± .01, with a failed slope check of that energy."""
    llc_ = Estimate("mean energy", value, 0.01, (value,), 1000.0, 1.0)
    checks = [Check("positive", "minimum", False, value, 0.0, "negative", direction="cold")]
    if energy:
        checks.append(Check("slope", "slope", False, energy, 0.01, "a slope"))
    return judge(Findings(llc_, None, None, tuple(checks))).verdict


@pytest.mark.parametrize(
    ("energy", "value", "verdict"),
    [
        (0.0, -1.0, "UNRESOLVED"),  # no slope: the draws contradict w*
        (0.5, -1.0, "UNRESOLVED"),  # a slope that is too small to explain it
        (0.98, -1.0, "SCALE_DEPENDENT"),
        (5.0, -1.0, "SCALE_DEPENDENT"),
    ],
)
def test_only_a_slope_that_is_large_enough_explains_a_negative_estimate(energy, value, verdict):
    assert judged(energy, value) == verdict


def test_chains_that_do_not_mix_stay_unresolved_on_a_slope():
    llc_ = Estimate("mean energy", -1.0, 0.01, (-1.0,), 1000.0, 1.0)
    checks = (
        Check("slope", "slope", False, 5.0, 0.01, "a slope"),
        Check("rhat", "chains", False, 2.0, 1.05, "the chains disagree"),
    )
    assert judge(Findings(llc_, None, None, checks)).verdict == "UNRESOLVED"


def test_a_file_without_the_gradient_has_no_check():
    draws, _ = run("curved")
    draws = draws.copy()
    draws["constant_data"] = draws["constant_data"].to_dataset().drop_vars("center_gradient")
    assert slope_of(draws) is None
    assert slope_check(None, llc.mean_energy(draws)) is None
    assert all(check.kind != "slope" for check in llc.report(draws).checks)


def test_threshold_is_two_percent_of_what_is_left():
    slope = Slope(0.1, -0.1, 1.0, 0.0, 0.1)
    assert slope_check(slope, Estimate("x", 4.91, 0.1, (4.91,), 1.0, 1.0)).passed
    assert not slope_check(slope, Estimate("x", 4.89, 0.1, (4.89,), 1.0, 1.0)).passed
