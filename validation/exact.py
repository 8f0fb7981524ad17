"""Exact finite-n mean and variance of nβK under p(w) ∝ exp(−nβK(w) − γ/2‖w − w*‖²), integrated in float64.

Six ways, none of which uses JAX or a sampler; w* = 0 but where `center` is given:

- `quadratic`: K = ½ Σ hᵢ wᵢ², in closed form.
- `log_grid`: any K that is even in each of up to three coordinates, by the trapezoidal rule in u = log w. The integrand
  and its derivatives vanish at both ends, so the rule converges exponentially: its error is about
  exp(−2π · strip / step), where exp(−e^{pu}) is bounded in |Im u| < strip = π / 2p, p the largest exponent in K and the
  localization (2 at least). A step of 0.4/p leaves 4e-9 (measured for p = 2 and 4, nβ = 10 … 10⁷); 0.6/p is too coarse.
- `cubature`: any K of one to three coordinates, by adaptive Gauss–Kronrod products to a requested accuracy.
- `marginal`: K = ½ Σ hᵢ(w) yᵢ², by `cubature` over w; y is Gaussian given w and may have any size.
- `reduced_rank`: K = ½‖BA‖². Given A, B is Gaussian; A enters through its singular values only, whose joint density is
  Πᵢ sᵢ^{|H−M|} Π_{i<j} |sᵢ² − sⱼ²| (Muirhead 1982, theorem 3.2.17).
- `independent`: K = ΣKⱼ over blocks of coordinates; means and variances of the blocks add up.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.integrate


class Moments(NamedTuple):
    """Mean and variance of nβK."""

    mean: float
    variance: float


def quadratic(curvatures: Sequence[float], nbeta: float, gamma: float = 1.0) -> Moments:
    """Moments for K = ½ Σ hᵢ wᵢ²: nβK = ½ Σ ρᵢ χ²₁ with ρᵢ = nβhᵢ / (nβhᵢ + γ)."""
    rho = nbeta * np.asarray(curvatures) / (nbeta * np.asarray(curvatures) + gamma)
    return Moments(float(0.5 * rho.sum()), float(0.5 * (rho**2).sum()))


def log_grid(
    loss: Callable[..., np.ndarray],
    dim: int,
    nbeta: float,
    gamma: float = 1.0,
    step: float = 0.1,
    lowest: float = -25.0,
) -> Moments:
    """Moments for `loss(w1, …)` even in each coordinate; cut at w = e^lowest, an error of about e^lowest √nβ."""
    top = 0.5 * np.log(100 / gamma)  # exp(−γw²/2) = exp(−50) there
    logs = np.arange(lowest, top, step)
    points = np.meshgrid(*[logs] * dim, indexing="ij", sparse=True)
    weighted = nbeta * loss(*[np.exp(u) for u in points])
    log_density = -weighted + sum(u - 0.5 * gamma * np.exp(2 * u) for u in points)
    density = np.exp(log_density)
    return _moments(density, weighted, weighted**2)


def cubature(
    loss: Callable[..., np.ndarray],
    lower: Sequence[float],
    upper: Sequence[float],
    nbeta: float,
    gamma: float = 1.0,
    center: float | Sequence[float] = 0.0,
    points: Sequence[Sequence[float]] | None = None,
    rtol: float = 1e-7,
    max_subdivisions: int = 20_000,
) -> Moments:
    """Moments for any `loss(w1, …)` ≥ 0, vectorised, over a box that holds all but a negligible part of the mass.

    Args:
        loss: K; takes one array a coordinate.
        lower: Lower corner of the box.
        upper: Upper corner of the box.
        nbeta: Inverse temperature.
        gamma: Strength of the localization to `center`.
        center: w*, the minimum of K to which the localization binds.
        points: Where to split the box at first; `center` if not given.
        rtol: Of each of the integrals of the density and of its products with nβK and (nβK)². The error estimate behind
            it is the difference of two rules, which is far above the true error of the better one.
        max_subdivisions: Of cells, before it gives up. A curved ridge needs some √nβ of them: 2 s at nβ = 10⁴ and
            8 s at 10⁵ for (xy − 1)² on a box of side 18, too many at 10⁶.

    Raises:
        RuntimeError: If the accuracy is not reached, or K is not finite.
    """

    def given(nbetas: np.ndarray, *w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weighted = np.minimum(nbetas * loss(*w), 1e3)  # exp(−1000) is 0 already; spares 0 · ∞
        return np.exp(-weighted), weighted, weighted**2

    return _integrate(given, lower, upper, nbeta, gamma, center, points, rtol, max_subdivisions)


def marginal(
    curvatures: Callable[..., Sequence[np.ndarray]],
    lower: Sequence[float],
    upper: Sequence[float],
    nbeta: float,
    gamma: float = 1.0,
    center: float | Sequence[float] = 0.0,
    points: Sequence[Sequence[float]] | None = None,
    rtol: float = 1e-7,
    max_subdivisions: int = 20_000,
) -> Moments:
    """Moments for K = ½ Σ hᵢ(w) yᵢ², y marginalised: as `cubature` over w, with `curvatures(w1, …)` for (h₁, h₂, …)."""

    def given(nbetas: np.ndarray, *w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        stiffness = nbetas * np.stack(curvatures(*w))[:, None]
        rho = stiffness / (stiffness + gamma)
        mean = 0.5 * rho.sum(axis=0)
        return np.prod((stiffness + gamma) ** -0.5, axis=0), mean, mean**2 + 0.5 * (rho**2).sum(axis=0)

    return _integrate(given, lower, upper, nbeta, gamma, center, points, rtol, max_subdivisions)


def _integrate(
    given: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]],
    lower: Sequence[float],
    upper: Sequence[float],
    nbeta: float,
    gamma: float,
    center: float | Sequence[float],
    points: Sequence[Sequence[float]] | None,
    rtol: float,
    max_subdivisions: int,
) -> Moments:
    """Moments from `given(nβ, w1, …)`: density before the localization, E[nβK] and E[(nβK)²] given w, a row a nβ.

    The masses at nβ/10, nβ/100, … down to 1 are integrated along. A ridge at nβ, which the first coarse cells can miss
    without any sign of it (.590 instead of .598 for (y − x²)² + x¹⁰ at nβ = 6e5), is a hill at the lowest of them, and
    the cells that one needs find the next.
    """
    center = np.broadcast_to(np.asarray(center, float), len(lower))
    nbetas = nbeta / 10.0 ** np.arange(1 + max(0, math.ceil(math.log10(nbeta))))[:, None]

    def integrand(w: np.ndarray) -> np.ndarray:
        localization = np.exp(-0.5 * gamma * ((w - center) ** 2).sum(axis=1))
        density, mean, square = given(nbetas, *w.T)
        return (np.stack([*density, density[0] * mean[0], density[0] * square[0]]) * localization).T

    points = [center] if points is None else points
    result = scipy.integrate.cubature(
        integrand, lower, upper, rtol=rtol, points=points, max_subdivisions=max_subdivisions
    )
    if result.status != "converged" or not np.isfinite(result.estimate).all():
        raise RuntimeError(
            f"cubature reached a relative error of {np.max(result.error / result.estimate):.1e}, not {rtol:.1e}: give "
            "`points` on the ridges of the density, a tighter box, or coordinates in which the ridges are straight"
        )
    mean, square = result.estimate[-2:] / result.estimate[0]
    return Moments(float(mean), float(square - mean**2))


def reduced_rank(inputs: int, outputs: int, nbeta: float, gamma: float = 1.0, hidden: int = 2) -> Moments:
    """Moments for K = ½‖BA‖², A: hidden×inputs, B: outputs×hidden, with min(inputs, outputs, hidden) ≤ 3.

    Given the singular values s of A, nβK = ½ Σ ρᵢ χ²_outputs with ρᵢ = nβsᵢ² / (nβsᵢ² + γ). The rule is trapezoidal in
    log s₁ and of Gauss and Legendre in the log(sᵢ / sᵢ₊₁) > 0, on panels of length 2 with 10 nodes: the nearest poles
    of the integrand lie at distance π/2 from the axis, an error of about (1.57 + √(1 + 1.57²))^(−20) = 2e-11.
    """
    if inputs > outputs:  # ‖BA‖ = ‖AᵀBᵀ‖: marginalise the larger factor
        inputs, outputs = outputs, inputs
    num_values = min(inputs, hidden)
    if num_values > 3:
        raise ValueError(f"min(inputs, outputs, hidden) must be at most 3, got {num_values}")
    nodes, weights = np.polynomial.legendre.leggauss(10)
    gaps = np.ravel(np.arange(1.0, 30.0, 2.0)[:, None] + nodes)
    logs = [np.arange(-25.0, 0.5 * np.log(100 / gamma), 0.2).reshape(-1, *[1] * (num_values - 1))]
    density = 1.0
    for axis in range(1, num_values):
        shape = [-1 if i == axis else 1 for i in range(num_values)]
        logs.append(logs[-1] - gaps.reshape(shape))
        density = density * np.tile(weights, len(gaps) // len(nodes)).reshape(shape)
    squares = [np.exp(2 * u) for u in logs]
    for u, square in zip(logs, squares, strict=True):
        power = abs(hidden - inputs) + 1  # + 1: ds = s d(log s)
        density = density * np.exp(power * u - 0.5 * gamma * square) * (nbeta * square + gamma) ** (-0.5 * outputs)
    for large, small in itertools.combinations(squares, 2):
        density = density * (large - small)
    rho = [nbeta * square / (nbeta * square + gamma) for square in squares]
    mean = 0.5 * outputs * sum(rho)
    return _moments(density, mean, mean**2 + 0.5 * outputs * sum(r**2 for r in rho))


def independent(*blocks: Moments) -> Moments:
    """Moments of a sum of independent blocks."""
    return Moments(sum(block.mean for block in blocks), sum(block.variance for block in blocks))


def _moments(density: np.ndarray, first: np.ndarray, second: np.ndarray) -> Moments:
    mean, square = ((density * value).sum() / density.sum() for value in (first, second))
    return Moments(float(mean), float(square - mean**2))
