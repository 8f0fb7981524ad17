"""The memory that a report takes for the losses of every row: what it adds to the moments that the draws hold."""

import tracemalloc

import numpy as np
import xarray as xr

import llc
from tests.support.runs import NBETA, make_draws

NUM_CHAINS, NUM_BLOCKS = 4, 5
FEW, MANY = 2_000, 42_000
MOST = 300  # bytes a row


def draws_of(num_rows):
    draws = make_draws(NUM_CHAINS, 100, 10)
    shape, dims = (NUM_BLOCKS, NUM_CHAINS, num_rows), ("block", "chain", "example")
    noise = np.random.default_rng(0).normal(0, 0.01, shape)
    blocks = np.stack(np.split(draws["posterior"]["llc"].to_numpy() / NBETA, NUM_BLOCKS, axis=1)).mean(axis=-1)
    first = (blocks[..., None] + noise - noise.mean(axis=-1, keepdims=True)).astype(np.float32)
    means = {"first": first, "second": first**2 + 0.01, "exponential": np.exp(-first)}
    variables = {name: (dims, value) for name, value in means.items()}
    variables["weight"] = (("example",), np.full(num_rows, 1 / num_rows))
    variables["num_draws"] = (("block",), np.full(NUM_BLOCKS, 20.0))
    draws["pointwise"] = xr.Dataset(variables)
    draws["constant_data"]["num_data"] = num_rows
    draws["constant_data"]["eval_size"] = num_rows
    return draws


def peak_of_a_report(num_rows):
    draws = draws_of(num_rows)
    tracemalloc.start()
    report = llc.report(draws)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {"WAIC", "singular fluctuation"} <= {estimate.method for estimate in report.estimates}
    return peak


def test_a_report_takes_less_than_300_bytes_a_row():
    peak_of_a_report(FEW)  # imports
    assert (peak_of_a_report(MANY) - peak_of_a_report(FEW)) / (MANY - FEW) < MOST
