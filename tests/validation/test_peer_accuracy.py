"""The models of the peer comparison: right losses, right truths, and a table with and without the peer."""

import functools
import itertools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import peer_accuracy
import peer_accuracy_results as results
import pytest
import zoo
from peer_models import model
from peers.losses import HIDDEN, LOSSES, polynomial_net
from study import table

import llc
from tests.support.tiers import weekly

NUM_DATA = 1_000
POPULATION = [name for name in LOSSES if name not in ("deep linear net", "tanh net on digits")]
POLYNOMIAL_NETS = [name for name in POPULATION if name.startswith("polynomial net")]


def _coefficients(a, b, power, depth):
    """Both outputs as polynomials in x₂ at x₁ = 1, by convolution."""
    matrix = [[a + b, a * a], [a * a, b * b]]

    def linear(forms):
        return [sum(m * np.asarray(form) for m, form in zip(row, forms, strict=True)) for row in matrix]

    forms = linear([[1.0, 0.0], [0.0, 1.0]])
    for _ in range(depth - 1):
        forms = linear([functools.reduce(np.convolve, [form] * power) for form in forms])
    return np.concatenate(forms)


@pytest.mark.parametrize("name", POLYNOMIAL_NETS)
def test_a_polynomial_net_sums_the_squares_of_its_coefficients(name):
    chosen = model(name, seed=0, num_data=NUM_DATA)
    power, depth = (int(part[2:]) for part in name.removeprefix("polynomial net ").split(", "))
    points = np.random.default_rng(0).normal(size=(20, 2))
    expected = [np.sum(_coefficients(a, b, power, depth) ** 2) for a, b in points]
    # Values of up to power^depth factors, each with a relative round-off of a few eps
    np.testing.assert_allclose(LOSSES[name](np, points, *chosen.arrays), expected, rtol=1e-12)


def test_too_few_roots_of_unity_would_alias():
    """Negative control: with one point fewer than coefficients the first and the last of them fall together."""
    roots = np.exp(2j * np.pi * np.arange(2) / 2)
    inputs = np.stack([np.ones_like(roots), roots])
    w = np.array([0.7, 0.4])
    assert abs(polynomial_net(2, 2)(np, w, inputs.real, inputs.imag) / np.sum(_coefficients(*w, 2, 2) ** 2) - 1) > 0.01


@pytest.mark.parametrize("name", POPULATION)
def test_jax_and_numpy_agree(name):
    chosen = model(name, seed=0, num_data=NUM_DATA)
    w = np.random.default_rng(1).normal(size=chosen.center.shape)
    single = LOSSES[name](jnp, jnp.asarray(w, jnp.float32), *(jnp.asarray(a, jnp.float32) for a in chosen.arrays))
    # float32 of a product of up to 2 · power^depth = 54 factors
    assert float(single) == pytest.approx(LOSSES[name](np, w, *chosen.arrays), rel=108 * 2.0**-23)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", weekly([name for name in LOSSES if name != "tanh net on digits"], but=("w⁴/2", "deep linear net"))
)
def test_the_center_is_a_minimum_and_the_scale_is_that_of_n(name):
    chosen = model(name, seed=0, num_data=NUM_DATA)
    posterior = chosen.posterior(NUM_DATA)
    assert posterior.num_data == 1_000
    assert float(posterior.nbeta) == pytest.approx(1_000 / math.log(1_000))
    assert posterior.init_loss() == pytest.approx(0.0, abs=1e-12)
    assert float(jnp.linalg.norm(jax.grad(posterior.loss)(posterior.center))) < 1e-5  # 5 · eps(float32) · ‖H‖


def test_the_tanh_net_has_the_loss_of_the_demo():
    rng = np.random.default_rng(0)
    layers = tuple(
        llc.demo.Layer(rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32))
        for shape in itertools.pairwise((64, HIDDEN, 10))
    )
    x = rng.normal(size=(50, 64)).astype(np.float32)
    y = rng.dirichlet(np.ones(10), size=50).astype(np.float32)
    w = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(layers)])
    expected = np.mean(llc.demo.cross_entropy(layers, (x, y)))
    # Sums of 64 terms of size up to 3 in float32
    assert float(LOSSES["tanh net on digits"](jnp, jnp.asarray(w), x, y)) == pytest.approx(float(expected), rel=1e-5)


def test_truths_are_those_of_the_theory_table():
    """docs/theory.md §2, n = 10³, γ = 1, in its four digits."""
    table = {"w²/2 in 10 d": 4.966, "w⁴/2": 0.2403, "(w₁w₂)²/2": 0.3473, "(w₁²+w₂²)²/2": 0.4837}
    nbeta = 1_000 / math.log(1_000)
    for name, value in table.items():
        assert model(name, seed=0, num_data=NUM_DATA).moments(nbeta, 1.0).mean == pytest.approx(value, abs=5.1e-4)


@pytest.mark.parametrize("name", POLYNOMIAL_NETS)
def test_truth_of_a_polynomial_net_is_that_of_the_zoo(name):
    """K by roots of unity here, by convolution there; test_exact.py checks the integral itself."""
    power, layers = (int(part[2:]) for part in name.removeprefix("polynomial net ").split(", "))
    (case,) = [c for c in zoo.CASES if c.name.startswith(f"polynomial net t^{power}, {layers} layer")]
    nbeta = 1_000 / math.log(1_000)
    expected = case.moments(nbeta, 1.0).mean
    # Both integrals to the rtol of 1e-7 of their numerator and of their denominator
    assert model(name, seed=0, num_data=NUM_DATA).moments(nbeta, 1.0).mean == pytest.approx(expected, rel=4e-7)


def test_a_peer_that_diverges_or_is_missing_leaves_the_table_whole():
    ours = {
        "value": 0.5,
        "error": 0.01,
        "seconds": 2.0,
        "cpu": 2.0,
        "compiled": 1.0,
        "failed": "",
        "relative": 0.0,
        "z": 0.0,
    }
    gone = {"value": None, "error": None, "seconds": 1.0, "cpu": 1.0, "relative": None, "z": None, "failure": "NaN"}
    common = {"num_params": 1, "truth": 0.5, "truth_error": 0.0}
    rows = [
        {"case": "w⁴/2", "tools": {"llc": ours}, **common},
        {"case": "w²/2 in 10 d", "tools": {"llc": ours, "devinterp, defaults": gone}, **common},
        {"case": "(w₁w₂)²/2", "error": "RuntimeError: no"},
    ]
    lines = table(rows, results.COLUMNS).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [row["case"] for row in rows]
    assert results.summarize(rows, "llc")["median error"] == 0.0
    assert results.summarize(rows, "devinterp, defaults") == {"models": 1, "failures": 1}
    assert results.summarize(rows, "devinterp, best") == {"models": 0, "failures": 0}
    assert len(results.figure(rows).axes) == 3


def test_the_best_of_a_sweep_is_the_nearest_to_the_truth(monkeypatch, tmp_path):
    """A stand-in for the peer's Python: prints a value for each run, with a failure among them."""
    program = f"""#!{sys.executable}
import json, sys
runs = json.loads(next(a for a in sys.argv if a.startswith("--runs=")).removeprefix("--runs="))
for run, value in zip(runs, [9.0, 1.0, 0.6, None] if len(runs) == 4 else [0.55], strict=True):
    print(json.dumps(run | {{"value": value, "error": 0.1, "seconds": 1.0, "cpu": 1.0}}))
"""
    python = tmp_path / "python"
    python.write_text(program)
    python.chmod(0o755)
    monkeypatch.setenv("LLC_PEER_PYTHON", str(python))
    settings = peer_accuracy.Settings(step_sizes=(1e-4, 1e-3, 1e-2))
    chosen = model("w⁴/2", seed=0, num_data=NUM_DATA)
    found = peer_accuracy.run_peer(chosen, chosen.posterior(NUM_DATA), settings, truth=0.5)
    assert found["devinterp, defaults"]["value"] == 9.0
    assert found["devinterp, best"]["step_size"] == 1e-3
    assert found["devinterp, best"]["value"] == 0.55  # a run of its own, at full length
    assert found["devinterp, best"]["num_draws"] == settings.num_draws
    assert [result["value"] for result in found["sweep"]] == [1.0, 0.6, None]


@pytest.mark.study
def test_without_the_peer_the_study_has_our_figures_only(monkeypatch, tmp_path):
    quick = peer_accuracy.Settings(cases=("w⁴/2",), num_data=NUM_DATA)
    monkeypatch.setattr(peer_accuracy, "QUICK", quick)
    folder = ["--quick", "--out", str(tmp_path), "--peer-python", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["peer_accuracy.py", *folder])
    peer_accuracy.main()
    record = json.loads((tmp_path / "peer_accuracy.json").read_text())
    assert record["settings"]["peer"] is False
    assert [set(row["tools"]) for row in record["rows"]] == [{"llc"}]
