"""Exact finite-n values against the table of docs/theory.md §2, closed forms, asymptotics and other integrals."""

import functools
import itertools
import math

import numpy as np
import pytest
from exact import cubature, independent, log_grid, marginal, quadratic, reduced_rank
from scipy.special import kv, kvp


def nbeta_of(num_data):
    return num_data / math.log(num_data)


NBETAS = [nbeta_of(1e3), nbeta_of(1e4), nbeta_of(1e5)]


# ---- The table --------------------------------------------------------------------------------------------------

# K, its dimension, and E[nβK] and Var[nβK] at n = 10³, 10⁴, 10⁵, γ = 1, to the digits of the table
TABLE = {
    "w^2/2": (lambda w: w**2 / 2, 1, [(0.4966, 0.4932), (0.4995, 0.4991), (0.4999, None)]),
    "w^4/2": (lambda w: w**4 / 2, 1, [(0.2403, 0.2356), (0.2464, 0.2446), (0.2487, None)]),
    "w^6/2": (lambda w: w**6 / 2, 1, [(0.1544, None), (0.1603, 0.1582), (0.1634, None)]),
    "(w1 w2)^2/2": (lambda a, b: (a * b) ** 2 / 2, 2, [(0.3473, 0.3252), (0.3825, 0.3688), (0.4054, None)]),
    "(w1 w2^2)^2/2": (lambda a, b: (a * b**2) ** 2 / 2, 2, [(0.2021, None), (0.2207, 0.2135), (0.2325, None)]),
    "(w1^2+w2^2)^2/2": (lambda a, b: (a**2 + b**2) ** 2 / 2, 2, [(0.4837, None), (0.4940, 0.4910), (0.4979, None)]),
    "(w1^2+w2^4)/2": (lambda a, b: (a**2 + b**4) / 2, 2, [(0.7369, None), (0.7459, 0.7437), (0.7487, None)]),
    "(w1 w2 w3)^2/2": (lambda a, b, c: (a * b * c) ** 2 / 2, 3, [(0.2517, None), (0.2948, 0.2765), (0.3277, None)]),
}
REDUCED_RANK_TABLE = {
    (2, 2, 2): [(1.3756, None), (1.4436, 1.4213), (1.4755, None)],
    (3, 3, 2): [(2.3247, None), (2.4204, 2.3891), (2.4651, None)],
}


def misses(moments, printed):
    """By how much the moments differ from what is printed, in units of half its last digit."""
    return max(abs(value - x) / 0.5e-4 for value, x in zip(moments, printed, strict=True) if x is not None)


def on_grid(loss, dim, nbeta, gamma=1.0):
    return log_grid(loss, dim, nbeta, gamma, step=0.2 if dim == 3 else 0.05)


def in_box(loss, dim, nbeta, gamma=1.0):
    """By symmetry one orthant is enough; exp(−81/2) is left outside of it."""
    return cubature(loss, [0.0] * dim, [9.0] * dim, nbeta, gamma, points=[])


@pytest.mark.parametrize("name", TABLE)
def test_log_grid_has_the_digits_of_the_table(name):
    loss, dim, rows = TABLE[name]
    for nbeta, printed in zip(NBETAS, rows, strict=True):
        assert misses(on_grid(loss, dim, nbeta), printed) <= 1


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name][1] < 3])
def test_cubature_has_the_digits_of_the_table(name):
    loss, dim, rows = TABLE[name]
    for nbeta, printed in zip(NBETAS, rows, strict=True):
        assert misses(in_box(loss, dim, nbeta), printed) <= 1


@pytest.mark.parametrize("shape", REDUCED_RANK_TABLE)
def test_reduced_rank_has_the_digits_of_the_table(shape):
    inputs, outputs, hidden = shape
    for nbeta, printed in zip(NBETAS, REDUCED_RANK_TABLE[shape], strict=True):
        assert misses(reduced_rank(inputs, outputs, nbeta, hidden=hidden), printed) <= 1


@pytest.mark.parametrize("way", [on_grid, in_box])
def test_without_the_right_tether_the_table_is_missed(way):
    loss, dim, rows = TABLE["w^4/2"]
    for nbeta, printed in zip(NBETAS, rows, strict=True):
        assert misses(way(loss, dim, nbeta, gamma=0.5), printed) > 10


# ---- Closed forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbeta", [10.0, 1e3, 1e5, 1e7])
def test_quartic_with_tether_is_a_bessel_function(nbeta):
    """∫ exp(−t w⁴ − γw²/2) dw ∝ √(γ/t) e^q K_¼(q) with q = γ²/32t; E[tK] = −d log Z / d log t."""
    gamma = 2.0
    q = gamma**2 / (32 * nbeta)
    ratio = kvp(0.25, q) / kv(0.25, q)
    mean = 0.5 + q * (1 + ratio)
    slope = -q * (1 + ratio + q * (kvp(0.25, q, 2) / kv(0.25, q) - ratio**2))  # d E / d log t
    for way in (on_grid, in_box):
        np.testing.assert_allclose(way(lambda w: w**4, 1, nbeta, gamma), (mean, mean - slope), rtol=1e-6)


@pytest.mark.parametrize("nbeta", [10.0, 1e3, 1e5, 1e7])
def test_quadratic(nbeta):
    expected = quadratic([2.0, 10.0], nbeta, gamma=2.0)
    for way in (on_grid, in_box):
        np.testing.assert_allclose(way(lambda a, b: a**2 + 5 * b**2, 2, nbeta, 2.0), expected, rtol=1e-6)
    shifted = cubature(lambda a, b: (a - 1) ** 2 + 5 * (b + 2) ** 2, (-6, -9), (8, 5), nbeta, 2.0, center=(1, -2))
    np.testing.assert_allclose(shifted, expected, rtol=1e-6)


@pytest.mark.parametrize(("dim", "power"), [(1, 2), (1, 5), (2, 2), (2, 3), (3, 2)])
def test_power_of_the_norm_without_tether(dim, power):
    """nβK is Gamma(d/2k, 1) for K = (Σw²)^k: mean and variance d/2k."""
    nbeta = 1e4
    box = (60 / nbeta) ** (0.5 / power)  # e^−60 is left outside
    moments = cubature(lambda *w: sum(x**2 for x in w) ** power, [0] * dim, [box] * dim, nbeta, gamma=0.0, points=[])
    np.testing.assert_allclose(moments, [dim / (2 * power)] * 2, rtol=1e-6)


@pytest.mark.parametrize("multiplicity", [1, 2, 3])
def test_slope_of_multiplicity(multiplicity):
    """E[tK] for K = ½ Πwᵢ² and m factors, from the pole of order m at z = ½ of Γ(z) E[K^−z] under the localization (γ
    = 1).

    Z(t) ∝ t^−½ × {1, y, y² + π²} with y = log t − (log h)'(½), h = (2^(1−m))^z Γ(z) Γ(3/2 − z)^m, whose log has the
    derivatives (1 − m) log 2 + ψ(½) − m ψ(1) and ψ'(½) + m ψ'(1) = π² for m = 3; the next pole gives O(1/t).
    """
    nbeta = 1e7
    euler = np.euler_gamma
    y = math.log(nbeta) - (1 - multiplicity) * math.log(2) + euler + 2 * math.log(2) - multiplicity * euler
    correction = [0, 1 / y, 2 * y / (y**2 + math.pi**2)][multiplicity - 1]
    mean = on_grid(lambda *w: math.prod(x**2 for x in w) / 2, multiplicity, nbeta).mean
    np.testing.assert_allclose(mean, 0.5 - correction, rtol=1e-6)
    assert abs(mean - (0.5 - (multiplicity - 1) / y)) < 2 * math.pi**2 / y**3


# ---- Curved ridges, by other coordinates ------------------------------------------------------------------------


def moments_of(density, weighted):
    mean, square = ((density * weighted**k).sum() / density.sum() for k in (1, 2))
    return mean, square - mean**2


def plain_grid(loss, nbetas, low, high, step, center=0.0):
    """Moments at each nβ by the trapezoidal rule, which converges exponentially from a step of the ridge's width on."""
    axis = np.arange(low, high, step)
    a, b = axis[:, None], axis[None]
    values, localization = loss(a, b), np.exp(-0.5 * ((a - center) ** 2 + (b - center) ** 2))
    weighted = [np.minimum(nbeta * values, 1e3) for nbeta in nbetas]
    return [moments_of(np.exp(-w) * localization, w) for w in weighted]


def parabola(x, y):
    return (y - x**2) ** 2 + x**10


def parabola_marginal(nbeta):
    """y is Gaussian given x."""
    x = np.arange(-4, 4, 1e-3)
    stiff = 2 * nbeta
    offset, variance = -(x**2) / (stiff + 1), 1 / (stiff + 1)  # of y − x²
    density = np.exp(-nbeta * x**10 - 0.5 * stiff / (stiff + 1) * x**4 - 0.5 * x**2)
    square, fourth = offset**2 + variance, offset**4 + 6 * offset**2 * variance + 3 * variance**2
    first = nbeta * (x**10 + square)
    second = nbeta**2 * (x**20 + 2 * x**10 * square + fourth)
    mean = (density * first).sum() / density.sum()
    return mean, (density * second).sum() / density.sum() - mean**2


def hyperbola(x, y):
    return (x * y - 1) ** 2


def hyperbola_straight(nbeta):
    """Localization at (1, 1); q = xy and p = log |x|, dx dy = dq dp: the ridge is the line q = 1 of constant width.

    The coordinates fail on the axes, where q = 0: what they carry, exp(−nβ), must not count.
    """
    if nbeta < 50:
        return plain_grid(hyperbola, [nbeta], -8, 10, 0.02, center=1.0)[0]
    sigma = (2 * nbeta) ** -0.5
    q = 1 + sigma * np.arange(-12, 12, 0.2)[:, None]
    x = np.exp(np.arange(-3, 3, 0.02))
    weighted = nbeta * (q - 1) ** 2 + 0 * x
    localization = sum(np.exp(-0.5 * ((sign * x - 1) ** 2 + (sign * q / x - 1) ** 2)) for sign in (1, -1))
    return moments_of(np.exp(-weighted) * localization, weighted)


def cusp(x, y):
    return (y**2 - x**3) ** 2


def cusp_polar(nbeta):
    """x = r² cos θ, y = r³ sin θ, dx dy = r⁴ (2 + sin² θ) dr dθ: K = r¹² (sin² θ − cos³ θ)², the ridge is a ray."""
    r = np.exp(np.arange(-10, 1.5, 0.03))
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection for sin² θ = cos³ θ
        middle = 0.5 * (low + high)
        low, high = (middle, high) if math.sin(middle) ** 2 < math.cos(middle) ** 3 else (low, middle)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    density, weighted = [], []
    for end in (0.0, math.pi):  # y > 0 by symmetry
        edges = low + (end - low) * np.append(0.5 ** np.arange(30), 0)
        for left, right in itertools.pairwise(edges):
            theta = (0.5 * (left + right) + 0.5 * (right - left) * nodes)[:, None]
            x, y = r**2 * np.cos(theta), r**3 * np.sin(theta)
            jacobian = r**5 * (2 + np.sin(theta) ** 2) * abs(right - left) * weights[:, None]
            weighted.append(np.minimum(nbeta * cusp(x, y), 1e3))
            density.append(np.exp(-weighted[-1] - 0.5 * (x**2 + y**2)) * jacobian)
    return moments_of(np.stack(density), np.stack(weighted))


CURVED = {
    "parabola": (parabola, 0.0, parabola_marginal),
    "hyperbola": (hyperbola, 1.0, hyperbola_straight),
    "cusp": (cusp, 0.0, cusp_polar),
}


@pytest.mark.parametrize(
    ("name", "nbeta"), [*itertools.product(CURVED, [10.0, *NBETAS]), ("parabola", 1e5), ("parabola", 1e7)]
)
def test_curved_ridge(name, nbeta):
    loss, center, other = CURVED[name]
    moments = cubature(loss, (center - 9, center - 9), (center + 9, center + 9), nbeta, center=center)
    np.testing.assert_allclose(moments, other(nbeta), rtol=1e-6)


def polynomial_net(power, layers):
    """Sum of squared coefficients of `layers` times W = [[a+b, a²], [a², b²]] with t^power between them."""

    def loss(a, b):
        matrix = ((a + b, a**2), (a**2, b**2))
        outputs = matrix  # coefficients of x₁^(n−i) x₂^i
        for _ in range(layers - 1):
            raised = []
            for polynomial in outputs:
                product = [1.0]
                for _ in range(power):
                    terms = [[0.0] * i + [x * y for y in product] for i, x in enumerate(polynomial)]
                    product = [sum(column) for column in itertools.zip_longest(*terms, fillvalue=0.0)]
                raised.append(product)
            outputs = [[row[0] * u + row[1] * v for u, v in zip(*raised, strict=True)] for row in matrix]
        return sum(coefficient**2 for polynomial in outputs for coefficient in polynomial)

    return loss


# Seconds of cubature for the last two, which the default run leaves out.
NETS = {(2, 1): 3 / 4, (2, 2): 1 / 4, (2, 3): 3 / 28, (2, 4): 1 / 20, (3, 2): 3 / 16, (3, 3): 3 / 52}


@pytest.mark.parametrize(
    ("power", "layers"), [pytest.param(*n, marks=[pytest.mark.slow] * (sum(n) >= 6)) for n in NETS]
)
def test_polynomial_net(power, layers):
    loss = polynomial_net(power, layers)
    nbetas = NBETAS[0], NBETAS[2]
    for nbeta, expected in zip(nbetas, plain_grid(loss, nbetas, -2, 2, 0.005), strict=True):
        np.testing.assert_allclose(cubature(loss, (-3, -3), (3, 3), nbeta), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("power", "layers"), [pytest.param(*n, marks=[pytest.mark.slow] * (sum(n) >= 6)) for n in NETS]
)
def test_polynomial_net_tends_to_its_learning_coefficient(power, layers):
    """With a ~ s and a + b ~ s², K ~ s^(3/λ)(1 + O(s)); odd powers of s cancel, so λ − E[tK] ~ t^(−2λ/3)."""
    limit, ratio = NETS[power, layers], 1e2
    means = [cubature(polynomial_net(power, layers), (-3, -3), (3, 3), t).mean for t in (1e7 / ratio, 1e7)]
    decay = ratio ** (-2 * limit / 3)
    extrapolated = (means[1] - decay * means[0]) / (1 - decay)
    assert means[0] < means[1] < limit
    assert abs(extrapolated - limit) < 0.5 * (limit - means[1])  # what is left is of the order of the square


def test_unreached_accuracy_is_an_error():
    with pytest.raises(RuntimeError, match="cubature reached a relative error"):
        cubature(hyperbola, (-8, -8), (10, 10), NBETAS[0], center=1.0, max_subdivisions=100)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_loss_is_an_error():
    with pytest.raises(RuntimeError, match="cubature"):
        cubature(lambda w: np.log(w), [-1.0], [1.0], 10.0)


# ---- Reduced rank regression and blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("nbeta", [10.0, *NBETAS, 1e7])
def test_reduced_rank_of_one_agrees_with_grid_and_marginal(nbeta):
    """K = ½ |a|² |b|² with a and b of one, two or three coordinates."""
    np.testing.assert_allclose(
        reduced_rank(1, 1, nbeta, hidden=1), on_grid(lambda a, b: (a * b) ** 2 / 2, 2, nbeta), rtol=1e-6
    )
    for inputs, outputs in ((2, 1), (2, 2), (2, 3)):
        curvatures = functools.partial(lambda num, *a: [sum(x**2 for x in a)] * num, outputs)
        expected = marginal(curvatures, [0] * inputs, [9] * inputs, nbeta, points=[])
        np.testing.assert_allclose(reduced_rank(inputs, outputs, nbeta, hidden=1), expected, rtol=1e-6)
        np.testing.assert_allclose(reduced_rank(1, outputs, nbeta, hidden=inputs), expected, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs", "hidden"), [(2, 3, 2), (3, 4, 2), (2, 2, 4), (3, 3, 3), (3, 5, 4)])
def test_reduced_rank_agrees_with_random_matrices(inputs, outputs, hidden):
    """A drawn from the localization, weighted by the integral over B."""
    nbeta, num = 3.0, 100_000
    squares = np.linalg.svd(np.random.default_rng(7).normal(size=(num, hidden, inputs)), compute_uv=False) ** 2
    rho = nbeta * squares / (nbeta * squares + 1)
    weights = np.prod((nbeta * squares + 1) ** (-0.5 * outputs), axis=1)
    weights /= weights.sum()
    mean = 0.5 * outputs * rho.sum(axis=1)
    square = mean**2 + 0.5 * outputs * (rho**2).sum(axis=1)
    moments = reduced_rank(inputs, outputs, nbeta, hidden=hidden)
    for values, exact in ((mean, moments.mean), (square, moments.variance + moments.mean**2)):
        estimate = (weights * values).sum()
        error = np.sqrt((weights**2 * (values - estimate) ** 2).sum())
        assert abs(estimate - exact) < 4 * error
        assert error < 0.02 * exact


def test_reduced_rank_tends_to_its_learning_coefficient():
    """[2H(M+N) − (M−N)² − H²] / 8 with m = 1 where M+N+H is even, else 1/8 more and m = 2 (Aoyagi, Watanabe 2005)."""
    bound = math.log(1e10) ** 3 / math.sqrt(1e10)  # the next pole lies ½ off and is of order 3 at most
    assert abs(reduced_rank(3, 3, 1e10, hidden=2).mean - 5 / 2) < bound
    steeper, cube = (1 / (7 / 2 - reduced_rank(3, 3, t, hidden=3).mean) for t in (1e12, 1e10))
    assert abs(steeper - cube - math.log(100)) < bound


@pytest.mark.parametrize("nbeta", [10.0, 1e3, 1e7])
@pytest.mark.parametrize("shape", [(2, 3, 2), (3, 3, 3), (1, 4, 2)])
def test_variance_is_the_slope_of_the_mean(shape, nbeta):
    """E[tK] = −d log Z / d log t, so Var[tK] = E[tK] − d E[tK] / d log t."""
    inputs, outputs, hidden = shape
    step = 1e-3
    below, middle, above = (
        reduced_rank(inputs, outputs, nbeta * math.exp(k * step), hidden=hidden) for k in (-1, 0, 1)
    )
    slope = (above.mean - below.mean) / (2 * step)
    np.testing.assert_allclose(middle.variance, middle.mean - slope, rtol=1e-6)


def test_independent_blocks_add_up():
    nbeta = NBETAS[0]
    whole = on_grid(lambda a, b: (a**2 + b**4) / 2, 2, nbeta)
    parts = independent(quadratic([1.0], nbeta), on_grid(lambda w: w**4 / 2, 1, nbeta))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_hidden_width_beyond_three_values_is_refused():
    with pytest.raises(ValueError, match="at most 3, got 4"):
        reduced_rank(4, 4, 10.0, hidden=4)
