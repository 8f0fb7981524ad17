"""The spectrum as a record: its threshold and the cause of that, its text, its old names."""

import dataclasses

import numpy as np
import pytest

import llc
from tests.support.models import deep_linear
from tests.support.spectra import spectrum_of


@pytest.mark.parametrize(
    ("eigenvalues", "noise", "threshold", "cause"),
    [
        ([1.0, 0.0], 0.0, 8 * np.finfo(float).eps, "round-off"),
        ([1.0, -1e-6], 0.0, 3e-6, "negative curvature"),
        ([1.0, -1e-6], 1e-4, 1e-4, "error of the method"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_the_largest_level_sets_the_threshold(eigenvalues, noise, threshold, cause):
    spectrum = dataclasses.replace(spectrum_of(eigenvalues), noise=noise)
    assert spectrum.threshold == pytest.approx(threshold)
    assert spectrum.threshold_cause == cause


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_spectrum_prints_in_three_lines(method):
    spectrum = llc.spectrum(deep_linear([6, 4, 6], [3, 3]), method=method, progress=False)
    lines = str(spectrum).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 120
    assert spectrum.method in lines[0]
    assert spectrum.threshold_cause in lines[2]
    assert "λ" not in str(spectrum)


def test_old_names_answer_with_a_warning():
    spectrum = dataclasses.replace(
        spectrum_of([1.0, 0.5], gradient=[0.1, 0.0]),
        gauss_newton_discrepancy=0.25,
        unstable_eigenvalues=np.array([0.5]),
    )
    for old, new in (("misfit", 0.25), ("unsettled", [0.5])):
        with pytest.warns(DeprecationWarning, match=old):
            np.testing.assert_array_equal(getattr(spectrum, old), new)
    with pytest.warns(DeprecationWarning, match="decrement"):
        assert spectrum.decrement(0.1) == spectrum.newton_decrement(0.1) > 0
