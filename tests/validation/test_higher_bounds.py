"""The study of the bounds beyond the rank: what counts as a violation, and that its quick size has none."""

import json
import sys

import higher_bounds
import higher_bounds_results as results
import pytest


def _row(lower, known, upper, **fields):
    row = {"case": "zoo | x", "rank_lower": 0.0, "rank_upper": 4.0, "corrected": None, "bounds": {}, "source": ""}
    return row | {"lower": lower, "known": known, "upper": upper, "pinned": lower == upper} | fields


@pytest.mark.parametrize(
    ("row", "violated"),
    [
        (_row(1.0, 1.0, 1.0), False),
        (_row(1.0, None, 2.0), False),
        (_row(1.0, 2.5, 2.0), True),
        (_row(1.0, 0.5, 2.0), True),
        (_row(float("nan"), 0.5, float("nan")), True),
    ],
    ids=["pinned", "unknown", "above", "below", "no bracket"],
)
def test_violations(row, violated):
    assert results.violated(row) == violated


def test_summary_counts_what_is_wrong():
    rows = [
        _row(1.0, 1.0, 1.0, corrected=1.1, mcse=0.02),
        _row(1.0, 3.0, 2.0),
        {"case": "zoo | broken", "error": "ValueError: no"},
    ]
    summary = results.summarize(rows, 0.01)
    assert summary["agree where pinned"] == 0, "0.1 is more than 4 · 0.02 + 0.01"
    assert results.summarize(rows, 0.03)["agree where pinned"] == 1
    assert (summary["points"], summary["violations"], summary["errors"]) == (2, 1, 1)
    assert (summary["width"], summary["width of the rank"], summary["pinned"]) == (0.5, 4.0, 0.5)
    assert summary["worst error where pinned"] == pytest.approx(0.1)


def test_what_a_bound_closes():
    records = {"order of g": ["established", 1.0, 3.0, 100, 0.5]}
    rows = [_row(1.0, 2.0, 3.0, bounds=records, source="lower bound: order of g, upper bound: order of g")]
    closed = {row["bound"]: row for row in results.closing(rows)}
    assert (closed["order of g"]["established"], closed["order of g"]["tightest"]) == (1, 1)
    assert (closed["order of g"]["before"], closed["order of g"]["left"]) == (4.0, 2.0)
    assert (closed["squared loss"]["established"], closed["squared loss"]["left"]) == (0, None)


@pytest.mark.study
def test_quick_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["higher_bounds.py", "--quick", "--out", str(tmp_path)])
    higher_bounds.main()
    summary = json.loads((tmp_path / "higher_bounds.json").read_text())["summary"]
    for group in (results.STRATA, results.ZOO):
        assert summary[group]["violations"] == summary[group]["errors"] == 0
        assert summary[group]["width"] < summary[group]["width of the rank"]
    assert (tmp_path / "higher_bounds.png").exists()
    assert (tmp_path / "higher_bounds.txt").read_text().strip() in capsys.readouterr().out
