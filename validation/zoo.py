"""A zoo of points w* at which λ is known exactly: one record a case, each with the posterior that a sampler gets.

Most losses are the population's K itself: they ignore their batch, and the data have n rows and no columns, so that
only n enters. Formulas of a few coordinates are written once for NumPy (exact integration) and JAX (sampling). λ, m and
the Hessian rank of every case are known by proof (validation/theory.py), never read off a computation.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import exact
import jax
import jax.numpy as jnp
import numpy as np
import theory
import zoo_losses as losses
from jaxtyping import PRNGKeyArray

import llc


class Case(NamedTuple):
    """A point with known λ.

    Attributes:
        name: unique.
        family: kind of model.
        build: `build(key, n)`, the posterior at w* with nβ = n / log n and γ = 1.
        learning_coefficient: λ(w*), local.
        multiplicity: m.
        rank: of the Hessian of the population loss at w*.
        dim: d.
        moments: `moments(nbeta, gamma)`, exact mean and variance of nβK, where they can be integrated.
        reference: where λ comes from.
    """

    name: str
    family: str
    build: Callable[[PRNGKeyArray, int], llc.LocalPosterior]
    learning_coefficient: float
    multiplicity: int | None
    rank: int
    dim: int
    moments: Callable[[float, float], exact.Moments] | None
    reference: str


def _case(name, family, build, coefficient, rank, dim, reference, moments=None) -> Case:
    value, multiplicity = coefficient
    return Case(name, family, build, float(value), multiplicity, rank, dim, moments, reference)


def _population(loss, center):
    """The posterior of K = `loss(params)` at `center`, whatever the key."""

    def build(_key, n):
        return llc.LocalPosterior(lambda params, _batch: loss(params), center, np.zeros((n, 0)), gamma=1.0)

    return build


# Formulas of a few coordinates


def _even(name, family, loss, dim, coefficient, reference, rank=0) -> Case:
    """`loss(w1, …)` at zero, even in each coordinate."""
    moments = partial(exact.log_grid, loss, dim, step=0.15 if dim > 2 else 0.05)
    return _case(
        name, family, _population(lambda w: loss(*w), np.zeros(dim)), coefficient, rank, dim, reference, moments
    )


def _planar(name, family, loss, center, coefficient, reference, rank) -> Case:
    """Any `loss(w1, w2)` at `center`, integrated over a box with all but e^−24 of the localization's mass at γ >= 1."""
    center = np.asarray(center, float)
    moments = partial(exact.cubature, loss, center - 7, center + 7, center=center, rtol=1e-6)
    return _case(name, family, _population(lambda w: loss(*w), center), coefficient, rank, 2, reference, moments)


def _regular(name, curvatures) -> Case:
    """K = ½ Σ hᵢ wᵢ² at zero; some hᵢ may be 0."""
    dim, rank = len(curvatures), int(np.count_nonzero(curvatures))
    build = _population(lambda w: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2), np.zeros(dim))
    moments = partial(exact.quadratic, curvatures)
    return _case(name, "regular", build, theory.manifold(rank), rank, dim, "Gaussian integral", moments)


def _linear_regression(key, n):
    """Noisy linear regression at its least-squares fit: the one case whose minibatch gradients at w* are not zero."""
    rng = np.random.default_rng(int(jax.random.bits(key)))
    inputs = rng.normal(size=(n, 4))
    targets = inputs @ np.ones(4) + rng.normal(size=n)
    center = np.linalg.lstsq(inputs, targets)[0]
    return llc.LocalPosterior(
        lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, center, (inputs, targets), gamma=1.0
    )


def _monomials(name, family, exponents, coefficient=None, rank=0) -> Case:
    """K = ½ Σ w^s over the exponents s; λ by the rule of its family, or by its Newton polyhedron."""

    def loss(*w):
        return 0.5 * sum(math.prod(x**power for x, power in zip(w, s, strict=True) if power) for s in exponents)

    coefficient = coefficient or theory.newton_polyhedron(exponents)
    reference = (
        "Newton polyhedron, Varchenko 1976"
        if family == "Newton polyhedron"
        else "rules for monomials, disjoint sums and products"
    )
    return _even(name, family, loss, len(exponents[0]), coefficient, reference, rank)


def _power_of_norm(name, dim, power, scale=1.0) -> Case:
    def loss(*w):
        return scale * sum(x**2 for x in w) ** power

    return _even(name, "power of norm", loss, dim, theory.power_of_norm(dim, power), "polar coordinates")


# Networks and mixtures


def _linear(name, family, weights, coefficient, rank, reference, moments=None) -> Case:
    """K = ½‖W_L ⋯ W₁ − W*_L ⋯ W*₁‖², whitened inputs, at the float32-exact `weights`."""
    truth = product(weights)
    build = _population(lambda w: 0.5 * jnp.sum((product(w) - jnp.asarray(truth)) ** 2), weights)
    return _case(name, family, build, coefficient, rank, sum(w.size for w in weights), reference, moments)


def product(weights):
    """W_L ⋯ W₁."""
    return functools.reduce(lambda below, weight: weight @ below, weights)


def _diagonal(rows, columns, rank):
    return np.eye(rows, columns) * (np.arange(columns) < rank)


def strata(max_width: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """All (inputs, hidden, outputs, rk A, rk B, rk BA) of two-layer linear nets up to a width."""
    for m, h, n in itertools.product(range(1, max_width + 1), repeat=3):
        for a, b in itertools.product(range(min(m, h) + 1), range(min(h, n) + 1)):
            for r in range(max(0, a + b - h), min(a, b) + 1):
                yield m, h, n, a, b, r


def stratum_weights(m: int, h: int, n: int, a: int, b: int, r: int) -> list[np.ndarray]:
    """A (H×M) and B (N×H) of zeros and ones: A feeds the first a hidden units, B reads r of them and b − r others."""
    first, second = _diagonal(h, m, a), np.zeros((n, h))
    second[np.arange(b), [*range(r), *range(a, a + b - r)]] = 1.0
    return [first, second]


def _stratum(m, h, n, a, b, r, weights=None, family="reduced rank", name=None) -> Case:
    at_zero = a == b == 0
    return _linear(
        name or f"reduced rank {m}-{h}-{n} " + ("zero" if at_zero else f"rk A={a} rk B={b} rk BA={r}"),
        family,
        weights or stratum_weights(m, h, n, a, b, r),
        theory.two_layer(m, h, n, a, b, r),
        theory.two_layer_rank(m, n, a, b),
        "Aoyagi & Watanabe 2005" + ("" if at_zero else ", at the block that the regular directions leave"),
        partial(exact.reduced_rank, m, n, hidden=h) if at_zero else None,
    )


def _deep(widths, rank) -> Case:
    """The deepest point of its fibre: every layer is diagonal of the true rank."""
    weights = [_diagonal(rows, columns, rank) for columns, rows in itertools.pairwise(widths)]
    name = f"deep linear {'-'.join(map(str, widths))} " + (f"deepest rank {rank}" if rank else "zero")
    hessian_rank = rank * (widths[0] + widths[-1] - rank)
    return _linear(
        name, "deep linear", weights, theory.deep_linear(widths, rank), hessian_rank, "Aoyagi 2024, theorem 1"
    )


def _bottleneck(widths) -> Case:
    """Data and targets of a random net of full ranks whose narrowest layer is as wide as its true rank: all regular."""
    rank = min(widths)

    def build(key, n):
        rng = np.random.default_rng(int(jax.random.bits(key)))
        weights = [_orthogonal(rng, rows, columns) for columns, rows in itertools.pairwise(widths)]
        inputs = rng.normal(size=(n, widths[0]))
        targets = inputs @ product(weights).T

        def loss_fn(weights, batch):
            return 0.5 * jnp.sum((batch[0] @ product(weights).T - batch[1]) ** 2, axis=-1)

        return llc.LocalPosterior(loss_fn, weights, (inputs, targets), gamma=1.0)

    hessian_rank = rank * (widths[0] + widths[-1] - rank)
    dim = sum(a * b for a, b in itertools.pairwise(widths))
    name = f"deep linear {'-'.join(map(str, widths))} bottleneck"
    reference = "products near w* are the matrices of rank r, a manifold"
    return _case(name, "deep linear", build, theory.manifold(hessian_rank), hessian_rank, dim, reference)


def _orthogonal(rng, rows, columns):
    """Full rank, singular values 1 to float32, in which it is exact."""
    left, _, right = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return (left @ right).astype(np.float32).astype(np.float64)


def _squares(m, h, n, moments=None) -> Case:
    """Nonnegative factors as squares, K = ½‖(U∘U)(V∘V)‖², at zero."""

    def loss(params):
        return 0.5 * jnp.sum((jnp.square(params["U"]) @ jnp.square(params["V"])) ** 2)

    build = _population(loss, {"U": np.zeros((n, h)), "V": np.zeros((h, m))})
    coefficient = theory.factorization_of_squares(m, h, n)
    name = f"nonnegative factors {m}-{h}-{n} as squares, zero"
    return _case(name, "nonnegative factorization", build, coefficient, 0, h * (m + n), "Newton polyhedron", moments)


def _tanh(hidden) -> Case:
    build = _population(losses.tanh_units, {"a": np.zeros(hidden), "b": np.zeros(hidden)})
    box = [-7.0] * hidden, [7.0] * hidden
    moments = partial(exact.marginal, losses.tanh_curvatures, *box, rtol=1e-6) if hidden <= 2 else None
    name = f"tanh, {hidden} unit{'s' * (hidden > 1)}"
    return _case(
        name,
        "tanh",
        build,
        theory.tanh_units(hidden),
        0,
        2 * hidden,
        "Aoyagi & Watanabe 2005, layered networks",
        moments,
    )


def _naive_bayes(features) -> Case:
    """At two equal classes, the first of weight 0.62 (logit ½)."""
    truth = np.linspace(-0.5, 0.5, features, dtype=np.float32)
    center = {"features": np.stack([truth, truth]), "class": np.asarray(0.5)}
    build = _population(partial(losses.naive_bayes, truth), center)
    coefficient, dim = theory.naive_bayes(features), 2 * features + 1
    reference = "KL ≍ Σ(μᵢ − μᵢ*)² + Σδᵢ²δⱼ², derived in theory.naive_bayes"
    return _case(f"naive Bayes, {features} features", "naive Bayes", build, coefficient, features, dim, reference)


def _superposition(columns) -> Case:
    """Displacements from the polygon are the parameters, so that w* is exact in every precision."""

    def build(_key, n):
        matrix, bias = losses.superposition_minimum(columns)

        def loss_fn(params, _batch):
            return losses.superposition(jnp.asarray(matrix) + params["W"], jnp.asarray(bias) + params["b"])

        center = {"W": np.zeros((2, columns)), "b": np.zeros(columns)}
        return llc.LocalPosterior(loss_fn, center, np.zeros((n, 0)), gamma=1.0)

    name, rank = f"superposition, {columns}-gon", 3 * columns - 1
    reference = "regular but for the rotation; Chen et al. 2023, arXiv 2310.06301"
    return _case(name, "superposition", build, theory.superposition(columns), rank, 3 * columns, reference)


# The catalogue


def _formulas() -> Iterator[Case]:
    yield _regular("w^2/2", (1.0,))
    yield _regular("regular, 5 directions", (1.0, 2.0, 3.0, 4.0, 5.0))
    yield _regular("regular, 3 of 5 directions", (1.0, 0.3, 0.1, 0.0, 0.0))
    reference = "positive definite Hessian"
    yield _case("linear regression", "regular", _linear_regression, theory.manifold(4), 4, 4, reference)

    yield _power_of_norm("(w1^2 + w2^2)^2/2", 2, 2, scale=0.5)
    yield _power_of_norm("(w1^2 + w2^2)^3", 2, 3)
    yield _power_of_norm("(w1^2 + w2^2 + w3^2)^2", 3, 2)

    for name, powers in {
        "w^4/2": (2,),
        "w^6/2": (3,),
        "(w1 w2)^2/2": (1, 1),
        "(w1 w2^2)^2/2": (1, 2),
        "(w1 w2 w3)^2/2": (1, 1, 1),
        "(w1 w2^2 w3^2)^2/2": (1, 2, 2),
    }.items():
        yield _monomials(name, "monomial", [[2 * k for k in powers]], theory.monomial(powers))
    square, fourth, product = theory.monomial([1]), theory.monomial([2]), theory.monomial([1, 1])
    sums = partial(_monomials, family="sum")
    yield sums("(w1^2 + w2^4)/2", exponents=[(2, 0), (0, 4)], coefficient=theory.disjoint_sum(square, fourth), rank=1)
    coefficient = theory.disjoint_sum(product, fourth)
    yield sums("((w1 w2)^2 + w3^4)/2", exponents=[(2, 2, 0), (0, 0, 4)], coefficient=coefficient)
    products = partial(_monomials, family="product")
    coefficient = theory.disjoint_product(theory.power_of_norm(2, 1), square)
    yield products("(w1^2 + w2^2) w3^2/2", exponents=[(2, 0, 2), (0, 2, 2)], coefficient=coefficient)
    coefficient = theory.disjoint_product(theory.power_of_norm(2, 2), square)
    yield products("(w1^4 + w2^4) w3^2/2", exponents=[(4, 0, 2), (0, 4, 2)], coefficient=coefficient)
    polyhedron = partial(_monomials, family="Newton polyhedron")
    yield polyhedron("(w1^4 w2^2 + w1^2 w2^6)/2", exponents=[(4, 2), (2, 6)])
    yield polyhedron("(w1^8 + w1^2 w2^2 + w2^8)/2", exponents=[(8, 0), (2, 2), (0, 8)])
    yield polyhedron("(w1^2 w2^2 + w2^2 w3^2 + w3^2 w1^2)/2", exponents=[(2, 2, 0), (0, 2, 2), (2, 0, 2)])
    yield polyhedron("(w1^2 w2^4 + w2^2 w3^4 + w3^2 w1^4)/2", exponents=[(2, 4, 0), (0, 2, 4), (4, 0, 2)])

    def ridge(x, y):
        return (y - x**2) ** 2 + x**10

    def cusp(x, y):
        return (y**2 - x**3) ** 2

    def hyperbola(a, b):
        return (a * b - 1) ** 2

    def line(x, y):
        return (x - 1) ** 2 * (x**2 + y**2) ** 4

    coefficient = theory.weighted_homogeneous([5, 1], 10)
    yield _planar("(y - x^2)^2 + x^10", "planar", ridge, (0, 0), coefficient, "weights of y − x² and x", 1)
    yield _planar("(y^2 - x^3)^2", "planar", cusp, (0, 0), theory.plane_branch(2, 3), "Kollár 1997, § 8", 0)
    yield _planar("(a b - 1)^2", "planar", hyperbola, (1, 1), theory.manifold(1), "hyperbola", 1)
    reference = "the other factor is a unit; Lau et al. 2023"
    yield _planar("(w1 - 1)^2 |w|^8 regular", "planar", line, (1, 0), theory.manifold(1), reference, 1)
    yield _planar("(w1 - 1)^2 |w|^8 singular", "planar", line, (0, 0), theory.power_of_norm(2, 4), reference, 0)
    reference = "weights of a + b and a; arXiv 2608.20183"
    for power, layers in [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3)]:
        name, loss = (
            f"polynomial net t^{power}, {layers} layer{'s' * (layers > 1)}",
            partial(losses.polynomial_net, layers, power),
        )
        coefficient, rank = theory.polynomial_net(layers, power), int(layers == 1)
        yield _planar(name, "polynomial net", loss, (0, 0), coefficient, reference, rank)


def _models() -> Iterator[Case]:
    for m, h, n in [
        *[(2, 2, 2), (3, 2, 3), (2, 3, 2), (3, 2, 2), (3, 3, 3)],  # even, even, odd, odd, odd
        *[(4, 2, 2), (5, 2, 2), (2, 2, 5), (2, 5, 2)],  # the edge of the next; N + H < M, M + H < N, M + N < H
    ]:
        yield _stratum(m, h, n, 0, 0, 0)
    small = [s for s in strata(3) if s[:3] in ((2, 2, 2), (3, 2, 3)) and s[3:] != (0, 0, 0)]
    yield from itertools.starmap(_stratum, small)
    nonnegative = partial(_stratum, family="nonnegative factorization")
    ones = [np.ones((2, 3)), np.ones((3, 2))]
    yield nonnegative(3, 2, 3, 1, 1, 1, weights=ones, name="nonnegative factors 3-2-3, all ones")
    positive = [np.array([[1.0, 0.5], [0.5, 1.0]])] * 2
    yield nonnegative(2, 2, 2, 2, 2, 2, weights=positive, name="nonnegative factors 2-2-2, full rank")
    yield _squares(2, 1, 1, partial(exact.log_grid, lambda u, v, w: 0.5 * u**4 * (v**4 + w**4), 3, step=0.15))
    yield _squares(2, 2, 2)

    for widths in [(2, 2, 2, 2), (3, 2, 2, 3), (2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2)]:
        yield _deep(widths, 0)
    for widths in [(3, 3, 3, 3), (3, 2, 4, 3), (3, 2, 3, 2, 3)]:
        yield _deep(widths, 1)
    for widths in [(4, 2, 4), (5, 3, 4, 5), (6, 4, 4, 4, 6), (4, 3, 4, 2, 3, 4)]:
        yield _bottleneck(widths)

    yield from map(_tanh, (1, 2, 3))
    reference = "first and second moments; Watanabe 2009"
    coefficient = theory.two_gaussians()
    yield _planar("two Gaussians", "mixture", losses.two_gaussians, (0, 0), coefficient, reference, rank=1)
    coefficient = theory.gaussian_weight()
    yield _even("Gaussian of free weight", "mixture", losses.gaussian_weight, 2, coefficient, "K ≍ a²b²; Watanabe 2009")
    yield from map(_naive_bayes, (2, 3, 4))
    yield from map(_superposition, (5, 6))


CASES = (*_formulas(), *_models())
