"""What a run costs, in gradients over all the data: counted before the work, and kept to."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.batch_size import Batch
from llc.calibration.costs import run_cost
from llc.calibration.pipeline import calibrate_for
from llc.calibration.price import (
    Price,
    affordable_spectrum,
    gradient_operations,
    plan_spectrum,
    price_of,
    spectrum_cost,
)
from llc.calibration.record import Request
from llc.calibration.run_length import plan_length, with_rate
from llc.calibration.step_size import settings_from_curvature
from llc.sampling.run_lengths import RequestedLengths
from tests.support.tiers import weekly

WIDTH, NUM_DATA = 40, 3000
COSTLY = Price(1e9, costly=True)


def linear(num_params, num_data):
    """Least squares: the scores and the gradient are a product with the data each, 4 d n operations."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_data, num_params)).astype(np.float32)
    data = x, np.zeros(num_data, np.float32)
    return llc.LocalPosterior(lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, jnp.zeros(num_params), data)


@pytest.mark.parametrize(("share", "costly"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize(("num_params", "products"), [(200, 200), (2000, 1500)])
def test_a_model_is_costly_from_a_number_of_operations_on(num_params, products, share, costly):
    """Four gradients for each product; beyond 1,500 parameters a spectrum takes no more products."""
    posterior = linear(num_params, 100)
    limit = share * 4 * products * gradient_operations(posterior)
    assert price_of(posterior, limit=limit).costly == costly


def test_a_small_model_is_not_costly():
    assert not price_of(linear(200, 1000)).costly


@pytest.mark.parametrize(("budget", "num_rows", "cost"), [(None, NUM_DATA, 80), (300, NUM_DATA, 100), (60, 1500, 20)])
def test_a_third_of_a_budget_is_for_the_spectrum(budget, num_rows, cost):
    """Below forty gradients over all rows, it is that of some rows."""
    plan = plan_spectrum(decaying(), COSTLY, budget)
    assert plan.num_rows == num_rows
    assert plan.cost == pytest.approx(cost, rel=0.02)
    assert plan.cost == pytest.approx(plan.work * plan.num_rows / NUM_DATA)
    dear = plan_spectrum(decaying(), Price(1e12, costly=True), budget)
    assert dear.cost <= 20, "nor does it take more than some minutes"


def decaying():
    """Least squares on features of variances over eight decades, so that the rank has no gap."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_DATA, WIDTH)) * 10.0 ** -np.linspace(0, 4, WIDTH)
    data = x.astype(np.float32), np.zeros(NUM_DATA, np.float32)
    return llc.LocalPosterior(lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, jnp.zeros(WIDTH), data)


def calibrated(**lengths):
    asked = RequestedLengths(num_chains=2, **lengths)
    return calibrate_for(jax.random.key(0), decaying(), None, asked, COSTLY, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 60, 600])
def test_settings_of_a_costly_model(budget):
    found = calibrated(budget=budget)
    lengths = found.lengths
    assert found.enough_draws is not None, "a run of minutes"
    assert not found.overhead_bound
    assert found.choices["gamma"].origin == "chosen"
    assert found.gamma_origin == "run length", "a loss that is quadratic everywhere leaves it to that"
    assert found.choices["gamma"].evidence["anharmonicity"] <= 3
    # A step costs a small part of a draw's evaluation, which waits until it costs as much.
    assert lengths.batch_size < NUM_DATA / 4
    share = lengths.batch_size / NUM_DATA * (2 if found.sampler.control_variates else 1)
    cost = 1 if lengths.eval_size is None else 3.5 * lengths.eval_size / NUM_DATA
    assert lengths.thinning * share >= cost
    assert len(found.pilots) <= 2
    assert len(found.pilots[-1].energies) == 2
    assert np.isfinite(found.pilots[-1].energies).all()
    if budget is None:
        assert lengths.eval_size is None
        assert lengths.max_steps is None
        assert lengths.num_draws == 150
    few = budget == 60
    assert (lengths.eval_size is not None) == few
    assert (found.spectrum.row_share < 1) == few
    bounds = llc.rank_bounds(found.spectrum)
    broken = {assumption.name for assumption in bounds.assumptions if not assumption.holds}
    assert ("all rows" in broken) == few
    assert not (few and bounds.valid)


@pytest.mark.slow
@pytest.mark.parametrize("budget", weekly([60, 200, 600, 3000], but=(60,)))
def test_all_of_the_work_keeps_to_the_budget(budget):
    """The spectrum, the pilots, the run and the shorter one at 3γ."""
    found = calibrated(budget=budget)
    doubled = found.sampler.control_variates
    run, second = (run_cost(x, NUM_DATA, doubled=doubled) for x in (found.lengths, found.lengths.shorter(4)))
    spectrum = plan_spectrum(decaying(), COSTLY, budget).cost
    assert spectrum + run + second <= budget
    assert run > 0.2 * budget, "and it is used"
    assert found.lengths.max_draws(8) == found.lengths.num_draws, "none are added"


@pytest.mark.slow
def test_a_run_of_many_minutes_relaxes_no_more_often_than_is_needed():
    """At 10⁹ operations a gradient, a flat direction relaxes between two draws; at 10¹², T εγ is 150."""
    posterior = decaying().with_scale(gamma=30.0)
    spectrum = llc.spectrum(posterior, progress=False)
    asked = RequestedLengths(num_chains=2, step_energies=False)
    rate = settings_from_curvature(posterior, spectrum.largest, 1).step_size * 30.0

    def lengths(operations):
        price = Price(operations, costly=True)
        given = {"spectrum": spectrum, "progress": False}
        return calibrate_for(jax.random.key(0), posterior, llc.SGLD(1e-3), asked, price, **given).lengths

    short, long = lengths(1e12), lengths(1e9)
    assert long.thinning == math.ceil(2 / rate), "T εγ = 300"
    assert short.num_draws == long.num_draws
    assert 150 <= short.num_draws * short.thinning * rate < 150 + short.num_draws * rate


def test_steps_that_shrank_in_pilots_are_more():
    posterior, batch = decaying().with_scale(gamma=30.0), Batch(100)
    asked = RequestedLengths(num_chains=4)
    spectrum = llc.spectrum(posterior, progress=False)
    request = Request(posterior, None, asked, asked, spectrum, Price(1e12, costly=True))
    plan = plan_length(request, batch, settings_from_curvature(posterior, spectrum.largest, 1))
    rate = 0.03
    at_center, smaller = (with_rate(request, batch, plan, x).costly for x in (rate, rate / 5))
    for run, of_pilots in ((at_center, rate), (smaller, rate / 5)):
        assert 150 <= run.num_draws * run.thinning * of_pilots < 150 + run.num_draws * of_pilots
        assert run.num_warmup * of_pilots >= 10, "five relaxations"
    assert at_center.num_draws * at_center.thinning * rate / 5 < 150, "too few steps, if they shrank"
    assert with_rate(request, batch, plan, None) == plan


def test_a_budget_without_a_draw_is_refused():
    with pytest.raises(ValueError, match="budget needs to suffice for a draw"):
        calibrated(budget=60, num_warmup=5000)


def test_given_lengths_of_a_costly_model_are_kept():
    given = {"num_warmup": 30, "num_draws": 20, "thinning": 3, "batch_size": 100, "eval_size": 200}
    given |= {"step_energies": False}
    found = calibrated(**given)
    assert found.lengths.keywords() == {"num_chains": 2, **given}
    assert {found.choices[name].origin for name in given} == {"given"}


def test_a_cheap_model_has_all_of_its_spectrum():
    posterior = decaying()
    cheap = affordable_spectrum(posterior, Price(1e6, costly=False), 60, progress=False)
    assert cheap.exact
    assert cheap.row_share == 1
    assert not affordable_spectrum(posterior, COSTLY, 60, progress=False).exact


@pytest.mark.parametrize(("operations", "descent", "whole"), [(1e6, 1.0, True), (1e10, 0.0, True), (1e10, 1.0, False)])
def test_a_spectrum_of_a_minute_is_made_only_where_it_may_give_bounds(operations, descent, whole):
    """Negative curvature along one direction leaves the rank without a use."""
    plain = decaying()
    tilted = llc.LocalPosterior(
        lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2 - descent * w[0] ** 2, plain.center, plain.data
    )
    assert affordable_spectrum(tilted, Price(operations, costly=False), None, progress=False).exact == whole


@pytest.mark.parametrize(
    ("operations", "budget", "whole"), [(1e6, 60, True), (1e10, 600, True), (1e10, None, True), (1e10, 60, False)]
)
def test_a_spectrum_of_more_than_seconds_takes_a_third_of_a_budget(operations, budget, whole):
    """All forty eigenvalues take 160 gradients."""
    posterior, price = decaying(), Price(operations, costly=False)
    assert affordable_spectrum(posterior, price, budget, progress=False).exact == whole
    cost = spectrum_cost(posterior, price, budget)
    assert cost == 4 * WIDTH if whole else cost <= budget / 3
