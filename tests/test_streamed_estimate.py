"""`llc.estimate`, the command line and sweeps with data that are a stream."""

import json

import jax
import numpy as np
import pytest

import llc
from llc import cli
from tests.support import sources
from tests.support.sources import CENTER, NUM_DATA, X, Y

LENGTHS = {
    "num_warmup": 100,
    "num_draws": 50,
    "num_chains": 2,
    "target_mcse": 0.5,
    "thinning": 4,
    "batch_size": 128,
    "progress": False,
}


@pytest.mark.slow
def test_an_estimate_on_a_stream_is_that_on_arrays(tmp_path):
    """Its curvature is that of the resident rows, which the report says; it goes on from a store."""
    stream, path = llc.stream(sources.shuffled, resident=256), tmp_path / "run.zarr"
    report = llc.estimate(jax.random.key(0), sources.regression(stream, gamma=None), store=path, **LENGTHS)
    scale = {"gamma": float(report.draws["constant_data"]["gamma"])}
    exact = sources.exact_llc(sources.regression([X, Y], **scale))
    assert abs(report.llc.value - exact) < 4 * report.llc.mcse
    assert not report.bounds.valid
    assert report.settings["stream"] == {
        "resident": 256,
        "order": "numbered",
        "window": report.settings["stream"]["window"],
    }
    assert f"256 of {NUM_DATA}" in str(report)
    again = llc.estimate(jax.random.key(0), sources.regression(stream, gamma=None), store=path, **LENGTHS)
    assert str(again) == str(report)


@pytest.mark.parametrize("name", ["batch_size", "eval_size"])
def test_pilots_need_resident_rows(name):
    with pytest.raises(ValueError, match=f"{name}.*resident=500"):
        llc.estimate(jax.random.key(0), sources.regression(llc.stream(sources.Loader(), resident=99)), **{name: 500})


MODEL = """
from tests.support import sources
import llc
posterior = sources.regression(llc.stream(sources.Loader(), resident=200))
"""


def test_the_command_line_samples_from_a_stream(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    sample = ["sample", "model.py:posterior", "--step-size", "1e-4", "--num-warmup", "10", "--num-chains", "2"]
    assert cli.main([*sample, "--num-draws", "20", "--batch-size", "100", "--out", "run.nc"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "run.nc", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["settings"]["stream"]["resident"] == 200


@pytest.mark.slow
@pytest.mark.study
def test_a_sweep_follows_checkpoints_on_a_stream():
    """Each with the loss of all rows at its own w*."""
    checkpoints = {"early": CENTER + np.float32(0.05), "late": CENTER}
    posterior = sources.regression(llc.stream(sources.Loader(), resident=200))
    settings = {"num_warmup": 20, "num_draws": 40, "num_chains": 2, "batch_size": 100, "progress": False}
    table = llc.sweep(jax.random.key(0), posterior, checkpoints=checkpoints, **settings).to_dataset()
    assert not table["failed"].to_numpy().any()
    for name, center in checkpoints.items():
        right = llc.LocalPosterior(sources.losses, center, [X, Y]).init_loss()
        assert float(table["loss"].sel(checkpoint=name)) == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize("asked", [{"sampler": llc.NUTS()}, {"step_energies": True}], ids=["NUTS", "step_energies"])
def test_what_a_stream_can_not_have_is_refused_before_the_work(asked):
    """So that a spectrum, which would be the first thing to be made, is not."""
    posterior = sources.regression(llc.stream(sources.Loader(), resident=99), gamma=None)
    with pytest.raises(ValueError, match="got a stream"):
        llc.calibrate(jax.random.key(0), posterior, budget=1, progress=False, **asked)


def test_a_sampler_without_energies_of_steps_is_refused_before_the_work():
    with pytest.raises(ValueError, match="step_energies needs a sampler"):
        llc.calibrate(
            jax.random.key(0), sources.regression([X, Y], gamma=None), sampler=llc.NUTS(), step_energies=True, budget=1
        )
