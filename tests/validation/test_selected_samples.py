"""The study in its quick size, and its parts against what is known of them."""

import json
import sys

import numpy as np
import pytest
import selected_samples
import selected_samples_results as results

Z = np.random.default_rng(0).normal(size=(400, 6))
CURVATURES = np.array([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])
INVERSE = np.diag([1 / 3, 1 / 2, 1, 0, 0, 0])


@pytest.mark.slow
@pytest.mark.study
def test_quick_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["selected_samples.py", "--quick", "--out", str(tmp_path)])
    selected_samples.main()
    record = json.loads((tmp_path / "selected_samples.json").read_text())
    assert not [row["error"] for row in record["rows"] if "error" in row]
    assert "seed" in record["settings"]
    assert (tmp_path / "selected_samples.png").exists()
    text = (tmp_path / "selected_samples.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    clean = record["summary"]["lines"][0]
    assert (clean["Hessian"], clean["LSQ losses"]) == (60, 56)
    assert clean["winners"] is not None
    assert clean["winners"] > 56


def test_least_squares_is_exact_without_noise():
    matrix, edges = selected_samples.least_squares(Z, 5 + Z**2 @ CURVATURES)
    np.testing.assert_allclose(matrix, np.diag(CURVATURES), atol=1e-6)
    found = selected_samples.judge(matrix, edges, 3, INVERSE)
    assert found["rank"] == 3
    assert found["error"] < 1e-6


def test_least_squares_knows_its_error():
    """Largest eigenvalue of pure noise: above the edge in 5 % of cases, and near it in all."""
    rng, repeats = np.random.default_rng(1), 60
    fits = [selected_samples.least_squares(rng.normal(size=(200, 6)), rng.normal(size=200)) for _ in range(repeats)]
    ratios = np.array([np.linalg.eigvalsh(matrix)[-1] / edges[0] for matrix, edges in fits])
    assert np.sum(ratios > 1) <= 9  # binomial(60, 0.05) exceeds it once in 1,000
    assert 0.5 < np.median(ratios) < 1


def test_errors_of_a_shape():
    assert selected_samples.shape_error(7 * INVERSE, INVERSE) < 1e-7
    angle = selected_samples.shape_error(np.diag([0, 0, 1.0, 0, 0, 1]), np.diag([0, 0, 1.0, 0, 0, 0]))
    assert angle == pytest.approx(np.sqrt(0.5))


def test_the_first_number_that_stays_right():
    shares = {10: 1.0, 20: 0.2, 40: 0.8, 80: 1.0}
    assert results.first(shares, 0.8) == 40
    assert results.first(shares, 0.9) == 80
    assert results.first({10: 0.0}, 0.8) is None


def test_ranks_above_the_true_one_are_counted():
    rows = [{"r": 2, "cells": [{"method": "a", "rank": k} for k in (1, 2, 3, 4)]}, {"error": "failed"}]
    assert results.too_large(rows, "a") == 0.5
