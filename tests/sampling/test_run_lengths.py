"""The lengths of a run: what they refuse, and what follows from them."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.run_lengths import RequestedLengths, RunLengths

LENGTHS = RunLengths(num_chains=4, num_warmup=25, num_draws=100, thinning=10)

REFUSED = {
    "no chains": ({"num_chains": 0}, "num_chains needs an integer >= 1, got 0"),
    "negative warm-up": ({"num_warmup": -1}, "num_warmup needs an integer >= 0, got -1"),
    "no draws": ({"num_draws": 0}, "num_draws needs an integer >= 1, got 0"),
    "no steps": ({"thinning": 0}, "thinning needs an integer >= 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("record", [RunLengths, RequestedLengths])
def test_what_is_out_of_range_is_named(record, name):
    changed, message = REFUSED[name]
    fields = dataclasses.asdict(LENGTHS)
    del fields["max_steps"]
    with pytest.raises(ValueError, match=message):
        record(**fields | changed)


@pytest.mark.parametrize("name", ["batch_size", "eval_size"])
def test_rows_are_within_the_data(name):
    lengths = dataclasses.replace(LENGTHS, **{name: 12})
    lengths.check_rows(12)
    with pytest.raises(ValueError, match=f"{name} needs an integer from 1 to n = 11, got 12; None takes all the data"):
        lengths.check_rows(11)


def test_what_is_left_to_calibration_is_open():
    requested = RequestedLengths(num_chains=4, num_draws=100, budget=1)
    assert (requested.num_warmup, requested.thinning) == (None, None)
    with pytest.raises(ValueError, match="budget needs an integer >= 1, got 0"):
        RequestedLengths(num_chains=4, budget=0)


def test_what_follows():
    assert LENGTHS.num_steps == 25 + 100 * 10
    assert LENGTHS.num_warmup_draws == 3, "rounded up to whole draws"
    assert LENGTHS.slower(4) == dataclasses.replace(LENGTHS, num_warmup=100, thinning=40)
    assert LENGTHS.shorter(30) == dataclasses.replace(LENGTHS, num_warmup=1, num_draws=3)
    assert LENGTHS.max_draws(8) == 800
    assert dataclasses.replace(LENGTHS, max_steps=3025).max_draws(8) == 300
    assert dataclasses.replace(LENGTHS, max_steps=100).max_draws(8) == 100, "never fewer than the first ones"


def test_the_keywords_are_those_of_sample():
    keywords = LENGTHS.keywords()
    assert keywords.keys() <= inspect.signature(llc.sample).parameters.keys()
    assert keywords.keys() == dataclasses.asdict(LENGTHS).keys() - {"max_steps"}


def test_numbers_of_numpy_are_those_of_python():
    """Settings are written as JSON, and are constants of programs."""
    lengths = RunLengths(num_chains=np.int64(2), num_draws=np.int32(5), num_warmup=np.uint8(3), thinning=np.int16(1))
    assert json.dumps(dataclasses.asdict(lengths)) == json.dumps(
        dataclasses.asdict(RunLengths(num_chains=2, num_draws=5, num_warmup=3, thinning=1))
    )


def test_a_run_takes_numbers_of_numpy():
    posterior = llc.LocalPosterior(
        lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(2), np.ones((30, 2), np.float32), gamma=1.0
    )
    sampler = llc.SGLD(np.float32(0.01), control_variates=np.bool_(True))
    numbers = {"num_chains": 2, "num_draws": 5, "num_warmup": 3, "batch_size": 7, "eval_size": 20}
    key, flags = jax.random.key(0), {"progress": False, "keep_params": np.bool_(True)}
    first = llc.sample(key, posterior, sampler, **{name: np.int64(value) for name, value in numbers.items()}, **flags)
    plain = llc.sample(
        key, posterior, llc.SGLD(0.01, control_variates=True), **numbers, keep_params=True, progress=False
    )
    np.testing.assert_allclose(first["posterior"]["llc"], plain["posterior"]["llc"], rtol=1e-5)
    llc.spectrum(posterior, method="lanczos", num_matvecs=np.int64(2), num_probes=np.int64(2))


@pytest.mark.parametrize(
    "value", [np.bool_(True), np.complex64(1), np.datetime64("2020-01-01"), np.timedelta64(3, "s"), "3", np.str_("3")]
)
def test_what_numpy_would_turn_into_a_number_is_refused(value):
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(2), np.ones((30, 2), np.float32))
    for action in (
        lambda: posterior.with_scale(nbeta=value),
        lambda: posterior.with_scale(gamma=value),
        lambda: llc.SGLD(value),
        lambda: llc.NUTS(step_size=value),
    ):
        with pytest.raises(ValueError, match="needs"):
            action()
