r"""The effective quartic of the loss at w*, the number of its variables, and the squared loss's own lower bound.

With v in the kernel of H, minimising K over its range leaves the quartic part of g,

$$ q(v) = \tfrac{1}{24} D^4 K[v, v, v, v] - \tfrac18 b^\top H^+ b, \qquad b = D^3 K[v, v, \cdot] , $$

The second term must not be left out: (y − x²)² + x¹⁰ has the D⁴-part x⁴, and q = 0. If q depends on d₄ variables (the
rank of its gradients), then g ≤ C(|y|⁴ + |z|⁶) with y ∈ R^d₄, since the larger terms of degree five, y z⁴ and z⁵, are
negative somewhere. Hence, with D symmetry directions on which nothing depends,

$$ \lambda \le \tfrac r2 + \tfrac{d_4}{4} + \tfrac{d - D - r - d_4}{6} . $$

For K = ½|F|² the part of F beyond the image of J = F' is a vector of quadratic forms, ½ P F''[v, v]. One random
combination of them, of rank ρ, has λ(f²) ≥ min(½, ρ/4): λ ≥ r/2 + min(½, ρ/4).
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset
from llc.geometry.higher_order.splitting import Splitting

_MORE = 5  # gradients beyond d − r, which is enough for any rank
_COUNTED, _ZERO = 1e-6, 1e-11  # of the term before it cancels: derivatives are exact to 1e-12, a decade less
_CHUNK = 32  # points at a time: one program for all ranks
_BATCH_BYTES = 2.0**28


class Rank(NamedTuple):
    """A rank from singular values, and the number of gradients that it took."""

    value: int | None  # None where singular values lie between the counted ones and round-off
    evaluations: int


def essential_variables(excess: Excess, splitting: Splitting, key: PRNGKeyArray) -> Rank:
    """d₄, the rank of ∇q at d − r + 5 random points of the kernel; about 16 gradients a point, nothing but d² numbers.

    Args:
        excess: K around w*.
        splitting: of its Hessian at w*.
        key: of the points.
    """
    num_chunks = math.ceil((excess.dim - splitting.rank + _MORE) / _CHUNK)
    points = jax.random.normal(key, (num_chunks, _CHUNK, excess.dim)) @ splitting.kernel
    root = jnp.asarray(splitting.root)
    gradients, sizes = zip(*(jax.device_get(_quartic_gradients(excess, root, chunk)) for chunk in points), strict=True)
    values = np.linalg.svd(np.concatenate(gradients) @ splitting.kernel, compute_uv=False)
    return Rank(_rank(values, float(np.linalg.norm(np.concatenate(sizes)))), 16 * num_chunks * _CHUNK)


@eqx.filter_jit
def _quartic_gradients(
    excess: Excess, root: Float[Array, "dim dim"], points: Float[Array, "point dim"]
) -> tuple[Float[Array, "point dim"], Float[Array, "point"]]:
    """∇q = D⁴K[v,v,v,·]/6 − D³K[v, H⁺b, ·]/2, and the size of the first term: as q ≥ 0, the second is no larger."""

    def gradient(v: Offset) -> tuple[Offset, Float[Array, ""]]:
        def once(s: ArrayLike) -> Offset:
            return jax.jvp(lambda s: excess.gradient(s * v), (s,), (1.0,))[1]

        def twice(s: ArrayLike) -> Offset:
            return jax.jvp(once, (s,), (1.0,))[1]

        third, fourth = jax.jvp(twice, (0.0,), (1.0,))
        bent = root @ (root @ third)
        cross = jax.jvp(lambda s: excess.product(s * v, bent), (0.0,), (1.0,))[1]
        return fourth / 6 - cross / 2, jnp.linalg.norm(fourth) / 6

    return jax.lax.map(gradient, points, batch_size=_batch(excess, len(points)))


def quadratic_rank(excess: Excess, splitting: Splitting, key: PRNGKeyArray) -> Rank:
    """ρ, the rank of a random combination of the quadratic forms that the residuals have beyond their linear part.

    Args:
        excess: K around w*, a sum of squares.
        splitting: of its Hessian at w*.
        key: of the combination.
    """
    weights = jax.random.normal(key, jax.eval_shape(excess.residuals, jnp.zeros(excess.dim)).shape)
    matrix, size, left = _combined_form(excess, jnp.asarray(splitting.root), weights)
    evaluations = 2 * excess.dim + 4
    if float(left) <= _COUNTED:  # J is onto
        return Rank(0, evaluations)
    restricted = splitting.kernel @ np.asarray(matrix) @ splitting.kernel
    return Rank(_rank(np.linalg.svd(restricted, compute_uv=False), float(size)), evaluations)


@eqx.filter_jit
def _combined_form(
    excess: Excess, root: Float[Array, "dim dim"], weights: Float[Array, "output"]
) -> tuple[Float[Array, "dim dim"], Float[Array, ""], Float[Array, ""]]:
    """Second derivative of yᵀF at w*, y the part of `weights` beyond the image of J; its size for all; y's share."""
    zero = jnp.zeros(excess.dim)
    _, pull = jax.vjp(excess.residuals, zero)
    beyond = weights
    for _ in range(2):  # once more, for what round-off leaves
        image = root @ (root @ pull(beyond)[0])
        beyond = beyond - jax.jvp(excess.residuals, (zero,), (image,))[1]

    def products(vector: Offset) -> tuple[Offset, Offset]:
        def pulled(offset: Offset) -> tuple[Offset, Offset]:
            pull = jax.vjp(excess.residuals, offset)[1]
            return pull(beyond)[0], pull(weights)[0]

        return jax.jvp(pulled, (zero,), (vector,))[1]

    matrix, whole = jax.lax.map(products, jnp.eye(excess.dim), batch_size=_batch(excess, excess.dim))
    return matrix, jnp.linalg.norm(whole), jnp.linalg.norm(beyond) / jnp.linalg.norm(weights)


def _batch(excess: Excess, most: int) -> int:
    return int(max(1, min(most, _BATCH_BYTES // (256 * excess.dim))))


def _rank(singular_values: np.ndarray, size: float) -> int | None:
    """Singular values above 10⁻⁶ of the size; None if some are neither that nor below 10⁻¹¹."""
    counted = singular_values > _COUNTED * size
    unclear = (singular_values > _ZERO * size) & ~counted
    return None if unclear.any() else int(counted.sum())
