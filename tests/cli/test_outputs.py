"""What commands write: nothing is lost that somebody else wrote, and what was computed is kept."""

import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import llc
from llc import cli
from llc.cli import outputs
from tests.support.files import full_draws
from tests.support.tiers import weekly

QUICK = ("--num-warmup", "20", "--num-draws", "50", "--step-size", "0.001")
BOUNDS = ("bounds", "model.py:posterior", "--out", "run.nc")
SAMPLE = ("sample", "model.py:posterior", "--out", "run.nc", *QUICK)


def meanwhile(monkeypatch, change):
    """Lets `change` happen while `llc sample` draws."""
    sample = llc.sample

    def slow(*arguments, **keywords):
        draws = sample(*arguments, **keywords)
        change()
        return draws

    monkeypatch.setattr(llc, "sample", slow)


def test_bounds_that_were_written_meanwhile_stay(folder, monkeypatch):
    meanwhile(monkeypatch, lambda: cli.main(BOUNDS))
    assert cli.main(SAMPLE) == 0
    assert {"curvature", "posterior"} <= set(llc.load("run.nc").children)


def test_draws_that_were_written_meanwhile_stay(folder, monkeypatch, capsys):
    other = full_draws()
    del other["curvature"]
    meanwhile(monkeypatch, lambda: llc.save(other, "run.nc"))
    assert cli.main(SAMPLE) == 3
    assert "what was computed is in run-2.nc" in capsys.readouterr().err
    assert llc.load("run.nc").identical(other)
    assert llc.load("run-2.nc")["posterior"].sizes["draw"] == 50


def test_a_spectrum_of_another_model_that_came_meanwhile_stays(folder, monkeypatch, capsys):
    meanwhile(monkeypatch, lambda: cli.main(["bounds", "model.py:saddle", "--out", "run.nc"]))
    assert cli.main(SAMPLE) == 3
    assert "another posterior" in capsys.readouterr().err
    assert "posterior" not in llc.load("run.nc").children
    assert "posterior" in llc.load("run-2.nc").children


def test_replaced_draws_get_a_word(folder, capsys):
    assert cli.main(SAMPLE) == 0
    assert "will be replaced" not in capsys.readouterr().out
    assert cli.main(SAMPLE) == 0
    assert "The draws in run.nc will be replaced." in capsys.readouterr().out


FOREIGN = {
    "arviz": {
        "/posterior": xr.Dataset({"mu": (("chain", "draw"), np.ones((2, 3)))}),
        "/constant_data": xr.Dataset({"x": 1.0}),
    },
    "climate": {"/": xr.Dataset({"t": ("x", np.ones(3))})},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("command", ["bounds", "sample", "calibrate"])
def test_files_of_other_programs_are_refused(kind, command, folder, capsys):
    xr.DataTree.from_dict(FOREIGN[kind]).to_netcdf("run.nc", engine="h5netcdf")
    before = (folder / "run.nc").read_bytes()
    assert cli.main([command, "model.py:posterior", "--out", "run.nc"]) == 3
    error = capsys.readouterr().err
    assert "run.nc is a netCDF file of another program" in error
    assert error.count("\n") == 1
    assert (folder / "run.nc").read_bytes() == before


CLASHES = {
    "page onto the draws": (["report", "run.nc", "--html", "run.nc"], "is what the command reads"),
    "page onto a link to the draws": (["report", "run.nc", "--html", "link.html"], "is what the command reads"),
    "page onto other draws": (["report", "run.nc", "--html", "other.nc"], "another kind than a page"),
    "figure and draws": (["demo", "--figure", "a.nc", "--out", "./a.nc"], "two outputs"),
    "figure and spectrum": (["calibrate", "model.py:posterior", "--figure", "b", "--out", "b"], "two outputs"),
    "figure onto a program": (["demo", "--figure", "model.py"], "another kind than a picture"),
    "page among the figures": (["report", "run.nc", "--html", "a.png", "--figures", "."], "name of a figure"),
    "figures onto a file": (["report", "run.nc", "--figures", "model.py"], "needs a folder"),
    "draws onto the program": (["sample", "model.py:posterior", "--out", "model.py"], "is what the command reads"),
    "demo onto foreign draws": (["demo", "--out", "foreign.nc"], "another program"),
}

ALIKE = {"page onto a link to the draws", "page onto other draws", "figure and spectrum"}


@pytest.mark.slow
@pytest.mark.parametrize("case", weekly(CLASHES, but=set(CLASHES) - ALIKE))
def test_outputs_that_would_replace_something_are_refused_before_the_work(case, folder, capsys):
    words, message = CLASHES[case]
    llc.save(full_draws(), "run.nc")
    llc.save(full_draws(), "other.nc")
    xr.DataTree.from_dict(FOREIGN["climate"]).to_netcdf("foreign.nc", engine="h5netcdf")
    (folder / "link.html").symlink_to(folder / "run.nc")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(words) == 3
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_outputs_replace_their_own_kind(folder):
    (folder / "page.html").write_text("\n<!DOCTYPE HTML><html></html>")
    (folder / "figure.png").write_bytes(b"\x89PNG\r\n")
    (folder / "empty.nc").touch()
    outputs.check(out=folder / "empty.nc", figure=folder / "figure.png", page=folder / "page.html")
    assert outputs.check_draws(folder / "empty.nc", None, keeps=None) is None


def test_a_disk_that_is_full_after_the_work_loses_nothing(folder, tmp_path_factory, capsys, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    save = llc.analysis.files.save

    def full(draws, path):
        if not str(path).startswith(str(elsewhere)):
            raise OSError(28, f"{path} can't be written: No space left on device")
        save(draws, path)

    monkeypatch.setattr(llc.analysis.files, "save", full)
    assert cli.main(SAMPLE) == 3
    assert str(elsewhere) in capsys.readouterr().err
    (path,) = elsewhere.rglob("*.nc")
    assert llc.load(path)["posterior"].sizes["draw"] == 50


@pytest.mark.slow
@pytest.mark.study
def test_paths_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    llc.save(full_draws(), "run.nc")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    cli.main(["report", "~/run.nc", "--html", "~/page.html", "--figures", "~/figures"])
    assert cli.main(["bounds", "~/model.py:posterior", "--out", "~/spectrum.nc"]) == 0
    assert {"page.html", "figures", "spectrum.nc"} <= set(os.listdir(folder))
    assert os.listdir(folder / "elsewhere") == []


@pytest.mark.slow
@pytest.mark.study
def test_a_disk_that_is_full_everywhere_is_one_line(folder, tmp_path_factory):
    """A limit on the size of files stands for the disk: the old file stays, nothing else does."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    llc.save(full_draws(), "run.nc")
    before = (folder / "run.nc").read_bytes()
    code = "import resource, sys; from llc import cli\nresource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(cli.main(sys.argv[1:]))", *SAMPLE[:3], "new.nc", *QUICK],
        env=os.environ
        | {"TMPDIR": str(elsewhere), "PYTHONDONTWRITEBYTECODE": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("llc sample: new.nc can't be written: File too large")
    assert done.stderr.count("\n") == 1
    assert (folder / "run.nc").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"model.py", "run.nc"}
    assert list(elsewhere.iterdir()) == []


def test_a_file_that_is_also_the_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for a file and for a folder"):
        outputs.check(out=tmp_path / "run.zarr", folder=tmp_path / "run.zarr")
    outputs.check(out=tmp_path / "run.nc", folder=tmp_path / "run.zarr")


WRITING = {  # flags that write, of each command
    "sample": ("out", "store"),
    "bounds": ("out",),
    "calibrate": ("out", "figure"),
    "sweep": ("out", "figure"),
    "demo": ("out", "figure"),
}


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("target", ["file/new", "/proc/new", "/sys/kernel/new", "/dev/null/new"])
def test_what_can_not_be_written_is_refused_before_the_model_is_executed(
    command, target, tmp_path, monkeypatch, capsys
):
    """Folders that no one may write to, whoever runs it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "model.py").write_text("raise SystemExit('executed')\n")
    words = {"demo": [], "sweep": ["model.py:posterior", "a.npz"]}.get(command, ["model.py:posterior"])
    for flag in WRITING[command]:
        assert cli.main([command, *words, f"--{flag}", target]) == 3
        told = capsys.readouterr().err
        assert "can't be written: " in told
        assert "executed" not in told
        assert len(told.splitlines()) == 1
