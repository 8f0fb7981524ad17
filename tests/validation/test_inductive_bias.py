"""Every study of a claim runs in its quick size and says in its first line what became of the claim."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
import scipy.stats
from inductive_bias import connection_cost, explicit_penalties, grokking, simplicity_bias
from inductive_bias.networks import adam, init, mean_loss, paired_interval, predict, step
from inductive_bias.penalized import change, rank_correlation, strongest
from inductive_bias.verdict import FAILS, HOLDS, UNDECIDED, headline, sign_part, verdict

import llc

STUDIES = (
    "connection_cost",
    "edge_of_stability",
    "explicit_penalties",
    "grokking",
    "information",
    "label_noise",
    "simplicity_bias",
    "spectral_bias",
    "step_size",
    "tangent_alignment",
)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([True, True], HOLDS),
        ([True, False, None], FAILS),
        ([True, None], UNDECIDED),
        ([], UNDECIDED),
    ],
    ids=["all hold", "one fails", "one can't be told", "nothing was measured"],
)
def test_a_claim_holds_where_all_its_parts_do(parts, expected):
    assert verdict(parts) == expected
    assert headline(parts, "a claim", "numbers").splitlines()[0].split()[0] == expected


def test_the_interval_of_a_mean_has_its_coverage():
    rng = np.random.default_rng(0)
    inside = [low < 0.0 < high for _, low, high in (paired_interval(rng.normal(size=30)) for _ in range(200))]
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200) + 0.02, "the bootstrap of 30 is a little narrow"
    assert paired_interval(rng.normal(size=30) + 3)[1] > 0, "and does not cover what is far away"


def test_a_step_of_gradient_descent_lowers_the_loss():
    params = init(jax.random.key(0), (2, 4, 1))
    data = np.ones((3, 2)), np.ones((3, 1))
    moved = step(lambda w: mean_loss(w, data), params, 0.1)
    assert mean_loss(moved, data) < mean_loss(params, data)
    assert mean_loss(step(lambda w: mean_loss(w, data), params, -0.1), data) > mean_loss(params, data)


def test_adam_reaches_the_minimum_of_a_quadratic():
    params = adam(lambda w, _: jax.numpy.sum((w["x"] - 2) ** 2), {"x": np.zeros(3)}, jax.random.key(0), 500, 0.05)
    np.testing.assert_allclose(params["x"], 2, atol=1e-3)


@pytest.mark.parametrize(
    ("found", "sign", "part"),
    [
        ((-1.0, -2.0, -0.1), -1, True),
        ((-1.0, -2.0, -0.1), 1, False),
        ((0.0, -1.0, 1.0), 1, None),
        ((1.0, 0.1, 2.0), 1, True),
    ],
    ids=["falls as claimed", "falls against the claim", "covers zero", "rises as claimed"],
)
def test_a_part_of_a_claim_needs_a_whole_interval(found, sign, part):
    assert sign_part(found, sign) is part


def _rows(seed: int = 0) -> list[dict]:
    """Two penalties, 20 starts; the strength moves both measures, by far; all else is independent noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for start in range(20):
        for penalty, strength in (("none", 0.0), ("a", 1.0), ("a", 2.0), ("b", 1.0)):
            first = 10 * strength + rng.normal()
            row = {"first": first, "second": -10 * strength + rng.normal(), "test": strength, "twice": 2 * first}
            rows.append(row | {"penalty": penalty, "strength": strength, "seed": start})
    return rows


def test_rank_correlations_are_spearmans_and_drop_what_the_penalties_explain():
    rows = _rows()
    value, low, high = rank_correlation(rows, "first", "second")
    exact = scipy.stats.spearmanr([row["first"] for row in rows], [row["second"] for row in rows]).statistic
    assert value == pytest.approx(exact)
    assert low < value < high < -0.5
    within = rank_correlation(rows, "first", "second", within=("penalty", "strength"))
    assert abs(within[0]) < 4 / np.sqrt(len(rows)), "nothing is left at one penalty and strength"
    assert rank_correlation(rows, "first", "twice", within=("penalty", "strength"))[0] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.study
def test_the_interval_of_a_rank_correlation_has_its_coverage():
    found = [rank_correlation(_rows(i), "first", "second", within=("penalty", "strength")) for i in range(20)]
    inside = np.mean([low < 0 < high for _, low, high in found])
    assert abs(inside - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 20) + 0.05, "the bootstrap of 20 is a little narrow"


def test_the_change_by_a_penalty_is_taken_start_by_start():
    mean, low, high = change(_rows(), "a", 2.0, "first")
    assert low < 20 < high
    assert abs(mean - 20) < 4 * np.sqrt(2 / 20)


@pytest.mark.parametrize(("fits", "expected"), [(3.0, 2.0), (1.5, 1.0), (0.5, 1.0)], ids=["both", "one", "none fits"])
def test_the_strongest_penalty_is_one_with_which_all_starts_fit(fits, expected):
    rows = _rows()
    assert strongest(rows, "a", (1.0, 2.0), fits=fits, num_starts=20) == expected
    rows[2]["test"] = np.inf
    assert strongest(rows, "a", (1.0, 2.0), fits=3.0, num_starts=20) == 1.0, "one start does not fit"


def test_costs_of_connections_are_their_sums():
    params = {"w0": np.array([[1.0, -2.0], [0.0, 3.0]]), "b0": np.ones(2), "w1": np.array([[2.0], [0.0]])}
    assert connection_cost.connection_cost(params, "L1") == 8
    assert connection_cost.connection_cost(params, "L2") == 9
    assert connection_cost.connection_cost(params, "none") == 0
    straight, across = 1.0, np.sqrt(2)  # units at ½ and 1½; the output at 1 is half a unit off
    exact = 1 * straight + 2 * across + 3 * straight + 2 * np.hypot(0.5, 1)
    assert connection_cost.connection_cost(params, "distance") == pytest.approx(exact)


def test_separate_parts_have_the_modularity_of_two_groups():
    apart = np.kron(np.eye(2), np.ones((3, 3)))
    separate = {"w0": apart, "w1": np.kron(np.eye(2), np.ones((3, 1)))}
    assert connection_cost.weights_modularity(separate) == pytest.approx(0.5)
    mixed = {"w0": np.ones((6, 6)), "w1": np.ones((6, 2))}
    assert connection_cost.weights_modularity(mixed) < 0.2


@pytest.mark.parametrize("penalty", [name for name in explicit_penalties.PENALTIES if name != "label noise"])
def test_a_penalty_of_strength_zero_is_none(penalty):
    params = init(jax.random.key(0), (2, 4, 4, 1))
    data = np.ones((5, 2), np.float32), np.zeros((5, 1), np.float32)
    loss = explicit_penalties.penalized(params, data, 0.0, jax.random.key(1), penalty)
    np.testing.assert_allclose(loss, mean_loss(params, data), rtol=1e-5)
    more = explicit_penalties.penalized(params, data, 0.5, jax.random.key(1), penalty)
    assert abs(more - loss) > 1e-3 * loss


@pytest.mark.slow
@pytest.mark.study
def test_the_gradient_penalty_is_the_geometric_complexity():
    params = init(jax.random.key(0), (2, 4, 4, 1))
    inputs = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    data = inputs, np.asarray(predict(params, inputs))
    penalty = explicit_penalties.penalized(params, data, 2.0, jax.random.key(1), "gradient")
    np.testing.assert_allclose(penalty, llc.geometric_complexity(predict, params, inputs).value, rtol=1e-4)
    flat = explicit_penalties.penalized(params, data, 2.0, jax.random.key(1), "flatness")
    sizes = llc.behavioral_gradients(predict, params, inputs).feature_sizes
    np.testing.assert_allclose(flat, sizes.sum(), rtol=1e-4)


def test_a_level_is_crossed_between_records():
    assert simplicity_bias.crossing([1, 100], [0.0, 1.0], 0.5) == pytest.approx(10)
    assert simplicity_bias.crossing([1, 10, 100], [0.0, 2.0, 3.0], 1.0) == pytest.approx(10**0.5)
    assert simplicity_bias.crossing([1, 100], [0.0, 1.0], 2.0) is None
    assert simplicity_bias.crossing([1, 100], [1.0, 2.0], 0.5) is None, "above it from the first record on"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([(10.0, 0.3, 8.0, 0.4), (9.0, 0.0, 8.0, 0.1)], True),
        ([(10.0, 0.3, 8.0, 0.4), (9.0, 1.0, 8.0, 1.0)], None),
        ([(10.0, 0.3, 8.0, 0.4), (8.0, 0.1, 9.0, 0.1)], False),
        ([(8.0, 0.0, 9.0, 0.0)], False),
        ([], None),
    ],
    ids=["falls from all starts", "one within its error", "rises from one", "an exact rise", "nothing was measured"],
)
def test_a_number_falls_where_it_does_from_every_start_beyond_its_error(values, part):
    assert grokking.changed(values) is part


def test_grokking_is_told_from_the_first_checkpoint_with_all_training_pairs_right():
    points = [{"step": step, "right": right} for step, right in ((1, 0.5), (2, 0.995), (3, 1.0), (4, 1.0))]
    assert [point["step"] for point in grokking.ends(points)] == [2, 4]


@pytest.mark.study
@pytest.mark.optimized
@pytest.mark.parametrize("name", STUDIES)
def test_quick_size(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"inductive_bias.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path)])
    module.main()
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert not [row["error"] for row in record["rows"] if "error" in row]
    text = (tmp_path / f"{name}.txt").read_text()
    assert text.split()[0] in (HOLDS, FAILS, UNDECIDED)
    assert text.strip() in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").stat().st_size > 4_000
