"""Pilots: what they make of γ and the step size, and what happens where they saw too little."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import log_grid

import llc
from llc.calibration.pilots import stiffness_at
from llc.calibration.price import price_of
from llc.calibration.record import Pilot, PilotResult, Request
from llc.calibration.running import draw_cool_enough
from llc.calibration.step_size import COURANT, Settings, choose_gamma, choose_step_size
from llc.sampling.run_lengths import RequestedLengths

NBETA = 1000 / np.log(1000)


def posterior_of(loss, dim, **scale):
    return llc.LocalPosterior(lambda w, _: loss(w), jnp.zeros(dim), np.zeros((1000, 1), np.float32), **scale)


def test_stiffness_is_that_of_the_stiffest_place():
    posterior = posterior_of(lambda w: w[0] ** 4 / 12, 1, gamma=2.0)  # h = w²
    settings = Settings(1e-3, 2.0, 0.0)
    places = [jnp.array([x]) for x in (0.5, 3.0, 1.0)]
    found = stiffness_at(places, posterior, settings)
    assert found == pytest.approx(1e-3 * (NBETA * 9 + 2.0) / COURANT, rel=1e-5)


@pytest.mark.parametrize("place", [np.nan, 1e30])
def test_a_place_without_a_finite_curvature_is_infinitely_stiff(place):
    posterior = posterior_of(lambda w: jnp.exp(w[0] ** 2), 1, gamma=2.0)
    assert stiffness_at([jnp.array([place])], posterior, Settings(1e-3, 2.0, 0.0)) == np.inf


def test_too_little_memory_is_no_stiffness(monkeypatch):
    monkeypatch.setattr("llc.posterior.memory.free_memory", lambda: 0.0)
    with pytest.raises(ValueError, match="GiB of memory"):
        stiffness_at([jnp.ones(1)], posterior_of(lambda w: w[0] ** 2, 1, gamma=2.0), Settings(1e-3, 2.0, 0.0))


@pytest.mark.parametrize("confirmed", [True, False])
def test_pilots_that_confirm_nothing_are_named(confirmed):
    free = posterior_of(lambda w: 0.5 * w[0] ** 2, 1)
    asked = RequestedLengths(num_chains=4, num_draws=10)
    request = Request(free, None, asked, asked, llc.spectrum(free), price_of(free))
    pilots = tuple(Pilot(gamma, 1e-3, 100.0) for gamma in (1.0, 2.0, 4.0))
    found = PilotResult(free.with_scale(gamma=8.0), llc.SGLD(1e-3), 1e-3, pilots, confirmed)
    step_size, gamma = choose_step_size(request, found), choose_gamma(request, found, 1000)
    assert (step_size.evidence["confirmed"], step_size.evidence["num_pilots"]) == (confirmed, 3)
    assert ("pilot" in step_size.reason) != confirmed
    assert gamma.evidence == {"relaxations": 1e-3 * 8 * 1000 / 2, "strengthened": 8.0}


@pytest.mark.slow
def test_pilots_confirm_a_quadratic():
    posterior = posterior_of(lambda w: 0.5 * w[0] ** 2, 1, gamma=1.0)
    calibration = llc.calibrate(jax.random.key(0), posterior, num_draws=10)
    assert len(calibration.pilots) == 1
    assert calibration.choices["step_size"].evidence["confirmed"]


@pytest.fixture(scope="module")
def hot():
    """The settings of pilots that saw nothing: the step of w*, far too large for the arms of (w₁w₂)²/2."""
    calibration = llc.calibrate(jax.random.key(0), posterior_of(lambda w: 0.5 * (w[0] * w[1]) ** 2, 2, gamma=1.0))
    return dataclasses.replace(calibration, sampler=llc.SGLD(0.016))


@pytest.mark.slow
@pytest.mark.study
def test_a_run_that_is_too_hot_is_made_again(hot):
    run = draw_cool_enough(tuple(jax.random.split(jax.random.key(0), 3)), hot, None, progress=False)
    exact = log_grid(lambda a, b: (a * b) ** 2 / 2, 2, NBETA).mean
    assert run.report.settings["sampler"]["step_size"] in (0.004, 0.001)
    assert abs(run.report.llc.value - exact) < 4 * run.report.llc.mcse


@pytest.mark.study
def test_a_run_that_is_too_hot_shows_it(hot):
    run = draw_cool_enough((jax.random.key(0),), hot, None, progress=False)
    assert run.report.settings["sampler"]["step_size"] == 0.016
    assert run.report.verdict == "UNRESOLVED", "negative control: with no key left, nothing is made again"
    assert "hot" in {check.direction for check in run.report.failed}
