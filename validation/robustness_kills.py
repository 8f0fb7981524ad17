"""Kills: `llc sample --out` and `llc bounds --out`, as processes of their own, stopped at a random moment.

The file that stood there has to be whole afterwards: the old one, or the new one. Ctrl-C and SIGTERM have to end the
command with 130 and 143 and one line (or the command was through before), with the draws so far in the file where there
are any. What a SIGKILL leaves behind of temporary files has to go with the next write.
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from robustness_outcome import Outcome

import llc

MODEL = """
import jax.numpy as jnp, numpy as np, llc

def loss_fn(w, x):
    return 0.5 * (x @ w) ** 2

def posterior():
    open("made", "w").close()
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    return llc.LocalPosterior(loss_fn, jnp.zeros(3), x, gamma=1.0)
"""
COMMANDS = {
    "sample": ("--num-chains", "2", "--num-warmup", "10", "--step-size", "0.001", "--num-draws"),
    "bounds": (),
}
_RUN = "import sys; from llc import cli; sys.exit(cli.main(sys.argv[1:]))"
_SIGNALS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
_THROUGH = (0, 1)  # statuses of a command that was done before the signal
_PATIENCE = 300.0  # seconds, on a busy machine


def check(rng: np.random.Generator) -> tuple[str, Outcome]:
    """One command that is stopped, and what came of it."""
    command, number = str(rng.choice(sorted(COMMANDS))), list(_SIGNALS)[rng.integers(0, 3)]
    many = str(rng.choice([500, 20_000, 1_000_000]))
    words = [
        command,
        "model.py:posterior",
        "--out",
        "run.nc",
        *COMMANDS[command],
        *([many] if command == "sample" else []),
    ]
    late = float(rng.uniform(0, 6)) if rng.random() < 0.7 else None  # after the model was made; None: at any time
    with tempfile.TemporaryDirectory(prefix="llc-robustness-") as name:
        folder = Path(name)
        (folder / "model.py").write_text(MODEL)
        (folder / "run.nc").write_bytes(_old())
        status, error = _stopped(words, folder, number, late, float(rng.uniform(0, 15)))
        return f"{command}, {number.name}", outcome(folder, _old(), number, status, error)


def _stopped(
    words: list[str], folder: Path, number: signal.Signals, late: float | None, early: float
) -> tuple[int, str]:
    """Status and errors of the command, which gets the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() - begin < _PATIENCE:
        if late is None and time.monotonic() - begin > early:
            break
        if late is not None and (folder / "made").exists():
            time.sleep(late)
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=_PATIENCE)
    return process.returncode, error


def outcome(folder: Path, old: bytes, number: signal.Signals, status: int, error: str) -> Outcome:
    """What a command that was stopped left.

    Args:
        folder: where it ran.
        old: the file before.
        number: the signal.
        status: of the process.
        error: what it wrote to standard error.
    """
    last = (error.strip().splitlines() or [""])[-1]
    seen = f"status {status}: {last[:150]}"
    expected = {*_THROUGH, _SIGNALS[number]}
    through = (folder / "run.nc").read_bytes() != old
    if (through or not (folder / "made").exists()) and number != signal.SIGKILL:
        expected |= {-number}  # before Python had installed a handler, or while it ends, which takes a second
    if status not in expected or ("Traceback" in error and status in (130, 143)):
        return Outcome("other", f"{seen} {error[-300:]}")
    try:
        content, draws = (folder / "run.nc").read_bytes(), llc.load(folder / "run.nc")
        llc.report(draws)
    except Exception as damage:
        return Outcome("other", f"{seen}; the file is not whole: {damage}")
    changed = content != old
    if status == _SIGNALS[signal.SIGKILL] and changed:
        seen += " (after the write)"
    elif status in (130, 143) and changed != ("written to" in last):
        return Outcome("other", f"{seen}; the file is {'new' if changed else 'the old one'}")
    llc.save(draws, folder / "next.nc")
    left = sorted(path.name for path in folder.iterdir() if path.name not in _KNOWN)
    return Outcome("other", f"{seen}; left behind: {left}") if left else Outcome("right", seen)


_KNOWN = {"model.py", "made", "run.nc", "next.nc", "__pycache__"}


@functools.cache
def _old() -> bytes:
    """A file of an earlier run, whose draws `sample` replaces and to which `bounds` adds a spectrum."""
    with tempfile.TemporaryDirectory(prefix="llc-robustness-") as name:
        folder = Path(name)
        (folder / "model.py").write_text(MODEL)
        words = ["sample", "model.py:posterior", "--out", "run.nc", *COMMANDS["sample"], "300", "--seed", "7"]
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if not (folder / "run.nc").exists():
            raise RuntimeError(f"no file to begin with: {done.stderr}")
        return (folder / "run.nc").read_bytes()
