r"""λ at a point of a deep linear network, from the ranks of all partial products of its matrices.

The matrices W₁ … W_L (d₀×d₁, d₁×d₂, …) are a representation of the quiver 0 → 1 → … → L, a sum of intervals [i, j]; all
with the same ranks r[i, j] of W_{i+1} ⋯ W_j form one orbit of the changes of basis, of codimension (Abeasis & Del Fra
1985; Buch & Fulton 1999, eq. 1.2)

$$ \sum_{i<j} (r_{i, j-1} - r_{ij}) (r_{i+1, j} - r_{ij}), \qquad r_{ii} = d_i. $$

Within an orbit, fixing the product W₁ ⋯ W_L of rank r costs r (d₀ + d_L − r) more.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from theory import deep_linear, two_layer

Ranks = Int[np.ndarray, "node node"]


class Interval(NamedTuple):
    """Bounds on λ(w*); one number where they are equal."""

    lower: float
    upper: float

    @property
    def value(self) -> float | None:
        """λ(w*) where it is known."""
        return self.lower if self.lower == self.upper else None


def profile(widths: Sequence[int], ranks: Sequence[int]) -> Ranks:
    """r[i, j] for matrices of these ranks in general position: each product has the smallest rank among its factors."""
    table = np.diag(np.asarray(widths))
    for i, j in itertools.combinations(range(len(widths)), 2):
        table[i, j] = min(ranks[i:j])
    return table


def hessian_rank(ranks: Ranks) -> int:
    """Rank of the Jacobian: its image is Σᵢ (rows of W_{i+1} ⋯ W_L) ⊗ (columns of W₁ ⋯ W_{i−1}), both nested."""
    after, before = ranks[1:, -1], ranks[0, :-1]
    return int(np.sum(np.diff(after, prepend=0) * before))


def local_coefficient(ranks: Ranks, tries: int) -> Interval:
    """λ(w*), or bounds on it.

    Below: rank/2, and the minimum of λ over all zeros. Above: half the codimension of the zero set at w* (the loss
    grows at most as the squared distance from a component, and λ(w*) is at most λ at points near w*), and
    rank/2 + (d − rank)/4. Two layers are known at every point; and where all matrices have the rank of their product,
    w* is in the closure of all orbits with this product, so that the minimum is attained.
    """
    widths, rank, half = np.diag(ranks).tolist(), int(ranks[0, -1]), hessian_rank(ranks) / 2
    smallest = float(deep_linear(widths, rank).value)
    if len(widths) == 3:
        value = float(two_layer(*widths, int(ranks[0, 1]), int(ranks[1, 2]), rank).value)
        return Interval(value, value)
    if (ranks[np.triu_indices_from(ranks, 1)] == rank).all():
        return Interval(smallest, smallest)
    lower = max(half, smallest)
    dim = sum(a * b for a, b in itertools.pairwise(widths))
    return Interval(lower, min(zero_codimension(ranks, tries, enough=2 * lower) / 2, half + (dim - 2 * half) / 4))


def codimension(ranks: Ranks) -> int:
    """Codimension of the points of the zero set with these ranks."""
    i, j = np.triu_indices_from(ranks, 1)
    orbit = np.sum((ranks[i, j - 1] - ranks[i, j]) * (ranks[i + 1, j] - ranks[i, j]))
    rank = ranks[0, -1]
    return int(orbit + rank * (ranks[0, 0] + ranks[-1, -1] - rank))


def zero_codimension(ranks: Ranks, tries: int, enough: float = 0.0) -> int:
    """Codimension of the zero set at w*: of its largest component through w*, as far as `tries` random ways find it.

    Orbits near w* come from exchanges of intervals [a, b] + [c, d] → [a, d] + [c, b] with a < c ≤ b + 1 ≤ d, each of
    which lowers the codimension; only [0, L] changes the product's rank. An orbit without exchanges left is dense in a
    component. Any orbit gives an upper bound on the codimension; with `enough` the search ends at this value.
    """
    rng = np.random.default_rng(0)
    last = len(ranks) - 1
    best = np.inf
    for _ in range(tries):
        near = ranks.copy()
        while exchanges := _exchanges(near, last):
            a, b, c, d, most = exchanges[rng.integers(len(exchanges))]
            near[a:c, b + 1 : d + 1] += rng.integers(1, most, endpoint=True)
        best = min(best, codimension(near))
        if best <= enough:
            break
    return int(best)


def _exchanges(ranks: Ranks, last: int) -> list[tuple[int, int, int, int, int]]:
    """(a, b, c, d, how often) for all exchanges that are possible."""
    size = last + 1
    padded = np.zeros((size + 1, size + 1), int)  # row i is r[i−1, ·], column j is r[·, j]
    padded[1:, :-1] = np.triu(ranks)
    counts = np.triu(padded[1:, :-1] - padded[:-1, :-1] - padded[1:, 1:] + padded[:-1, 1:])
    intervals = [(int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts)]
    return [
        (a, b, c, d, min(m, k))
        for (a, b, m), (c, d, k) in itertools.permutations(intervals, 2)
        if a < c <= b + 1 <= d and (a, d) != (0, last)
    ]
