"""λ at a point of a deep linear network, from ranks: against linear algebra, and against all orbits of small ones."""

import itertools

import linear_nets
import numpy as np
import pytest
import strata
import theory

from tests.support.ranks import ranks_of

SMALL = linear_nets.Law(layers=(2, 4), widths=(2, 5), num_data=200)


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


def test_codimension_of_orbits_is_that_of_the_tangent_space():
    for index in range(12):
        net = linear_nets.generate(SMALL, index)
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
        net = linear_nets.generate(linear_nets.Law(), index)
        local = strata.local_coefficient(strata.profile(net.widths, net.ranks), tries=4)
        assert local.lower <= local.upper
