"""Ranks of all partial products of matrices, by singular values."""

import functools
import itertools

import numpy as np


def ranks_of(weights: list[np.ndarray]) -> np.ndarray:
    """r[i, j] of the matrices themselves, by singular values."""
    size = len(weights) + 1
    ranks = np.diag([len(weights[0]), *(matrix.shape[1] for matrix in weights)])
    for i, j in itertools.combinations(range(size), 2):
        product = functools.reduce(np.matmul, weights[i:j], np.eye(ranks[i, i]))
        values = np.linalg.svd(product, compute_uv=False)
        ranks[i, j] = np.sum(values > 1e-9 * values[0])
    return ranks
