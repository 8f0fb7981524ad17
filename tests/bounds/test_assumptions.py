"""Conditions of the bounds at a point: each with cases in which it holds and cases in which it fails."""

import dataclasses

import numpy as np
import pytest

import llc
from llc.bounds.smoothness import Smoothness
from tests.support.spectra import spectrum_of


@pytest.mark.parametrize(
    ("eigenvalues", "gradient", "failing"),
    [
        ([1.0, 1.0], [0.0, 0.0], None),
        ([1.0, -1.0], [0.0, 0.0], "no negative curvature"),
        ([1.0, -5e-4], [0.0, 0.0], "no negative curvature"),  # nβ|h| = γ/2: doubles that direction's variance
        ([1.0, -1e-5], [0.0, 0.0], None),
        ([1.0, 1.0], [0.1, 0.0], "stationary"),  # shifts λ̂ by nβ g² / h = 10
        ([1.0, 1.0], [1e-3, 0.0], None),
    ],
    ids=["minimum", "saddle", "weak saddle", "round-off", "untrained", "trained"],
)
def test_assumptions(eigenvalues, gradient, failing):
    bounds = llc.rank_bounds(spectrum_of(eigenvalues, gradient), nbeta=1e3, gamma=1.0)
    failed = [assumption.name for assumption in bounds.assumptions if not assumption.holds]
    assert failed == ([] if failing is None else [failing])
    assert bounds.valid == (failing is None)
    assert np.isnan(bounds.lower) == np.isnan(bounds.upper) == (failing is not None)


def test_saddle_without_a_scale():
    assert not llc.rank_bounds(spectrum_of([1.0, -0.1])).valid
    assert llc.rank_bounds(spectrum_of([1.0, -1e-4])).valid


@pytest.mark.parametrize(
    ("smoothness", "holds"),
    [
        (None, True),
        (Smoothness("coarse", 1.0, 1.0), True),
        (Smoothness("smooth", np.inf, 3.0), True),
        (Smoothness("kink", 1.0, np.inf), False),
        (Smoothness("boundary", np.nan, np.nan), False),
    ],
    ids=lambda x: getattr(x, "state", None),
)
def test_a_loss_that_is_not_smooth_has_no_bounds(smoothness, holds):
    spectrum = dataclasses.replace(spectrum_of([1.0, 1.0]), smoothness=smoothness)
    bounds = llc.rank_bounds(spectrum, nbeta=1e3, gamma=1.0)
    (assumption,) = (a for a in bounds.assumptions if a.name == "smooth")
    assert assumption.holds == holds == bounds.valid


@pytest.mark.parametrize(("discrepancy", "holds"), [(1e-8, True), (1e-2, False), (np.nan, False)])
def test_a_gauss_newton_rank_needs_the_outputs_to_fit(discrepancy, holds):
    spectrum = dataclasses.replace(spectrum_of([1.0, 0.0]), matrix="ggn", gauss_newton_discrepancy=discrepancy)
    assert llc.rank_bounds(spectrum).valid == holds
