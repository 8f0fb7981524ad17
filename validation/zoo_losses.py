"""Population losses of the zoo that are more than a line: each least at its w*, and analytic around it.

Functions of coordinates take arrays of NumPy or of JAX, and give the same kind.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llc.posterior.precision import float64

INPUTS = np.linspace(-1.0, 1.0, 21)  # of the tanh units


def two_gaussians(a: Any, b: Any) -> Any:
    """K of ½N(a, 1) + ½N(b, 1) against N(0, 1), by Gauss–Hermite quadrature (exact up to order 23 in x)."""
    library = jnp if isinstance(a, jax.Array) else np
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    x, weights = library.asarray(nodes.tolist()), library.asarray((weights / weights.sum()).tolist())
    a, b = a[..., None], b[..., None]
    logs = library.logaddexp(x * a - a**2 / 2, x * b - b**2 / 2) - math.log(2)
    return -logs @ weights


def gaussian_weight(a: Any, b: Any) -> Any:
    """Half the χ²-divergence of (1 − a)N(0, 1) + aN(b, 1) from N(0, 1): analytic for all a, unlike KL."""
    library = jnp if isinstance(a, jax.Array) else np
    return 0.5 * a**2 * library.expm1(b**2)


def polynomial_net(layers: int, power: int, a: Any, b: Any) -> Any:
    """Sum of the squared coefficients of the two outputs; all layers W = [[a + b, a²], [a², b²]], t^power between."""
    library = jnp if isinstance(a, jax.Array) else np
    top, corner, bottom = a + b, a**2, b**2
    zero, one = library.zeros_like(top), library.ones_like(top)
    outputs = [library.stack([zero, one]), library.stack([one, zero])]  # coefficients of x₁^i x₂^(degree − i)
    for layer in range(layers):
        if layer:
            outputs = [functools.reduce(_multiply, [output] * power) for output in outputs]
        first, second = outputs
        outputs = [top * first + corner * second, corner * first + bottom * second]
    return sum((output**2).sum(axis=0) for output in outputs)


def _multiply(p: Any, q: Any) -> Any:
    """Coefficients of the product of two polynomials, along the first axis: row i of p qᵀ, shifted by i, summed."""
    library = jnp if isinstance(p, jax.Array) else np
    rows, columns = len(p), len(q)
    padded = library.concatenate([p[:, None] * q, library.zeros_like(p[:, None] * p)], axis=1)
    shifted = padded.reshape(-1, *p.shape[1:])[: rows * (rows + columns - 1)]
    return shifted.reshape(rows, rows + columns - 1, *p.shape[1:]).sum(axis=0)


def tanh_units(params: dict[str, Array]) -> Array:
    """½ the mean square of Σ b_h tanh(a_h x) over `INPUTS`."""
    outputs = params["b"] @ jnp.tanh(params["a"][:, None] * jnp.asarray(INPUTS))
    return 0.5 * jnp.mean(outputs**2)


def tanh_curvatures(*a: np.ndarray) -> np.ndarray:
    """Eigenvalues of the Hessian in b, for NumPy arrays a₁, …: given a, the loss of `tanh_units` is quadratic in b."""
    units = np.tanh(np.stack(a, axis=-1)[..., None] * INPUTS)
    gram = units @ np.swapaxes(units, -1, -2) / len(INPUTS)
    return np.moveaxis(np.maximum(np.linalg.eigvalsh(gram), 0.0), -1, 0)


def naive_bayes(truth: np.ndarray, params: dict[str, Array]) -> Array:
    """KL of two classes with binary features, all in logits, from independent features of logits `truth` (float32)."""
    states = 2 * jnp.asarray(list(itertools.product([0, 1], repeat=len(truth)))) - 1

    def log_likelihood(logits: Array) -> Array:
        return jnp.sum(jax.nn.log_sigmoid(states * logits), axis=-1)

    log_true = log_likelihood(jnp.asarray(truth).astype(params["class"].dtype))
    first = jax.nn.log_sigmoid(params["class"]) + log_likelihood(params["features"][0])
    second = jax.nn.log_sigmoid(-params["class"]) + log_likelihood(params["features"][1])
    return jnp.sum(jnp.exp(log_true) * (log_true - jnp.logaddexp(first, second)))


def superposition(matrix: Array, bias: Array) -> Array:
    """Σᵢⱼ ∫₀¹ (δᵢⱼu − ReLU(aᵢⱼu + bⱼ))² du, aᵢⱼ = Wᵢ·Wⱼ: one feature i at a time, uniform in size, in closed form."""
    a, identity = matrix.T @ matrix, jnp.eye(matrix.shape[1])
    b = jnp.broadcast_to(bias, a.shape)
    kink = jnp.clip(-b / jnp.where(a == 0, 1, a), 0, 1)
    low, high = jnp.where(b > 0, 0, kink), jnp.where(a + b > 0, 1, kink)  # the unit is active between them
    c = identity - a
    active = c**2 * (high**3 - low**3) / 3 - c * b * (high**2 - low**2) + b**2 * (high - low)
    return jnp.sum(active + identity * (1 - high**3 + low**3) / 3)


@functools.cache
def superposition_minimum(columns: int) -> tuple[list[list[float]], list[float]]:
    """W and b at the regular polygon, by Newton steps in float64 from the values of Chen et al. 2023.

    Lists, because JAX 0.12 remembers NumPy arrays in the precision in which it meets them first.
    """
    length, bias = {5: (1.17, -0.28), 6: (1.32, -0.62)}[columns]
    angles = 2 * np.pi * np.arange(columns) / columns
    start = np.concatenate([length * np.cos(angles), length * np.sin(angles), np.full(columns, bias)])

    def loss(w: Array) -> Array:
        return superposition(w[: 2 * columns].reshape(2, columns), w[2 * columns :])

    w, derivatives = start, jax.jit(lambda w: (jax.hessian(loss)(w), jax.grad(loss)(w)))
    with float64():
        for _ in range(8):
            hessian, gradient = map(np.asarray, derivatives(w))
            w = w - np.linalg.lstsq(hessian, gradient, rcond=1e-6)[0]  # the rotation stays where it is
    return w[: 2 * columns].reshape(2, columns).tolist(), w[2 * columns :].tolist()
