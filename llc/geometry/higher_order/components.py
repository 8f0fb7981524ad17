r"""Smooth components of the zero set near w*, each of which bounds λ(w*) from above.

λ is lower semicontinuous: λ(w*) ≤ λ(w') for zeros w' of K that come arbitrarily near w*. Where g ≡ 0 at w', the zero
set is a manifold of codimension r' = rank H(w') there, and λ(w') = r'/2. Hence

$$ \lambda(w^*) \le \tfrac12 \min_{w'} \mathrm{rank}\, H(w') . $$

Zeros are found by damped Newton steps (Gauss–Newton at an exact fit) from random points around w*, with each array of
parameters moved by a scale 10^U(−e, 0) of its own. Arrays of very different scales lead to different components: near
A = B = 0 a product BA has one for each rank of A. The least r' that is certified has to be the same at two distances
from w*, and a zero of that rank has to exist at a tenth of the smaller distance too.

Without a d × d matrix there are fewer starts, the steps are solved for by conjugate gradients, and K has to be a sum of
squares, so that no step meets negative curvature.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Int, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset, Scale
from llc.geometry.higher_order.ranges import RangeError, Storage, count_residuals, decompose
from llc.geometry.higher_order.splitting import PROFILE_PRICE, remainder_profile, vanishes

_DISTANCES = (0.3, 0.1)  # from w*, in units of a typical parameter
_TRIES, _TRIES_BY_PRODUCTS = 32, 4  # random starts at each distance
_CANDIDATES = 3  # distinct ranks that are tried for a certificate, from the least on
_STEPS = 60
_CG_STEPS, _CG_TOLERANCES = 200, (1e-8, 1e-2)
_STUCK = 1e8  # damping at which no step lowers K: round-off
_GAP_DECADES = 2.0  # between the curvatures that are counted and those that are not
_SMALLEST = 1e-12  # curvature of a component in units of the largest: four decades above round-off
_WIDEST = 3.0  # decades of scales between arrays
_STRAY = 2.0  # distance from w* that is not left, in units of the start's
_VECTORIZED = 32  # parameters up to which all starts go together: then waiting for the slowest is cheap
_EPS, _TINY = float(np.finfo(np.float64).eps), float(np.finfo(np.float64).tiny)


class Component(NamedTuple):
    """The result of the search.

    Attributes:
        rank: the least certified r'; None where nothing was, two distances disagree, or no such zero is nearer.
        found: the least certified r' at each distance; the second is not looked at where the first has none.
        evaluations: Hessian products that it took, at most.
    """

    rank: int | None
    found: tuple[int | None, ...]
    evaluations: int


class Search(NamedTuple):
    """What zeros are looked for with.

    Attributes:
        excess: K around w*.
        scale: of K around w*.
        storage: how the range of a Hessian is kept.
        order: 2k, that of g at w*. At w' a part of g of up to the next even order has to be seen for a certificate.
        spend: called with the products of each part of the work.
    """

    excess: Excess
    scale: Scale
    storage: Storage
    order: int
    spend: Callable[[int], None] = lambda _: None


class _End(NamedTuple):
    """A point where K is zero, the eigenvalues of its Hessian there, and its rank; None without a gap."""

    offset: Float[np.ndarray, "dim"]
    eigenvalues: Float[np.ndarray, "known"]
    rank: int | None


def nearby_component(search: Search, key: PRNGKeyArray) -> Component:
    """The least rank of a certified smooth component that comes near w*.

    Costs about ten Hessians with their eigenvectors for each of 64 starts; without matrices, 600 products and the range
    of the Hessian for each of 8.

    Args:
        search: K around w*, and how.
        key: of the starts.
    """
    found, evaluations, last = [], 0, None
    for distance, one in zip(_DISTANCES, jax.random.split(key, len(_DISTANCES)), strict=True):
        start_key, certificate_key = jax.random.split(one)
        starts = distance * search.scale.length * _starts(search, start_key)
        ends, price = _zeros(search, starts)
        evaluations += price
        least = None
        for rank in sorted({end.rank for end in ends if end.rank is not None})[:_CANDIDATES]:
            last = max((end for end in ends if end.rank == rank), key=lambda end: end.eigenvalues[-rank])
            evaluations += len(last.eigenvalues) + PROFILE_PRICE
            if _is_smooth(search, last, rank, certificate_key):
                least = rank
                break
        found.append(least)
        if least is None:
            break
    agreed = found[0] if len(set(found)) == 1 else None
    if agreed is not None and last is not None and not _is_nearer(search, last, agreed):
        agreed = None
    return Component(agreed, tuple(found), evaluations)


def search_price(of_range: int) -> int:
    """Products of the search without matrices, about; `of_range` of them find the range of one Hessian."""
    num_starts = len(_DISTANCES) * _TRIES_BY_PRODUCTS
    return (num_starts + 1) * (10 * _CG_STEPS + of_range) + len(_DISTANCES) * (of_range + PROFILE_PRICE)


def _is_nearer(search: Search, end: _End, rank: int) -> bool:
    """Whether a tenth of the way to a zero there is another one of its rank, no farther than `_STRAY` times that."""
    nearer, _ = _zeros(search, end.offset[None] / 10)
    return any(zero.rank == rank for zero in nearer)


def _starts(search: Search, key: PRNGKeyArray) -> Float[np.ndarray, "start dim"]:
    """Random offsets, each array of parameters with its own scale."""
    leaves = jax.tree.leaves(search.excess.operator.posterior.position)
    tries = _TRIES if search.storage.form == "dense" else _TRIES_BY_PRODUCTS
    # A curvature of a component is a product of the squared scales of all layers but one.
    layers = max(sum(leaf.ndim > 1 for leaf in leaves), 2)
    decades = np.clip(-np.log10(_SMALLEST) / 2 / (layers - 1) + np.log10(min(_DISTANCES)), 0.0, _WIDEST)
    scale_key, key = jax.random.split(key)
    scales = 10.0 ** -np.asarray(jax.random.uniform(scale_key, (tries, len(leaves)), maxval=decades))
    sizes = [leaf.size for leaf in leaves]
    return np.repeat(scales, sizes, axis=1) * np.asarray(jax.random.normal(key, (tries, search.excess.dim)))


def _zeros(search: Search, starts: Float[np.ndarray, "start dim"]) -> tuple[list[_End], int]:
    """The zeros next to the starts, as far as K falls to round-off, and the products that they took."""
    excess, floor = search.excess, jnp.asarray(search.scale.floor)
    if search.storage.form == "dense":
        found = map(np.asarray, _by_eigenvectors(excess, jnp.asarray(starts), floor))
        offsets, values, eigenvalues, counts = found
        kept = np.flatnonzero(np.abs(values) <= search.scale.floor)
        price = int(counts.sum()) * (excess.dim + 2)
        search.spend(price)
        return [_End(offsets[i], eigenvalues[i], _rank(eigenvalues[i])) for i in kept], price
    ends, price = [], 0
    for start in starts:
        offset, value, products = _by_products(excess, jnp.asarray(start), floor)
        price += int(products)
        search.spend(int(products))
        if abs(float(value)) <= search.scale.floor:
            try:
                eigenvalues = np.asarray(decompose(excess, offset, search.storage).curvatures)
            except RangeError:  # other starts would most likely end where the range does not fit either
                price += search.storage.most
                break
            ends.append(_End(np.asarray(offset), eigenvalues, _rank(eigenvalues)))
            price += len(eigenvalues)
            search.spend(len(eigenvalues))
    return ends, price


@eqx.filter_jit
def _by_eigenvectors(
    excess: Excess, starts: Float[Array, "start dim"], floor: Float[Array, ""]
) -> tuple[Float[Array, "start dim"], Float[Array, "start"], Float[Array, "start dim"], Int[Array, "start"]]:
    """The zero next to each start, K there, the eigenvalues of its metric, and the number of steps."""

    def step(offset: Offset, gradient: Offset, shift: Array) -> tuple[Offset, int]:
        curvatures, vectors = jnp.linalg.eigh(excess.metric(offset))
        scaled = (vectors.T @ gradient) / (jnp.abs(curvatures) + shift + _TINY)
        # A curvature that is round-off has a slope that is round-off too.
        return vectors @ jnp.where(jnp.abs(curvatures) + shift > _EPS * jnp.abs(curvatures).max(), scaled, 0.0), 1

    def project(start: Offset) -> tuple[Array, Array, Array, Array]:
        offset, value, count = _damped_steps(excess, start, floor, step)
        return offset, value, jnp.linalg.eigvalsh(excess.metric(offset)), count

    return jax.lax.map(project, starts, batch_size=len(starts) if excess.dim <= _VECTORIZED else None)


@eqx.filter_jit
def _by_products(
    excess: Excess, start: Offset, floor: Float[Array, ""]
) -> tuple[Offset, Float[Array, ""], Int[Array, ""]]:
    """The zero next to a start, K there, and the number of products."""
    first = excess.value(start)

    def step(offset: Offset, gradient: Offset, shift: Array) -> tuple[Offset, int]:
        def product(vector: Offset) -> Offset:
            return excess.metric_product(offset, vector) + shift * vector

        # As precise as the zero is near: the error of a step is a part of it.
        tolerance = cast("float", jnp.clip(jnp.sqrt(excess.value(offset) / first), *_CG_TOLERANCES))
        return cg(product, gradient, tol=tolerance, maxiter=_CG_STEPS)[0], _CG_STEPS

    return _damped_steps(excess, start, floor, step)


def _damped_steps(
    excess: Excess,
    start: Offset,
    floor: Float[Array, ""],
    step_of: Callable[[Offset, Offset, Array], tuple[Offset, int]],
) -> tuple[Offset, Float[Array, ""], Int[Array, ""]]:
    """Levenberg–Marquardt from `start` until K is round-off: the end, K there, and the work of all steps."""

    def body(state: tuple[Array, ...]) -> tuple[Array, ...]:
        offset, value, damping, count, work = state
        step, price = step_of(offset, excess.gradient(offset), damping * value / jnp.sum(offset**2))
        trial = excess.value(offset - step)
        better = (trial < value) & (jnp.linalg.norm(offset - step) <= _STRAY * jnp.linalg.norm(start))
        return (
            jnp.where(better, offset - step, offset),
            jnp.where(better, trial, value),
            jnp.where(better, damping / 4, damping * 8),
            count + 1,
            work + price,
        )

    def unfinished(state: tuple[Array, ...]) -> Array:
        return (state[1] > floor) & (state[2] < _STUCK) & (state[3] < _STEPS)

    zero = jnp.zeros((), int)
    offset, value, _, _, work = jax.lax.while_loop(
        unfinished, body, (start, excess.value(start), jnp.ones(()), zero, zero)
    )
    return offset, value, work


def _threshold(eigenvalues: np.ndarray) -> float:
    return max(8 * _EPS * float(np.abs(eigenvalues).max()), 3 * max(-float(eigenvalues.min()), 0.0))


def _rank(eigenvalues: np.ndarray) -> int | None:
    """Rank of the metric; None without a gap."""
    threshold = _threshold(eigenvalues)
    counted = eigenvalues[eigenvalues > threshold]
    if not len(counted) or counted.min() < 10**_GAP_DECADES * threshold:
        return None
    return len(counted)


def _is_smooth(search: Search, end: _End, rank: int, key: PRNGKeyArray) -> bool:
    """Whether the zeros near `end` are a manifold of codimension `rank`."""
    excess = search.excess
    if rank in (excess.dim, count_residuals(excess)):
        return True  # an isolated zero, or residuals with independent gradients (implicit function theorem)
    splitting = decompose(excess, jnp.asarray(end.offset), search.storage).above(_threshold(end.eigenvalues))
    distance = float(np.linalg.norm(end.offset)) / np.sqrt(excess.dim)
    profile = remainder_profile(
        excess, splitting, search.scale, key, base=end.offset, length=distance, spend=search.spend
    )
    return splitting.rank == rank and vanishes(profile, search.scale, search.order + 2)
