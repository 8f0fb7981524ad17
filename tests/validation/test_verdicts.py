"""The verdict of a row by the rule of today."""

import json
import pathlib

import bounds
import deep_linear_results
import pytest
from verdicts import VERDICTS, counts, verdict_today

RESULTS = pathlib.Path(bounds.__file__).parent / "results"

MEET, APART = (2.0, 2.0), (1.0, 3.0)
CASES = {
    "determined by γ": ("CONSISTENT", (), APART, (2.0, 0.01), True, "CONSISTENT"),
    "changes with γ": ("CONSISTENT", (), APART, (2.0, 0.01), False, "SCALE_DEPENDENT"),
    "not known whether it changes": ("CONSISTENT", (), APART, (2.0, 0.01), None, "SCALE_DEPENDENT"),
    "bounds meet": ("CONSISTENT", (), MEET, (2.03, 0.01), None, "CONSISTENT"),
    "bounds meet elsewhere": ("CONSISTENT", (), MEET, (2.2, 0.01), None, "SCALE_DEPENDENT"),
    "no bounds": ("UNRESOLVED", ("smooth",), None, (2.0, 0.01), True, "SCALE_DEPENDENT"),
    "scale": ("UNRESOLVED", ("localization",), APART, (2.0, 0.01), True, "SCALE_DEPENDENT"),
    "chains": ("UNRESOLVED", ("rhat", "localization"), APART, (2.0, 0.01), True, "UNRESOLVED"),
    "chains without bounds": ("UNRESOLVED", ("virial", "smooth"), None, (2.0, 0.01), None, "UNRESOLVED"),
    "draws below w*": ("UNRESOLVED", ("lower_loss",), APART, (2.0, 0.01), None, "UNRESOLVED"),
    "no minimum": ("UNRESOLVED", ("lower_loss", "stationary"), None, (2.0, 0.01), None, "SCALE_DEPENDENT"),
    "negative": ("UNRESOLVED", ("positive", "lower_loss", "stationary"), None, (-2.0, 0.01), None, "UNRESOLVED"),
    "below its bounds": ("BELOW", ("below_bounds",), APART, (0.5, 0.01), None, "BELOW"),
    "below, and changes with γ": ("UNRESOLVED", ("below_bounds",), APART, (0.5, 0.01), False, "SCALE_DEPENDENT"),
    "no number": ("UNRESOLVED", ("finite_chains",), APART, None, None, "UNRESOLVED"),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict_of_a_row(name):
    verdict, failed, interval, corrected, converged, expected = CASES[name]
    found = verdict_today(verdict, failed, bounds=interval, corrected=corrected, gamma_converged=converged)
    assert found == expected
    again = verdict_today(found, failed, bounds=interval, corrected=corrected, gamma_converged=converged)
    assert again == found, "on a row of today the rule gives what the row says"


def test_counts_are_in_the_order_of_the_verdicts():
    assert list(counts(["ABOVE", "CONSISTENT", "ABOVE"]).items()) == [("CONSISTENT", 1), ("ABOVE", 2)]
    assert sum(counts(VERDICTS).values()) == len(VERDICTS)


def test_no_committed_network_is_consistent_and_wrong():
    rows = json.loads((RESULTS / "deep_linear.json").read_text())["rows"]
    nets = [row for row in rows if "error" not in row and row["case"] != "large"]
    assert len(nets) == 200
    wrong = [row for row in nets if deep_linear_results.wrong(row)]
    assert wrong, "negative control: some are wrong"
    assert not [row["case"] for row in wrong if deep_linear_results.verdict_of(row) == "CONSISTENT"]


def test_no_committed_case_of_the_zoo_is_consistent_and_wrong():
    rows = json.loads((RESULTS / "bounds.json").read_text())["rows"]
    assert bounds.summarize(rows)["CONSISTENT, off by more than 5 % and two errors"] == 0
