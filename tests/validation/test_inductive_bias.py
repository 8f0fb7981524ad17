"""Every study of a claim runs in its quick size and says in its first line what became of the claim."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
from inductive_bias.networks import init, mean_loss, paired_interval, step
from inductive_bias.verdict import FAILS, HOLDS, UNDECIDED, headline, verdict

STUDIES = ("edge_of_stability", "information", "label_noise", "spectral_bias", "step_size", "tangent_alignment")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True, True], HOLDS),
        ([True, False, None], FAILS),
        ([True, None], UNDECIDED),
        ([], UNDECIDED),
    ],
    ids=["all hold", "one fails", "one can't be told", "nothing was measured"],
)
def test_a_claim_holds_where_all_its_parts_do(parts, expected):
    assert verdict(parts) == expected
    assert headline(parts, "a claim", "numbers").splitlines()[0].split()[0] == expected


def test_the_interval_of_a_mean_has_its_coverage():
    rng = np.random.default_rng(0)
    inside = [low < 0.0 < high for _, low, high in (paired_interval(rng.normal(size=30)) for _ in range(200))]
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200) + 0.02, "the bootstrap of 30 is a little narrow"
    assert paired_interval(rng.normal(size=30) + 3)[1] > 0, "and does not cover what is far away"


def test_a_step_of_gradient_descent_lowers_the_loss():
    params = init(jax.random.key(0), (2, 4, 1))
    data = np.ones((3, 2)), np.ones((3, 1))
    moved = step(lambda w: mean_loss(w, data), params, 0.1)
    assert mean_loss(moved, data) < mean_loss(params, data)
    assert mean_loss(step(lambda w: mean_loss(w, data), params, -0.1), data) > mean_loss(params, data)


@pytest.mark.study
@pytest.mark.optimized
@pytest.mark.parametrize("name", STUDIES)
def test_quick_size(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"inductive_bias.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path)])
    module.main()
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert not [row["error"] for row in record["rows"] if "error" in row]
    text = (tmp_path / f"{name}.txt").read_text()
    assert text.split()[0] in (HOLDS, FAILS, UNDECIDED)
    assert text.strip() in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").stat().st_size > 4_000
