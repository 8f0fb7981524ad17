"""Every case of the zoo: what its record says, against the library, against exact integrals and against its own K."""

import collections
import functools
import math

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import zoo
import zoo_losses

import llc
from llc.posterior.precision import float64
from tests.support.tiers import weekly

CASES = {case.name: case for case in zoo.CASES}
NUM_DATA = 1000


@functools.cache
def _posterior(name):
    return CASES[name].build(jax.random.key(0), NUM_DATA)


# The records


def test_the_zoo_is_large_and_has_no_name_twice():
    assert len(CASES) == len(zoo.CASES) >= 40
    families = collections.Counter(case.family for case in zoo.CASES)
    for family in (
        "regular",
        "monomial",
        "planar",
        "Newton polyhedron",
        "reduced rank",
        "deep linear",
        "tanh",
        "mixture",
    ):
        assert families[family] >= 2
    assert sum(case.moments is not None for case in zoo.CASES) >= 35


# A second of compilation each: one of each family here, all with -m "slow or not slow" and in validation/bounds.py.
_ONE_OF_EACH = {case.family: case.name for case in reversed(zoo.CASES)}.values()


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in _ONE_OF_EACH)) for n in CASES])
def test_ranks_and_bounds(name):
    """The rank is the one that the library finds, w* is a minimum, and λ lies in r/2 … r/2 + (d − r)/4."""
    case, posterior = CASES[name], _posterior(name)
    assert (posterior.num_data, posterior.num_params) == (NUM_DATA, case.dim)
    assert float(posterior.nbeta) == pytest.approx(NUM_DATA / math.log(NUM_DATA))
    assert float(posterior.gamma) == 1
    spectrum = llc.spectrum(posterior)
    bounds = llc.rank_bounds(spectrum, nbeta=float(posterior.nbeta), gamma=float(posterior.gamma))
    assert bounds.valid, bounds
    assert bounds.rank_interval == (case.rank, case.rank), bounds
    assert bounds.lower <= case.learning_coefficient <= bounds.upper
    # A float32 rounding of w* of relative size 6e-8 leaves a gradient of at most h_max times that.
    gradient = math.sqrt(spectrum.gradient_weights.sum())
    scale = max(1.0, max(float(jnp.abs(x).max()) for x in jax.tree.leaves(posterior.center)))
    assert gradient <= 6e-8 * scale * math.sqrt(case.dim) * spectrum.largest


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("name", CASES)
def test_no_loss_nearby_is_lower(name):
    posterior = _posterior(name)
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(posterior.center)
    losses = []
    for scale in (0, 1e-3, 1e-2, 0.1):
        moved = [np.asarray(leaf, float) + scale * rng.normal(size=leaf.shape) for leaf in leaves]
        there = eqx.tree_at(lambda p: p.center, posterior, jax.tree.unflatten(structure, moved))
        losses.append(there.init_loss())
    assert min(losses) >= losses[0] - 1e-13


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.study] * (name not in _ONE_OF_EACH))
        for name, case in CASES.items()
        if case.moments
    ],
)
def test_exact_and_sampled_losses_are_the_same(name):
    """Moments integrate one formula, samplers see another: at nβ = γ = 1, by weights e^−K on draws from the
    localization."""
    case, posterior = CASES[name], _posterior(name)
    leaves, structure = jax.tree.flatten(posterior.center)
    rng, num_draws = np.random.default_rng(0), 20_000
    draws = [np.asarray(leaf, float) + rng.normal(size=(num_draws, *leaf.shape)) for leaf in leaves]
    with float64():
        moved = jax.tree.unflatten(structure, [jnp.asarray(draw) for draw in draws])
        energy = np.asarray(jax.jit(jax.vmap(lambda w: posterior.loss_fn(w, None)))(moved))
    weights, weighted = np.exp(-energy), energy * np.exp(-energy)  # both bounded, so that the error is known
    mean = weighted.mean() / weights.mean()
    error = np.std(weighted - mean * weights) / weights.mean() / math.sqrt(num_draws)
    assert abs(mean - case.moments(1.0, 1.0).mean) < 4 * error


# λ from exact integrals
#
# E[tK] = λ − P′(L)/P(L) + O(t^−δ) with L = log t and P of degree m − 1: Z(t) ~ t^−λ P(L).

_GRID = (1e5, 1e7, 1e9, 1e11)
_ADAPTIVE = (1e2, 1e3, 1e4, 1e5)  # by cubature, which takes long beyond
_TIMES = {"tanh, 2 units": (1e4, 1e5, 1e6, 1e7)}  # δ is small
_EXPONENT = {"(y^2 - x^3)^2": 1 / 12}  # t^(5/12 − 1/2), from the smooth part of the curve
# The two points on a line see each other in their localization, and the larger polynomial nets are far from asymptotic
# at any such t (a ~ t^(−1/12) and slower). Both have tests of their own below.
_ELSEWHERE = {name for name in CASES if "|w|^8" in name or ("polynomial net" in name and "1 layer" not in name)}
_LONG = ("tanh, 2 units", "(a b - 1)^2", "(y^2 - x^3)^2")
_FITTED = [name for name, case in CASES.items() if case.moments and name not in _ELSEWHERE]


def _fit(times, means, multiplicity, exponent=None):
    """λ from E[tK] at the last t of a geometric progression, given m and, if known, δ."""
    if exponent:
        powers = np.asarray(times[-3:])[:, None] ** (-exponent * np.arange(3))
        return np.linalg.solve(powers, means[-3:])[0]
    if multiplicity == 1:  # Aitken: λ + c t^−δ
        first, second, third = means[-3:]
        bend = third - 2 * second + first
        return third if abs(bend) < 1e-9 else third - (third - second) ** 2 / bend
    logs, values = np.log(times[-multiplicity:]), np.asarray(means[-multiplicity:])

    def residual(unknown):
        polynomial = np.polynomial.Polynomial([*unknown[1:], 1.0])
        return unknown[0] - polynomial.deriv()(logs) / polynomial(logs) - values

    start = [values[-1] + (multiplicity - 1) / logs[-1], *[0.0] * (multiplicity - 1)]
    return scipy.optimize.fsolve(residual, start)[0]


@functools.cache
def _fits(name):
    """λ fitted to the last and to the next to last window of t."""
    case = CASES[name]
    adaptive = case.moments.func in (exact.cubature, exact.marginal)
    times = _TIMES.get(name, _ADAPTIVE if adaptive else _GRID)
    moments = functools.partial(case.moments, rtol=1e-5) if adaptive else case.moments
    means = [moments(t, 1.0).mean for t in times]
    return [_fit(times[:k], means[:k], case.multiplicity, _EXPONENT.get(name)) for k in (4, 3)]


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in _LONG)) for n in _FITTED])
def test_integrals_give_the_learning_coefficient(name):
    """The fit converges like t^−δ, so that its last step of t bounds what is left where it halves at least."""
    fine, coarse = _fits(name)
    tolerance = abs(fine - coarse) + 1e-4
    assert tolerance < 0.02
    assert abs(fine - CASES[name].learning_coefficient) < tolerance


@pytest.mark.slow
@pytest.mark.study
def test_the_fit_tells_neighbouring_values_apart():
    """Negative control: another λ, such as that of the leading diagonal part alone, or another m, is refused."""
    for name, wrong in [
        ("(w1 w2)^2/2", 1.0),
        ("(y - x^2)^2 + x^10", 0.75),
        ("(y^2 - x^3)^2", 0.5),
        ("reduced rank 2-2-2 zero", 2.0),
    ]:
        fine, coarse = _fits(name)
        assert abs(fine - wrong) > 5 * (abs(fine - coarse) + 1e-4)
    means = [CASES["(w1 w2)^2/2"].moments(t, 1.0).mean for t in _GRID]
    fine, coarse = (_fit(_GRID[:k], means[:k], 1) for k in (4, 3))
    assert abs(fine - 0.5) > 3 * abs(fine - coarse)


@pytest.mark.study
def test_a_localization_is_no_wall():
    """At the regular point λ = 1/2, but in a fixed localization E[nβK] goes down towards the 1/4 of the singular
    one."""
    case = CASES["(w1 - 1)^2 |w|^8 regular"]
    free, tight = (case.moments(1e4, gamma, rtol=1e-4).mean for gamma in (1.0, 1e3))
    assert free < 0.35
    assert tight > 0.45
    assert case.moments(1e5, 1e3, rtol=1e-4).mean == pytest.approx(case.learning_coefficient, abs=0.01)


# Losses that are more than a line


@pytest.mark.parametrize(("power", "layers"), [(2, 2), (2, 3), (2, 4), (3, 2), (3, 3)])
def test_the_leading_part_of_polynomial_nets(power, layers):
    """K(s²u, sa) / s^4e tends to a function without zeros on the weighted circle: what λ = 3/4e rests on."""
    angle, degree = np.linspace(0, 2 * np.pi, 1001), 4 * sum(power**i for i in range(layers))

    def scaled(s, weight):
        u, a = s**weight * np.cos(angle), s * np.sin(angle)
        return zoo_losses.polynomial_net(layers, power, a, u - a) / s ** (degree * weight / 2)

    first, second = scaled(1e-3, 2), scaled(1e-4, 2)
    assert np.all(second > 0)
    assert np.abs(np.log(first / second)).max() < degree * 1e-3 * 9  # O(s) with a factor of the degree for each entry
    assert scaled(1e-4, 1).min() < 1e-8 * scaled(1e-4, 1).max()  # negative control: equal weights leave a zero


def test_polynomial_nets_have_the_coefficients_of_their_networks():
    """Against values of the network itself, at as many inputs as there are coefficients."""
    a, b = 0.3, -0.7
    weight = np.array([[a + b, a**2], [a**2, b**2]])
    for power, layers in [(2, 2), (2, 3), (3, 2)]:
        degree = power ** (layers - 1)
        inputs = np.stack([np.linspace(-1.0, 1.0, degree + 1), np.ones(degree + 1)])
        outputs = weight @ inputs
        for _ in range(layers - 1):
            outputs = weight @ outputs**power
        coefficients = np.linalg.solve(np.vander(inputs[0]), outputs.T)
        assert zoo_losses.polynomial_net(layers, power, a, b) == pytest.approx(np.sum(coefficients**2), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("columns", weekly([5, 6], but=(5,)))
def test_superposition_in_closed_form(columns):
    """Against quadrature of the definition, at the polygon (a minimum away from all kinks) and at random weights."""
    matrix, bias = map(np.array, zoo_losses.superposition_minimum(columns))
    nodes, weights = np.polynomial.legendre.leggauss(2000)
    sizes, weights = 0.5 * (nodes + 1), 0.5 * weights
    rng = np.random.default_rng(columns)
    with float64():
        for w, b in [(matrix, bias), (rng.normal(size=matrix.shape), rng.normal(size=bias.shape))]:
            total = 0.0
            for i in range(columns):
                inputs = np.outer(sizes, np.eye(columns)[i])
                outputs = np.maximum(inputs @ w.T @ w + b, 0)
                total += weights @ np.sum((inputs - outputs) ** 2, axis=1)
            assert float(zoo_losses.superposition(jnp.asarray(w), jnp.asarray(b))) == pytest.approx(total, abs=1e-5)
    gram = matrix.T @ matrix
    lengths = np.linalg.norm(matrix, axis=0)
    assert np.ptp(lengths) < 1e-9
    assert np.ptp(bias) < 1e-9
    assert np.abs(gram + bias).min() > 0.05  # no unit switches at the end of the interval
    assert np.abs(bias).min() > 0.05


@pytest.mark.parametrize("features", [2, 3, 4])
def test_naive_bayes_is_equivalent_to_its_polynomial(features):
    """K / (Σ(μᵢ − μᵢ*)² + Σδᵢ²δⱼ²) stays between two constants however small and however unequal its arguments are."""
    truth = np.linspace(-0.5, 0.5, features, dtype=np.float32).astype(float)
    rng = np.random.default_rng(0)
    weight = 1 / (1 + math.exp(-0.5))
    ratios, without_sum = [], []
    with float64():
        loss = jax.jit(functools.partial(zoo_losses.naive_bayes, truth))
        for _ in range(300):
            delta = 10 ** rng.uniform(-3, -0.7, features) * rng.choice([-1, 1], features)
            offset = 10 ** rng.uniform(-7, -1.5) * rng.normal(size=features)
            mean = 1 / (1 + np.exp(-truth)) + offset
            first, second = mean + (1 - weight) * delta, mean - weight * delta
            logits = np.stack([np.log(p / (1 - p)) for p in (first, second)])
            value = float(loss({"features": jnp.asarray(logits), "class": jnp.asarray(0.5)}))
            pairs = (np.sum(delta**2) ** 2 - np.sum(delta**4)) / 2
            ratios.append(value / (np.sum(offset**2) + pairs))
            without_sum.append(value / (np.sum(offset**2) + np.sum(delta**4)))
    assert 0.05 < min(ratios) < max(ratios) < 10
    assert max(without_sum) / min(without_sum) > 100  # negative control: another polynomial is not equivalent


def test_two_gaussians_are_told_apart_by_their_second_moment_only():
    """K ≥ 0 far out as well; K ≍ u² + v⁴ near zero."""
    grid = np.linspace(-8, 8, 161)
    values = zoo_losses.two_gaussians(grid[:, None], grid[None, :])
    assert values.min() >= -1e-15
    for s in (1e-1, 3e-2):
        angle = np.linspace(0, 2 * np.pi, 101)
        u, v = s**2 * np.cos(angle), s * np.sin(angle)
        ratio = zoo_losses.two_gaussians(u + v, u - v) / (u**2 + v**4)
        assert 0.1 < ratio.min() < ratio.max() < 2
