r"""Laws of selected samples, from which ranks and shapes are read: edges of random matrices, normal scores, κ_m.

Where nothing selects, R winners have the moment of a Wishart matrix, and the scored sum over all candidates that of a
generalized one. An eigenvalue counts if it lies beyond the quantile of the extreme eigenvalue of such a matrix.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats
from jaxtyping import Float, Real

ERROR = 0.05  # probability of each rank to be too large
_TRACY_WIDOM = 0.9793  # its upper quantile in the Tracy–Widom law of order 1
_FLAT_EVALUATIONS = 16.0  # a parameter and direction, for all of a flat spectrum at m = 5 (validation/selected_samples)


def lower_edge(dim: Real[np.ndarray, "size"], num_samples: int) -> Float[np.ndarray, "size"]:
    """5 % quantile of the least eigenvalue of the mean of zzᵀ over `num_samples` z ~ N(0, I), for each dimension.

    (1 − √(d/R))², the lower Marchenko–Pastur edge, with the fluctuation beyond it (Ma 2012, Accuracy of the
    Tracy–Widom limits for the extreme eigenvalues in white Wishart matrices, theorem 2). Without the latter the edge is
    passed by chance in 8 to 16 of 100 cases. It is 0, and nothing counts, where d ≥ R.
    """
    dim = np.asarray(dim, np.float64)
    short = dim < num_samples
    large, small = np.sqrt(num_samples - 0.5), np.sqrt(np.where(short, dim, 0.5 * num_samples) - 0.5)
    center, scale = (large - small) ** 2, (large - small) * (1 / small - 1 / large) ** (1 / 3)
    spread = scale / center
    return np.where(short, center * np.exp(spread**2 / 8 - spread * _TRACY_WIDOM), 0.0) / num_samples


def stein_edge(
    dim: Real[np.ndarray, "size"], num_samples: int, scores: Float[np.ndarray, "score"]
) -> Float[np.ndarray, "size"]:
    r"""95 % quantile of λ_max of (1/N) Σ s_j z_j z_jᵀ for `scores` independent of z, each in equal share.

    2√(d/N) for N ≫ d and scores of mean 0 and mean square 1. In general (Silverstein & Choi 1995), with c = d/N, the
    least value over x of √c g(x), and a Tracy–Widom fluctuation by the curvature there (El Karoui 2007):

    $$ g(x) = \frac1x + E\, \frac{s}{\sqrt c\, (1 - \sqrt c\, s x)}, \qquad
       \text{edge} = \sqrt c\, \big( g + 0.98\, d^{-2/3} (g''/2)^{1/3} \big) . $$
    """
    root = np.sqrt(np.asarray(dim, np.float64) / num_samples)[:, None]
    low, high = np.zeros_like(root), 1 / (root * scores.max())
    for _ in range(60):  # bisection of g' = 0
        middle = 0.5 * (low + high)
        left = middle**2 * np.mean((scores / (1 - root * scores * middle)) ** 2, axis=1, keepdims=True) < 1
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    root, x, ratio = root[:, 0], low[:, 0], scores / (1 - root * scores * low)
    value = 1 / x + np.mean(ratio, axis=1) / root
    curvature = 2 / x**3 + 2 * root * np.mean(ratio**3, axis=1)
    return root * (value + _TRACY_WIDOM * np.asarray(dim) ** (-2 / 3) * np.cbrt(curvature / 2))


def normal_scores(num_candidates: int) -> Float[np.ndarray, "candidate"]:
    """Scores of the ranks 1 … m: symmetric, of mean 0 and mean square 1, about those of m ordered normal variables.

    Blom 1958: the mean of the j-th is Φ⁻¹((j − 3/8)/(m + 1/4)).
    """
    scores = scipy.special.ndtri((np.arange(1, num_candidates + 1) - 0.375) / (num_candidates + 0.25))
    return scores / np.sqrt(np.mean(scores**2))


@functools.cache
def expected_maximum(num_candidates: int) -> float:
    """κ_m: mean of the largest of m normal variables."""

    def integrand(x: float) -> float:
        return x * num_candidates * scipy.stats.norm.pdf(x) * scipy.special.ndtr(x) ** (num_candidates - 1)

    return float(scipy.integrate.quad(integrand, -10, 10, points=[0, 2, 4], limit=200)[0])


def flat_rank(dim: int, num_candidates: int, num_winners: int) -> float:
    """Largest rank of which a flat spectrum shows all directions: its h/‖h‖ = 1/√r is 3 times the blind limit."""
    efficiency = (expected_maximum(num_candidates) ** 2 / num_candidates) / (expected_maximum(5) ** 2 / 5)
    return efficiency * num_candidates * num_winners / (_FLAT_EVALUATIONS * dim)


@functools.cache
def shape_slope(num_candidates: int, rank: int) -> float:
    r"""Slope d log C_i / d log h_i of the winners on a nearly flat quadratic of rank r ≥ 2: −1 + O(m^(−2/r)).

    First-order response of the winners' density m (1 − F(q))^(m−1) p(q), q = |z|² ~ χ²(r) with density p and
    distribution F, to h_i up and h_j down; −(m − 1)/m at r = 2:

    $$ -\frac{2}{r+2}\, \frac{m(m-1) \int (1-F)^{m-2} p^2 q^2 dq}{m \int (1-F)^{m-1} p\, q\, dq} . $$
    """
    law = scipy.stats.chi2

    def mean_at_least_of(size: int, of: Callable[[Any], Any]) -> float:
        """E of(q) at the least of `size` q, by the uniform variable v = (1 − F(q))^size."""
        quantile = functools.partial(law.ppf, df=rank)
        return scipy.integrate.quad(lambda v: of(quantile(-np.expm1(np.log(v) / size))), 0, 1, epsabs=0, limit=200)[0]

    response = num_candidates * mean_at_least_of(num_candidates - 1, lambda q: law.pdf(q, rank) * q**2)
    return float(-2 / (rank + 2) * response / mean_at_least_of(num_candidates, lambda q: q))
