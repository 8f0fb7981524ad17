"""What is allowed beside the bounds, at small n too, and causes that fit the run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import llc
from llc.analysis.bound_checks import bound_checks
from llc.analysis.verdict import Findings, judge
from tests.analysis.test_verdict import bounds, number
from tests.support.runs import make_draws


@pytest.mark.parametrize(("num_data", "verdict"), [(15, "SCALE_DEPENDENT"), (1000, "ABOVE")])
def test_terms_of_finite_n_are_not_above(num_data, verdict):
    draws = make_draws()
    nbeta = {15: 5.54, 1000: 144.8}[num_data]
    draws["constant_data"] = draws["constant_data"].dataset.assign(num_data=num_data, nbeta=nbeta)
    found, llc = bounds(0.75, 0.75), number(0.9589, 0.0038)
    checks = bound_checks(draws, llc, found, None, llc, corrected=True, sensitivity=None)
    (above,) = (check for check in checks if check.name == "above_bounds")
    assert above.passed == (num_data == 15)
    assert judge(Findings(llc, llc, found, (above,))).verdict == verdict


def test_small_n_excuses_no_more_than_its_terms():
    draws = make_draws()
    draws["constant_data"] = draws["constant_data"].dataset.assign(num_data=15, nbeta=5.54)
    llc = dataclasses.replace(number(3.0, 0.0038), value=3.0)
    checks = bound_checks(draws, llc, bounds(0.75, 0.75), None, llc, corrected=True, sensitivity=None)
    assert "above_bounds" in {check.name for check in checks if not check.passed}


@pytest.mark.slow
@pytest.mark.study
def test_a_given_sampler_at_small_n():
    """K = ½ Σ log(1 + wᵢ²): λ = 1, and a third more at n = 15. The run at 3γ is made too."""

    def loss_fn(w, batch):
        return 0.5 * jnp.sum(jnp.log1p(w**2)) + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss_fn, jnp.zeros(2), np.zeros((15, 1)), gamma=0.1)
    report = llc.estimate(
        jax.random.key(0), posterior, sampler=llc.NUTS(), num_warmup=300, num_draws=500, target_mcse=0.1, progress=False
    )
    nbeta = 15 / np.log(15)
    weight = lambda w: (1 + w**2) ** (-nbeta / 2) * np.exp(-0.05 * w**2)  # noqa: E731
    energy = quad(lambda w: nbeta / 2 * np.log1p(w**2) * weight(w), 0, np.inf)[0] / quad(weight, 0, np.inf)[0]
    mean = llc.mean_energy(report.draws)
    assert abs(mean.value - 2 * energy) < 4 * mean.mcse
    assert mean.value - report.bounds.upper > 4 * mean.mcse
    assert (report.bounds.lower, report.bounds.upper) == (1.0, 1.0)
    assert "localized" in report.draws
    assert report.gamma_sensitivity is not None
    assert report.verdict == "SCALE_DEPENDENT"
    assert "above_bounds" not in {check.name for check in report.failed}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sampler": {"name": "NUTS", "step_size": 0.1}}, set()),
        ({"sampler": {"name": "SGLD", "step_size": 0.1}}, {"step_size"}),
        ({"sampler": {"name": "SGHMC", "step_size": 0.1}, "batch_size": 100}, {"step_size", "batch_size"}),
        ({"sampler": {"name": "SGLD", "step_size": 0.1}, "batch_size": 1000}, {"step_size"}),
    ],
)
def test_only_causes_that_a_run_can_have_are_named(settings, named):
    draws = make_draws()
    draws.attrs["settings"] = json.dumps(settings)
    llc_ = number(3.0, 0.0038)
    checks = bound_checks(draws, llc_, bounds(0.75, 0.75), None, llc_, corrected=True, sensitivity=None)
    (above,) = (check for check in checks if check.name == "above_bounds")
    assert {name for name in ("step_size", "batch_size") if name in above.message} == named


@pytest.mark.parametrize(("moved", "gamma"), [(0.1, "gamma = 0.5"), (-0.1, "gamma = 4.5"), (0.001, None)])
def test_the_run_at_another_gamma_says_on_which_side_gamma_is_wrong(moved, gamma):
    """Of draws at γ = 1.5."""
    llc_, sensitivity = number(0.5, 0.0038), number(moved, 0.004)
    checks = bound_checks(make_draws(), llc_, bounds(0.75, 0.75), None, llc_, corrected=True, sensitivity=sensitivity)
    (below,) = (check for check in checks if check.name == "below_bounds")
    assert not below.passed
    assert ("gamma =" in below.message) == (gamma is not None)
    assert gamma is None or gamma in below.message
