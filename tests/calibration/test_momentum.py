"""Momentum: chosen where it pays; not where minibatches heat it, where it is thrown out, or where SGLD is as fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.batch_size import Batch
from llc.calibration.momentum import exclude_momentum, try_momentum, with_momentum
from llc.calibration.price import Price
from llc.calibration.record import Pilot, PilotResult, Request
from llc.calibration.run_length import Plan
from llc.sampling.momentum import energy_friction, predicted_heating
from llc.sampling.run_lengths import RequestedLengths

DIM, NUM_DATA, GAMMA = 600, 100, 1.0
NBETA = NUM_DATA / np.log(NUM_DATA)
CHEAP, COSTLY = Price(1e6, costly=False), Price(1e9, costly=True)
SETTINGS = {"num_warmup": 1000, "num_draws": 400, "thinning": 10, "progress": False}


def quadratic(curvatures, stiffer=0.0):
    """½ Σ h w², with another curvature `stiffer` · w₀² of w₁; no example differs from another one."""
    h = jnp.asarray(curvatures, jnp.float32)

    def loss(w, _):
        return 0.5 * jnp.sum(h * w**2) + 0.5 * stiffer * (w[0] * w[1]) ** 2

    return llc.LocalPosterior(loss, jnp.zeros(len(h)), np.zeros((NUM_DATA, 1), np.float32), gamma=GAMMA)


def spectrum_of(curvatures):
    nodes = np.asarray(curvatures, np.float64)[None]
    rows = np.argsort(-nodes[0])[:16]
    vectors = np.eye(nodes.size)[rows].astype(np.float32)
    none = np.zeros(0)
    return llc.Spectrum(nodes, np.ones_like(nodes), nodes.size, "hessian", "dense", none, none, vectors=vectors)


ILL, EQUAL = np.logspace(-3, 1, DIM), np.full(DIM, 1.0)


def request_of(posterior, curvatures, price=CHEAP, **lengths):
    asked = RequestedLengths(num_chains=4, num_draws=100, **lengths)
    return Request(posterior, None, asked, asked, spectrum_of(curvatures), price)


def found_of(posterior, step_size, *, confirmed=True):
    pilots = (Pilot(GAMMA, step_size, 1.0),)
    return PilotResult(posterior, llc.SGLD(step_size), step_size, pilots, confirmed)


def trial_of(posterior, curvatures, step_size, batch=Batch(None), **given):
    request = request_of(posterior, curvatures, **given)
    plan = Plan(20_000, 1, overhead_bound=False)
    return try_momentum(jax.random.key(0), request, batch, plan, found_of(posterior, step_size))


def step_of(curvatures):
    return 0.5 / (NBETA * np.max(curvatures) + GAMMA)


@pytest.fixture(scope="module")
def chosen():
    return llc.calibrate(jax.random.key(0), quadratic(ILL), spectrum=spectrum_of(ILL), num_draws=400)


@pytest.mark.slow
def test_momentum_is_chosen_for_an_ill_conditioned_posterior(chosen):
    choice = chosen.choices["sampler"]
    assert isinstance(chosen.sampler, llc.SGHMC)
    assert choice.value is chosen.sampler
    assert choice.origin == "chosen"
    assert choice.evidence["gain"] > 2
    assert choice.evidence["heating"] == 0, "a full batch"
    assert float(chosen.sampler.friction) == choice.evidence["friction"]
    assert choice.evidence["friction"] == pytest.approx(energy_friction(spectrum_of(ILL), nbeta=NBETA, gamma=GAMMA))
    assert chosen.choices["step_size"].value == float(chosen.sampler.step_size) == pytest.approx(step_of(ILL))
    sgld = float(chosen.sampler.step_size) * GAMMA * chosen.lengths.num_draws * chosen.lengths.thinning / 2
    assert chosen.choices["gamma"].evidence["relaxations"] > 4 * sgld


@pytest.mark.slow
@pytest.mark.study
def test_its_error_is_a_quarter_and_honest(chosen):
    """The same steps of both; E[nβK] of the quadratic is λ_quad."""
    exact = 0.5 * np.sum(NBETA * ILL / (NBETA * ILL + GAMMA))
    samplers = chosen.sampler, llc.SGLD(chosen.pilots[-1].step_size)
    found = [llc.mean_energy(llc.sample(jax.random.key(1), chosen.posterior, s, **SETTINGS)) for s in samplers]
    momentum, sgld = found
    assert abs(momentum.value - exact) < 4 * momentum.mcse
    assert momentum.mcse**2 < sgld.mcse**2 / 4


@pytest.mark.slow
def test_sgld_stays_where_it_is_as_fast():
    trial = trial_of(quadratic(EQUAL), EQUAL, step_of(EQUAL))
    assert trial.sampler is None
    assert trial.evidence["gain"] < 1
    found = found_of(quadratic(EQUAL), step_of(EQUAL))
    after, batch = with_momentum(found, Batch(64), trial)
    assert after.sampler is found.sampler
    assert batch == Batch(64)


@pytest.mark.parametrize(
    ("dim", "price", "batch", "excluded"),
    [
        (DIM, CHEAP, Batch(None), False),
        (DIM, COSTLY, Batch(None), True),
        (DIM, CHEAP, Batch(64, 0.01, 512), True),
        (10, CHEAP, Batch(None), True),
    ],
    ids=["tried", "costly", "control variates", "overhead-bound"],
)
def test_where_it_is_not_tried(dim, price, batch, excluded):
    request = request_of(quadratic(ILL[-dim:]), ILL[-dim:], price)
    trial = exclude_momentum(request, batch)
    assert (trial is not None) == excluded
    assert trial is None or (trial.sampler is None and trial.reason)


@pytest.mark.slow
@pytest.mark.study
def test_its_step_falls_where_its_chains_meet_stiff_places():
    """w₀ is flat and goes to ±1/√γ, where w₁ is ten times as stiff as w*: SGLD's pilot had not seen it."""
    curvatures = np.r_[0.0, ILL[1:]]
    posterior = quadratic(curvatures, stiffer=10 * ILL[-1])
    trial = trial_of(posterior, curvatures, step := step_of(curvatures))
    assert trial.evidence["num_trials"] > 1
    assert isinstance(trial.sampler, llc.SGHMC)
    assert float(trial.sampler.step_size) <= step / 2
    assert trial.evidence["stiffness"] <= 2
    control = trial_of(quadratic(curvatures), curvatures, step)
    assert control.evidence["num_trials"] == 1, "negative control: the same stiffness everywhere"


@pytest.mark.slow
def test_places_that_stay_too_stiff_leave_sgld():
    curvatures = np.r_[0.0, ILL[1:]]
    trial = trial_of(quadratic(curvatures, stiffer=1e8), curvatures, step_of(curvatures))
    assert trial.sampler is None
    assert trial.evidence["stiffness"] > 2


@pytest.mark.parametrize("confirmed", [True, False])
def test_pilots_that_confirmed_nothing_try_nothing(confirmed):
    posterior = quadratic(ILL)
    found = found_of(posterior, step_of(ILL), confirmed=confirmed)
    trial = try_momentum(
        jax.random.key(0), request_of(posterior, ILL), Batch(None), Plan(20_000, 1, overhead_bound=False), found
    )
    assert (trial.sampler is not None) == confirmed


def regression(noise, num_data=6000, dim=12):
    """Least squares at its solution, with curvatures over three decades and residuals of size `noise`."""
    rng = np.random.default_rng(0)
    curvatures = np.logspace(-3, 0, dim)
    x = np.linalg.qr(rng.normal(size=(num_data, dim)))[0] * np.sqrt(num_data * curvatures)
    residual = noise * rng.normal(size=num_data)
    residual -= x @ np.linalg.lstsq(x, residual, rcond=None)[0]
    data = x.astype(np.float32), residual.astype(np.float32)
    loss = lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2  # noqa: E731
    return llc.LocalPosterior(loss, jnp.zeros(dim), data, gamma=GAMMA), curvatures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "given", "momentum"),
    [(0.01, {}, True), (1.0, {}, False), (0.01, {"batch_size": 512}, False), (0.01, {"budget": 9999}, False)],
    ids=["quiet", "noisy labels", "rows given", "budget"],
)
def test_a_minibatch_heats_it_by_less_than_3_percent(noise, given, momentum):
    posterior, curvatures = regression(noise)
    step = 0.5 / (posterior.scale.nbeta * curvatures.max() + GAMMA)
    trial = trial_of(posterior, curvatures, step, Batch(512), **given)
    assert (trial.sampler is not None) == momentum
    if momentum:
        assert 512 < trial.rows <= 2048
        assert 0 < trial.evidence["heating"] <= 0.03
        amplified, plain = (predicted_heating(step, x, 1.0, 1.0) for x in (trial.evidence["friction"], np.inf))
        assert amplified > 3 * plain
        found, batch = with_momentum(found_of(posterior, step), Batch(512), trial)
        assert found.sampler is trial.sampler
        assert (batch.rows, batch.heating) == (trial.rows, trial.evidence["heating"])
