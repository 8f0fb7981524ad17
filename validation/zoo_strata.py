"""All two-layer linear nets up to a width, by the ranks of their matrices."""

import itertools
from collections.abc import Iterator

import numpy as np


def strata(max_width: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """All (inputs, hidden, outputs, rk A, rk B, rk BA) of two-layer linear nets up to a width."""
    for m, h, n in itertools.product(range(1, max_width + 1), repeat=3):
        for a, b in itertools.product(range(min(m, h) + 1), range(min(h, n) + 1)):
            for r in range(max(0, a + b - h), min(a, b) + 1):
                yield m, h, n, a, b, r


def stratum_weights(m: int, h: int, n: int, a: int, b: int, r: int) -> list[np.ndarray]:
    """A (H×M) and B (N×H) of zeros and ones: A feeds the first a hidden units, B reads r of them and b − r others."""
    first, second = diagonal(h, m, a), np.zeros((n, h))
    second[np.arange(b), [*range(r), *range(a, a + b - r)]] = 1.0
    return [first, second]


def diagonal(rows: int, columns: int, rank: int) -> np.ndarray:
    """Ones on the diagonal, as many as the rank."""
    return np.eye(rows, columns) * (np.arange(columns) < rank)
