"""The study of checkpoints at one γ: what it counts, and its quick size."""

import json
import sys

import checkpoints
import pytest

POINT = {"case": "mod 11", "gamma": 4.0, "trained": True, "verdict": "SCALE_DEPENDENT", "llc": 2.0, "quad": 1.0}


def test_what_is_counted():
    points = [
        POINT | {"z": -2.0},
        POINT | {"llc": 9.0},
        POINT | {"llc": None, "verdict": "UNRESOLVED"},
        POINT | {"trained": False, "verdict": "UNRESOLVED"},
        POINT | {"gamma": 0.04, "verdict": "UNRESOLVED"},  # the one that is to leave
        POINT | {"case": "mod 29", "gamma": 7.0, "llc": 0.5},
    ]
    summary = checkpoints.summarize(points, [{"case": "mod 11", "gammas": [1.0, 2.718281828]}, {"error": "no"}])
    assert summary["checkpoints"] == 5
    assert summary["trained"] == 4
    assert summary["of them with λ̂ / λ_quad within 0.3 and 3"] == 2
    assert summary["of them UNRESOLVED"] == 1
    assert summary["largest |z| against NUTS"] == 2.0
    assert summary["standard deviation of log γ"] == {"mod 11": 0.707}
    assert summary["errors"] == 1


@pytest.mark.study
@pytest.mark.optimized
def test_quick_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["checkpoints.py", "--quick", "--out", str(tmp_path)])
    checkpoints.main()
    (row,) = json.loads((tmp_path / "checkpoints.json").read_text())["rows"]
    assert "error" not in row
    assert [point["steps"] for point in row["points"]] == [50, 300, 300]
    assert len({point["gamma"] for point in row["points"]}) == 2
    assert len(row["gammas"]) == 2
    assert (tmp_path / "checkpoints.png").exists()
