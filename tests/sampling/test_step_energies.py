"""Energies from the minibatches of steps, against closed forms, full evaluations, and batches of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.series import monte_carlo_error
from llc.analysis.store import Store
from llc.posterior.microbatches import microbatched
from llc.sampling.chains import Chains
from llc.sampling.kernel import Info
from llc.sampling.loop import Span, run_segment
from llc.sampling.minibatch import independent_minibatch, minibatch
from llc.sampling.run_lengths import RunLengths
from tests.sampling.test_checkpoint import LENGTHS, bits, stop_at
from tests.support.tiers import weekly

RNG = np.random.default_rng(0)
NUM_DATA, GAMMA = 400, 1.0
X = RNG.normal(size=(NUM_DATA, 3)).astype(np.float32)
Y = (X @ [1.0, 2.0, -1.0] + RNG.normal(size=NUM_DATA)).astype(np.float32)
CENTER = jnp.asarray(np.linalg.lstsq(X, Y)[0], jnp.float32)
CURVATURES = np.linalg.eigvalsh(X.T @ X / NUM_DATA)


def example_losses(params, batch):
    x, y = batch
    return 0.5 * (x @ params - y) ** 2


def mean_loss(params, batch):
    return jnp.mean(example_losses(params, batch))


def make_posterior(loss_fn=example_losses, **settings):
    return llc.LocalPosterior(loss_fn, CENTER, (X, Y), gamma=GAMMA, **settings)


NBETA = float(make_posterior().nbeta)
EXACT = 0.5 * float(np.sum(NBETA * CURVATURES / (NBETA * CURVATURES + GAMMA)))
STEP = 0.5 / (NBETA * CURVATURES[-1] + GAMMA)
SAMPLERS = {"SGLD": llc.SGLD(STEP), "SGHMC": llc.SGHMC(STEP, friction=5.0), "SGNHT": llc.SGNHT(STEP, friction=5.0)}


def sample(posterior, sampler, *, seed=0, **settings):
    lengths = {"num_warmup": 200, "num_draws": 1000, "thinning": 5, "step_energies": True, "progress": False}
    return llc.sample(jax.random.key(seed), posterior, sampler, **(lengths | settings))


def series(draws):
    return draws["sample_stats"]["step_energy"].to_numpy(), draws["posterior"]["llc"].to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(SAMPLERS, but=("SGLD",)))
def test_on_all_the_data_the_mean_is_that_of_the_gaussian(name):
    draws = sample(make_posterior(), SAMPLERS[name])
    steps, _ = series(draws)
    assert abs(steps.mean() - EXACT) < 4 * monte_carlo_error(steps)
    assert not abs(1.1 * steps.mean() - EXACT) < 4 * monte_carlo_error(steps), "negative control"
    assert monte_carlo_error(steps) < 0.1
    found = llc.combined_energy(draws)
    assert abs(found.value - EXACT) < 4 * found.mcse


def test_a_step_has_the_energy_of_the_draw_before_it():
    """Of all the data at every step, so that nothing is left to chance; the first step stands at w*."""
    steps, draws = series(sample(make_posterior(), llc.SGLD(STEP), num_draws=20, num_warmup=0, thinning=1))
    np.testing.assert_allclose(steps[:, 0], 0.0, atol=1e-5)
    np.testing.assert_allclose(steps[:, 1:], draws[:, :-1], atol=1e-4)


WEIGHTS = np.where(np.arange(NUM_DATA) < 100, 3.0, 1.0)
PAIRS = {
    "per example": (make_posterior(), llc.SGLD(STEP), {}),
    "a scalar": (make_posterior(mean_loss), llc.SGLD(STEP), {}),
    "a scalar in microbatches": (make_posterior(microbatched(mean_loss, 16)), llc.SGLD(STEP), {}),
    "microbatches": (make_posterior(microbatched(example_losses, 16)), llc.SGLD(STEP), {}),
    "weights": (make_posterior(weights=WEIGHTS), llc.SGLD(STEP), {}),
    "control variates": (make_posterior(), llc.SGLD(STEP, control_variates=True), {}),
    "control variates of a scalar": (make_posterior(mean_loss), llc.SGLD(STEP, control_variates=True), {}),
    "momentum": (make_posterior(), llc.SGHMC(STEP, friction=5.0), {}),
    "one chain after the other": (make_posterior(), llc.SGLD(STEP), {"chain_method": "sequential"}),
}


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("case", PAIRS)
def test_minibatches_have_the_mean_of_all_the_data(case):
    posterior, sampler, settings = PAIRS[case]
    draws = sample(posterior, sampler, batch_size=50, **settings)
    steps, energies = series(draws)
    assert abs((steps - energies).mean()) < 4 * monte_carlo_error(steps - energies)
    assert monte_carlo_error(steps - energies) < 0.08 * energies.mean(), "so that 4 of them see a third"
    checks = {check.name: check for check in llc.report(draws).checks}
    assert checks["step_energies"].passed


@pytest.mark.study
def test_control_variates_take_noise_away():
    plain, paired = (
        sample(make_posterior(), llc.SGLD(STEP, control_variates=flag), batch_size=50) for flag in (False, True)
    )
    spread = [np.subtract(*series(draws)).std() for draws in (plain, paired)]
    assert spread[1] < 0.8 * spread[0]


@pytest.mark.slow
@pytest.mark.study
def test_steps_are_not_held_to_the_subset_that_draws_are_evaluated_on():
    draws = sample(make_posterior(), llc.SGLD(STEP), batch_size=100, eval_size=20)
    whole = sample(make_posterior(), llc.SGLD(STEP), batch_size=100)
    steps, energies = series(draws)
    np.testing.assert_array_equal(steps, series(whole)[0])
    error = monte_carlo_error(energies - steps)
    assert abs((energies - steps).mean()) > 3 * error, "the error of the subset, which is one for all draws"
    assert llc.best_energy(draws).method == "steps and draws"
    assert {check.name: check for check in llc.report(draws).checks}["step_energies"].passed


@pytest.mark.parametrize("independent", [True, False], ids=["drawn anew", "of an epoch"])
def test_batches_of_an_epoch_are_biased_and_those_drawn_anew_are_not(independent):
    """The second half of the data, after a step along the gradient of the first: its loss is above the mean."""
    lengths = RunLengths(num_chains=1, num_warmup=0, num_draws=8000, thinning=2, batch_size=200, step_energies=True)
    chains = Chains(jax.random.key(0), make_posterior(), llc.SGLD(STEP), lengths, chain_method="sequential")
    settings = chains.settings._replace(independent_batches=independent, capacity=8000)
    span = Span(np.int32(0), np.int32(8000), np.int32(2), np.bool_(True))
    start = chains.keys[0], chains.posterior, chains.sampler, chains.measure, chains.states[0], chains.moments[0]
    draws = run_segment(*start, span, settings)[1].draws
    change = NBETA * (np.asarray(draws.step_delta, np.float64) - np.asarray(draws.delta, np.float64))[None, 100:]
    z = change.mean() / monte_carlo_error(change)
    assert abs(z) < 4 if independent else z > 8


def test_rows_drawn_anew_are_different_uniform_and_independent_of_the_step_before():
    """Each row is as likely as another, and two steps share B²/n rows on average; those of an epoch share none."""
    size, num_steps, key = 20, 4000, jax.random.key(1)
    rows = np.arange(NUM_DATA)

    def drawn(draw):
        return np.asarray(jax.vmap(lambda step: draw(key, step, rows, NUM_DATA, size))(jnp.arange(num_steps)))

    batches = drawn(independent_minibatch)
    assert all(len(set(batch)) == size for batch in batches[:100].tolist())
    counts = np.bincount(batches.ravel(), minlength=NUM_DATA)
    share = size / NUM_DATA
    spread = np.sum((counts - num_steps * share) ** 2) / (num_steps * share * (1 - share))
    assert abs(spread - NUM_DATA) < 4 * np.sqrt(2 * NUM_DATA)
    shared = [len(set(a) & set(b)) for a, b in zip(batches[::2].tolist(), batches[1::2].tolist(), strict=True)]
    expected = size * share
    assert abs(np.mean(shared) - expected) < 4 * np.std(shared) / np.sqrt(len(shared))
    epoch = drawn(minibatch)[: NUM_DATA // size]
    assert len(set(epoch.ravel().tolist())) == NUM_DATA, "negative control"


class Silent(llc.SGLD):
    """A sampler that does not say the loss of its batch."""

    has_batch_loss = False

    def step(self, key, posterior, state, batch):
        state, info = super().step(key, posterior, state, batch)
        return state, Info(*info[:6])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [pytest.param(llc.NUTS(), marks=pytest.mark.study), llc.MALA(0.1), Silent(0.1)],
    ids=lambda s: type(s).__name__,
)
def test_samplers_without_a_loss_of_a_batch_are_refused(sampler):
    with pytest.raises(ValueError, match="step_energies needs a sampler"):
        sample(make_posterior(), sampler)
    draws = sample(make_posterior(), sampler, step_energies=False, num_draws=2, num_warmup=2)
    assert "step_energy" not in draws["sample_stats"]


@pytest.mark.slow
@pytest.mark.parametrize("method", weekly(["vectorized", "sequential"], but=("vectorized",)))
def test_a_run_goes_on_to_the_same_bits(tmp_path, method):
    settings = {"thinning": 3, "batch_size": 50, "step_energies": True, "chain_method": method}
    run = make_posterior(), llc.SGLD(STEP)
    stop_at(7, Store(tmp_path / "run.zarr", seconds=1000.0), *run, **settings)
    settings |= LENGTHS
    whole = sample(*run, **settings)
    again = sample(*run, **settings, store=tmp_path / "run.zarr")
    assert bits(again)["sample_stats", "step_energy"] == bits(whole)["sample_stats", "step_energy"]
    assert bits(again)["warmup_sample_stats", "step_energy"] == bits(whole)["warmup_sample_stats", "step_energy"]
    with pytest.raises(ValueError, match="step_energies"):
        sample(*run, **(settings | {"step_energies": False}), store=tmp_path / "run.zarr")
    path = tmp_path / "draws.nc"
    llc.save(again, path)
    assert bits(llc.load(path))["sample_stats", "step_energy"] == bits(whole)["sample_stats", "step_energy"]
