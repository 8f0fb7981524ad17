"""The records of a calibration: a smaller step, what is printed, and the names that go."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.record import Choice
from llc.sampling.run_lengths import RunLengths


@pytest.fixture
def calibration():
    posterior = llc.LocalPosterior(lambda w, _: 0.5 * jnp.sum(w**2), jnp.zeros(2), np.zeros((100, 1)), gamma=1.0)
    sampler = llc.SGLD(0.016, control_variates=True)
    choices = {
        "sampler": Choice(sampler, "chosen", "why"),
        "step_size": Choice(0.016, "chosen", "why"),
        "num_warmup": Choice(1000, "chosen", "why"),
        "thinning": Choice(10, "chosen", "why"),
        "batch_size": Choice(None, "chosen", "why"),
    }
    lengths = RunLengths(num_chains=4, num_warmup=1000, num_draws=100, thinning=10)
    return llc.Calibration(posterior, sampler, lengths, choices, (), llc.spectrum(posterior), overhead_bound=True)


def test_a_smaller_step_takes_as_many_times_more(calibration):
    smaller = calibration.with_smaller_step()
    assert smaller.sampler == llc.SGLD(0.004, control_variates=True)
    assert (smaller.lengths.num_warmup, smaller.lengths.thinning, smaller.lengths.num_draws) == (4000, 40, 100)
    values = {name: choice.value for name, choice in smaller.choices.items()}
    assert values["sampler"] is smaller.sampler
    assert (values["step_size"], values["num_warmup"], values["thinning"]) == (0.004, 4000, 40)
    assert smaller.choices["step_size"].evidence == {"too_large": 0.016}
    assert calibration.choices["step_size"].value == 0.016, "what was is left alone"


def test_a_smaller_step_is_not_for_every_model(calibration):
    for other in ({"overhead_bound": False}, {"sampler": llc.NUTS()}):
        with pytest.raises(ValueError, match="needs a calibration that is overhead_bound"):
            dataclasses.replace(calibration, **other).with_smaller_step()


def test_what_is_printed_is_made_from_the_choices(calibration):
    assert [line.split()[:2] for line in str(calibration).splitlines()] == [
        ["sampler", "SGLD"],
        ["step_size", "0.016"],
        ["num_warmup", "1,000"],
        ["thinning", "10"],
        ["batch_size", "all"],
    ]
    adapted = dataclasses.replace(calibration, choices={"step_size": Choice(None, "given", "why")})
    assert str(adapted).split()[1] == "adapted"


@pytest.mark.parametrize(("old", "new"), [("cheap", "overhead_bound"), ("reasons", "choices")])
def test_old_names_name_the_new_ones(calibration, old, new):
    with pytest.warns(DeprecationWarning, match=new):
        value = getattr(calibration, old)
    assert value == (True if old == "cheap" else dict.fromkeys(calibration.choices, "why"))
