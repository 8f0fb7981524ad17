"""Ctrl-C in `llc.estimate`: the report on what there is."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.chains import Chains

DATA = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
LENGTHS = {"num_warmup": 20, "num_draws": 500_000, "thinning": 10, "num_chains": 2, "progress": False}


def make_posterior():
    return llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(3), DATA, gamma=1.0)


@pytest.fixture
def stops(monkeypatch):
    """Raises the signal of Ctrl-C some time after the first draw."""
    original, timers = Chains.draw_until, []

    def draw_until(chains, num_draws, **settings):
        if num_draws == LENGTHS["num_draws"]:  # the pilots are left alone
            original(chains, 3, progress=False)
            timers.append(threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]))
            timers[-1].start()
        original(chains, num_draws, **settings)

    monkeypatch.setattr(Chains, "draw_until", draw_until)
    yield
    for timer in timers:
        timer.join()


@pytest.mark.slow
@pytest.mark.usefixtures("stops")
def test_there_is_a_report_on_the_draws_so_far():
    report = llc.estimate(jax.random.key(0), make_posterior(), **LENGTHS)
    draws = report.draws["posterior"].sizes["draw"]
    assert 3 <= draws < LENGTHS["num_draws"]
    assert report.calibration
    assert abs(report.llc.value - report.quad) < 4 * report.llc.mcse + 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("stops")
def test_with_a_store_the_same_call_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="goes on from there") as caught:
        llc.estimate(jax.random.key(0), make_posterior(), store=tmp_path / "run.zarr", **LENGTHS)
    stored = llc.load(tmp_path / "run.zarr")
    assert stored["posterior"].equals(caught.value.partial["posterior"])
