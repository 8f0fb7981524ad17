"""What is advised can be done: rows of a stream are evaluated on, and taken as batches, as far as they are resident."""

import json

import numpy as np
import pytest

from llc.analysis.advice import larger_batch, more_rows
from llc.analysis.cause import Cause
from llc.analysis.chain_checks import chain_checks
from tests.analysis.test_verdict import number
from tests.support.runs import make_draws


def of_rows(batch_size=None, resident=None, eval_size=1000):
    """Draws of 1,000 rows of data."""
    draws = make_draws()
    sampler = {"name": "SGLD", "step_size": 0.1, "integrator": "euler_maruyama", "preconditioner": {"name": "Identity"}}
    settings = {"sampler": sampler}
    settings |= {} if batch_size is None else {"batch_size": batch_size}
    settings |= {} if resident is None else {"stream": {"resident": resident, "order": "same"}}
    draws.attrs["settings"] = json.dumps(settings)
    draws["constant_data"] = draws["constant_data"].dataset.assign(eval_size=eval_size)
    return draws


@pytest.mark.parametrize(
    ("batch_size", "resident", "rows", "needs_resident"),
    [(64, None, 256, False), (400, None, 1000, False), (64, 500, 256, False), (200, 500, 800, True)],
)
def test_a_larger_batch_is_one_that_the_run_can_take(batch_size, resident, rows, needs_resident):
    advice = larger_batch(of_rows(batch_size, resident))
    assert f"batch_size = {rows}" in advice
    assert (f"resident={rows}" in advice) == needs_resident


@pytest.mark.parametrize(
    ("resident", "least", "rows", "needs_resident"),
    [(None, 100, 100, False), (500, 100, 100, False), (50, 100, 100, True), (None, 2000, 1000, False)],
)
def test_more_rows_are_those_that_there_are(resident, least, rows, needs_resident):
    advice = more_rows(of_rows(64, resident), least)
    assert f"at least {rows}" in advice
    assert (f"resident={rows}" in advice) == needs_resident


@pytest.mark.parametrize(("batch_size", "named"), [(64, True), (1000, False), (None, False)])
def test_a_batch_of_all_rows_is_not_to_be_raised(batch_size, named):
    draws = of_rows(batch_size)
    hot = draws["sample_stats"].dataset.assign(virial=1.5 + 0 * draws["sample_stats"]["virial"])
    draws["sample_stats"] = hot + 0.01 * np.sin(np.arange(300))
    checks = chain_checks(draws, number(5.0, 0.1), None, None, Cause(None, ""))
    (virial,) = (check for check in checks if check.name == "virial")
    assert not virial.passed
    assert ("batch_size" in virial.message) == named
