"""How long a run is: budgets, relaxations, and what a trajectory needs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from tests.support.regression import regression

NBETA = 1000 / np.log(1000)


def work(lengths):
    """Gradients over all the data that a run takes: one a step of a full batch, and one a draw."""
    return lengths["num_chains"] * (lengths["num_warmup"] + lengths["num_draws"] * (lengths["thinning"] + 1))


def test_a_budget_is_kept():
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=4000)
    assert 2000 < work(calibration.lengths.keywords()) <= 4000
    assert calibration.choices["num_draws"].origin == "chosen"
    assert calibration.choices["num_draws"].evidence["budget"] == 4000
    long_intervals = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=540, thinning=100)
    assert work(long_intervals.lengths.keywords()) <= 540
    trajectories = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=200_000, sampler=llc.NUTS())
    assert trajectories.lengths.thinning == 1, "as without a budget"
    free = llc.calibrate(jax.random.key(0), regression(num_data=100), sampler=llc.NUTS())
    assert float(trajectories.posterior.gamma) == float(free.posterior.gamma)
    assert trajectories.lengths.keywords() == free.lengths.keywords()


def test_a_budget_is_kept_by_estimate():
    report = llc.estimate(jax.random.key(0), regression(num_data=100), budget=4000, target_mcse=1e-9)
    second = json.loads(report.draws["localized"].attrs["settings"])
    assert 2000 < work(report.settings) + work(second) <= 4000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "relaxations"),
    [({}, (75, 100)), pytest.param({"num_warmup": 2000}, (35, 50), marks=pytest.mark.study)],
)
def test_a_flat_direction_relaxes_as_often_as_was_aimed_at(given, relaxations):
    """80 times by design where a step costs next to nothing, 40 where the run may not be made longer."""
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100), **given)
    least, most = relaxations
    assert least < calibration.choices["gamma"].evidence["relaxations"] < most


@pytest.mark.slow
@pytest.mark.study
def test_the_localization_of_a_cheap_model_shows_most_of_the_rank():
    """Curvatures over three decades: where a step is cheap, γ falls until λ_quad is 3/4 of r/2."""
    curvatures = 10.0 ** -np.arange(4)
    posterior = llc.LocalPosterior(
        lambda w, _: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2), jnp.zeros(4), np.zeros((1000, 1), np.float32)
    )

    def share(calibration):
        gamma = float(calibration.posterior.gamma)
        return np.mean(NBETA * curvatures / (NBETA * curvatures + gamma))

    cheap = llc.calibrate(jax.random.key(0), posterior)
    assert cheap.overhead_bound
    assert 0.75 < share(cheap) < 0.9
    costly = llc.calibrate(jax.random.key(0), posterior, thinning=10)  # given, so that the run can't be longer
    assert share(costly) < 0.7
    assert cheap.lengths.thinning > 10
    assert not costly.overhead_bound, "what is given is not made longer"


@pytest.mark.slow
@pytest.mark.study
def test_mala_is_as_long_as_the_localization_asks():
    """Its proposal is a step of SGLD, whose pilots see how stiff it gets away from a w* without curvature."""
    data = np.zeros((1000, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * (w[0] * w[1]) ** 2, jnp.zeros(2), data, gamma=1.0)
    free = llc.calibrate(jax.random.key(0), posterior)
    step_size, gamma = float(free.sampler.step_size), float(free.posterior.gamma)
    mala = llc.calibrate(jax.random.key(0), posterior, sampler=llc.MALA())
    assert mala.sampler == llc.MALA()
    relaxations = step_size * gamma * mala.lengths.num_draws  # of a thinning of 1
    assert mala.lengths.thinning == math.ceil(80 / relaxations) > 10
    assert mala.choices["step_size"].value is None
    for sampler, thinning in ((llc.MALA(step_size), 10), (llc.SGLD(step_size), 10), (llc.NUTS(), 1)):
        given = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
        assert given.lengths.thinning == thinning, "negative control: a step of one's own, and trajectories"
