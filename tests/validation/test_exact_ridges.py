"""Exact finite-n values of losses with curved ridges, against other coordinates and other ways to integrate."""

import itertools
import math

import numpy as np
import pytest
from exact import cubature

NBETAS = [n / math.log(n) for n in (1e3, 1e4, 1e5)]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "nbeta"),
    [
        pytest.param(name, nbeta, marks=[pytest.mark.study] * (nbeta > 200))
        for name, nbeta in [*itertools.product(CURVED, [10.0, *NBETAS]), ("parabola", 1e5), ("parabola", 1e7)]
    ],
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


# Seconds of cubature for the larger ones.
NETS = {(2, 1): 3 / 4, (2, 2): 1 / 4, (2, 3): 3 / 28, (2, 4): 1 / 20, (3, 2): 3 / 16, (3, 3): 3 / 52}


@pytest.mark.parametrize(
    ("power", "layers"), [pytest.param(*n, marks=[pytest.mark.study] * (sum(n) >= 6)) for n in NETS]
)
def test_polynomial_net(power, layers):
    loss = polynomial_net(power, layers)
    nbetas = NBETAS[0], NBETAS[2]
    for nbeta, expected in zip(nbetas, plain_grid(loss, nbetas, -2, 2, 0.005), strict=True):
        np.testing.assert_allclose(cubature(loss, (-3, -3), (3, 3), nbeta), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("power", "layers"), [pytest.param(*n, marks=[pytest.mark.study] * (sum(n) >= 6)) for n in NETS]
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
