"""The commands, from files to files, and what they refuse."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import llc
from llc import cli
from tests.analysis.test_estimators import make_draws
from tests.support.commands import MODEL
from tests.support.tiers import weekly

QUICK = ("--num-warmup", "500", "--num-draws", "1000")


@pytest.mark.slow
def test_bounds_sample_report(folder, capsys):
    assert cli.main(["bounds", "model.py:regression", "--out", "run.nc"]) == 0
    assert "[1.5, 1.5]" in capsys.readouterr().out
    assert cli.main(["sample", "model.py:posterior", "--sampler", "hmc", "--out", "run.nc", *QUICK]) == 0
    capsys.readouterr()
    assert cli.main(["report", "run.nc", "--json", "--figures", "figures"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["verdict"] == "CONSISTENT"
    assert abs(fields["corrected"]["value"] - 1.5) < 4 * fields["corrected"]["mcse"]
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {"report.png", "trace.png", "running.png", "spectrum.png"} <= pictures


@pytest.mark.slow
def test_observables_of_the_model_file_are_recorded(folder, capsys):
    rows = "'rows': llc.Observable(lambda w, x: x @ w, data=np.eye(3))"
    (folder / "model.py").write_text(f"{MODEL}\nobservables = {{'norm': lambda w: jnp.sum(w**2), {rows}}}\n")
    flags = ["--sampler", "nuts", "--num-warmup", "10", "--num-draws", "20", "--out", "run.nc"]
    assert cli.main(["sample", "model.py:posterior", *flags]) == 0
    recorded = llc.load("run.nc")["observables"]
    assert recorded["rows"].sizes["rows_row"] == 3
    np.testing.assert_allclose((recorded["rows"] ** 2).sum("rows_row"), recorded["norm"], rtol=1e-5)
    (folder / "model.py").write_text(MODEL + "\nobservables = [1]\n")
    assert cli.main(["sample", "model.py:posterior", *flags]) == 3
    assert "observables" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "run.nc", "--jsn"], "unrecognized arguments: --jsn"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["bounds"], "required: FILE.py:NAME"),
    ],
)
def test_wrong_words_are_no_verdict(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 3
    assert message in capsys.readouterr().err


def test_files_are_looked_at_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setattr(llc, "sample", None)  # never reached
    monkeypatch.setattr(llc, "spectrum", None)
    (folder / "text.nc").write_text("hello")
    for command in (["sample", "model.py:posterior"], ["bounds", "model.py:posterior"]):
        for path, message in (("text.nc", "needs to be a netCDF file"), ("missing/run.nc", "can't be written")):
            assert cli.main([*command, "--out", path]) == 3
            assert message in capsys.readouterr().err
    assert cli.main(["report", "text.nc"]) == 3
    assert "text.nc needs to be a netCDF file" in capsys.readouterr().err
    assert (folder / "text.nc").read_text() == "hello"


@pytest.mark.slow
def test_a_file_of_another_posterior_is_refused(folder, capsys):
    assert cli.main(["bounds", "model.py:saddle", "--out", "run.nc"]) == 1
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", *QUICK]) == 3
    assert "has a spectrum of another posterior, with {'num_params': 2" in capsys.readouterr().err
    assert cli.main(["sample", "model.py:posterior", "--out", "draws.nc", *QUICK]) == 0
    assert cli.main(["bounds", "model.py:saddle", "--out", "draws.nc"]) == 3
    assert "has draws of another posterior" in capsys.readouterr().err


def test_errors_of_the_model_are_no_verdict(folder, capsys):
    (folder / "broken.py").write_text("def posterior():\n    return 1 / 0\n\ndef two(a):\n    return a\n")
    assert cli.main(["bounds", "broken.py:posterior"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert cli.main(["bounds", "broken.py:two"]) == 3
    assert "called without arguments" in capsys.readouterr().err


@pytest.mark.slow
def test_control_variates_are_for_minibatches(folder, capsys):
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", "--control-variates", "--sampler", "nuts"]) == 3
    assert "--control-variates needs --sampler sgld, got nuts" in capsys.readouterr().err
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", "--friction", "1"]) == 3
    assert "--friction needs --sampler sghmc or sgnht, got sgld" in capsys.readouterr().err
    flags = ["--control-variates", "--batch-size", "10", *QUICK]
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", *flags]) == 0
    assert json.loads(llc.load("run.nc").attrs["settings"])["sampler"]["control_variates"]


def test_sgld_takes_its_step_from_the_curvature(folder, capsys):
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", *QUICK]) == 0
    settings = json.loads(llc.load("run.nc").attrs["settings"])
    posterior_nbeta = float(llc.load("run.nc")["constant_data"]["nbeta"])
    assert settings["sampler"]["name"] == "SGLD"
    assert 0.1 / posterior_nbeta < settings["sampler"]["step_size"] < 0.5 / posterior_nbeta


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--integrator", "euler_maruyama"], {"name": "SGLD", "integrator": "euler_maruyama"}),
        pytest.param(
            ["--preconditioner", "rmsprop"],
            {"name": "SGLD", "preconditioner": "RMSProp"},
            marks=pytest.mark.study,
        ),
        pytest.param(["--sampler", "sghmc"], {"name": "SGHMC"}, marks=pytest.mark.study),
        (["--sampler", "sgnht", "--friction", "2.5"], {"name": "SGNHT", "friction": 2.5}),
    ],
    ids=["integrator", "preconditioner", "sghmc", "sgnht"],
)
def test_settings_of_a_sampler(folder, flags, settings):
    """Friction is critical by default: 2 √(nβ h_max + γ), ε = 0.5 / (nβ h_max + γ)."""
    assert cli.main(["sample", "model.py:posterior", "--out", "run.nc", *flags, *QUICK]) == 0
    found = json.loads(llc.load("run.nc").attrs["settings"])["sampler"]
    if "preconditioner" in found:
        found["preconditioner"] = found["preconditioner"]["name"]
    assert settings.items() <= found.items()
    if found["name"] == "SGHMC":
        assert found["friction"] ** 2 * found["step_size"] == pytest.approx(2)


@pytest.mark.slow
def test_bounds_beyond_the_rank_stay_with_the_draws(folder, capsys):
    sampling = ["sample", "model.py:regression", "--sampler", "nuts", "--out", "run.nc", *QUICK]
    assert cli.main(sampling) == 0
    assert cli.main(["bounds", "model.py:regression", "--higher", "--method", "dense", "--out", "run.nc"]) == 0
    printed = capsys.readouterr().out
    assert "beyond  certificate g ≡ 0" in printed
    assert "rests on" in printed
    source = next(line.split("]  ")[1] for line in printed.splitlines() if line.startswith("bounds "))
    assert "lower bound: " in source
    assert "upper bound: " in source
    cli.main(["report", "run.nc"])
    assert source in capsys.readouterr().out
    cli.main(sampling)  # with other draws the bounds stay
    cli.main(["report", "run.nc"])
    assert source in capsys.readouterr().out


def test_scales_are_printed_and_written(folder, capsys):
    assert cli.main(["bounds", "model.py:regression", "--scales", "--out", "run.nc"]) == 0
    printed = capsys.readouterr().out
    assert "order 4" in printed
    found = llc.ScaleSpectrum.from_dataset(llc.load("run.nc")["curvature"])
    assert found.order_spectrum([1e-6]).rank[0] == 3
    np.testing.assert_allclose(found.predicted_llc(1.0).value, found.spectrum.quad(1.0 / found.nbeta), rtol=1e-3)
    assert cli.main(["bounds", "model.py:regression", "--scales", "--method", "lanczos", "--num-matvecs", "3"]) == 0


def energies(shift=0.0, num_draws=1000, shape=1.5):
    """Draws of a Gamma law with a right virial ratio: sound chains around a minimum."""
    rng = np.random.default_rng(0)
    draws = make_draws(shift + rng.gamma(shape, size=(4, num_draws)), num_params=3)
    virial = 1 + rng.normal(scale=0.1, size=(4, num_draws))
    draws["sample_stats"] = draws["sample_stats"].to_dataset().assign(virial=(("chain", "draw"), virial))
    return draws


def spectrum_of(eigenvalues):
    """An exact spectrum at a point without gradient."""
    nodes = np.array([eigenvalues])
    zero = np.zeros(1)
    return llc.Spectrum(nodes, np.ones_like(nodes), nodes.size, "hessian", "dense", zero, zero)


PINNED, OPEN = spectrum_of([3.0, 2.0, 1.0]), spectrum_of([3.0, 2.0, 0.0])
FILES = {  # draws, spectrum → status, status with --require-converged
    "consistent": (energies, PINNED, 0, 0),
    "scale-dependent": (lambda: energies(shape=1.1), OPEN, 0, 1),
    "no bounds": (energies, None, 0, 1),
    "few draws": (lambda: energies(num_draws=10), PINNED, 1, 1),
    "outside": (lambda: energies(shift=0.3), PINNED, 2, 2),
}


def write(path, draws, spectrum):
    """A file of draws with the spectrum, if there is one."""
    if spectrum is not None:
        draws["curvature"] = xr.DataTree(spectrum.to_dataset())
    llc.save(draws, path)


@pytest.mark.parametrize("case", FILES)
def test_exit_status_is_that_of_the_verdict(case, tmp_path, capsys):
    draws, spectrum, status, required = FILES[case]
    write(tmp_path / "run.nc", draws(), spectrum)
    assert cli.main(["report", str(tmp_path / "run.nc")]) == status, capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run.nc"), "--require-converged"]) == required


def test_bounds_that_do_not_hold_have_a_status(folder, capsys):
    assert cli.main(["bounds", "model.py:saddle"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["at import", "in the function"])
def test_exit_of_the_model_is_no_verdict(place, folder, capsys):
    stop = {"at import": "import sys\nsys.exit(0)\n", "in the function": "import sys\ndef f():\n    sys.exit(0)\n"}
    (folder / "stops.py").write_text(stop[place])
    assert cli.main(["sample", "stops.py:f", "--out", "run.nc"]) == 3
    assert "sys.exit(0)" in capsys.readouterr().err
    assert not (folder / "run.nc").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", weekly(["consistent", "few draws", "outside"], but=("outside",)))
def test_a_closed_pipe_keeps_the_status(case, tmp_path):
    draws, spectrum, status, _ = FILES[case]
    write(tmp_path / "run.nc", draws(), spectrum)
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from llc import cli; sys.exit(cli.main(['report', {str(tmp_path / 'run.nc')!r}]))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    os.close(writer)
    assert result.returncode == status, result.stderr
    assert not result.stderr


@pytest.mark.slow
@pytest.mark.study
def test_a_report_in_json_loads_neither_figures_nor_jax(tmp_path):
    """Negative control: the figures load matplotlib."""
    draws, spectrum, *_ = FILES["consistent"]
    write(tmp_path / "run.nc", draws(), spectrum)
    for flags, loaded in ((["--json"], False), (["--figures", str(tmp_path)], True)):
        words = ["report", str(tmp_path / "run.nc"), *flags]
        code = f"import sys; from llc import cli; cli.main({words!r}); sys.exit('matplotlib' in sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == loaded, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bounds", "model.py"], "needs the form FILE.py:NAME"),
        (["bounds", "other.py:posterior"], "which does not exist"),
        (["bounds", "model.txt:posterior"], "which does not end in .py"),
        (["bounds", "model.py:nothing"], "needs a posterior called 'nothing'"),
        (["bounds", "model.py:number"], "needs to be (or return) a LocalPosterior, got int"),
        (["report", "none.nc"], "no file none.nc"),
    ],
)
def test_wrong_input_is_one_clear_line(folder, capsys, arguments, message):
    assert cli.main(arguments) == 3
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_help_needs_no_jax():
    """`llc --help` answers without importing JAX, so that it is instant."""
    code = (
        "import sys; from llc import cli\ntry: cli.main(['--help'])\n"
        "except SystemExit: assert 'jax._src' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("demo", "calibrate", "sample", "bounds", "report"):
        assert command in result.stdout


@pytest.mark.study
def test_demo(folder, capsys, monkeypatch):
    """The whole way on fewer images and units: it prints the report that its file gives again."""
    inputs, targets = llc.demo._digits()
    monkeypatch.setattr("llc.demo._digits", lambda: (inputs[:300], targets[:300]))
    monkeypatch.setattr("llc.demo._HIDDEN", 2)
    monkeypatch.setattr("llc.demo._STEPS", 300)
    assert cli.main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert "160 parameters, 300 images" in printed
    for name in ("λ̂", "λ_quad", "λ_corr", "bounds", "checks: "):
        assert name in printed
    assert (folder / "llc-demo.png").exists()
    cli.main(["report", "llc-demo.nc"])
    assert capsys.readouterr().out.strip() in printed
