"""Which runs are cut short, and γ of those with a budget, on a quadratic whose λ̂ is known at every γ."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.batch_size import MAX_HEATING, measure_noise
from llc.calibration.pipeline import calibrate_for
from llc.calibration.price import Price
from llc.calibration.record import Request
from llc.calibration.short_run import costly_length, enough_draws, is_costly, takes_minutes
from llc.calibration.step_size import RELAXATIONS, settings_from_curvature
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from tests.support.spectra import spectrum_of
from tests.support.tiers import weekly

NUM_DATA, DIM, CHAINS = 2048, 60, 4
COSTLY = Price(1e9, costly=True)


def decaying():
    """Least squares on features of variances over eight decades, so that the rank has no gap."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_DATA, DIM)) * 10.0 ** -np.linspace(0, 4, DIM)
    data = x.astype(np.float32), (0.1 * rng.normal(size=NUM_DATA)).astype(np.float32)
    center, *_ = np.linalg.lstsq(*(a.astype(np.float64) for a in data))
    loss = lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2  # noqa: E731
    return llc.LocalPosterior(loss, jnp.asarray(center, jnp.float32), data)


def request(budget, **lengths):
    asked = RequestedLengths(num_chains=CHAINS, budget=budget, **lengths)
    return Request(decaying(), None, asked, asked, llc.spectrum(decaying()), COSTLY)


def gamma(asked):
    return settings_from_curvature(asked.posterior, asked.spectrum.largest, **costly_length(asked)._asdict()).gamma


@pytest.mark.slow
def test_less_work_asks_for_a_stronger_localization():
    found = [gamma(request(budget)) for budget in (None, 10**6, 1000, 200, 50)]
    assert found[0] == found[1], "a long run has that of a run without a budget"
    assert found[1] < found[2] < found[3] < found[4]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [50, 200, 1000])
def test_a_flat_direction_relaxes_ten_times_on_batches_that_hardly_heat(budget):
    asked = request(budget)
    length = costly_length(asked)
    settings = settings_from_curvature(asked.posterior, asked.spectrum.largest, **length._asdict())
    assert length.num_steps * settings.step_size * settings.gamma / 2 == pytest.approx(10, rel=0.5)
    rows = 0.5 * 0.42 * budget / CHAINS * NUM_DATA / length.num_steps
    noise = measure_noise(asked.posterior.with_scale(gamma=settings.gamma), asked.spectrum)
    heating = noise.heating(asked.posterior.with_scale(gamma=1.0).scale.nbeta, settings.gamma, settings.step_size)
    assert max(heating) / rows <= 1.1 * MAX_HEATING or rows == pytest.approx(NUM_DATA, rel=0.5)


@pytest.mark.slow
def test_what_was_given_is_kept():
    asked = request(100, batch_size=256)
    assert costly_length(asked).num_steps == pytest.approx(0.5 * 0.42 * 100 / CHAINS * NUM_DATA / 256, rel=0.1)
    given = decaying().with_scale(gamma=7.0)
    other = Request(given, None, asked.asked, asked.lengths, asked.spectrum, COSTLY)
    assert costly_length(other).relaxations == RELAXATIONS
    nuts = Request(decaying(), llc.NUTS(), asked.asked, asked.lengths, asked.spectrum, COSTLY)
    assert costly_length(nuts).num_steps == costly_length(asked).num_steps, "the rows were given"


@pytest.mark.slow
@pytest.mark.study
def test_the_run_has_that_gamma_without_eigenvectors_too():
    """Where no localization is found, pilots choose γ; they may only raise it."""
    given = dataclasses.replace(llc.spectrum(decaying()), vectors=None)
    asked = RequestedLengths(num_chains=CHAINS, budget=200)
    found = calibrate_for(jax.random.key(0), decaying(), None, asked, COSTLY, spectrum=given, progress=False)
    expected = gamma(Request(decaying(), None, asked, asked, given, COSTLY))
    assert found.pilots[0].gamma == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", weekly(range(4), but=(0,)))
def test_a_short_run_has_the_estimate_of_its_gamma(seed):
    """λ_quad is exact here. At the γ of a long run the same chains tell of their start, which is the control."""
    whole, asked = llc.spectrum(decaying()), RequestedLengths(num_chains=CHAINS, budget=100)
    found = calibrate_for(jax.random.key(seed), decaying(), None, asked, COSTLY, progress=False)

    def distance(posterior, lengths: RunLengths):
        draws = llc.sample(jax.random.key(100 + seed), posterior, found.sampler, **lengths.keywords(), progress=False)
        estimate = llc.report(draws, spectrum=found.spectrum).llc
        exact = whole.quad(posterior.scale.localization)
        return (estimate.value - exact) / exact, estimate.mcse / exact

    off, error = distance(found.posterior, found.lengths)
    assert abs(off) < 4 * error + MAX_HEATING
    long = settings_from_curvature(decaying(), found.spectrum.largest, 5000)
    off, error = distance(found.posterior.with_scale(gamma=long.gamma), found.lengths)
    assert off < -MAX_HEATING


GAP, DECAY = np.array([2.0, 1.0, *[0.0] * 58]), 10.0 ** -np.linspace(0, 20, DIM)
LONG, SHORT = 1e8, 1e6  # operations of a gradient; a run of the usual length takes 96,000 of them


@pytest.mark.parametrize(
    ("eigenvalues", "operations", "settings", "minutes", "cut"),
    [
        pytest.param(DECAY, LONG, {}, True, True, id="minutes, and no rank"),
        pytest.param(DECAY, SHORT, {}, False, False, id="seconds"),
        pytest.param(GAP, LONG, {}, True, False, id="a rank, so that λ may be determined"),
        pytest.param(DECAY, LONG, {"budget": 100}, False, False, id="a budget"),
        pytest.param(DECAY, LONG, {"num_draws": 10, "num_warmup": 10, "thinning": 2}, False, False, id="few steps"),
    ],
)
def test_a_run_of_minutes_is_cut_short_where_no_rank_is_to_be_found(eigenvalues, operations, settings, minutes, cut):
    asked, price = RequestedLengths(num_chains=CHAINS, **settings), Price(operations, costly=False)
    spectrum = spectrum_of(eigenvalues)
    assert takes_minutes(decaying(), price, asked) == minutes
    assert is_costly(Request(decaying(), None, asked, asked, spectrum, price)) == cut
    assert is_costly(Request(decaying(), None, asked, asked, spectrum, COSTLY)), "that of a costly spectrum always is"
    given = Request(decaying(), llc.NUTS(), asked, asked, spectrum, price)
    assert not is_costly(given), "a sampler that was given has its own length"


@pytest.mark.parametrize(("operations", "most"), [(1e8, 15_000), (1e10, 150), (1e12, 100)])
def test_a_run_has_as_many_draws_as_take_some_minutes_or_the_first_ones(operations, most):
    """A hundred draws of a thousand gradients, of which 1.5e13 operations are enough."""
    assert enough_draws(100, 1000.0, Price(operations, costly=False)) == most
