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

import itertools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset
from llc.geometry.higher_order.ranges import Splitting, beyond_image

_MORE = 5  # points beyond the rank
_OF_A_POINT = 16  # gradients
MOST_SEEN = 16  # of the rank of a quadratic form
_COUNTED, _ZERO = 1e-6, 1e-11  # of the term before it cancels: derivatives are exact to 1e-12, a decade less
_CHUNK = 32  # points at a time: one program for all ranks
_BATCH_BYTES = 2.0**28


class Rank(NamedTuple):
    """A rank from singular values, and the number of gradients that it took."""

    value: int | None  # None where singular values lie between the counted ones and round-off
    evaluations: int
    is_cut: bool = False  # whether there may be more than could be seen


def essential_variables(
    excess: Excess,
    splitting: Splitting,
    key: PRNGKeyArray,
    *,
    most: int,
    spend: Callable[[int], None] = lambda _: None,
) -> Rank:
    """d₄, the rank of ∇q at random points of the kernel: five more than d₄ of them, in parts that double.

    Costs 16 gradients a point, and a vector of d numbers.

    Args:
        excess: K around w*.
        splitting: of its Hessian at w*.
        key: of the points.
        most: points at most; if d₄ is not far enough below it, the result says so.
        spend: called with the gradients of each part of the work.
    """
    free = excess.dim - splitting.rank + _MORE  # enough for any rank
    seen, sizes, found = np.zeros((0, excess.dim)), np.zeros(0), None
    for i in itertools.count():
        part = _quartic_gradients(excess, splitting, jax.random.split(jax.random.fold_in(key, i), _CHUNK))
        seen, sizes = (np.concatenate([old, np.asarray(new)]) for old, new in zip((seen, sizes), part, strict=True))
        spend(_OF_A_POINT * _CHUNK)
        whole, full = len(seen) >= free, len(seen) + _CHUNK > most
        if not (whole or full or (i + 1) & i == 0):  # looked at after 1, 2, 4, … parts
            continue
        found = _rank(np.linalg.svd(seen, compute_uv=False), float(np.linalg.norm(sizes)))
        if whole or full or (found is not None and found + _MORE <= len(seen)):
            break
    cut = len(seen) < free and found is not None and found + _MORE > len(seen)
    return Rank(None if cut else found, _OF_A_POINT * len(seen), cut)


@eqx.filter_jit
def _quartic_gradients(
    excess: Excess, splitting: Splitting, keys: Key[Array, "point"]
) -> tuple[Float[Array, "point dim"], Float[Array, "point"]]:
    """∇q in the kernel at random points of it, and the size of its first term (see `quartic_gradient`)."""

    def at(key: PRNGKeyArray) -> tuple[Offset, Float[Array, ""]]:
        gradient, size = quartic_gradient(excess, splitting, splitting.on_kernel(jax.random.normal(key, (excess.dim,))))
        return splitting.on_kernel(gradient), size

    return jax.lax.map(at, keys, batch_size=_batch(excess, splitting, len(keys)))


def quartic_gradient(excess: Excess, splitting: Splitting, v: Offset) -> tuple[Offset, Float[Array, ""]]:
    """∇q = D⁴K[v,v,v,·]/6 − D³K[v, H⁺b, ·]/2, and the size of the first term: as q ≥ 0, the second is no larger."""

    def once(s: ArrayLike) -> Offset:
        return jax.jvp(lambda s: excess.gradient(s * v), (s,), (1.0,))[1]

    def twice(s: ArrayLike) -> Offset:
        return jax.jvp(once, (s,), (1.0,))[1]

    third, fourth = jax.jvp(twice, (0.0,), (1.0,))
    bent = splitting.solve(third)
    cross = jax.jvp(lambda s: excess.product(s * v, bent), (0.0,), (1.0,))[1]
    return fourth / 6 - cross / 2, jnp.linalg.norm(fourth) / 6


def quadratic_rank(excess: Excess, splitting: Splitting, key: PRNGKeyArray) -> Rank:
    """ρ, the rank of a random combination of the quadratic forms that the residuals have beyond their linear part.

    From its products with 16 random vectors, so that 16 stands for 16 or more; the bound needs no more than two.

    Args:
        excess: K around w*, a sum of squares.
        splitting: of its Hessian at w*.
        key: of the combination and of the vectors.
    """
    weights_key, vectors_key = jax.random.split(key)
    weights = jax.random.normal(weights_key, jax.eval_shape(excess.residuals, jnp.zeros(excess.dim)).shape)
    (beyond,) = beyond_image(excess, splitting, weights[None])
    evaluations = 2 * MOST_SEEN + 6
    if float(jnp.linalg.norm(beyond) / jnp.linalg.norm(weights)) <= _COUNTED:  # J is onto
        return Rank(0, evaluations)
    images, size = _combined_form(excess, splitting, beyond, weights, jax.random.split(vectors_key, MOST_SEEN))
    return Rank(_rank(np.linalg.svd(np.asarray(images), compute_uv=False), float(size)), evaluations)


@eqx.filter_jit
def _combined_form(
    excess: Excess,
    splitting: Splitting,
    beyond: Float[Array, "output"],
    weights: Float[Array, "output"],
    keys: Key[Array, "vector"],
) -> tuple[Float[Array, "vector dim"], Float[Array, ""]]:
    """D²(yᵀF) on vectors of the kernel, y the part of `weights` beyond the image of J; its size for all weights."""
    zero = jnp.zeros(excess.dim)

    def products(key: PRNGKeyArray) -> tuple[Offset, Offset]:
        def pulled(offset: Offset) -> tuple[Offset, Offset]:
            pull = jax.vjp(excess.residuals, offset)[1]
            return pull(beyond)[0], pull(weights)[0]

        vector = jax.random.normal(key, (excess.dim,))
        inside, _ = jax.jvp(pulled, (zero,), (splitting.on_kernel(vector),))[1]
        _, whole = jax.jvp(pulled, (zero,), (vector,))[1]
        return splitting.on_kernel(inside), whole

    images, whole = jax.lax.map(products, keys, batch_size=_batch(excess, splitting, len(keys)))
    return images, jnp.linalg.norm(whole)


def _batch(excess: Excess, splitting: Splitting, most: int) -> int:
    """Vectors at a time, of up to `most`: no more memory than the range of H takes."""
    return int(max(1, min(most, max(_BATCH_BYTES, splitting.pass_bytes) // (256 * excess.dim))))


def _rank(singular_values: np.ndarray, size: float) -> int | None:
    """Singular values above 10⁻⁶ of the size; None if some are neither that nor below 10⁻¹¹."""
    counted = singular_values > _COUNTED * size
    unclear = (singular_values > _ZERO * size) & ~counted
    return None if unclear.any() else int(counted.sum())
