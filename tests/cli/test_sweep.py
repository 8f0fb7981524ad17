"""`llc sweep` and `llc compare` on the files of a training run."""

import json
import pickle

import numpy as np
import pytest

import llc
from llc import cli

MODEL = """
import jax.numpy as jnp
import numpy as np
import llc

def loss_fn(params, batch):
    return 0.5 * (batch @ params["w"]) ** 2

def posterior():
    inputs = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    return llc.LocalPosterior(loss_fn, {"w": jnp.zeros(3)}, inputs)
"""
QUICK = ("--num-chains", "2", "--num-warmup", "100", "--num-draws", "800", "--thinning", "5")
SWEEP = ("sweep", "model.py:posterior", "checkpoints/*.npz", "--out", "training", *QUICK)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "model.py").write_text(MODEL)
    (folder / "checkpoints").mkdir()
    for step, distance in ((2, 0.2), (10, 0.1), (100, 0.0)):
        llc.save_params(folder / f"checkpoints/step_{step}.npz", {"w": np.full(3, distance, np.float32)})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status = cli.main([*SWEEP, "--figure", "sweep.png"])
    assert status == 0
    return folder


@pytest.fixture
def folder(finished, monkeypatch):
    monkeypatch.chdir(finished)
    return finished


@pytest.mark.slow
@pytest.mark.study
def test_items_come_in_natural_order_and_a_rerun_prints_them_as_json(folder, capsys):
    assert cli.main([*SWEEP, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["checkpoint"] for item in found["items"]] == ["step_2", "step_10", "step_100"]
    assert [item["step"] for item in found["items"]] == [2, 10, 100]
    assert found["items"][0]["difference"] is None
    assert found["items"][0]["slope"] < -0.1
    assert abs(found["items"][2]["corrected"] - 1.5) < 4 * found["items"][2]["corrected_mcse"] + 0.03
    assert (folder / "sweep.png").exists()


@pytest.mark.slow
def test_compare_gives_difference_and_scale(folder, capsys):
    assert cli.main(["compare", "training/step_10.nc", "training/step_100.nc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_scale"]
    assert found["paired"]
    assert found["value"] > 4 * found["mcse"]
    assert cli.main(["compare", "training/step_10.nc", "training/step_100.nc"]) == 0
    assert "step" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.study
def test_compare_of_other_scales_is_status_1(folder, capsys):
    assert cli.main([*SWEEP[:4], "other", *QUICK, "--gamma", "77", "--reference", "step_100"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", "training/step_100.nc", "other/step_100.nc", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["same_scale"]


@pytest.mark.slow
def test_a_failed_item_is_status_1(folder, tmp_path, capsys):
    np.savez(tmp_path / "step_3.npz", other=np.ones(3))
    words = ["sweep", "model.py:posterior", str(tmp_path / "step_3.npz"), "checkpoints/step_100.npz", *QUICK]
    assert cli.main(words) == 1
    assert "FAILED" in capsys.readouterr().out


WRONG = {
    "nothing matches": (["sweep", "model.py:posterior", "checkpoints/*.eqx"], "checkpoints"),
    "another setting": ([*SWEEP, "--gamma", "3"], "gamma"),
    "no such reference": ([*SWEEP[:3], "--reference", "step_7"], "reference"),
    "no such file": (["compare", "a.nc", "training/step_2.nc"], "a.nc"),
    "a figure that is the model": ([*SWEEP[:3], "--figure", "model.py"], "model.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_status_3(case, folder, capsys):
    words, name = WRONG[case]
    assert cli.main(words) == 3
    assert name in capsys.readouterr().err


@pytest.mark.slow
def test_a_pickle_is_refused_with_the_cure(folder, tmp_path, capsys):
    (tmp_path / "step_1.pt").write_bytes(pickle.dumps({"w": 1}))
    assert cli.main(["sweep", "model.py:posterior", str(tmp_path / "step_1.pt"), *QUICK]) == 3
    assert "safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_help_names_the_statuses(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert "Exit status" in " ".join(capsys.readouterr().out.split())


@pytest.mark.study
def test_workers_share_the_checkpoints(folder, capsys):
    words = ["sweep", "model.py:posterior", "checkpoints/*.npz", *QUICK, "--workers", "2", "--json"]
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert not any(item["failed"] for item in found["items"])
