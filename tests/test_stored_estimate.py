"""`llc.estimate` and the command line with a store: a run that was cut short ends as one that was left alone."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import cli

DATA = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
LENGTHS = {"num_warmup": 20, "num_draws": 60, "num_chains": 2, "target_mcse": 0.03, "progress": False}


def make_posterior():
    return llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(3), DATA)


@pytest.mark.slow
def test_a_stored_estimate_goes_on(tmp_path):
    path = tmp_path / "run.zarr"
    whole = llc.estimate(jax.random.key(0), make_posterior(), store=path, **LENGTHS)
    assert str(llc.report(llc.load(path))) == str(whole)
    # As it was before the run at 3γ, and before the end of the first run was written.
    shutil.rmtree(path / "localized")
    manifest = json.loads((path / "run" / "manifest.json").read_text())
    shutil.rmtree(path / "run" / "state" / manifest["checkpoints"][-1]["state"]["name"])
    again = llc.estimate(jax.random.key(0), make_posterior(), store=path, **LENGTHS)
    assert str(again) == str(whole)
    for group in ("posterior", "localized/posterior", "curvature"):
        for name, variable in whole.draws[group].data_vars.items():
            assert variable.to_numpy().tobytes() == again.draws[group][name].to_numpy().tobytes(), (group, name)
    with pytest.raises(ValueError, match=r"is of another run, with .*\bgamma = "):
        llc.estimate(jax.random.key(0), make_posterior(), gamma=3.0, store=path, **LENGTHS)


MODEL = """
import jax.numpy as jnp, numpy as np, llc
data = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(3), data, gamma=1.0)
"""


@pytest.mark.slow
def test_the_command_line_keeps_a_run_and_reports_on_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    sample = ["sample", "model.py:posterior", "--step-size", "0.01", "--num-warmup", "10", "--num-chains", "2"]
    assert cli.main([*sample, "--num-draws", "20"]) == 3
    assert "--store" in capsys.readouterr().err
    for num_draws in ("20", "40"):
        assert cli.main([*sample, "--num-draws", num_draws, "--store", "run.zarr"]) == 0
    assert llc.load("run.zarr")["posterior"].sizes["draw"] == 40
    capsys.readouterr()
    assert cli.main(["report", "run.zarr", "--json"]) in (0, 1)
    assert "verdict" in json.loads(capsys.readouterr().out)
    assert cli.main([*sample, "--num-draws", "40", "--gamma", "2", "--store", "run.zarr"]) == 3
    assert "gamma = 1.0 where this one has 2.0" in capsys.readouterr().err
