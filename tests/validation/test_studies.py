"""Every study runs in its quick size, writes what it promises, and goes on where it was killed."""

import dataclasses
import json
import sys

import accuracy
import constants
import coverage
import deep_strata
import influence
import large_nets
import momentum
import no_knobs
import pytest
import reduced_rank
import sabotage
import scales
import temperature
from matplotlib.figure import Figure
from study import Column, Study, commit, table

MODULES = (
    accuracy,
    constants,
    coverage,
    deep_strata,
    influence,
    large_nets,
    momentum,
    no_knobs,
    reduced_rank,
    sabotage,
    scales,
    temperature,
)
QUICK = {module.__name__: module for module in MODULES}
LONG = (
    "constants",
    "coverage",
    "deep_strata",
    "influence",
    "large_nets",
    "momentum",
    "no_knobs",
    "reduced_rank",
    "sabotage",
    "scales",
    "temperature",
)


def _run(module, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--quick", "--out", str(folder)])
    module.main()
    return json.loads((folder / f"{module.__name__}.json").read_text())


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.study, pytest.mark.optimized] * (n in LONG)) for n in QUICK]
)
def test_quick_size(name, tmp_path, monkeypatch, capsys):
    smallest = {"cases": ("(w1 w2)^2/2",), "samplers": ("SGLD",), "num_draws": (400,)}
    monkeypatch.setattr(accuracy, "QUICK", dataclasses.replace(accuracy.QUICK, **smallest))
    record = _run(QUICK[name], tmp_path, monkeypatch)
    assert record["quick"]
    assert {"settings", "versions", "summary", "rows"} <= set(record)
    assert "seed" in record["settings"]
    assert not [row["error"] for row in record["rows"] if "error" in row]
    assert (tmp_path / f"{name}.png").exists()
    assert (tmp_path / f"{name}.txt").read_text().strip() in capsys.readouterr().out
    assert not (tmp_path / f"{name}.jsonl").exists()


class _Journal(Study):
    """A study without a command line."""

    def __init__(self, folder, settings, *, keep=False, at_most=None):
        self.name, self.out, self.settings, self.quick, self.processes = "journal", folder, settings, True, 1
        self.keep, self.at_most = keep, at_most


def _square(case, settings):
    if case == settings["fails"]:
        raise ArithmeticError(f"no square of {case}")
    return {"square": int(case) ** 2}


def test_a_study_in_parts(tmp_path):
    cases, calls = ["1", "2", "3"], []

    def run(case, settings):
        calls.append(case)
        return _square(case, settings)

    for at_most, expected in ((2, [1, 4]), (None, [1, 4, 9])):
        study = _Journal(tmp_path, {"fails": ""}, keep=True, at_most=at_most)
        rows = study.rows(run, cases)
        assert [row["square"] for row in rows] == expected
        study.save(rows, summary={}, text="", figure=Figure())
    assert calls == cases, "each once"
    other = _Journal(tmp_path, {"fails": "none"}, keep=True, at_most=0)
    assert other.rows(run, cases) == [], "rows of other settings are not kept"


def test_a_killed_study_goes_on(tmp_path):
    first = _Journal(tmp_path, {"fails": "3"}).rows(_square, ["1", "2", "3"])
    assert [row.get("square") for row in first] == [1, 4, None]
    lines = table(first, [Column("case", "case")]).splitlines()
    assert [line.split("  ")[1:] for line in lines[1:]] == [[], [], [first[2]["error"]]], "a failure stays in the table"
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"case": "9", "squ')  # killed while it wrote

    def run(case, settings):
        assert case not in ("1", "2"), "done before"
        return {"square": 0}

    again = _Journal(tmp_path, {"fails": "3"}).rows(run, ["1", "2", "3", "9"])
    assert [row["square"] for row in again] == [1, 4, 0, 0]
    other = _Journal(tmp_path, {"fails": "1"}).rows(_square, ["2"])
    assert other == [{"square": 4, "case": "2", "commit": commit()}]
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2
