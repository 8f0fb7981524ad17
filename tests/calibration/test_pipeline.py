"""Settings: each with its reason, none that was given is changed, and the batch heats no more than predicted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.pipeline import _gradient_noise

CURVATURES = np.array([4.0, 1.0, 0.25])


def regression(num_data=6000, noise=1.0):
    """Linear regression at its least-squares solution: the Hessian XᵀX/n is diag(CURVATURES), residuals stay."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(num_data, 3)))[0] * np.sqrt(num_data * CURVATURES)
    residual = noise * rng.normal(size=num_data)
    residual -= x @ np.linalg.lstsq(x, residual, rcond=None)[0]
    data = x.astype(np.float32), residual.astype(np.float32)

    def losses(w, batch):
        return 0.5 * (batch[0] @ w - batch[1]) ** 2

    return llc.LocalPosterior(losses, jnp.zeros(3), data)


def heating(posterior, step_size, batch_size):
    """Predicted relative heating of λ̂ by the examples' gradients, in closed form (docs/theory.md §7)."""
    x, residual = (np.asarray(part, np.float64) for part in posterior.data)
    nbeta, gamma = float(posterior.nbeta), float(posterior.gamma)
    shares = 0.5 * nbeta * CURVATURES / (nbeta * CURVATURES + gamma)
    variances = (x * residual[:, None]).var(axis=0)
    return step_size * nbeta**2 * np.sum(shares * variances) / (4 * batch_size * shares.sum())


def test_gradient_noise_is_that_of_the_closed_form():
    posterior = regression().with_scale(gamma=5.0)
    shares = 0.5 * float(posterior.nbeta) * CURVATURES / (float(posterior.nbeta) * CURVATURES + 5.0)
    found = float(_gradient_noise(posterior, jnp.eye(3), jnp.asarray(shares, jnp.float32), posterior.data))
    quad = shares.sum()
    expected = heating(posterior, 1.0, 1) * 4 * quad / float(posterior.nbeta) ** 2
    assert found == pytest.approx(expected, rel=1e-4)


def step_size_of(calibration):
    return float(np.asarray(calibration.sampler.step_size))


@pytest.mark.parametrize("noise", [0.3, 4.0])
def test_control_variates_follow_the_noise(noise):
    posterior = regression(noise=noise)
    calibration = llc.calibrate(jax.random.key(0), posterior, num_draws=500)
    assert calibration.lengths["batch_size"] == 512
    without = heating(calibration.posterior, step_size_of(calibration), 512)
    assert (without > 2 * 0.03) == calibration.sampler.control_variates == (noise == 4.0)
    assert ("with control variates" in calibration.reasons["sampler"]) == (noise == 4.0)


def test_the_batch_follows_the_noise():
    """A sampler that is given stays as it is, so that only the rows are left to choose."""
    posterior = regression(num_data=20_000, noise=1.0).with_scale(gamma=5.0)
    sampler = llc.SGLD(0.5 / (float(posterior.nbeta) * 4 + 5))
    calibration = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
    rows = calibration.lengths["batch_size"]
    # From 512 of the examples: ± 4 √(2 / 512).
    assert heating(posterior, float(sampler.step_size), rows) < 0.03 * 1.25
    assert heating(posterior, float(sampler.step_size), rows // 2) > 0.03 / 1.25, "half as many would not do"
    assert rows > 512


@pytest.mark.slow
def test_a_batch_has_a_largest_size_and_says_what_it_heats():
    posterior = regression(num_data=20_000, noise=4.0).with_scale(gamma=5.0)
    sampler = llc.SGLD(0.5 / (float(posterior.nbeta) * 4 + 5))
    calibration = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
    assert calibration.lengths["batch_size"] == 8192
    predicted = float(calibration.reasons["batch_size"].split()[-1].rstrip("%")) / 100
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


def test_what_is_given_is_kept():
    posterior = regression().with_scale(gamma=7.0)
    given = {"num_chains": 2, "num_warmup": 30, "num_draws": 40, "thinning": 3, "batch_size": 100, "eval_size": 200}
    calibration = llc.calibrate(jax.random.key(0), posterior, **given)
    assert calibration.lengths == given
    assert float(calibration.posterior.gamma) == 7.0
    text = str(calibration)
    assert "gamma               7  of the posterior" in text
    assert "thinning            3  given" in text
    sampler = llc.calibrate(jax.random.key(0), posterior, sampler=llc.NUTS(), **given | {"batch_size": None})
    assert sampler.sampler == llc.NUTS()
    assert "step_size     adapted  of the sampler" in str(sampler)


def test_mala_is_as_long_as_the_tether_asks():
    """Its proposal is a step of SGLD, whose pilots see how stiff it gets away from a w* without curvature."""
    data = np.zeros((1000, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * (w[0] * w[1]) ** 2, jnp.zeros(2), data, gamma=1.0)
    free = llc.calibrate(jax.random.key(0), posterior)
    step_size, gamma = float(free.sampler.step_size), float(free.posterior.gamma)
    mala = llc.calibrate(jax.random.key(0), posterior, sampler=llc.MALA())
    assert mala.sampler == llc.MALA()
    relaxations = step_size * gamma * mala.lengths["num_draws"]  # of a thinning of 1
    assert mala.lengths["thinning"] == math.ceil(80 / relaxations) > 10
    assert "step_size     adapted  of the sampler" in str(mala)
    for sampler, thinning in ((llc.MALA(step_size), 10), (llc.SGLD(step_size), 10), (llc.NUTS(), 1)):
        given = llc.calibrate(jax.random.key(0), posterior, sampler=sampler)
        assert given.lengths["thinning"] == thinning, "negative control: a step of one's own, and trajectories"


def test_every_setting_has_a_reason():
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100))
    names = {"sampler", "step_size", "gamma", "nbeta", *calibration.lengths}
    assert set(calibration.reasons) == names
    assert all(calibration.reasons.values())
    assert len(calibration.pilots) >= 1
    relaxations = int(calibration.reasons["gamma"].split("relaxes ")[1].split(" times")[0])
    assert 75 < relaxations < 100  # 80 by design where a step is cheap, thinning rounded up
    costly = llc.calibrate(jax.random.key(0), regression(num_data=100), num_warmup=2000)  # given: not to be made longer
    relaxations = int(costly.reasons["gamma"].split("relaxes ")[1].split(" times")[0])
    assert 35 < relaxations < 50


def test_a_budget_is_kept():
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=1000)
    assert calibration.num_steps <= 1000
    assert calibration.num_steps > 500
    long_intervals = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=105, thinning=100)
    assert long_intervals.num_steps <= 105
    trajectories = llc.calibrate(jax.random.key(0), regression(num_data=100), budget=30_000, sampler=llc.NUTS())
    assert trajectories.lengths["thinning"] == 1, "as without a budget"
    free = llc.calibrate(jax.random.key(0), regression(num_data=100), sampler=llc.NUTS())
    assert float(trajectories.posterior.gamma) == float(free.posterior.gamma)
    assert trajectories.lengths == free.lengths
    report = llc.estimate(jax.random.key(0), regression(num_data=100), budget=1000, target_mcse=1e-9)
    lengths = report.settings
    assert lengths["num_warmup"] + lengths["num_draws"] * lengths["thinning"] <= 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget needs an integer >= 1, got 0"),
        ({"budget": 100, "num_draws": 0}, "num_draws needs an integer >= 1, got 0"),
        ({"budget": 100, "num_warmup": 100}, r"budget needs at least num_warmup \+ thinning = 101 steps .* got 100"),
        ({"thinning": 0}, "thinning needs an integer >= 1, got 0"),
        ({"eval_size": 101}, "eval_size needs an integer from 1 to n = 100, got 101"),
        ({"target_mcse": 0.0}, r"target_mcse needs a number > 0, relative to λ̂, got 0.0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.estimate(jax.random.key(0), regression(num_data=100), **settings)


def test_no_curvature_has_no_noise_to_heat():
    data = np.zeros((5000, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, x: jnp.sum(w**4) + 0 * x[:, 0], jnp.zeros(2), data, gamma=1.0)
    calibration = llc.calibrate(jax.random.key(0), posterior, num_draws=10, num_warmup=10)
    assert calibration.lengths["batch_size"] == 512
