"""`llc calibrate` prints the flags of the sampler that it chose, momentum too."""

import pytest

from llc import cli
from llc.cli.parser import parser

MODEL = """
import jax.numpy as jnp
import numpy as np

import llc

curvatures = jnp.asarray(np.logspace(-3, 1, 600), jnp.float32)
posterior = llc.LocalPosterior(
    lambda w, _: 0.5 * jnp.sum(curvatures * w**2), jnp.zeros(600), np.zeros((100, 1), np.float32), gamma=1.0
)
"""


@pytest.mark.slow
@pytest.mark.study
def test_calibrate_repeats_momentum(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    assert cli.main(["calibrate", "model.py:posterior", "--num-draws", "100"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    flags = parser().parse_args(line.split()[1:])
    assert flags.sampler == "sghmc"
    assert flags.friction > 0
    assert flags.step_size > 0
    assert flags.gamma == 1.0
