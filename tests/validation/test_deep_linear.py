import dataclasses
import functools
import itertools
import json

import deep_linear as study
import exact
import jax
import numpy as np
import pytest
import strata
import theory

import llc
from llc.posterior.precision import as_float64, float64

SMALL = study.Settings(layers=(2, 4), widths=(2, 5), num_data=200)


def action_rank(weights):
    """Dimension of the orbit of W₁ … W_L under changes of basis: rank of (gᵢ) ↦ (gᵢ₋₁ Wᵢ − Wᵢ gᵢ)."""
    widths = [len(weights[0]), *(matrix.shape[1] for matrix in weights)]
    columns = []
    for node, width in enumerate(widths):
        for unit in np.eye(width**2).reshape(-1, width, width):
            change = [np.zeros(matrix.shape) for matrix in weights]
            if node < len(weights):
                change[node] = change[node] + unit @ weights[node]
            if node > 0:
                change[node - 1] = change[node - 1] - weights[node - 1] @ unit
            columns.append(np.concatenate([part.ravel() for part in change]))
    return int(np.linalg.matrix_rank(np.array(columns), rtol=1e-9))


def ranks_of(weights):
    """r[i, j] of the matrices themselves, by singular values."""
    size = len(weights) + 1
    ranks = np.diag([len(weights[0]), *(matrix.shape[1] for matrix in weights)])
    for i, j in itertools.combinations(range(size), 2):
        product = functools.reduce(np.matmul, weights[i:j], np.eye(ranks[i, i]))
        values = np.linalg.svd(product, compute_uv=False)
        ranks[i, j] = np.sum(values > 1e-9 * values[0])
    return ranks


def all_profiles(widths):
    """The ranks of all orbits, by the numbers of intervals."""
    size = len(widths)
    intervals = [(i, j) for i in range(size) for j in range(i, size)]

    def fill(left, rest):
        if not rest:
            if not any(left):
                yield {}
            return
        (i, j), *others = rest
        for count in range(min(left[i : j + 1]) + 1):
            fewer = [x - count * (i <= k <= j) for k, x in enumerate(left)]
            for tail in fill(fewer, others):
                yield {(i, j): count, **tail}

    for counts in fill(list(widths), intervals):
        ranks = np.zeros((size, size), int)
        for i, j in intervals:
            ranks[i, j] = sum(count for (a, b), count in counts.items() if a <= i and j <= b)
        yield ranks


@pytest.mark.parametrize("index", range(6))
def test_generator_has_the_ranks_it_says(index):
    net = study.generate(SMALL, index)
    widths = net.widths
    assert SMALL.layers[0] <= len(net.weights) <= SMALL.layers[1]
    assert all(SMALL.widths[0] <= width <= SMALL.widths[1] for width in widths)
    ranks = strata.profile(widths, net.ranks)
    np.testing.assert_array_equal(np.triu(ranks), np.triu(ranks_of(net.weights)))
    assert strata.hessian_rank(ranks) == theory.deep_linear_rank([matrix.T for matrix in net.weights])
    assert all(matrix.dtype == np.float32 for matrix in net.weights)
    again = study.generate(SMALL, index)
    assert all((a == b).all() for a, b in zip(net.weights, again.weights, strict=True))


def test_generator_reduces_every_second_matrix():
    nets = [study.generate(study.Settings(widths=(20, 29)), index) for index in range(40)]
    full = [rank == min(matrix.shape) for net in nets for matrix, rank in zip(net.weights, net.ranks, strict=True)]
    share = 1 - np.mean(full)  # a drawn rank is full in one of 20–29 cases
    assert abs(share - 0.5 * (1 - 1 / 22)) < 4 * 0.5 / np.sqrt(len(full)) + 0.01


def test_hessian_rank_is_that_of_the_spectrum():
    net = study.generate(SMALL, 3)
    posterior = study.make_posterior(net, SMALL, 3)
    bounds = llc.rank_bounds(llc.spectrum(posterior))
    assert bounds.rank == theory.deep_linear_rank([matrix.T for matrix in net.weights])


def test_codimension_of_orbits_is_that_of_the_tangent_space():
    for index in range(12):
        net = study.generate(SMALL, index)
        ranks = ranks_of(net.weights)
        dim = sum(matrix.size for matrix in net.weights)
        r, inputs, outputs = ranks[0, -1], ranks[0, 0], ranks[-1, -1]
        assert strata.codimension(ranks) == dim - action_rank(net.weights) + r * (inputs + outputs - r)


@pytest.mark.parametrize("widths", [(2, 2, 2), (1, 2, 1, 2), (2, 2, 2, 2), (2, 1, 3, 2), (1, 2, 2, 1, 1)], ids=str)
def test_search_finds_the_largest_component(widths):
    profiles = list(all_profiles(widths))
    for ranks in profiles:
        near = [other for other in profiles if (other >= ranks).all() and other[0, -1] == ranks[0, -1]]
        assert strata.zero_codimension(ranks, tries=32) == min(map(strata.codimension, near))


def test_bounds_hold_what_is_known_and_wrong_ones_do_not():
    inside = violated = 0
    for widths in itertools.product(range(1, 4), repeat=3):
        for ranks in all_profiles(widths):
            rank, a, b = (int(ranks[key]) for key in ((0, -1), (0, 1), (1, 2)))
            truth = theory.two_layer(*widths, a, b, rank).value
            smallest = theory.deep_linear(widths, rank).value
            upper = strata.zero_codimension(ranks, tries=16) / 2
            assert max(strata.hessian_rank(ranks) / 2, smallest) <= truth <= upper
            assert strata.local_coefficient(ranks, 16) == (truth, truth)
            inside += 1
            violated += upper > smallest == truth  # the interval would be too wide to be a formula
    assert inside > 100
    assert violated


def test_deepest_stratum_is_the_global_minimum():
    widths = (3, 4, 2, 3)
    for rank in range(3):
        ranks = np.where(np.eye(4, dtype=bool), np.diag(widths), np.triu(np.full((4, 4), rank), 1))
        assert strata.local_coefficient(ranks, 4).value == theory.deep_linear(widths, rank).value


def test_intervals_of_deep_networks_are_ordered():
    for index in range(40):
        net = study.generate(study.Settings(), index)
        local = strata.local_coefficient(strata.profile(net.widths, net.ranks), tries=4)
        assert local.lower <= local.upper


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_few_rows_have_the_same_density(scale):
    net = study.generate(SMALL, 1)
    posterior = study.make_posterior(net, SMALL, 1).with_scale(gamma=3.0)
    few = study.sufficient(net, posterior).with_scale(gamma=3.0)
    few = study._posterior(net, scale * few.data[0], nbeta=float(posterior.nbeta)).with_scale(gamma=3.0)
    assert len(few.data[0]) == net.widths[0] < posterior.num_data
    x, y = (np.asarray(part, np.float64) for part in posterior.data)
    with float64():
        vector = as_float64(posterior.center) + 0.1 * jax.random.normal(jax.random.key(0), posterior.center.shape)
        full, short = (float(p.potential(vector, as_float64(p.data))) for p in (posterior, few))
        residual = np.linalg.multi_dot([x, *study.matrices(np.asarray(vector), net.widths)]) - y
    # Rows and targets are rounded to float32: residuals by 2⁻²⁴ of the outputs they are differences of.
    tolerance = 4 * 2.0**-24 * np.linalg.norm(y) / np.linalg.norm(residual)
    assert tolerance < 1e-3
    assert (abs(short / full - 1) < tolerance) == (scale == 1.0)


@pytest.mark.slow
@pytest.mark.optimized
def test_reference_is_exact_where_the_integral_is_known():
    nbeta, gamma = 300.0, 1.0
    net = study.Net([np.zeros((2, 2), np.float32)] * 2, [0, 0])
    posterior = study._posterior(net, np.sqrt(2) * np.eye(2), nbeta=nbeta)  # XᵀX / n = 1, K = ½‖W₁W₂‖²
    truth = exact.reduced_rank(2, 2, nbeta, gamma)
    settings = study.Settings(reference_warmup=500, reference_draws=500, reference_error=0.02)
    found = study.reference(jax.random.key(0), posterior.with_scale(gamma=gamma), None, settings)
    assert found.plain == found.value
    assert abs(found.value - truth.mean) < 4 * found.mcse
    assert found.mcse < 0.02 * found.value
    assert abs(found.virial - 1) < 0.03


def test_order_counts_pairs_with_different_truths():
    assert study.ordered([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert study.ordered([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == 0
    assert study.ordered([1.0, 3.0, 2.0], [1.0, 2.0, 3.0]) == 2 / 3
    assert study.ordered([2.0, 1.0, 3.0], [1.0, 1.0, 3.0]) == 1


@pytest.mark.slow
@pytest.mark.optimized
def test_one_network_from_end_to_end():
    settings = study.Settings(num_nets=1, layers=(2, 2), widths=(2, 3), num_data=1000, large=None, reference_warmup=300)
    row = study.run("0", settings) | {"case": "0"}
    summary = study.summarize([row, {"case": "1", "error": "ValueError: no"}], settings)
    assert study.kept(row, settings)
    assert not study.kept(row | {"reference_virial": 1.1}, settings)
    assert abs(row["llc"] - row["reference_value"]) < 4 * np.hypot(row["mcse"], row["reference_mcse"])
    assert not study.kept(row | {"reference_rhat": 1.2}, settings)
    assert not study.kept(row | {"reference_plain": 2 * row["reference_plain"]}, settings)
    assert summary["nets"] == summary["references_kept"] == summary["local_known"] == 1
    assert "order of pairs" in study.report(summary)
    assert study.table([row], study.COLUMNS)
    assert len(study.plot([row], settings).axes) == 3


def test_a_reference_serves_again_at_the_same_scale(tmp_path, monkeypatch):
    fields = {f"reference_{name}": float(i) for i, name in enumerate(study.Reference._fields)}
    row = {"case": "7", "nbeta": 10.0, "gamma": 2.0, **fields}
    (tmp_path / "results").mkdir()
    record = {"settings": dataclasses.asdict(study.Settings()), "rows": [row]}
    (tmp_path / "results" / "deep_linear.json").write_text(json.dumps(record))
    monkeypatch.setattr(study, "__file__", str(tmp_path / "deep_linear.py"))
    net = study.Net([np.zeros((2, 2), np.float32)] * 2, [0, 0])
    posterior = study._posterior(net, np.eye(2), nbeta=10.0)
    same = study.committed("7", posterior.with_scale(gamma=2.0), study.Settings())
    assert same is not None
    assert same._asdict() == {name: float(i) for i, name in enumerate(study.Reference._fields)}
    assert study.committed("8", posterior.with_scale(gamma=2.0), study.Settings()) is None
    assert study.committed("7", posterior.with_scale(gamma=2.1), study.Settings()) is None
    other = study.Settings(reference_error=0.01)
    assert study.committed("7", posterior.with_scale(gamma=2.0), other) is None
