"""Commands that are stopped: the file is whole, the status tells, nothing is left behind."""

import signal

import numpy as np
import pytest
import robustness_kills as fuzz

from llc.analysis import files
from tests.support.files import full_draws

OLD, NEW = (files.to_bytes(full_draws(seed=seed)) for seed in (0, 1))
WRITTEN = "llc sample: interrupted; 3 of 5 draws of every chain are written to run.nc."
OUTCOMES = {  # signal, status, standard error, the file → what is to be said of it
    "killed": (signal.SIGKILL, -9, "", OLD, "right"),
    "killed after the write": (signal.SIGKILL, -9, "", NEW, "right"),
    "through before": (signal.SIGINT, 1, "", NEW, "right"),
    "stopped, and written": (signal.SIGINT, 130, WRITTEN, NEW, "right"),
    "stopped before the first draw": (signal.SIGTERM, 143, "llc sample: interrupted.", OLD, "right"),
    "stopped, and says that it wrote": (signal.SIGINT, 130, WRITTEN, OLD, "other"),
    "stopped, and changed without a word": (signal.SIGINT, 130, "llc sample: interrupted.", NEW, "other"),
    "wrong status": (signal.SIGINT, 3, "llc sample: interrupted.", OLD, "other"),
    "traceback": (signal.SIGINT, 130, "Traceback (most recent call last):\nKeyboardInterrupt", OLD, "other"),
    "half a file": (signal.SIGKILL, -9, "", NEW[:5000], "other"),
}


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("case", OUTCOMES)
def test_what_is_right_of_a_stopped_command(case, tmp_path):
    number, status, error, content, kind = OUTCOMES[case]
    (tmp_path / "made").touch()
    (tmp_path / "run.nc").write_bytes(content)
    outcome = fuzz.outcome(tmp_path, OLD, number, status, error)
    assert outcome.kind == kind, outcome.detail


def test_what_is_left_behind_would_be_seen(tmp_path):
    """Negative control: a temporary file that no name tells to be of a process that is gone."""
    (tmp_path / "run.nc").write_bytes(OLD)
    (tmp_path / ".llc-left.part").touch()
    assert fuzz.outcome(tmp_path, OLD, signal.SIGKILL, -9, "").kind == "other"


@pytest.mark.study
@pytest.mark.parametrize("seed", range(6))
def test_a_stopped_command_leaves_whole_files(seed):
    part, outcome = fuzz.check(np.random.default_rng(seed))
    assert outcome.kind == "right", (part, outcome.detail)
