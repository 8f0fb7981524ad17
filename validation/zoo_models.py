"""Points of the zoo that are networks or mixtures: linear nets, nonnegative factors, tanh, mixtures, superposition."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import exact
import jax
import jax.numpy as jnp
import numpy as np
import theory
import zoo_losses as losses
from jaxtyping import Array, PRNGKeyArray, PyTree
from theory import Coefficient
from zoo_case import Case, MomentsFn, case_of, population
from zoo_formulas import even, planar
from zoo_strata import diagonal, strata, stratum_weights

import llc


def models() -> Iterator[Case]:
    """All of them."""
    yield from _two_layers()
    yield from _deep_nets()
    yield from _others()


def _two_layers() -> Iterator[Case]:
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


def _deep_nets() -> Iterator[Case]:
    for widths in [(2, 2, 2, 2), (3, 2, 2, 3), (2, 2, 2, 2, 2), (2, 2, 2, 2, 2, 2)]:
        yield _deep(widths, 0)
    for widths in [(3, 3, 3, 3), (3, 2, 4, 3), (3, 2, 3, 2, 3)]:
        yield _deep(widths, 1)
    for widths in [(4, 2, 4), (5, 3, 4, 5), (6, 4, 4, 4, 6), (4, 3, 4, 2, 3, 4)]:
        yield _bottleneck(widths)


def _others() -> Iterator[Case]:
    yield from map(_tanh, (1, 2, 3))
    reference = "first and second moments; Watanabe 2009"
    coefficient = theory.two_gaussians()
    yield planar("two Gaussians", "mixture", losses.two_gaussians, (0, 0), coefficient, reference, rank=1)
    coefficient = theory.gaussian_weight()
    yield even("Gaussian of free weight", "mixture", losses.gaussian_weight, 2, coefficient, "K ≍ a²b²; Watanabe 2009")
    yield from map(_naive_bayes, (2, 3, 4))
    yield from itertools.starmap(_superposition, [(5, 5), (6, 6), (6, 5)])
    yield _superposition(6, 5, biased=True)


# Kinds of models


def _linear(
    name: str,
    family: str,
    weights: list[np.ndarray],
    coefficient: Coefficient,
    rank: int,
    reference: str,
    moments: MomentsFn | None = None,
) -> Case:
    """K = ½‖W_L ⋯ W₁ − W*_L ⋯ W*₁‖², whitened inputs, at the float32-exact `weights`."""
    truth = product(weights)
    build = population(lambda w: 0.5 * jnp.sum((product(w) - jnp.asarray(truth)) ** 2), weights)
    return case_of(name, family, build, coefficient, rank, sum(w.size for w in weights), reference, moments)


def product(weights: Sequence[Any]) -> Any:
    """W_L ⋯ W₁."""
    return functools.reduce(lambda below, weight: weight @ below, weights)


def _stratum(
    m: int,
    h: int,
    n: int,
    a: int,
    b: int,
    r: int,
    weights: list[np.ndarray] | None = None,
    family: str = "reduced rank",
    name: str | None = None,
) -> Case:
    """A two-layer linear net at the point of these ranks."""
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


def _deep(widths: Sequence[int], rank: int) -> Case:
    """The deepest point of its fibre: every layer is diagonal of the true rank."""
    weights = [diagonal(rows, columns, rank) for columns, rows in itertools.pairwise(widths)]
    name = f"deep linear {'-'.join(map(str, widths))} " + (f"deepest rank {rank}" if rank else "zero")
    hessian_rank = rank * (widths[0] + widths[-1] - rank)
    return _linear(
        name, "deep linear", weights, theory.deep_linear(widths, rank), hessian_rank, "Aoyagi 2024, theorem 1"
    )


def _bottleneck(widths: Sequence[int]) -> Case:
    """Data and targets of a random net of full ranks whose narrowest layer is as wide as its true rank: all regular."""
    rank = min(widths)

    def build(key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
        rng = np.random.default_rng(int(jax.random.bits(key)))
        weights = [_orthogonal(rng, rows, columns) for columns, rows in itertools.pairwise(widths)]
        inputs = rng.normal(size=(n, widths[0]))
        targets = inputs @ product(weights).T

        def loss_fn(weights: list[Array], batch: tuple[Array, Array]) -> Array:
            return 0.5 * jnp.sum((batch[0] @ product(weights).T - batch[1]) ** 2, axis=-1)

        return llc.LocalPosterior(loss_fn, weights, (inputs, targets), gamma=1.0)

    hessian_rank = rank * (widths[0] + widths[-1] - rank)
    dim = sum(a * b for a, b in itertools.pairwise(widths))
    name = f"deep linear {'-'.join(map(str, widths))} bottleneck"
    reference = "products near w* are the matrices of rank r, a manifold"
    return case_of(name, "deep linear", build, theory.manifold(hessian_rank), hessian_rank, dim, reference)


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Full rank, singular values 1 to float32, in which it is exact."""
    left, _, right = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
    return (left @ right).astype(np.float32).astype(np.float64)


def _squares(m: int, h: int, n: int, moments: MomentsFn | None = None) -> Case:
    """Nonnegative factors as squares, K = ½‖(U∘U)(V∘V)‖², at zero."""

    def loss(params: dict[str, Array]) -> Array:
        return 0.5 * jnp.sum((jnp.square(params["U"]) @ jnp.square(params["V"])) ** 2)

    build = population(loss, {"U": np.zeros((n, h)), "V": np.zeros((h, m))})
    coefficient = theory.factorization_of_squares(m, h, n)
    name = f"nonnegative factors {m}-{h}-{n} as squares, zero"
    return case_of(name, "nonnegative factorization", build, coefficient, 0, h * (m + n), "Newton polyhedron", moments)


def _tanh(hidden: int) -> Case:
    """Units at zero, of which none is needed."""
    build = population(losses.tanh_units, {"a": np.zeros(hidden), "b": np.zeros(hidden)})
    box = [-7.0] * hidden, [7.0] * hidden
    moments = partial(exact.marginal, losses.tanh_curvatures, *box, rtol=1e-6) if hidden <= 2 else None
    name = f"tanh, {hidden} unit{'s' * (hidden > 1)}"
    return case_of(
        name,
        "tanh",
        build,
        theory.tanh_units(hidden),
        0,
        2 * hidden,
        "Aoyagi & Watanabe 2005, layered networks",
        moments,
    )


def _naive_bayes(features: int) -> Case:
    """At two equal classes, the first of weight 0.62 (logit ½)."""
    truth = np.linspace(-0.5, 0.5, features, dtype=np.float32)
    center = {"features": np.stack([truth, truth]), "class": np.asarray(0.5)}
    build = population(partial(losses.naive_bayes, truth), center)
    coefficient, dim = theory.naive_bayes(features), 2 * features + 1
    reference = "KL ≍ Σ(μᵢ − μᵢ*)² + Σδᵢ²δⱼ², derived in theory.naive_bayes"
    return case_of(f"naive Bayes, {features} features", "naive Bayes", build, coefficient, features, dim, reference)


def _superposition(columns: int, polygon: int, *, biased: bool = False) -> Case:
    """Displacements from the polygon are the parameters, so that w* is exact in every precision."""

    def build(_key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
        matrix, bias = losses.superposition_minimum(polygon)
        if polygon < columns:  # a column that is dead, or whose bias is best for it
            matrix = [[*row, 0.0] for row in matrix]
            bias = [*bias, 0.5 / columns if biased else -0.5]

        def loss_fn(params: dict[str, Array], _batch: PyTree) -> Array:
            return losses.superposition(jnp.asarray(matrix) + params["W"], jnp.asarray(bias) + params["b"])

        center = {"W": np.zeros((2, columns)), "b": np.zeros(columns)}
        return llc.LocalPosterior(loss_fn, center, np.zeros((n, 0)), gamma=1.0)

    name = f"superposition, {polygon}{'⁺' * biased}-gon" + f" of {columns}" * (polygon < columns)
    coefficient = theory.superposition(columns, polygon, biased=biased)
    rank = int(2 * coefficient.value)
    reference = "regular but for the rotation; Chen et al. 2023, arXiv 2310.06301"
    return case_of(name, "superposition", build, coefficient, rank, 3 * columns, reference)
