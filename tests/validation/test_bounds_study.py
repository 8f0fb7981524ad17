"""The study of the bounds: what counts as a violation, and that its quick size finds none."""

import dataclasses
import json
import sys

import bounds
import pytest


def _row(lower, known, upper, **fields):
    zoo = {
        "family": "regular",
        "rank": [2, 2],
        "known_rank": 2,
        "verdict": "CONSISTENT",
        "gamma_converged": None,
        "failed": "",
        "corrected": known,
        "corrected_mcse": 0.01,
        "broken": [],
        "expected": None,
    }
    return zoo | {"lower": lower, "learning_coefficient": known, "upper": upper} | fields


@pytest.mark.parametrize(
    ("row", "violated"),
    [
        (_row(1.0, 1.0, 1.0), False),
        (_row(1.0, 1.2, 1.5), False),
        (_row(1.0, 0.9, 1.5), True),
        (_row(0.0, 1 / 3, 0.25), True),
        (_row(0.0, None, 0.25), True),
        (_row(None, 1 / 3, None), False),
    ],
    ids=["regular", "within", "below", "kink that is not seen", "saddle that is not seen", "no interval"],
)
def test_violations(row, violated):
    assert bounds.violated(row) == violated


def test_summary_counts_what_is_wrong():
    kink = {"family": bounds.FAILS, "expected": "smooth", "verdict": "UNRESOLVED"}
    rows = [
        _row(1.0, 1.0, 1.5, corrected=1.01, gamma_converged=True, case="close"),
        _row(1.0, 1.0, 1.5, corrected=1.2, gamma_converged=True, case="far"),
        _row(1.0, 1.0, 1.5, corrected=1.2, corrected_mcse=0.2, gamma_converged=True, case="far within its error"),
        _row(1.0, 1.0, 1.5, corrected=1.4, gamma_converged=False, case="changes with γ"),
        _row(1.5, 1.0, 1.5, rank=[3, 3], verdict="BELOW", failed="below_bounds"),
        _row(None, 1 / 3, None, broken=["smooth"], failed="smooth", **kink),
        _row(None, 1 / 3, None, broken=["stationary"], failed="rhat, stationary", **kink),
        _row(0.0, 1 / 3, 0.25, **kink),
        {"case": "broken", "error": "ValueError: no"},
    ]
    summary = bounds.summarize(rows)
    assert summary["known λ outside of its interval"] == 2
    assert summary["rank differs from the known one"] == 1
    assert summary["verdicts"] == {"CONSISTENT": 3, "SCALE_DEPENDENT": 1, "BELOW": 1}
    assert summary["verdicts when the rows were made"] == {"CONSISTENT": 4, "BELOW": 1}
    assert summary["CONSISTENT, within 5 % of λ"] == 1
    assert summary["CONSISTENT, off by more than 5 % and two errors"] == 1
    assert summary["CONSISTENT, off by the most"][0] == pytest.approx(0.2)
    assert summary["verdicts there"] == {"SCALE_DEPENDENT": 2, "UNRESOLVED": 1}
    assert summary["points where an assumption fails"] == 3
    assert summary["of them with no interval and the assumption named"] == 1
    assert summary["errors"] == 1


def test_names_are_unique():
    assert len(bounds.POINTS) == len(bounds.CASES) + len(bounds.FAILING)


@pytest.mark.study
def test_quick_size(tmp_path, monkeypatch, capsys):
    cases = ("regular, 5 directions", "|b|^3 beside a regular direction")
    monkeypatch.setattr(bounds, "QUICK", dataclasses.replace(bounds.QUICK, cases=cases))
    monkeypatch.setattr(sys, "argv", ["bounds.py", "--quick", "--out", str(tmp_path)])
    bounds.main()
    record = json.loads((tmp_path / "bounds.json").read_text())
    summary = record["summary"]
    assert summary["known λ outside of its interval"] == summary["errors"] == 0
    assert summary["rank differs from the known one"] == 0
    assert summary["points where an assumption fails"] == 1
    assert summary["of them with no interval and the assumption named"] == 1
    assert (tmp_path / "bounds.png").exists()
    assert (tmp_path / "bounds.txt").read_text().strip() in capsys.readouterr().out
