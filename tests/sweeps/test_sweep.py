"""A sweep: the same numbers as of single runs, paired differences, one program, resuming, failures, executors."""

import functools
import json
import math
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import jax
import numpy as np
import pytest
import xarray as xr

import llc
from tests.support import checkpoints as run
from tests.support.tiers import weekly

KEY = jax.random.key(0)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)


def swept(number=3, **keywords):
    lengths = run.LENGTHS | {name: keywords.pop(name) for name in tuple(run.LENGTHS) if name in keywords}
    keywords = {"checkpoints": run.checkpoints(number)} | keywords
    return llc.sweep(KEY, run.posterior(), progress=False, **lengths, **keywords)


@functools.cache
def result():
    return swept()


@pytest.mark.slow
def test_table_has_an_item_a_row():
    table = result().to_dataset()
    assert table["checkpoint"].to_numpy().tolist() == ["step_0", "step_10", "step_20"]
    assert table["step"].to_numpy().tolist() == [0.0, 10.0, 20.0]
    assert list(result()["draws"].children) == ["step_0", "step_10", "step_20"]
    for name in ("llc", "mcse", "quad", "singular", "loss", "grad_norm", "polished", "step_size", "gamma"):
        assert np.isfinite(table[name].to_numpy()).all(), name
    assert not table["failed"].to_numpy().any()
    assert table.attrs["same_scale"] == 1
    assert table.attrs["reference"] == "step_20"


def test_a_row_is_the_report_on_its_draws():
    table = result().to_dataset()
    for i, name in enumerate(table["checkpoint"].to_numpy().tolist()):
        report = llc.report(result()["draws"][name])
        row = table.isel(checkpoint=i)
        assert float(row["llc"]) == report.llc.value
        assert float(row["quad"]) == report.quad
        assert str(row["verdict"].to_numpy()) == report.verdict


def test_an_item_is_the_run_that_sample_makes_at_the_same_settings():
    """Same key, same scale, same step: the same bits."""
    draws = result()["draws"]["step_10"]
    constants = draws["constant_data"].to_dataset()
    posterior = run.posterior(gamma=float(constants["gamma"]))
    posterior = llc.LocalPosterior(run.loss_fn, run.checkpoints()["step_10"], posterior.data, gamma=posterior.gamma)
    step_size = json.loads(draws.attrs["settings"])["sampler"]["step_size"]
    key = jax.random.wrap_key_data(np.asarray(json.loads(draws.attrs["seed"]), np.uint32))
    alone = llc.sample(key, posterior, llc.SGLD(step_size), spectrum=llc.spectrum(posterior), **run.LENGTHS)
    assert np.array_equal(alone["posterior"]["llc"], draws["posterior"]["llc"])


@pytest.mark.slow
@pytest.mark.study
def test_energies_of_steps_are_paired_too():
    """On half of the rows: chains of two checkpoints have the same minibatches, so that their noise cancels."""
    tree = swept(2, batch_size=run.NUM_DATA // 2, step_energies=True)
    assert all("step_energy" in draws["sample_stats"] for draws in tree["draws"].children.values())
    table = tree.to_dataset()
    independent = float(np.hypot(*table["mcse"].to_numpy()))
    assert table["difference_mcse"].to_numpy()[1] < 0.8 * independent
    assert table["difference_correlation"].to_numpy()[1] > 0.5
    with_own = swept(2, settings={"steps": {"step_energies": True, "batch_size": run.NUM_DATA // 2}, "draws": {}})
    found = {name: "step_energy" in draws["sample_stats"] for name, draws in with_own["draws"].children.items()}
    assert [found[name] for name in found if "steps" in name] == [True, True]
    assert [found[name] for name in found if "draws" in name] == [False, False]


def test_differences_have_a_far_smaller_error_than_independent_runs_would():
    table = result().to_dataset()
    difference, error = table["difference"].to_numpy(), table["difference_mcse"].to_numpy()
    assert math.isnan(difference[0])
    independent = np.hypot(table["mcse"].to_numpy()[1:], table["mcse"].to_numpy()[:-1])
    assert (abs(difference[1:] - np.diff(table["llc"].to_numpy())) < 4 * independent).all()
    assert (error[1:] < 0.8 * independent).all()
    assert error[1] < 0.5 * independent[0]
    assert (table["difference_correlation"].to_numpy()[1:] > 0.5).all()


def test_checkpoints_on_a_slope_say_so_and_polishing_takes_it_away():
    table = result().to_dataset()
    assert (table["slope"].to_numpy()[:2] < -0.05).all()
    assert set(table["verdict"].to_numpy().tolist()) <= {"SCALE_DEPENDENT", "CONSISTENT", "UNRESOLVED"}
    spread = np.ptp(table["polished"].to_numpy()), np.ptp(table["llc"].to_numpy())
    assert spread[0] < spread[1]


@pytest.mark.slow
def test_more_items_compile_nothing_more():
    result()
    before = len(COMPILED)
    swept(5)
    assert len(COMPILED) == before
    other = {**run.checkpoints(2), "cut": {k: v[:, :1] if k == "first" else v[:1] for k, v in run.params_at(0).items()}}
    swept(checkpoints=other, reference="step_10")  # negative control of the counter's scope: another shape fails alone
    jax.jit(lambda x: x + len(COMPILED))(1.0)
    assert len(COMPILED) > before


@pytest.mark.slow
@pytest.mark.study
def test_strict_flags_of_jax_do_not_matter():
    run.posterior()
    with jax.transfer_guard("disallow"), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        strict = swept()
    assert strict["llc"].to_numpy().tolist() == result()["llc"].to_numpy().tolist()


@pytest.mark.slow
@pytest.mark.study
def test_a_failed_item_is_named_and_sinks_nothing(tmp_path):
    checkpoints = run.checkpoints() | {"step_5": {"first": np.zeros((3, 2), np.float32)}}
    checkpoints = {name: checkpoints[name] for name in ("step_0", "step_5", "step_10", "step_20")}
    table = swept(checkpoints=checkpoints).to_dataset()
    assert table["verdict"].to_numpy()[1] == "FAILED"
    assert "step_5" in str(table["failed"].to_numpy()[1])
    assert np.isfinite(table["llc"].to_numpy()[[0, 2, 3]]).all()
    assert np.isfinite(table["difference"].to_numpy()[2])  # to the last one that has draws


class Failing(ThreadPoolExecutor):
    """One thread, in which the first `times` tries of one item fail."""

    def __init__(self, name, times):
        super().__init__(1)
        self.name, self.left = name, times

    def submit(self, fn, /, task):
        if task.item.name == self.name and self.left:
            self.left -= 1
            return super().submit(fail)
        return super().submit(fn, task)


def fail():
    raise OSError("a worker lost its disk")


@pytest.mark.slow
@pytest.mark.parametrize(("times", "failed"), [pytest.param(1, False, marks=pytest.mark.study), (2, True)])
def test_an_item_that_fails_is_tried_once_more_and_named(times, failed):
    with Failing("step_10", times) as executor:
        table = swept(executor=executor).to_dataset()
    column = "failed" if failed else "retried"
    words = table[column].to_numpy().tolist()
    assert ["lost its disk" in word for word in words] == [False, True, False]
    assert np.isfinite(table["llc"].to_numpy()).tolist() == [True, not failed, True]


def test_chains_that_are_too_hot_are_run_again_with_a_smaller_step():
    """A sampler that was given is left as it is; the step of a sweep's own shrinks where chains die."""
    stiff = llc.LocalPosterior(run.loss_fn, run.params_at(0.0), run.posterior().data, gamma=10.0)
    given = llc.sweep(KEY, stiff, sampler=llc.SGLD(0.5), progress=False, **run.LENGTHS).to_dataset()
    assert given["verdict"].item() == "UNRESOLVED"
    assert given["retried"].item() == ""


def same_draws(first, second):
    names = list(first["draws"].children)
    return names == list(second["draws"].children) and all(
        first["draws"][name]["posterior"].equals(second["draws"][name]["posterior"]) for name in names
    )


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_executor_gives_the_same_draws(kind, tmp_path):
    if kind == "threads":
        pool = ThreadPoolExecutor(2)
    else:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool as executor:
        found = swept(executor=executor, checkpoints=run.write(tmp_path))
    if kind == "threads":
        assert same_draws(found, result())
    else:  # another process compiles with other flags, so that the last bits may differ
        values = (x.to_dataset()["llc"].to_numpy() for x in (found, result()))
        np.testing.assert_allclose(*values, atol=4 * float(result()["mcse"].max()))
    assert not found["failed"].to_numpy().any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same_draws(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        found = swept(executor=client.get_executor(), checkpoints=run.write(tmp_path))
    assert not found["failed"].to_numpy().any()


@pytest.mark.slow
@pytest.mark.parametrize("out", weekly(["training", "training.zarr"], but=("training.zarr",)))
def test_a_killed_sweep_goes_on_and_finished_items_are_not_run_again(out, tmp_path):
    path = tmp_path / out
    with Failing("step_10", 2) as executor:
        first = swept(executor=executor, out=path)
    assert first["failed"].to_numpy().tolist()[1]
    kept = {file: file.stat().st_mtime_ns for file in path.rglob("*") if "step_0" in str(file) and file.is_file()}
    second = swept(out=path)
    assert same_draws(second, result())
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    with Failing("nothing", 0) as executor:
        executor.shutdown()  # nothing is left to run
        third = swept(executor=executor, out=path)
    xr.testing.assert_identical(third.to_dataset(), second.to_dataset())


@pytest.mark.slow
@pytest.mark.study
def test_a_folder_of_items_is_read_by_llc_load(tmp_path):
    swept(out=tmp_path / "training")
    assert sorted(x.name for x in (tmp_path / "training").iterdir()) == [
        "step_0.nc",
        "step_10.nc",
        "step_20.nc",
        "summary.nc",
        "sweep.json",
    ]
    draws = llc.load(tmp_path / "training" / "step_0.nc")
    assert llc.report(draws).llc.value == float(result()["llc"][0])
    table = llc.load(tmp_path / "training" / "summary.nc")
    assert table["verdict"].to_numpy().tolist() == result()["verdict"].to_numpy().tolist()


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.filterwarnings("ignore")
def test_a_store_of_zarr_is_one_tree(tmp_path):
    swept(out=tmp_path / "training.zarr")
    with xr.open_datatree(tmp_path / "training.zarr", engine="zarr", consolidated=False) as tree:
        assert np.array_equal(tree["llc"], result()["llc"])
        assert {"step_0", "step_10", "step_20"} <= set(tree.children)


@pytest.mark.slow
@pytest.mark.study
def test_a_longer_training_run_goes_on_in_the_same_folder_at_the_same_scale(tmp_path):
    swept(2, out=tmp_path / "training", checkpoints=dict(list(run.checkpoints().items())[:2]))
    table = swept(out=tmp_path / "training").to_dataset()
    assert table.attrs["reference"] == "step_10"
    assert table.attrs["same_scale"] == 1
    assert table.sizes["checkpoint"] == 3


OTHER = {
    "num_draws": {"num_draws": 300},
    "gamma": {"gamma": 3.0},
    "calibration": {"calibration": "each"},
    "sampler": {"sampler": llc.SGLD(1e-3)},
    "reference": {"reference": "step_0"},
    "step_0": {"checkpoints": run.checkpoints() | {"step_0": run.params_at(0.3)}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "training"
    swept(out=path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_a_folder_of_other_settings_is_refused_by_their_names(name, folder):
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(ValueError, match=name):
        swept(out=folder, **OTHER[name])
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


@pytest.mark.slow
def test_another_loss_and_other_data_are_refused(folder):
    posterior = run.posterior()
    inputs, targets = posterior.data
    other_data = llc.LocalPosterior(run.loss_fn, posterior.center, (inputs, targets + 0.1))
    other_loss = llc.LocalPosterior(lambda p, b: 2 * run.loss_fn(p, b), posterior.center, posterior.data)
    for other, name in ((other_data, "data"), (other_loss, "loss_fn")):
        with pytest.raises(ValueError, match=name):
            llc.sweep(KEY, other, checkpoints=run.checkpoints(), out=folder, progress=False, **run.LENGTHS)


@pytest.mark.slow
def test_a_damaged_item_is_made_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "training")
    (tmp_path / "training" / "step_10.nc").write_bytes(b"half of a file")
    with pytest.warns(UserWarning, match="step_10"):
        found = swept(out=tmp_path / "training")
    assert same_draws(found, result())


DAMAGED_PLANS = {
    "empty": lambda plan: {},
    "a scale of text": lambda plan: plan | {"nbeta": "x"},
    "lengths of nothing": lambda plan: plan | {"lengths": None},
    "another field": lambda plan: plan | {"more": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED_PLANS)
def test_a_damaged_plan_is_named(name, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "training")
    file = tmp_path / "training" / "sweep.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"plan": DAMAGED_PLANS[name](content["plan"])}))
    with pytest.raises(ValueError, match=r"out needs .*training is damaged"):
        swept(out=tmp_path / "training")


@pytest.mark.parametrize("out", ["/proc/training", "/dev/null/training"])
def test_a_folder_that_can_not_be_written_is_refused_before_the_work(out):
    with Failing("nothing", 0) as executor:
        executor.shutdown()  # any work would fail
        with pytest.raises(ValueError, match=f"out needs a folder that can be written to.*{out.split('/')[1]}"):
            swept(executor=executor, out=out)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="out"):
        swept(out=tmp_path)
    with pytest.raises(ValueError, match="out"):
        swept(out=tmp_path / "thesis.tex")


@pytest.mark.slow
@pytest.mark.study
def test_masks_of_one_point_are_items_of_one_scale():
    table = swept(checkpoints=None, masks={"first": "first", "second": "second"}).to_dataset()
    assert table["num_params"].to_numpy().tolist() == [6, 4]
    assert table["mask"].to_numpy().tolist() == ["first", "second"]
    assert np.isnan(table["difference"].to_numpy()).all()


def test_settings_are_items_and_another_scale_is_told():
    table = swept(checkpoints=None, gamma=10.0, settings={"a": {}, "b": {"gamma": 20.0}}).to_dataset()
    assert table["gamma"].to_numpy().tolist() == [10.0, 20.0]
    assert table.attrs["same_scale"] == 0


@pytest.mark.slow
def test_each_item_can_have_its_own_calibration_at_the_same_scale():
    table = swept(2, calibration="each").to_dataset()
    assert table.attrs["same_scale"] == 1
    assert "own" in table.attrs["calibration"]
    assert not table["failed"].to_numpy().any()


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"reference": "step_5"}, "reference"),
        ({"num_draws": 0}, "num_draws"),
        ({"checkpoints": {"summary": run.params_at(0)}}, "summary"),
    ],
)
def test_settings_out_of_range_are_refused(keywords, name):
    with pytest.raises(ValueError, match=name):
        swept(**keywords)


def test_posteriors_of_different_gamma_are_refused():
    with pytest.raises(ValueError, match="gamma"):
        llc.sweep(KEY, [run.posterior(gamma=1.0), run.posterior(gamma=2.0)], progress=False)


def test_a_sweep_is_saved_and_loaded(tmp_path):
    llc.save(result(), tmp_path / "sweep.nc")
    loaded = llc.load(tmp_path / "sweep.nc")
    assert np.array_equal(loaded["llc"], result()["llc"])
    assert llc.report(loaded["draws"]["step_0"]).llc.value == float(result()["llc"][0])
