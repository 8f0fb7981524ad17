"""Sums of squared polynomials in four variables as posteriors of one shape, so that all of them share each program."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import llc

NUM_ROWS, NUM_TERMS, DIM, MAX_POWER = 4, 4, 4, 6
Polynomial = dict[tuple[int, ...], float]  # coefficients by exponents


def squares(
    *polynomials: Polynomial, exact_fit: bool = False, center: Sequence[float] = (0.0,) * DIM
) -> llc.LocalPosterior:
    """K = Σ p², each p a dict {exponents: coefficient}; with `exact_fit` the posterior has the p as its outputs."""
    coefficients, exponents = np.zeros((NUM_ROWS, NUM_TERMS)), np.zeros((NUM_ROWS, NUM_TERMS, DIM), int)
    for i, polynomial in enumerate(polynomials):
        for j, (powers, coefficient) in enumerate(polynomial.items()):
            coefficients[i, j], exponents[i, j, : len(powers)] = coefficient, powers
    predict_fn = _values if exact_fit else None
    return llc.LocalPosterior(_loss, np.asarray(center), (coefficients, exponents), predict_fn=predict_fn)


def _values(params: Array, batch: tuple[Array, Array]) -> Array:
    powers = jnp.cumprod(jnp.concatenate([jnp.ones((1, DIM)), jnp.tile(params, (MAX_POWER, 1))]), axis=0)
    monomials = jnp.prod(powers[batch[1], jnp.arange(DIM)], axis=-1)
    return jnp.sum(batch[0] * monomials, axis=-1)


def _loss(params: Array, batch: tuple[Array, Array]) -> Array:
    return NUM_ROWS * _values(params, batch) ** 2


# The last variables are in the kernel of the Hessian, unless a square names them.
X, Y, Z, S = (tuple(int(i == j) for j in range(DIM)) for i in range(DIM))
RIDGE = ({(0, 1): 1.0, (2,): -1.0}, {(5,): 1.0})  # (y − x²)² + x¹⁰
CONE = ({(2,): 1.0, (0, 2): 1.0, (0, 0, 2): 1.0, (0, 0, 0, 2): -1.0},)  # (|t|² − s²)², t ∈ R³
NORM = ({(2,): 1.0, (0, 2): 1.0, (0, 0, 2): 1.0}, {S: 1.0})  # |x|⁴ + s², x ∈ R³
PARABOLA = ({(0, 1): 1.0, (2,): -1.0},)  # (y − x²)², a manifold of zeros
