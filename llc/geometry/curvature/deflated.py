r"""λ_quad, h_max and the top eigenvectors for a price: stochastic Lanczos quadrature beside what is known exactly.

A Lanczos run finds the top eigenpairs $Q, \Theta$. They are taken as they are, and only the trace over the rest is
estimated, from random vectors z in the complement of Q:

$$ \mathrm{tr}\, f(H) \approx \sum_i f(\theta_i) + \frac{d - k}{P} \sum_{p=1}^{P}
   \frac{z_p^\top f(H)\, z_p}{\lVert z_p \rVert^2}, \qquad z_p = (1 - Q Q^\top)\, g_p, \quad g_p \sim N(0, 1). $$

The standard error of a sum, $\sqrt{2\, \mathrm{tr} f^2 / P}$, has the rest only in its trace, and the Lanczos runs of
the probes see a spectrum that ends at the largest of the rest, so they are shorter by the root of what it fell by.

The work stops when the next step changes nothing that is asked: Lanczos steps go on until the probes are forecast to
cost no more products than the run took, and probes until λ_quad has the wanted error, or the budget is spent. A pair is
deflated where its residual ρ changes λ_quad by at most 10⁻⁴: an error E in the block of H between Q and the rest enters
the trace as $\lVert E \rVert^2 / (2 c\, θ)$, c = γ/nβ.

What is asked is `Spectrum.signed_quad` where −h_min < 0.7 c, else `Spectrum.quad`, whose kink at h = 0 no short run
resolves at an imperfect minimum: a probe of the MLP of krylov.py at c = .03 h_max gives 22.8 and 22.7 for the first in
8 and 64 steps; the second reads 59, 89, 47, 75, 62 at 8, 16, 24, 40, 64.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature import krylov
from llc.geometry.curvature.krylov import Krylov, Ritz
from llc.geometry.curvature.lanczos import Measure
from llc.geometry.curvature.operators import CurvatureOperator
from llc.geometry.curvature.outlook import MAX_PROBES, MAX_STEPS, Outlook, Target, num_probes_for, outlook_of, target_of
from llc.geometry.curvature.problem import Problem
from llc.geometry.curvature.smoothness import kinks_nearby
from llc.geometry.curvature.symmetric import NotSymmetricError
from llc.posterior.precision import as_precision

_GRADIENTS = 2  # that a product costs (1.6 and 2.7 measured, see krylov.py)
_FORECAST = 100  # products that the bar shows before anything is known
_FOR_KINKS = 16  # products, of which one may go into looking for kinks along a direction
_AGAIN = 8  # products in float64 at least, where a small budget went into those of float32
_LOOK = 4  # steps between two looks at what was found
_QUADRATURE = 1 / 3  # part of the wanted error that the change from half of a probe's steps to all may take
_TILT = 2e-3  # shift of λ̂ by the gradient, relative to λ_quad, below which more about it changes nothing
_SETTLED = 0.05  # relative change of the gradient's measure with which its run ends


class _Leading(NamedTuple):
    """Eigenpairs that are known: the positive ones, largest first, and then the negative ones."""

    nodes: Float[np.ndarray, "known"]
    vectors: Float[Array, "known dim"]
    noise: float
    norm: float
    outlook: Outlook
    target: Target


class _Probe(NamedTuple):
    """Measures of a probe, from all of its steps and from half of them; the weights add up to one."""

    whole: Measure
    half: Measure


@dataclass
class _Work:
    """The products that are left, and the bar that shows them."""

    left: int
    bar: tqdm

    def step(self, operator: CurvatureOperator, known: Float[Array, "known dim"], run: Krylov) -> Krylov:
        self.left -= 1
        self.bar.update()
        return krylov.step(operator, known, run)

    def forecast(self, num_products: int, message: str) -> None:
        self.bar.total = self.bar.n + max(min(num_products, self.left), 0)
        self.bar.set_postfix_str(message)


def deflated(problem: Problem) -> Spectrum:
    """Spectrum from the leading eigenpairs and a few probes of the rest.

    Products are in the precision of the params, and in float64 where that is too rough for a symmetric matrix.

    Residuals, stability and smoothness at w* are not judged, kinks around it along three directions at most; the
    rank is an interval.

    References:
        Ubaru, Chen & Saad, Fast estimation of tr(f(A)), SIMAX 2017;
        Meyer, Musco, Musco & Woodruff, Hutch++, SOSA 2021; Chen & Hallman, Krylov-aware trace estimation, SIMAX 2023.
    """
    settings, dtype = problem.settings, jnp.result_type(jnp.float32, *jax.tree.leaves(problem.posterior.position))
    products = MAX_STEPS * MAX_PROBES if settings.budget is None else (settings.budget - 1) // _GRADIENTS
    num_directions = min(products // _FOR_KINKS, 3) if problem.hessian.rows.num_rows >= 3 else 0
    products -= num_directions
    first = _FORECAST if settings.budget is None else products
    with tqdm(desc="spectrum", unit="product", total=first, disable=problem.hide_bar) as bar:
        work = _Work(products, bar)
        try:
            return _deflated(problem, work, num_directions, dtype)
        except NotSymmetricError:
            if dtype == jnp.float64:
                raise
            work.left = max(work.left, _AGAIN)
            return _deflated(problem, work, num_directions, jnp.dtype(jnp.float64))


def _deflated(problem: Problem, work: _Work, num_directions: int, dtype: DTypeLike) -> Spectrum:
    """The spectrum by products of one precision.

    Raises:
        NotSymmetricError: if they are not those of a symmetric matrix; in float32 that may be round-off.
    """
    settings = problem.settings
    hessian, operator = (as_precision(x, dtype) for x in (problem.hessian, problem.operator))
    with jax.enable_x64(dtype == jnp.float64):
        gradient = _gradient(hessian)
        leading = _leading(operator, problem, work, dtype)
        measure = _gradient_measure(operator, gradient, leading, float(problem.posterior.nbeta), work)
        probes = _probes(operator, leading, settings.seed, work)
        kinks = kinks_nearby(hessian, num_directions) if num_directions else math.nan
        vectors = np.asarray(leading.vectors[: int(np.sum(leading.nodes > 0))], np.float32)
    rows, halves = ([getattr(probe, name) for probe in probes] for name in _Probe._fields)
    (nodes, weights), half = (_rows(measures, leading.nodes, operator.dim) for measures in (rows, halves))
    return Spectrum(
        nodes=nodes,
        weights=weights,
        half_nodes=half[0],
        half_weights=half[1],
        gradient_nodes=measure[0],
        gradient_weights=measure[1],
        dim=operator.dim,
        matrix=settings.matrix,
        method="deflated",
        noise=leading.noise,
        smoothness=Smoothness("not judged", math.nan, math.nan, kinks),
        num_exact=len(leading.nodes),
        vectors=vectors,
    )


def _leading(operator: CurvatureOperator, problem: Problem, work: _Work, dtype: DTypeLike) -> _Leading:
    """The pairs that have converged when the probes are forecast to cost no more than the run did."""
    nothing = jnp.zeros((0, operator.dim), dtype)
    run, _ = krylov.start(_normal(problem.settings.seed, 0, operator.dim), nothing)
    most = min(work.left // 2, MAX_STEPS, operator.dim, problem.limits.vector_bytes // (run.following.nbytes))
    most = max(most, 1)
    while True:
        run = work.step(operator, nothing, run)
        if run.size % _LOOK and run.size < most and not run.exhausted:
            continue
        found = krylov.ritz(run)
        target = target_of(problem, found)
        outlook = outlook_of(found, operator.dim, target)
        rest = outlook.num_steps * outlook.num_probes
        work.forecast(
            rest if rest <= run.size else rest + _LOOK, f"h_max {found.nodes[0]:.3g}, λ_quad ≈ {outlook.quad:.3g}"
        )
        if run.size >= most or rest <= run.size or run.exhausted:
            break
    order = np.flatnonzero(outlook.known)  # largest first: those with eigenvectors to hand out, and the negative ones
    noise = max(8 * float(jnp.finfo(dtype).eps) * max(float(found.nodes[0]), 0.0), 3 * run.noise)
    return _Leading(found.nodes[order], krylov.combine(run, found.mix[:, order]), noise, run.norm, outlook, target)


def _gradient_measure(
    operator: CurvatureOperator, gradient: Float[Array, "dim"], leading: _Leading, nbeta: float, work: _Work
) -> Measure:
    """Squared slopes along the known eigenvectors, and a quadrature of the rest, as far as it matters for λ̂.

    Where it does not, the rest stands at curvature zero, from which the Newton decrement is an upper bound.
    """
    slopes = np.asarray(leading.vectors @ gradient, np.float64)
    run, norm = krylov.start(np.asarray(gradient), leading.vectors, leading.norm)
    nodes, weights, scale = np.zeros(1), np.ones(1), leading.target.scale
    tolerated = _TILT * max(leading.outlook.quad, 0.5)
    most = min(leading.outlook.num_steps, work.left // 4) if nbeta * norm**2 / scale > tolerated else 0
    decrement = math.inf
    while run.size < most and not run.exhausted:
        run = work.step(operator, leading.vectors, run)
        found = krylov.ritz(run)
        nodes, weights, last = found.nodes, found.weights, decrement
        decrement = float(np.sum(weights / (np.maximum(nodes, 0) + scale)))
        if abs(decrement - last) <= _SETTLED * decrement or nbeta * norm**2 * decrement <= tolerated:
            break
    return np.append(leading.nodes, nodes), np.append(slopes**2, weights * norm**2)


def _probes(operator: CurvatureOperator, leading: _Leading, seed: int, work: _Work) -> list[_Probe]:
    """Probes until λ_quad has the wanted error, or the products are spent."""
    probes: list[_Probe] = []
    target, rest = leading.target, operator.dim - len(leading.nodes)
    num_steps, wanted = min(leading.outlook.num_steps, rest), 2
    exact = float(np.sum(target.parts(leading.nodes)))
    while len(probes) < wanted and rest and (not probes or work.left >= num_steps):
        run, _ = krylov.start(_normal(seed, 1 + len(probes), operator.dim), leading.vectors, leading.norm)
        while not run.size or (work.left and run.size < MAX_STEPS and not run.exhausted):
            run = work.step(operator, leading.vectors, run)
            if run.size >= num_steps and (probes or run.size >= 2 * num_steps or _settled(run, rest, exact, target)):
                break
        num_steps = num_steps if probes or (run.exhausted and run.size < num_steps) else run.size
        probes.append(_measures(run, num_steps))
        parts = [target.parts(probe.whole[0]) for probe in probes]
        weights = [rest * probe.whole[1] for probe in probes]
        quad = exact + float(np.mean([np.sum(w * f) for w, f in zip(weights, parts, strict=True)]))
        square = float(np.mean([np.sum(w * f**2) for w, f in zip(weights, parts, strict=True)]))
        wanted = num_probes_for(2 * square, target.allowed(quad))
        error = math.sqrt(2 * square / len(probes))
        work.forecast((wanted - len(probes)) * num_steps, f"λ_quad {quad:.4g} ± {error:.1g}")
    return probes


def _settled(run: Krylov, rest: int, exact: float, target: Target) -> bool:
    """Whether half of the steps give λ_quad well within the wanted error already."""
    whole, half = (krylov.ritz(run, size) for size in (run.size, max(run.size // 2, 1)))
    sums = [rest * float(np.sum(x.weights * target.parts(x.nodes))) for x in (whole, half)]
    return abs(sums[0] - sums[1]) <= _QUADRATURE * target.allowed(exact + sums[0])


def _measures(run: Krylov, num_steps: int) -> _Probe:
    """Measures padded to `num_steps` nodes; a Krylov space that is exhausted leaves no error of quadrature."""
    whole = krylov.ritz(run)
    half = whole if run.size < 2 or run.exhausted else krylov.ritz(run, run.size // 2)

    def padded(found: Ritz) -> Measure:
        missing = num_steps - len(found.nodes)
        return np.pad(found.nodes, (0, missing), mode="edge"), np.pad(found.weights, (0, missing))

    return _Probe(padded(whole), padded(half))


def _rows(
    measures: list[Measure], exact: Float[np.ndarray, "known"], dim: int
) -> tuple[Float[np.ndarray, "probe all"], Float[np.ndarray, "probe all"]]:
    """A row for each probe: the known eigenvalues, and its measure of the rest."""
    rest = dim - len(exact)
    if not measures:
        return exact[None], np.ones((1, len(exact)))
    nodes = [np.append(exact, nodes) for nodes, _ in measures]
    weights = [np.append(np.ones(len(exact)), rest * weights) for _, weights in measures]
    return np.stack(nodes), np.stack(weights)


def _normal(seed: int, index: int, dim: int) -> Float[np.ndarray, "dim"]:
    return np.random.default_rng([seed, index]).normal(size=dim)


@eqx.filter_jit
def _gradient(operator: CurvatureOperator) -> Float[Array, "dim"]:
    with jax.default_matmul_precision("highest"):
        return operator.gradient()
