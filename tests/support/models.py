"""Points with known Hessian rank and known λ (docs/theory.md §3), as posteriors.

A rank is given by design: of the point, not read off a computation.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import llc


class Model(NamedTuple):
    """A posterior with its Hessian rank and λ at w*."""

    posterior: llc.LocalPosterior
    rank: int
    learning_coefficient: float


def _of(excess_loss, center, rank, learning_coefficient):
    """The population loss K itself; the data carry only n."""
    posterior = llc.LocalPosterior(
        lambda w, batch: excess_loss(w) + 0 * jnp.sum(batch),
        jnp.asarray(center, jnp.float32),
        np.zeros((1000, 1)),
        gamma=1.0,
    )
    return Model(posterior, rank, learning_coefficient)


def _factors(rng, shape, rank):
    """A matrix of given rank with all non-zero singular values 1."""
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return left[:, :rank] @ right[:rank]


def _half_squares(weights, batch):
    return 0.5 * jnp.sum((functools.reduce(jnp.matmul, weights, batch[0]) - batch[1]) ** 2, axis=-1)


def deep_linear(widths, ranks, seed=0, num_data=500):
    """A deep linear net x W_1 … W_L with W_i of rank `ranks[i]`, fitting its own noiseless outputs."""
    rng = np.random.default_rng(seed)
    weights = [_factors(rng, shape, rank) for shape, rank in zip(itertools.pairwise(widths), ranks, strict=True)]
    inputs = rng.normal(size=(num_data, widths[0]))

    # The targets are what the float32 model gives in float64, so that w* is a minimum to round-off.
    weights = [weight.astype(np.float32) for weight in weights]
    targets = functools.reduce(np.matmul, [w.astype(np.float64) for w in weights], inputs)
    return llc.LocalPosterior(_half_squares, weights, (inputs, targets), gamma=1.0)


def _deep_linear_model(widths, ranks, learning_coefficient):
    """Hessian rank Σ (u_i − u_{i−1}) v_i (docs/theory.md §3), u and v the ranks of the products after and before."""
    posterior = deep_linear(widths, ranks)
    weights = [np.asarray(w, np.float64) for w in posterior.center]
    depth = len(weights)

    def product_rank(matrices, width):
        return int(np.linalg.matrix_rank(functools.reduce(np.matmul, matrices, np.eye(width)), tol=1e-4))

    after = [0] + [product_rank(weights[i + 1 :], widths[i + 1]) for i in range(depth)]
    before = [product_rank(weights[:i], widths[0]) for i in range(depth)]
    rank = sum((after[i + 1] - after[i]) * before[i] for i in range(depth))
    return Model(posterior, rank, learning_coefficient)


def _two_gaussians():
    """(½ N(a, 1) + ½ N(b, 1)) against N(0, 1) at a = b = 0: K has the Hessian of ((a + b) / 2)² / 2, λ = 3/4."""

    def excess(w):
        x = jnp.array([-1.0, 1.0])  # two points have the first three moments of N(0, 1), exactly
        log_p = jax.nn.logsumexp(jnp.stack([x * w[0] - 0.5 * w[0] ** 2, x * w[1] - 0.5 * w[1] ** 2]), axis=0)
        return jnp.log(2.0) - jnp.mean(log_p)

    return _of(excess, [0.0, 0.0], 1, 0.75)


def _tanh_units():
    """Two units b_k tanh(a_k x) at zero, true function 0: λ = 2/3."""
    inputs = np.linspace(-1.0, 1.0, 21)

    def excess(w):
        return 0.5 * jnp.mean(jnp.sum(w[:2, None] * jnp.tanh(w[2:, None] * jnp.asarray(inputs)), axis=0) ** 2)

    return _of(excess, np.zeros(4), 0, 2 / 3)


MODELS = {
    "regular": lambda: _of(lambda w: 0.5 * jnp.sum(w**2 * jnp.arange(1.0, 6.0)), np.zeros(5), 5, 2.5),
    "norm^4": lambda: _of(lambda w: jnp.sum(w**2) ** 2, np.zeros(3), 0, 0.75),
    "monomial w1^2 w2^4": lambda: _of(lambda w: 0.5 * (w[0] * w[1] ** 2) ** 2, np.zeros(2), 0, 0.25),
    "w1^2 + w2^4": lambda: _of(lambda w: 0.5 * (w[0] ** 2 + w[1] ** 4), np.zeros(2), 1, 0.75),
    "(y - x^2)^2 + x^10": lambda: _of(lambda w: (w[1] - w[0] ** 2) ** 2 + w[0] ** 10, np.zeros(2), 1, 0.6),
    "(ab - 1)^2": lambda: _of(lambda w: (w[0] * w[1] - 1) ** 2, np.ones(2), 1, 0.5),
    "(w1 - 1)^2 |w|^8 regular": lambda: _of(lambda w: (w[0] - 1) ** 2 * jnp.sum(w**2) ** 4, [1.0, 0.0, 0.0], 1, 0.5),
    "(w1 - 1)^2 |w|^8 singular": lambda: _of(lambda w: (w[0] - 1) ** 2 * jnp.sum(w**2) ** 4, np.zeros(3), 0, 3 / 8),
    "two Gaussians": _two_gaussians,
    "two tanh units": _tanh_units,
    # Reduced rank regression M-H-N at w* with rk A = a, rk B = b: rank N a + M b − a b, local λ by Aoyagi & Watanabe.
    "rrr 3-2-3 at zero": lambda: _deep_linear_model([3, 2, 3], [0, 0], 2.5),
    "rrr 4-2-4 rank 2": lambda: _deep_linear_model([4, 2, 4], [2, 2], 6.0),
    "rrr 4-3-4 rank 3": lambda: _deep_linear_model([4, 3, 4], [3, 3], 7.5),
    "linear 5-3-4-5 rank 3": lambda: _deep_linear_model([5, 3, 4, 5], [3, 3, 3], 10.5),
    "linear 6-4-4-4-6 rank 4": lambda: _deep_linear_model([6, 4, 4, 4, 6], [4, 4, 4, 4], 16.0),
}
