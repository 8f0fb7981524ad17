"""`llc calibrate` and `llc sample` with the energies of steps."""

import pytest

import llc
from llc import cli
from llc.cli.parser import parser

MODEL = """
import jax.numpy as jnp
import numpy as np

import llc

posterior = llc.LocalPosterior(
    lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), np.linspace(-1, 1, 100, dtype=np.float32), gamma=1.0
)
"""


@pytest.mark.slow
@pytest.mark.study
def test_the_flags_of_calibrate_are_those_of_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    given = ["--num-draws", "20", "--num-warmup", "10", "--thinning", "3", "--num-chains", "2"]
    for flag, wanted in (("--step-energies", True), ("--no-step-energies", False)):
        assert cli.main(["calibrate", "model.py:posterior", *given, flag]) == 0
        words = capsys.readouterr().out.strip().splitlines()[-1].split()[1:]
        assert parser().parse_args(words).step_energies == wanted
        cli.main(words)
        draws = llc.load("run.nc")
        assert ("step_energy" in draws["sample_stats"]) == wanted
        assert llc.best_energy(draws).method == ("steps and draws" if wanted else "mean energy")
