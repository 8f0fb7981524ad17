"""The study of curvature: its exact eigenvalues, and each method on a small network."""

import curvature as study
import numpy as np
import pytest

import llc
from tests.support.tiers import weekly

SETTINGS = study.Settings(networks=(((6, 8, 7), 2, 20),))


@pytest.mark.study
def test_exact_eigenvalues_are_those_of_the_dense_hessian():
    posterior, exact = study.network(*SETTINGS.networks[0], SETTINGS)
    assert len(exact) == 2 * (6 + 7 - 2)
    dense = llc.spectrum(posterior).nodes[0]
    # w* and the targets are rounded to float32.
    np.testing.assert_allclose(np.sort(exact), dense[-len(exact) :], rtol=0, atol=1e-6 * exact.max())
    assert np.abs(dense[: -len(exact)]).max() < 1e-6 * exact.max()


@pytest.mark.slow
@pytest.mark.parametrize("method", weekly(["gram", "range_finder", "sketch", "lanczos"], but=("gram",)))
def test_methods(method):
    row = study.measure(f"0 | {method}", SETTINGS)
    assert row["took"] == method
    low, high = row["interval"]
    assert low <= row["true_rank"] <= high
    tolerance = 4 * row["quad_stderr"] + 1e-5 * row["exact_quad"]
    assert abs(row["quad"] - row["exact_quad"]) < tolerance
    assert abs(1.5 * row["quad"] - row["exact_quad"]) > tolerance, "negative control"
    if method != "lanczos":
        assert row["rank"] == row["true_rank"]


@pytest.mark.study
def test_figure_and_table():
    rows = [study.measure(f"0 | {method}", SETTINGS) for method in ("dense", "lanczos")]
    assert "22" in study.table(rows, study.COLUMNS)
    assert study.summarize(rows)["worst_exact_quad_error"] < 1e-5
    assert len(study.figure(rows).axes) == 3


@pytest.mark.slow
def test_sizes():
    settings = study.Settings()
    fitting = [[m for m in study.METHODS if study.fits(m, n, settings)] for n in settings.networks]
    assert fitting[0] == ["dense", "gram", "range_finder", "sketch", "lanczos", "auto"]
    assert fitting[-1] == ["lanczos", "auto"]
