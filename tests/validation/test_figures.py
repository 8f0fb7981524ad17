"""The committed figures of studies, drawn again from their rows, can be read."""

import importlib
import json
import pathlib

import pytest

from tests.support.figures import assert_readable
from tests.support.tiers import weekly

RESULTS = pathlib.Path(__file__).parents[2] / "validation" / "results"
MODULES = {
    "bounds": "bounds",
    "coverage": "coverage",
    "curvature": "curvature",
    "higher_bounds": "higher_bounds_results",
    "influence": "influence",
    "momentum": "momentum",
    "no_knobs": "no_knobs_results",
    "peer_accuracy": "peer_accuracy_results",
    "sabotage": "sabotage",
    "scales": "scales",
    "temperature": "temperature",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(MODULES, but=("coverage", "scales")))
def test_a_committed_figure_can_be_read(name):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [row for row in record["rows"] if "error" not in row]
    assert_readable(importlib.import_module(MODULES[name]).figure(rows))
