"""The study of trained reduced rank regression: its truths by the formula of the cell, its training, its summary."""

import numpy as np
import pytest
import reduced_rank as study
from theory import two_layer


@pytest.mark.parametrize("hidden", [2, 3, 4, 5])
def test_a_point_at_which_a_has_full_rank_has_the_coefficient_of_the_cell(hidden):
    for rank in range(1, hidden + 1):
        local = two_layer(10, hidden, 5, hidden, rank, rank)
        assert float(local.value) == (5 * hidden + (10 - hidden) * rank) / 2
        assert local.multiplicity == 1


@pytest.mark.slow
def test_training_ends_at_an_exact_fit_of_the_cell():
    settings = study.QUICK
    data = study.examples(2, 1, settings)
    params = study.train(2, data, settings, 0.03)
    assert float(np.mean(study.loss(params, data))) < 1e-8
    assert [study.rank_of(params[name], settings) for name in "AB"] == [2, 1]
    assert study.rank_of(np.diag([1.0, 0.5, 1e-5]), settings) == 2


def row(**changed):
    plain = {"start": 0.1, "hidden": 2, "rank": 1, "exact": 9.0, "llc": 8.9, "corrected": 9.0, "corrected_mcse": 0.1}
    return plain | {"bounds": [9.0, 12.0], "higher": [9.0, 9.0], "verdict": "CONSISTENT", "seconds": 1.0} | changed


def test_a_summary_counts_what_is_near_pinned_and_missed():
    rows = [
        row(),
        row(corrected=9.5),
        row(exact=10.0, corrected=10.0, bounds=[10.5, 12.0], higher=None),
        row(start=0.3, corrected=1.0),
    ]
    found = study.summarize([*rows, {"error": "it failed"}], 0.1)
    assert found["cells"] == 3
    assert found["within 1 %"] == 2
    assert found["worst |λ_corr/λ − 1|"] == "5.56%"
    assert found["pinned by higher_bounds"] == 2
    assert found["pinned by the rank"] == 0
    assert found["brackets that miss λ"] == 1
