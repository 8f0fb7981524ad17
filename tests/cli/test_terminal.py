"""The terminal: no encoding, no closed pipe and no signal ends a command in disorder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import llc
from llc.cli import main, terminal
from tests.support.files import full_draws
from tests.support.tiers import weekly, weekly_cases

SLOW = """
from __future__ import annotations
import dataclasses
import jax, jax.numpy as jnp, numpy as np, llc

@dataclasses.dataclass
class Settings:
    rows: int = 500

jax.config.update("jax_disable_most_optimizations", True)

def posterior():
    def loss_fn(w, x):  # some milliseconds each
        y = jax.lax.fori_loop(0, {loops}, lambda i, a: jnp.tanh(a + 1e-9 * i), x @ w)
        return 0.5 * (x @ w) ** 2 + 0 * y
    open('made', 'w').close()
    inputs = np.random.default_rng(0).normal(size=(Settings().rows, 3)).astype(np.float32)
    return llc.LocalPosterior(loss_fn, jnp.zeros(3), inputs, gamma=1.0)
"""
RUN = "import sys; from llc import cli; sys.exit(cli.main({words!r}))"


def start(words, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", RUN.format(words=words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | environment,
    )


class _Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def _drop_and_wait():
    _Dropped()
    time.sleep(5)


def test_a_stop_while_garbage_is_collected_is_not_lost(monkeypatch):
    """Negative control: by itself Python drops what is raised there."""
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: dropped.append(lost.exc_type))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    _Dropped()
    signal.signal(signal.SIGTERM, before)
    assert dropped == [KeyboardInterrupt]
    stops = terminal.Stops()
    with pytest.raises(KeyboardInterrupt), stops.handled():
        _drop_and_wait()
    assert stops.received == signal.SIGTERM
    assert dropped == [KeyboardInterrupt]


def _swallow_and_wait():
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:  # as a package does whose optional import fails
        time.sleep(5)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_stop_that_an_import_swallows_comes_again(under_way, monkeypatch):
    """Until the command deals with stops itself: one that it has caught does not come again while draws are written."""
    monkeypatch.setattr(terminal, "_SWALLOWED", 0.2)
    monkeypatch.setattr(time, "sleep", lambda _, wait=time.sleep: wait(0.8))
    stops = terminal.Stops()
    with stops.handled():
        if under_way:
            terminal.under_way()
            _swallow_and_wait()
        else:
            with pytest.raises(KeyboardInterrupt):
                _swallow_and_wait()
    assert stops.received == signal.SIGINT


@pytest.mark.slow
def test_ctrl_c_at_any_time_of_the_start_ends_in_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.replace("{loops}", "1000"))
    words = ["sample", "slow.py:posterior", "--out", "run.nc", "--num-draws", "1000000", "--step-size", "0.001"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, as of a job in the background
    for wait in (0.4, 0.7, 1.0, 1.5, 2.0):
        process = start(words, tmp_path)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert len(error.strip().splitlines()) == 1, error


def test_ctrl_c_while_the_parser_is_imported_ends_in_one_line(monkeypatch, capfd):
    class Stopped:
        def find_spec(self, name, *_):
            if name == "llc.cli.parser":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "llc.cli.parser", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stopped(), *sys.meta_path])
    assert main(["report", "x"]) == 130
    assert capfd.readouterr().err == "llc: interrupted.\n"


@pytest.mark.parametrize("words", [["--seed", "9" * 20], ["--seed", "-1"], ["--num-draws", "1\n2"], ["--nope\n"]])
def test_a_wrong_flag_is_two_lines_and_the_status_of_wrong_input(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "model.py:posterior", "--out", "run.nc", *words])
    assert stopped.value.code == 3
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_name_with_a_line_break_stays_in_one_line(tmp_path, capsys):
    (tmp_path / "two\nlines\x1b[2J.nc").write_bytes(b"x")
    assert main(["report", str(tmp_path / "two\nlines\x1b[2J.nc")]) == 3
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "\x1b" not in told


CLOSING = (
    "sys.stderr.close()",
    "os.close(2)",
    "os.close(1); os.close(2)",
    "sys.stderr = sys.stdout = open('log', 'w')",
)


@pytest.mark.slow
@pytest.mark.parametrize("closing", weekly(CLOSING, but=("os.close(1); os.close(2)",)))
def test_what_a_model_closes_is_open_again(closing, tmp_path):
    (tmp_path / "model.py").write_text(f"import os, sys\n{closing}\nraise ValueError('of the model')\n")
    process = start(["sample", "model.py:posterior", "--out", "run.nc"], tmp_path)
    told, errors = process.communicate(timeout=100)
    assert process.returncode == 3
    assert "of the model" in errors
    assert not told


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["sample", "--help"]])
def test_help_that_can_not_be_written_is_no_success(words, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(words=words)],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    weekly_cases({"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)}, but=("Ctrl-C",)),
)
def test_an_interrupted_run_keeps_its_draws(number, status, tmp_path):
    """It answers within seconds of a run of minutes, in one line, with its draws so far in the file."""
    (tmp_path / "slow.py").write_text(SLOW.replace("{loops}", "1000"))
    words = ["sample", "slow.py:posterior", "--out", "run.nc", "--num-warmup", "1", "--num-draws", "1000000"]
    process = start([*words, "--step-size", "0.001", "--num-chains", "2"], tmp_path)
    while not (tmp_path / "made").exists():
        time.sleep(0.1)
    time.sleep(12)
    begin = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    waited = time.monotonic() - begin
    assert process.returncode == status, error
    line = error.strip().splitlines()[-1]
    assert line.startswith("llc sample: interrupted; ")
    assert "Traceback" not in error
    assert waited < 20, "a segment, and L(w*) for the file"
    draws = llc.load(tmp_path / "run.nc")
    done = draws["posterior"].sizes["draw"]
    assert f"{done} of 1000000 draws" in line
    assert json.loads(draws.attrs["settings"])["num_draws"] == done
    llc.report(draws)


@pytest.mark.slow
def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    """Whatever the interrupted import raises in its place."""
    (tmp_path / "stops.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise AttributeError('module has no attribute')\n"
    )
    process = start(["bounds", "stops.py:posterior"], tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == "llc bounds: interrupted.\n"


@pytest.mark.parametrize("package", ["xarray", "jax"])
def test_a_broken_package_is_named(package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('{package} is broken here')\n")
    (tmp_path / "model.py").write_text(SLOW.replace("{loops}", "1"))
    process = start(
        ["bounds", "model.py:posterior"], tmp_path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 3
    assert error == f"llc bounds: {package} is broken here\n"


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_encoding_can_be_printed_to(encoding, tmp_path):
    llc.save(full_draws(), tmp_path / "run.nc")
    process = start(["report", "run.nc"], tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    output, error = process.communicate(timeout=120)
    assert process.returncode in (0, 1, 2), error
    assert "UNRESOLVED" in output
    assert not error


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("stream", "status"), [("stdout", 3), ("stderr", 1)])
def test_a_full_output_has_a_status(stream, status, tmp_path):
    llc.save(full_draws(), tmp_path / "run.nc")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(words=["report", "run.nc", "--figures", "figures"])],
            cwd=tmp_path,
            check=False,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full},
        )
    assert done.returncode == status
    if stream == "stdout":
        assert b"the output can't be written: No space left" in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.study
def test_escapes_of_a_file_do_not_reach_the_terminal(tmp_path):
    draws = full_draws()
    draws.attrs["calibration"] = "gamma \x1b[2J\x9b2J"
    draws["curvature"].attrs["dim"] = 7
    llc.save(draws, tmp_path / "\x1b[31mred.nc")
    draws["curvature"].attrs["dim"] = 12
    llc.save(draws, tmp_path / "run.nc")
    for words in (["report", "run.nc"], ["report", "run.nc", "--json"], ["report", "\x1b[31mred.nc"]):
        output, error = start(words, tmp_path).communicate(timeout=120)
        assert output or error
        assert not {"\x1b", "\x9b"} & set(output + error)
