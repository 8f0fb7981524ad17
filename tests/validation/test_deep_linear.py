"""The study of deep linear networks: its summary, and one network from end to end."""

import deep_linear
import deep_linear_results as results
import numpy as np
import pytest
from nuts_reference import kept
from study import table


def _row(case, corrected, mcse=0.01, **fields):
    """A network of d = 20 and rank 10 with λ(w*) from 5 to 6."""
    row = {
        "case": case,
        "dim": 20,
        "local_lower": 5.0,
        "local_upper": 6.0,
        "corrected": corrected,
        "mcse": mcse,
        "numerical_rank": [10.0, 10.0],
        "gamma_converged": None,
        "failed": [],
        "verdict": "CONSISTENT",
    }
    return row | fields


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        (_row("inside", 5.5), False),
        (_row("within 5 %", 4.8), False),
        (_row("below", 4.5), True),
        (_row("above", 6.5), True),
        (_row("within two errors", 4.5, mcse=0.3), False),
        (_row("error of λ_corr itself", 4.5, corrected_mcse=0.3), False),
        (_row("no number", float("nan")), True),
    ],
    ids=lambda x: x["case"] if isinstance(x, dict) else "",
)
def test_wrong_is_more_than_five_percent_and_two_errors(row, wrong):
    assert results.wrong(row) == wrong


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "SCALE_DEPENDENT"),
        ({"gamma_converged": True}, "CONSISTENT"),
        ({"bounds": [5.5, 5.5]}, "CONSISTENT"),
        ({"bounds": None, "verdict": "UNRESOLVED", "failed": ["smooth"]}, "SCALE_DEPENDENT"),
        ({"numerical_rank": [11.0, 20.0], "dim": 20}, "SCALE_DEPENDENT"),
        ({"verdict": "UNRESOLVED", "failed": ["virial", "localization"]}, "UNRESOLVED"),
    ],
    ids=["undetermined", "same at a larger γ", "bounds meet", "no bounds", "rank not unique", "chains"],
)
def test_the_verdict_of_a_row_follows_from_its_fields(fields, verdict):
    assert results.verdict_of(_row("x", 5.5, **fields)) == verdict


def test_order_counts_pairs_with_different_truths():
    assert results.ordered([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert results.ordered([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == 0
    assert results.ordered([1.0, 3.0, 2.0], [1.0, 2.0, 3.0]) == 2 / 3
    assert results.ordered([2.0, 1.0, 3.0], [1.0, 1.0, 3.0]) == 1


@pytest.mark.study
@pytest.mark.optimized
def test_one_network_from_end_to_end():
    settings = deep_linear.Settings(
        num_nets=1, layers=(2, 2), widths=(2, 3), num_data=1000, large=None, reference_warmup=300
    )
    row = deep_linear.run("0", settings) | {"case": "0"}
    summary = results.summarize([row, {"case": "1", "error": "ValueError: no"}], settings)
    assert kept(row, settings)
    assert abs(row["llc"] - row["reference_value"]) < 4 * np.hypot(row["mcse"], row["reference_mcse"])
    assert results.verdict_of(row) in ("CONSISTENT", "SCALE_DEPENDENT"), "sound chains"
    assert summary["nets"] == summary["references_kept"] == summary["local_known"] == 1
    assert summary["verdicts"][results.verdict_of(row)]["nets"] == 1
    lines = results.report(summary).splitlines()
    assert len(lines) > len(summary["verdicts"])
    assert len(table([row], results.COLUMNS).splitlines()) == 2
    assert len(results.plot([row], settings).axes) == 3
