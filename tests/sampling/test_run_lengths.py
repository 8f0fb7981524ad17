"""The lengths of a run: what they refuse, and what follows from them."""

import dataclasses
import inspect

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
