"""Whether energies of steps are taken, by the noise of their rows in a pilot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.batch_size import Batch
from llc.calibration.price import Price
from llc.calibration.record import Choice, Pilot, PilotResult, Request
from llc.calibration.step_energies import choose_step_energies, may_have_step_energies, row_variance, space_draws
from llc.sampling.chains import Chains
from llc.sampling.run_lengths import RequestedLengths, RunLengths


def make_request(posterior, *, costly=True, sampler=None, step_energies=None):
    lengths = RequestedLengths(num_chains=2, step_energies=step_energies)
    spectrum = llc.spectrum(posterior)
    return Request(posterior, sampler, lengths, lengths, spectrum, Price(1.0, costly))


def found_with(row_variance, posterior):
    pilot = Pilot(1.0, 0.1, 1.0, energies=(3.0, 5.0), row_variance=row_variance)
    return PilotResult(posterior, llc.SGLD(0.1), pilots=(pilot,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "variance", "taken"),
    [
        ({}, 100.0, True),
        ({}, 10_000.0, False),
        ({}, np.nan, False),
        ({"costly": False}, 100.0, False),
        ({"sampler": llc.SGLD(0.1)}, 100.0, False),
        ({"step_energies": True, "costly": False}, np.nan, True),
        ({"step_energies": False}, 100.0, False),
    ],
    ids=["quiet rows", "noisy rows", "unknown", "cheap model", "a sampler of the user", "asked for", "refused"],
)
def test_energies_of_steps_are_taken_where_their_rows_are_quiet(settings, variance, taken):
    """A draw has the variance 4; five steps of ten rows have a fiftieth of that of a row."""
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), np.ones(100), gamma=1.0)
    choice = choose_step_energies(make_request(posterior, **settings), Batch(10), found_with(variance, posterior), 5)
    assert choice.value == taken
    assert choice.origin == ("given" if "step_energies" in settings else "chosen")
    if choice.evidence and np.isfinite(variance):
        assert choice.evidence == {"of_rows": variance / 50, "of_draw": 4.0}


def test_neither_full_batches_nor_scalar_losses_have_them():
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), np.ones(100), gamma=1.0)
    scalar = llc.LocalPosterior(lambda w, x: 0.5 * jnp.mean((w * x) ** 2), jnp.zeros(()), np.ones(100), gamma=1.0)
    assert may_have_step_energies(make_request(posterior), Batch(10))
    assert not may_have_step_energies(make_request(posterior), Batch(None))
    assert not may_have_step_energies(make_request(scalar), Batch(10))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vectorized", "sequential"])
def test_the_variance_of_rows_is_that_of_their_losses(method):
    data = np.random.default_rng(0).normal(size=60).astype(np.float32)

    def losses(w, x):
        return 0.5 * (w - x) ** 2

    posterior = llc.LocalPosterior(losses, jnp.zeros(()), data, gamma=1.0)
    lengths = RunLengths(num_chains=2, num_warmup=0, num_draws=1, thinning=3)
    chains = Chains(jax.random.key(0), posterior, llc.SGLD(0.01), lengths, chain_method=method)
    chains.draw(1, progress=False)
    expected = [np.var(np.asarray(losses(w, data) - losses(0.0, data), np.float64)) for w in chains.positions]
    assert row_variance(chains, 2.0) == pytest.approx(4 * np.mean(expected), rel=1e-4)
    twice = dataclasses.replace(lengths, num_draws=2)
    chains = Chains(jax.random.key(0), posterior, llc.SGLD(0.01), twice, chain_method=method)
    chains.draw(2, progress=False)
    assert np.isnan(row_variance(chains, 2.0))


@pytest.mark.parametrize(
    ("rows", "num_draws", "thinning", "origin", "expected"),
    [
        (5, 160, 20, "chosen", (100, 32)),
        (5, 400, 20, "chosen", (200, 40)),
        (50, 160, 20, "chosen", (160, 20)),
        (5, 60, 20, "chosen", (60, 20)),
        (5, 160, 20, "given", (160, 20)),
    ],
    ids=["as few as checks need", "half the cost of steps", "steps that cost more", "few as it is", "of the user"],
)
def test_draws_are_rarer_where_steps_have_energies_and_steps_stay_as_many(rows, num_draws, thinning, origin, expected):
    """Of 100 rows: a step on 5 costs a twentieth of a draw, so that 40 steps cost two draws."""
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), np.ones(100), gamma=1.0)
    lengths = Choice(num_draws, origin, ""), Choice(thinning, "chosen", "")
    found = space_draws(make_request(posterior), Batch(rows), *lengths)
    assert tuple(choice.value for choice in found) == expected
