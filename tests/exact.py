"""Exact finite-n mean and variance of nβK under p(w) ∝ exp(−nβK(w) − γ/2‖w‖²), by numerical integration in float64.

Four ways, none of which uses JAX or a sampler:

- `log_grid`: any K that is even in each of up to three coordinates, by the trapezoidal rule in u = log w. The integrand
  and its derivatives vanish at both ends, so the rule converges exponentially: its error is about
  exp(−2π · strip / step), where exp(−e^{pu}) is bounded in |Im u| < strip = π / 2p, p the largest exponent in K.
- `quadratic`: K = ½ Σ hᵢ wᵢ², in closed form.
- `reduced_rank`: K = ½‖BA‖². Given A, B is Gaussian; A enters through its singular values only, whose joint density is
  Πᵢ sᵢ^{|H−M|} Π_{i<j} |sᵢ² − sⱼ²| (Muirhead 1982, theorem 3.2.17).
- `independent`: K = ΣKⱼ over blocks of coordinates; means and variances of the blocks add up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean and variance of nβK."""

    mean: float
    variance: float


def log_grid(
    loss: Callable[..., np.ndarray],
    dim: int,
    nbeta: float,
    gamma: float = 1.0,
    step: float = 0.1,
    lowest: float = -18.0,
) -> Moments:
    """Moments for `loss(w1, …)` even in each coordinate; the error of cutting at w = e^lowest is about e^lowest."""
    top = 0.5 * np.log(100 / gamma)  # exp(−γw²/2) = exp(−50) there
    logs = np.arange(lowest, top, step)
    points = np.meshgrid(*[logs] * dim, indexing="ij", sparse=True)
    weighted = nbeta * loss(*[np.exp(u) for u in points])
    log_density = -weighted + sum(u - 0.5 * gamma * np.exp(2 * u) for u in points)
    density = np.exp(log_density)
    return _moments(density, weighted, weighted**2)


def quadratic(curvatures: Sequence[float], nbeta: float, gamma: float = 1.0) -> Moments:
    """Moments for K = ½ Σ hᵢ wᵢ²: nβK = ½ Σ ρᵢ χ²₁ with ρᵢ = nβhᵢ / (nβhᵢ + γ)."""
    rho = nbeta * np.asarray(curvatures) / (nbeta * np.asarray(curvatures) + gamma)
    return Moments(float(0.5 * rho.sum()), float(0.5 * (rho**2).sum()))


def reduced_rank(inputs: int, outputs: int, nbeta: float, gamma: float = 1.0) -> Moments:
    """Moments for K = ½‖BA‖², A: 2×inputs, B: outputs×2: given A, nβK = ½ Σ ρᵢ χ²_outputs, ρᵢ = nβsᵢ² / (nβsᵢ² + γ)."""
    first = np.arange(-18.0, 0.5 * np.log(100 / gamma), 0.05)[:, None]  # log s₁, trapezoidal
    nodes, weights = np.polynomial.legendre.leggauss(12)  # v = log(s₁/s₂) > 0, composite Gauss–Legendre
    left = np.arange(0.0, 30.0, 0.5)[:, None]
    v, weights = np.ravel(left + 0.25 * (nodes + 1)), np.tile(0.25 * weights, len(left))
    large, small = np.exp(first), np.exp(first - v)
    rho = [nbeta * s**2 / (nbeta * s**2 + gamma) for s in (large, small)]
    log_density = (
        (abs(inputs - 2) + 1) * np.log(large * small)  # + 1: ds = s d(log s)
        + np.log(large**2 - small**2)
        - 0.5 * gamma * (large**2 + small**2)
        - 0.5 * outputs * sum(np.log(nbeta * s**2 + gamma) for s in (large, small))
    )
    density = np.exp(log_density - log_density.max()) * weights
    mean = 0.5 * outputs * (rho[0] + rho[1])
    return _moments(density, mean, mean**2 + 0.5 * outputs * (rho[0] ** 2 + rho[1] ** 2))


def independent(*blocks: Moments) -> Moments:
    """Moments of a sum of independent blocks."""
    return Moments(sum(block.mean for block in blocks), sum(block.variance for block in blocks))


def _moments(density: np.ndarray, first: np.ndarray, second: np.ndarray) -> Moments:
    mean, square = ((density * value).sum() / density.sum() for value in (first, second))
    return Moments(float(mean), float(square - mean**2))
