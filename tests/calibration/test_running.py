"""How long a run goes on by itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.store import MAIN, Store
from llc.calibration.pipeline import calibrate, calibrate_for
from llc.calibration.price import Price
from llc.calibration.record import Calibration
from llc.calibration.running import Place, draw_cool_enough, extended
from llc.sampling.chains import Chains
from llc.sampling.run_lengths import RequestedLengths
from tests.support.regression import regression
from tests.support.tiers import weekly


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "enough", "center", "num_draws"),
    [
        (None, 30, 0, 30),
        (1e-3, 30, 0, 160),
        (1e-3, 30, 0.5, 20),
        pytest.param(None, None, 0, 160, marks=pytest.mark.study),
    ],
)
def test_a_run_of_minutes_goes_on_only_for_an_accuracy_that_was_asked_for(target, enough, center, num_draws):
    """Twenty draws of each chain on a quartic tell λ̂ to some 15 %; the most are eight times as many.

    Beside the minimum λ̂ is below zero by many errors, which no draw changes.
    """
    data = np.ones(500, np.float32)
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x * w) ** 4, jnp.float32(center), data, gamma=1.0)
    calibration = calibrate(jax.random.key(0), posterior, sampler=llc.SGLD(1e-2), num_draws=20, progress=False)
    calibration = replace(calibration, enough_draws=enough)
    run = draw_cool_enough((jax.random.key(1),), calibration, None, progress=False)
    report = extended(run, target, None, progress=False)
    assert report.draws["posterior"].sizes["draw"] == num_draws


def _of_minutes(posterior: llc.LocalPosterior, num_draws: int | None = None, *, energies: bool = True) -> Calibration:
    """Settings as of a costly model, of a run whose λ̂ is told as draws come in."""
    asked = RequestedLengths(num_chains=4, num_draws=num_draws, num_warmup=50, thinning=20, step_energies=energies)
    made = calibrate_for(jax.random.key(0), posterior, None, asked, Price(1e9, costly=True), progress=False)
    return replace(made, enough_draws=150)


def _quartic(center: float = 0.0) -> llc.LocalPosterior:
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    return llc.LocalPosterior(lambda w, x: 0.5 * (x * w) ** 2 + (x * w) ** 4, jnp.float32(center), x, gamma=1.0)


def _num_draws(calibration: Calibration, place: Place = Place(), target: float | None = None) -> int:
    run = draw_cool_enough((jax.random.key(1),), calibration, None, place, target, progress=False)
    return extended(run, target, None, progress=False).draws["posterior"].sizes["draw"]


@pytest.mark.slow
def test_a_run_of_minutes_ends_where_its_estimate_is_accurate_enough():
    """Not where its draws were asked for, or observables of them, or a higher accuracy."""
    posterior = _quartic()
    made = _of_minutes(posterior)
    most = made.lengths.num_draws
    assert _num_draws(made) < most
    assert _num_draws(made, target=1e-3) >= most
    assert _num_draws(made, Place(observables={"square": lambda w, batch: w**2})) == most
    assert _num_draws(_of_minutes(posterior, num_draws=most)) == most


@pytest.mark.slow
@pytest.mark.parametrize("there", weekly([8, 30, 80], but=(30,)))
def test_a_run_that_is_resumed_ends_where_it_would_have(there, tmp_path):
    """There: at a look at λ̂, between two, and past the end, which more draws were asked for."""
    made = _of_minutes(regression(num_data=200))
    with Store(tmp_path / "straight.zarr") as store:
        straight = _num_draws(made, Place(store))
    with Store(tmp_path / "killed.zarr") as store:
        key, settings = jax.random.key(1), (made.posterior, made.sampler, made.lengths)
        chains = Chains(key, *settings, spectrum=made.spectrum, store=store.run(MAIN))
        chains.draw_until(min(there, straight), asked=made.lengths.num_draws, progress=False)
        assert _num_draws(made, Place(store)) == straight < made.lengths.num_draws


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.0, 1.0])
def test_a_run_that_finds_lower_losses_says_so_once(away, capsys):
    """λ̂ is negative for sure where w* is far from the minimum."""
    made = _of_minutes(_quartic(away))
    draw_cool_enough((jax.random.key(1),), made, None, progress=None)
    assert capsys.readouterr().err.count("lower losses than at w*") == bool(away)
