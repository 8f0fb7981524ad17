"""Formulas against each other, against linear algebra and against exact integrals."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import theory
from theory import Coefficient
from zoo_models import product
from zoo_strata import strata, stratum_weights

SIZES = list(itertools.product(range(1, 7), repeat=3))


def _points(m, h, n):
    return [s[3:] for s in strata(max(m, h, n)) if s[:3] == (m, h, n)]


STRATA = {size: _points(*size) for size in itertools.product(range(1, 5), repeat=3)}


# Linear networks


def test_one_hidden_layer_is_reduced_rank_regression():
    for m, h, n in SIZES:
        for rank in range(min(m, h, n) + 1):
            expected = theory.reduced_rank(m, h, n, rank)
            assert theory.deep_linear([m, h, n], rank) == expected, (m, h, n, rank)
            assert theory.reduced_rank(n, h, m, rank) == expected, (m, h, n, rank)


def test_published_values():
    """Cases of each regime, of which Aoyagi & Watanabe 2005 and docs/theory.md §3 give the figures."""
    assert theory.reduced_rank(2, 2, 2) == (Fraction(3, 2), 1)
    assert theory.reduced_rank(3, 2, 3) == (Fraction(5, 2), 1)
    assert theory.reduced_rank(2, 3, 2) == (Fraction(2), 2)
    assert theory.reduced_rank(1, 1, 1) == theory.monomial([1, 1])
    assert theory.deep_linear([1, 1, 1, 1], 0) == theory.monomial([1, 1, 1])
    assert [theory.tanh_units(h) for h in (1, 2, 3, 4)] == [
        (Fraction(1, 2), 2),
        (Fraction(2, 3), 1),
        (Fraction(5, 6), 1),
        (Fraction(1), 2),
    ]
    nets = {(2, 1): (3, 4), (2, 2): (1, 4), (2, 3): (3, 28), (2, 4): (1, 20), (3, 2): (3, 16), (3, 3): (3, 52)}
    for (power, layers), value in nets.items():
        assert theory.polynomial_net(layers, power) == (Fraction(*value), 1)
    assert [theory.superposition(c).value for c in (5, 6)] == [7, Fraction(17, 2)]


def test_scalar_layers_are_monomials():
    for depth in range(2, 7):
        assert theory.deep_linear([1] * (depth + 1), 0) == theory.monomial([1] * depth)
        assert theory.deep_linear([1] * (depth + 1), 1) == theory.manifold(1)


@pytest.mark.parametrize("widths", [(3, 2, 4), (4, 3, 4, 5), (6, 4, 4, 4, 6), (3, 5, 2, 5, 2, 4)])
def test_a_full_rank_bottleneck_is_regular(widths):
    rank = min(widths)
    assert theory.deep_linear(widths, rank) == theory.manifold(rank * (widths[0] + widths[-1] - rank))


def test_the_width_order_of_hidden_layers_does_not_matter():
    for widths in ([2, 3, 4, 3], [1, 3, 2, 5, 2], [3, 2, 3, 4, 4]):
        reference = theory.deep_linear(widths, 1)
        for hidden in itertools.permutations(widths[1:-1]):
            assert theory.deep_linear([widths[0], *hidden, widths[-1]], 1) == reference


def test_a_rank_above_the_bottleneck_is_refused():
    with pytest.raises(ValueError, match="smallest width 2"):
        theory.deep_linear([3, 2, 3], 3)


def test_the_published_value_is_the_least_of_the_local_ones():
    for (m, h, n), points in STRATA.items():
        for rank in range(min(m, h, n) + 1):
            local = [theory.two_layer(m, h, n, *p) for p in points if p[2] == rank]
            least = min(c.value for c in local)
            multiplicity = max(c.multiplicity for c in local if c.value == least)
            assert theory.reduced_rank(m, h, n, rank) == Coefficient(least, multiplicity), (m, h, n, rank)


def test_local_values_are_half_the_least_codimension_nearby():
    """λ(w*) = ½ min of the ranks of the manifold parts of the fibre that reach w* (docs/theory.md §4, B5).

    Strata that come arbitrarily near have the same rk BA and at least the ranks of A and B; where the Hessian's rank is
    the same on all of them, the fibre is a manifold of that codimension.
    """
    for (m, h, n), points in STRATA.items():
        near = {p: [q for q in points if q[2] == p[2] and q[0] >= p[0] and q[1] >= p[1]] for p in points}
        ranks = {p: theory.two_layer_rank(m, n, *p[:2]) for p in points}
        manifolds = {p for p in points if {ranks[q] for q in near[p]} == {ranks[p]}}
        for p in points:
            local = theory.two_layer(m, h, n, *p)
            assert local.value == Fraction(min(ranks[q] for q in near[p] if q in manifolds), 2), (m, h, n, p)
            if p in manifolds:
                assert local == theory.manifold(ranks[p])


def test_the_global_formula_fails_where_the_local_one_holds():
    """Negative control: at full ranks the Hessian's r/2 alone exceeds the published minimum on many strata."""
    wrong = [
        (size, p)
        for size, points in STRATA.items()
        for p in points
        if Fraction(theory.two_layer_rank(size[0], size[2], *p[:2]), 2) > theory.reduced_rank(*size, p[2]).value
    ]
    assert len(wrong) > 100
    assert ((2, 2, 2), (2, 0, 0)) in wrong


def _jacobian(weights):
    """Derivative of W_L ⋯ W₁ in all entries, column by column."""
    columns = []
    for i, weight in enumerate(weights):
        for row, column in np.ndindex(weight.shape):
            unit = np.zeros(weight.shape)
            unit[row, column] = 1.0
            factors = [*weights[:i], unit, *weights[i + 1 :]]
            columns.append(product(factors).ravel())
    return np.stack(columns, axis=1)


def test_hessian_ranks_of_two_layers():
    for size in itertools.product(range(1, 4), repeat=3):
        for a, b, r in STRATA[size]:
            weights = stratum_weights(*size, a, b, r)
            ranks = [np.linalg.matrix_rank(x) for x in (*weights, weights[1] @ weights[0])]
            assert ranks == [a, b, r]
            expected = theory.two_layer_rank(size[0], size[2], a, b)
            assert np.linalg.matrix_rank(_jacobian(weights)) == expected
            assert theory.deep_linear_rank(weights) == expected


def test_hessian_ranks_of_deep_nets():
    rng = np.random.default_rng(0)
    for widths in [(3, 2, 3, 2), (2, 4, 3, 3, 2), (3, 3, 3, 3, 3)]:
        for _ in range(20):
            weights = []
            for columns, rows in itertools.pairwise(widths):
                rank = int(rng.integers(min(rows, columns) + 1))
                chosen = rng.permutation(np.arange(min(rows, columns)) < rank)
                permuted = np.zeros((rows, columns))
                permuted[rng.permutation(rows)[: len(chosen)], rng.permutation(columns)[: len(chosen)]] = chosen
                weights.append(permuted)
            assert theory.deep_linear_rank(weights) == np.linalg.matrix_rank(_jacobian(weights))


# Newton polyhedra


def _primal(exponents):
    """1/min{t : t(1, …, 1) ∈ conv(S) + R₊^d}, the definition."""
    points = np.asarray(exponents, float)
    num_points, dim = points.shape
    result = scipy.optimize.linprog(
        [0.0] * num_points + [1.0],
        A_ub=np.column_stack([points.T, -np.ones(dim)]),
        b_ub=np.zeros(dim),
        A_eq=[[1.0] * num_points + [0.0]],
        b_eq=[1.0],
    )
    return 1 / result.fun


def test_newton_polyhedra_agree_with_their_definition():
    rng = np.random.default_rng(1)
    for dim in (1, 2, 3, 4):
        for _ in range(8):
            exponents = 2 * rng.integers(0, 5, size=(rng.integers(1, 6), dim))
            exponents = exponents[exponents.any(axis=1)]
            if len(exponents):
                assert float(theory.newton_polyhedron(exponents).value) == pytest.approx(_primal(exponents), rel=1e-9)


@pytest.mark.parametrize("powers", [(1,), (3,), (1, 1), (1, 2), (2, 2, 1), (1, 1, 1), (3, 1, 3, 3)])
def test_newton_polyhedra_of_monomials(powers):
    assert theory.newton_polyhedron([[2 * k for k in powers]]) == theory.monomial(powers)


@pytest.mark.parametrize(("dim", "power"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_newton_polyhedra_of_powers_of_norms(dim, power):
    exponents = 2 * power * np.eye(dim, dtype=int)
    assert theory.newton_polyhedron(exponents) == theory.power_of_norm(dim, power)


def test_newton_polyhedra_of_disjoint_sums_and_products():
    rng = np.random.default_rng(2)
    for _ in range(8):
        parts = [2 * rng.integers(0, 4, size=(2, 2)) + 2 * np.eye(2, dtype=int) for _ in range(2)]
        coefficients = [theory.newton_polyhedron(part) for part in parts]
        zero = np.zeros((2, 2), int)
        sums = np.block([[parts[0], zero], [zero, parts[1]]])
        products = [[*s, *t] for s in parts[0] for t in parts[1]]
        assert theory.newton_polyhedron(sums) == theory.disjoint_sum(*coefficients)
        assert theory.newton_polyhedron(products) == theory.disjoint_product(*coefficients)


def test_newton_polyhedra_of_squared_factors():
    """All exponents of K = Σᵢⱼ(Σ_h uᵢₕ² vₕⱼ²)² that are not a mean of others."""
    for m, h, n in itertools.product(range(1, 4), (1, 2), range(1, 4)):
        exponents = []
        for i, j, k in itertools.product(range(n), range(m), range(h)):
            u, v = np.zeros((n, h), int), np.zeros((h, m), int)
            u[i, k] = v[k, j] = 4
            exponents.append([*u.ravel(), *v.ravel()])
        assert theory.newton_polyhedron(exponents) == theory.factorization_of_squares(m, h, n)


def test_naive_bayes():
    assert [theory.naive_bayes(n) for n in (2, 3, 4)] == [(Fraction(3, 2), 2), (Fraction(9, 4), 1), (Fraction(3), 1)]


def test_a_constant_term_has_no_coefficient():
    with pytest.raises(ValueError, match=r"K\(0\) = 0"):
        theory.newton_polyhedron([(0, 0), (2, 0)])


def test_newton_polyhedra_bound_the_cusp_and_the_polynomial_nets_from_above():
    """Real K with degenerate faces: λ is at most the polyhedron's value, less where the face matters."""
    assert theory.newton_polyhedron([(4, 0), (2, 3), (0, 6)]).value == theory.plane_branch(2, 3).value
    assert theory.newton_polyhedron([(2, 0), (1, 1), (0, 2)]).value == 1 > theory.polynomial_net(1, 2).value
    for layers, power in [(1, 2), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3)]:
        first = 2 * sum(power**i for i in range(layers))  # K = (a + b)^first + …
        assert theory.polynomial_net(layers, power).value < Fraction(2, first)
        adapted = theory.newton_polyhedron([(first, 0), (0, 2 * first)])  # in a + b and a
        assert adapted == theory.polynomial_net(layers, power)


# Attention, factors, topics, units


def test_attention_is_a_two_layer_network():
    assert theory.one_head_attention(3, 2) == (2, 2)
    assert theory.one_head_attention(4, 3) == (4, 1)
    assert theory.one_head_attention(4, 3) == theory.reduced_rank(3, 3, 4)
    assert theory.one_head_attention(4, 3, 1, 1).value == theory.two_layer(3, 3, 4, 1, 1, 0).value


@pytest.mark.parametrize("variables", range(3, 9))
def test_factor_analysis(variables):
    """The published closed form; one factor at zero by its Newton polyhedron; as many factors as true ones, regular."""
    for factors in range(1, variables):
        if (variables - factors) ** 2 < variables + factors:
            with pytest.raises(ValueError, match="needs"):
                theory.factor_analysis(variables, factors, 0)
            continue
        for true in range(factors + 1):
            published = Fraction((factors + 2) * variables + true * (variables - factors + 1), 4)
            assert theory.factor_analysis(variables, factors, true).value == published
        regular = theory.manifold(theory.factor_analysis_rank(variables, factors))
        assert theory.factor_analysis(variables, factors, factors) == regular
    pairs = [[2 * (k in pair) for k in range(variables)] for pair in itertools.combinations(range(variables), 2)]
    one_factor = theory.disjoint_sum(theory.manifold(variables), theory.newton_polyhedron(pairs))
    assert theory.factor_analysis(variables, 1, 0).value == one_factor.value


def test_topics():
    """Two topics at one product of vectors, |b|² |a|²: a disjoint product of norms."""
    for words, documents in itertools.product(range(2, 6), repeat=2):
        norms = theory.disjoint_product(theory.power_of_norm(words - 1, 1), theory.power_of_norm(documents - 1, 1))
        expected = theory.disjoint_sum(theory.manifold(words - 1), norms)
        assert theory.latent_dirichlet_allocation(words, documents, 2, 0) == expected


@pytest.mark.parametrize(("modulus", "units"), [(3, 1), (3, 2), (3, 3), (3, 5), (4, 3), (2, 1), (2, 5)])
@pytest.mark.parametrize("kind", ["pairs", "real inputs"])
def test_the_rank_of_quadratic_units_at_a_generic_point(modulus, units, kind):
    """Tangents of w_c (u_a + v_b)², on pairs, or of the forms w_c a aᵀ with a = (u, v) in R^2p, on any real inputs."""
    rng = np.random.default_rng(0)
    shape = (modulus, modulus) if kind == "pairs" else (2 * modulus, 2 * modulus)
    tangents = []
    for _ in range(units):
        a, w = rng.normal(size=2 * modulus), rng.normal(size=modulus)
        for basis in np.eye(2 * modulus):
            if kind == "pairs":
                total, moved = (x[:modulus, None] + x[None, modulus:] for x in (a, basis))
                tangents.append(np.multiply.outer(2 * total * moved, w).ravel())
            else:
                tangents.append(np.multiply.outer(np.outer(a, basis) + np.outer(basis, a), w).ravel())
        square = (a[:modulus, None] + a[None, modulus:]) ** 2 if kind == "pairs" else np.outer(a, a)
        tangents += [np.multiply.outer(square, w).ravel() for w in np.eye(modulus)]
    assert tangents[0].size == np.prod(shape) * modulus
    rank = np.linalg.matrix_rank(np.array(tangents))
    if kind == "pairs":
        assert rank == 2 * theory.modular_addition(modulus, units).value
    else:
        assert rank == min(units * (3 * modulus - 1), modulus**2 * (2 * modulus + 1))
