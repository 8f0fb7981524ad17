"""Files of draws: what is written is read again, and what is damaged is refused by name."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import robustness_files as damage
import xarray as xr

import llc
from llc.analysis import files
from llc.plotting.dashboard import to_png
from tests.support.files import full_draws
from tests.support.tiers import weekly

FULL = full_draws()
WHOLE = damage.whole(FULL)
CONTENT, REPORT = WHOLE.content, WHOLE.report


def outcome(content):
    """`None` and the words of a refusal, or the report and no words. Anything else fails the test."""
    try:
        report = llc.report(files.from_bytes(content, "run.nc"))
    except ValueError as error:
        return None, str(error)
    return report, ""


def test_what_is_written_is_read_again(tmp_path):
    llc.save(FULL, tmp_path / "run.nc")
    read = llc.load(tmp_path / "run.nc")
    assert read.identical(FULL)
    assert llc.report(read).to_json() == llc.report(FULL).to_json() == REPORT
    llc.save(read, tmp_path / "again.nc")
    assert llc.load(tmp_path / "again.nc").identical(FULL)


def test_files_of_other_programs_need_no_checksums():
    assert llc.report(files.from_bytes(damage.foreign_bytes(FULL), "run.nc")).to_json() == REPORT


@pytest.mark.slow
def test_what_others_add_is_no_damage():
    """Attributes and variables that no number rests on."""
    with xr.open_datatree(io.BytesIO(CONTENT), engine="h5netcdf") as opened:
        tree = opened.load()
    tree.attrs["note"] = "mine"
    tree["prior"] = xr.DataTree(xr.Dataset({"mu": 1.0}))
    tree["constant_data"]["temperature"] = 2.0
    assert outcome(damage.foreign_bytes(tree))[0] is not None
    tree["constant_data"]["gamma"] = 2.0
    report, words = outcome(damage.foreign_bytes(tree))
    assert report is None
    assert "constant_data" in words


def change_settings(tree, **changes):
    tree.attrs["settings"] = json.dumps(json.loads(tree.attrs["settings"]) | changes)


NAMED = {  # damage → file, group and variable in the message
    "settings null": (lambda tree: tree.attrs.update(settings="null"), ["settings"]),
    "batch_size null": (lambda tree: change_settings(tree, batch_size=None), ["settings", "batch_size"]),
    "batch_size of text": (lambda tree: change_settings(tree, batch_size="x"), ["settings", "batch_size"]),
    "thinning that is a flag": (lambda tree: change_settings(tree, thinning=True), ["settings", "thinning"]),
    "origin of gamma in a list": (lambda tree: tree.attrs.update(gamma_origin=["x", "y"]), ["gamma_origin"]),
    "no settings": (lambda tree: tree.attrs.pop("settings"), ["settings"]),
    "missing variable": (lambda tree: damage.damage_variable(tree, "posterior", 0, "dropped", 0.0), ["posterior/llc"]),
    "text": (lambda tree: damage.damage_variable(tree, "posterior", 0, "text", 0.0), ["posterior/llc"]),
    "empty group": (lambda tree: tree.update({"constant_data": xr.DataTree()}), ["constant_data/nbeta"]),
    "empty arrays": (lambda tree: damage.damage_variable(tree, "sample_stats", 0, "empty", 0.0), ["sample_stats"]),
    "transposed": (lambda tree: damage.damage_variable(tree, "posterior", 1, "transposed", 0.0), ["posterior/loss"]),
    "spectrum": (lambda tree: tree["curvature"].attrs.pop("dim"), ["curvature", "dim"]),
    "localized": (
        lambda tree: damage.damage_variable(tree, "localized/posterior", 0, "dropped", 0.0),
        ["localized", "posterior/llc"],
    ),
}

ALIKE = {"batch_size null", "thinning that is a flag", "origin of gamma in a list", "no settings", "empty arrays"}


@pytest.mark.slow
@pytest.mark.parametrize("case", weekly(NAMED, but=set(NAMED) - ALIKE))
def test_a_refusal_names_file_group_and_variable(case):
    change, names = NAMED[case]
    tree = WHOLE.tree()
    change(tree)
    report, words = outcome(damage.foreign_bytes(tree))
    assert report is None
    for name in ("run.nc", *names):
        assert name in words


@pytest.mark.parametrize(
    ("name", "value"), [("nbeta", 0.0), ("gamma", -1.0), ("init_loss", np.nan), ("eval_size", 0.0)]
)
def test_constants_out_of_range_are_refused(name, value):
    draws = full_draws()
    draws["constant_data"][name] = value
    with pytest.raises(ValueError, match=f"constant_data/{name}"):
        llc.report(draws)


def test_a_claim_of_more_than_the_file_can_hold_is_refused_before_it_is_read():
    content = io.BytesIO()
    import h5netcdf

    with h5netcdf.File(content, "w") as file:
        file.dimensions = {"x": 2**40}
        file.create_variable("huge", ("x",), float, chunks=(1024,))
    report, words = outcome(content.getvalue())
    assert report is None
    assert "claim to hold" in words


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_no_crash(tmp_path):
    """HDF5 itself would die after the error was caught, when it closes the file; the draws can be saved elsewhere."""
    code = f"""
import resource, llc
from tests.support.files import full_draws
draws = full_draws()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    llc.save(draws, {str(tmp_path / "run.nc")!r})
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
llc.save(draws, {str(tmp_path / "other.nc")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run.nc can't be written" in done.stdout
    assert os.listdir(tmp_path) == ["other.nc"]
    assert llc.report(llc.load(tmp_path / "other.nc")).to_json() == REPORT


@pytest.mark.slow
def test_paths_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    llc.save(FULL, "~/run.nc")
    assert llc.load("~/run.nc").identical(FULL)
    llc.save_html(llc.report(FULL), "~/report.html")
    llc.save_figures(llc.report(FULL), "~/figures")
    assert {"run.nc", "report.html", "figures"} == set(os.listdir(tmp_path))


def test_updates_keep_what_came_in_the_meantime(tmp_path):
    path = tmp_path / "run.nc"

    def with_group(name):
        def change(tree):
            tree[name] = xr.DataTree(xr.Dataset({"x": 1.0}))
            return tree

        return change

    for name in ("first", "second"):
        files.update(path, with_group(name))
    assert set(llc.load(path).children) == {"first", "second"}


@pytest.mark.slow
def test_formulas_in_attributes_are_no_formulas_in_figures():
    draws = full_draws()
    draws.attrs |= {"sampler": "$\\frac{$ \x1b[2J", "calibration": "$\\frac{$"}
    to_png(llc.plot_report(llc.report(draws)))
