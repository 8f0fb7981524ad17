"""Pilots: what they make of γ and the step size, and what happens where they saw too little."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import log_grid

import llc
from llc import workflow
from llc.calibration import pipeline as tuning
from llc.calibration.pilots import _stiffness_at
from llc.calibration.step_size import COURANT, Settings

NBETA = 1000 / np.log(1000)


def posterior_of(loss, dim, **scale):
    return llc.LocalPosterior(lambda w, _: loss(w), jnp.zeros(dim), np.zeros((1000, 1), np.float32), **scale)


def test_stiffness_is_that_of_the_stiffest_place():
    posterior = posterior_of(lambda w: w[0] ** 4 / 12, 1, gamma=2.0)  # h = w²
    settings = Settings(1e-3, 2.0, 0.0)
    places = [jnp.array([x]) for x in (0.5, 3.0, 1.0)]
    found = _stiffness_at(places, posterior, settings)
    assert found == pytest.approx(1e-3 * (NBETA * 9 + 2.0) / COURANT, rel=1e-5)


@pytest.mark.parametrize("place", [np.nan, 1e30])
def test_a_place_without_a_finite_curvature_is_infinitely_stiff(place):
    posterior = posterior_of(lambda w: jnp.exp(w[0] ** 2), 1, gamma=2.0)
    assert _stiffness_at([jnp.array([place])], posterior, Settings(1e-3, 2.0, 0.0)) == np.inf


def test_too_little_memory_is_no_stiffness(monkeypatch):
    monkeypatch.setattr("llc.posterior.memory.free_memory", lambda: 0.0)
    with pytest.raises(ValueError, match="GiB of memory"):
        _stiffness_at([jnp.ones(1)], posterior_of(lambda w: w[0] ** 2, 1, gamma=2.0), Settings(1e-3, 2.0, 0.0))


def test_a_tether_shows_most_of_the_rank():
    """Curvatures over three decades: where a step is cheap, γ falls until λ_quad is 3/4 of r/2."""
    curvatures = 10.0 ** -np.arange(4)
    posterior = posterior_of(lambda w: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2), 4)

    def share(calibration):
        gamma = float(calibration.posterior.gamma)
        return np.mean(NBETA * curvatures / (NBETA * curvatures + gamma))

    cheap = llc.calibrate(jax.random.key(0), posterior)
    assert cheap.overhead_bound
    assert 0.75 < share(cheap) < 0.9
    costly = llc.calibrate(jax.random.key(0), posterior, thinning=10)  # given, so that the run can't be longer
    assert share(costly) < 0.7
    assert cheap.lengths["thinning"] > 10
    assert not costly.overhead_bound, "what is given is not made longer"


def test_pilots_that_confirm_nothing_are_named(monkeypatch):
    monkeypatch.setattr("llc.calibration.pilots._stiffness_at", lambda *_: 100.0)
    posterior = posterior_of(lambda w: 0.5 * w[0] ** 2, 1, gamma=1.0)
    reason = llc.calibrate(jax.random.key(0), posterior, num_draws=10).reasons["step_size"]
    assert reason.endswith("none of 16 pilots kept to places where that holds")
    monkeypatch.undo()
    assert "pilots" not in llc.calibrate(jax.random.key(0), posterior, num_draws=10).reasons["step_size"]


def test_a_run_that_is_too_hot_is_made_again(monkeypatch):
    """Pilots that see nothing leave the step of w*, far too large for the arms of (w₁w₂)²/2."""
    run_pilots = tuning.run_pilots

    def blind(*arguments, **settings):
        settled = run_pilots(*arguments, **settings)
        return settled._replace(sampler=dataclasses.replace(settled.sampler, step_size=0.016))

    monkeypatch.setattr(tuning, "run_pilots", blind)
    posterior = posterior_of(lambda w: 0.5 * (w[0] * w[1]) ** 2, 2, gamma=1.0)
    report = llc.estimate(jax.random.key(0), posterior)
    exact = log_grid(lambda a, b: (a * b) ** 2 / 2, 2, NBETA).mean
    assert report.settings["sampler"]["step_size"] in (0.004, 0.001)
    assert abs(report.llc.value - exact) < 4 * report.llc.mcse
    monkeypatch.setattr(workflow, "_COOLINGS", 0)
    hot = llc.estimate(jax.random.key(0), posterior)
    assert hot.verdict == "UNRESOLVED", "negative control"
    assert {check.name for check in hot.failed} & {"mean_variance", "finite_chains", "virial"}
