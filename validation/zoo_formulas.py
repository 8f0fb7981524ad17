"""Points of the zoo whose loss is a formula of a few coordinates, written once for NumPy and JAX."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import exact
import jax
import jax.numpy as jnp
import numpy as np
import theory
import zoo_losses as losses
from jaxtyping import PRNGKeyArray
from theory import Coefficient
from zoo_case import Case, case_of, population

import llc

Loss = Callable[..., Any]  # of the coordinates, arrays of NumPy or JAX
Exponents = Sequence[Sequence[int]]


def formulas() -> Iterator[Case]:
    """All of them."""
    yield from _regular_points()
    yield from _norms_and_monomials()
    yield from _sums_and_polyhedra()
    yield from _planar_points()
    yield from _polynomial_nets()


def _regular_points() -> Iterator[Case]:
    yield _regular("w^2/2", (1.0,))
    yield _regular("regular, 5 directions", (1.0, 2.0, 3.0, 4.0, 5.0))
    yield _regular("regular, 3 of 5 directions", (1.0, 0.3, 0.1, 0.0, 0.0))
    reference = "positive definite Hessian"
    yield case_of("linear regression", "regular", _linear_regression, theory.manifold(4), 4, 4, reference)


def _norms_and_monomials() -> Iterator[Case]:
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


def _sums_and_polyhedra() -> Iterator[Case]:
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


def _planar_points() -> Iterator[Case]:
    coefficient = theory.weighted_homogeneous([5, 1], 10)
    yield planar("(y - x^2)^2 + x^10", "planar", _ridge, (0, 0), coefficient, "weights of y − x² and x", 1)
    yield planar("(y^2 - x^3)^2", "planar", _cusp, (0, 0), theory.plane_branch(2, 3), "Kollár 1997, § 8", 0)
    yield planar("(a b - 1)^2", "planar", _hyperbola, (1, 1), theory.manifold(1), "hyperbola", 1)
    reference = "the other factor is a unit; Lau et al. 2023"
    yield planar("(w1 - 1)^2 |w|^8 regular", "planar", _line, (1, 0), theory.manifold(1), reference, 1)
    yield planar("(w1 - 1)^2 |w|^8 singular", "planar", _line, (0, 0), theory.power_of_norm(2, 4), reference, 0)


def _ridge(x: Any, y: Any) -> Any:
    return (y - x**2) ** 2 + x**10


def _cusp(x: Any, y: Any) -> Any:
    return (y**2 - x**3) ** 2


def _hyperbola(a: Any, b: Any) -> Any:
    return (a * b - 1) ** 2


def _line(x: Any, y: Any) -> Any:
    return (x - 1) ** 2 * (x**2 + y**2) ** 4


def _polynomial_nets() -> Iterator[Case]:
    reference = "weights of a + b and a; arXiv 2608.20183"
    for power, layers in [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3)]:
        name = f"polynomial net t^{power}, {layers} layer{'s' * (layers > 1)}"
        loss = partial(losses.polynomial_net, layers, power)
        coefficient, rank = theory.polynomial_net(layers, power), int(layers == 1)
        yield planar(name, "polynomial net", loss, (0, 0), coefficient, reference, rank)


# Kinds of formulas


def even(name: str, family: str, loss: Loss, dim: int, coefficient: Coefficient, reference: str, rank: int = 0) -> Case:
    """`loss(w1, …)` at zero, even in each coordinate."""
    moments = partial(exact.log_grid, loss, dim, step=0.15 if dim > 2 else 0.05)
    return case_of(
        name, family, population(lambda w: loss(*w), np.zeros(dim)), coefficient, rank, dim, reference, moments
    )


def planar(
    name: str, family: str, loss: Loss, at: Sequence[float], coefficient: Coefficient, reference: str, rank: int
) -> Case:
    """Any `loss(w1, w2)` at a point, integrated over a box with all but e^−24 of the localization's mass at γ >= 1."""
    center = np.asarray(at, float)
    moments = partial(exact.cubature, loss, center - 7, center + 7, center=center, rtol=1e-6)
    return case_of(name, family, population(lambda w: loss(*w), center), coefficient, rank, 2, reference, moments)


def _regular(name: str, curvatures: Sequence[float]) -> Case:
    """K = ½ Σ hᵢ wᵢ² at zero; some hᵢ may be 0."""
    dim, rank = len(curvatures), int(np.count_nonzero(curvatures))
    build = population(lambda w: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2), np.zeros(dim))
    moments = partial(exact.quadratic, curvatures)
    return case_of(name, "regular", build, theory.manifold(rank), rank, dim, "Gaussian integral", moments)


def _linear_regression(key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
    """Noisy linear regression at its least-squares fit: the one case whose minibatch gradients at w* are not zero."""
    rng = np.random.default_rng(int(jax.random.bits(key)))
    inputs = rng.normal(size=(n, 4))
    targets = inputs @ np.ones(4) + rng.normal(size=n)
    center = np.linalg.lstsq(inputs, targets)[0]
    return llc.LocalPosterior(
        lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, center, (inputs, targets), gamma=1.0
    )


def _monomials(
    name: str, family: str, exponents: Exponents, coefficient: Coefficient | None = None, rank: int = 0
) -> Case:
    """K = ½ Σ w^s over the exponents s; λ by the rule of its family, or by its Newton polyhedron."""

    def loss(*w: Any) -> Any:
        return 0.5 * sum(math.prod(x**power for x, power in zip(w, s, strict=True) if power) for s in exponents)

    coefficient = coefficient or theory.newton_polyhedron(exponents)
    reference = (
        "Newton polyhedron, Varchenko 1976"
        if family == "Newton polyhedron"
        else "rules for monomials, disjoint sums and products"
    )
    return even(name, family, loss, len(exponents[0]), coefficient, reference, rank)


def _power_of_norm(name: str, dim: int, power: int, scale: float = 1.0) -> Case:
    """K = scale · (Σ wᵢ²)^power at zero."""

    def loss(*w: Any) -> Any:
        return scale * sum(x**2 for x in w) ** power

    return even(name, "power of norm", loss, dim, theory.power_of_norm(dim, power), "polar coordinates")
