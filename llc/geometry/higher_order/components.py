r"""Smooth components of the zero set near w*, each of which bounds λ(w*) from above.

λ is lower semicontinuous: λ(w*) ≤ λ(w') for zeros w' of K that come arbitrarily near w*. Where g ≡ 0 at w', the zero
set is a manifold of codimension r' = rank H(w') there, and λ(w') = r'/2. Hence

$$ \lambda(w^*) \le \tfrac12 \min_{w'} \mathrm{rank}\, H(w') . $$

Zeros are found by damped Newton steps (Gauss–Newton at an exact fit) from random points around w*, with each array of
parameters moved by a scale 10^U(−e, 0) of its own. Arrays of very different scales lead to different components: near
A = B = 0 a product BA has one for each rank of A. The least r' that is certified has to be the same at two distances
from w*, and a zero of that rank has to exist at a tenth of the smaller distance too.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset, Scale, dense_metric
from llc.geometry.higher_order.splitting import remainder_profile, split, vanishes

_DISTANCES = (0.3, 0.1)  # from w*, in units of a typical parameter
_TRIES = 32  # random starts at each distance
_CANDIDATES = 3  # distinct ranks that are tried for a certificate, from the least on
_STEPS = 60
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
        found: the least certified r' at each distance.
        evaluations: Hessian products that it took, at most.
    """

    rank: int | None
    found: tuple[int | None, ...]
    evaluations: int


def nearby_component(excess: Excess, scale: Scale, order: int, key: PRNGKeyArray) -> Component:
    """The least rank of a certified smooth component that comes near w*.

    Costs about ten dense Hessians with their eigenvectors for each of 64 starts.

    Args:
        excess: K around w*.
        scale: of K around w*.
        order: 2k, that of g at w*. At w' a part of g of up to the next even order has to be seen for a certificate.
        key: of the starts.
    """
    found, evaluations, end = [], 0, np.zeros(excess.dim)
    for distance, one in zip(_DISTANCES, jax.random.split(key, len(_DISTANCES)), strict=True):
        start_key, certificate_key = jax.random.split(one)
        starts = distance * scale.length * _starts(excess, start_key)
        ends, values, eigenvalues, counts = map(np.asarray, _project(excess, jnp.asarray(starts), scale.floor))
        evaluations += int(counts.sum()) * (excess.dim + 2)
        ranks = [_rank(h) if abs(value) <= scale.floor else None for h, value in zip(eigenvalues, values, strict=True)]
        least = None
        for rank in sorted({rank for rank in ranks if rank is not None})[:_CANDIDATES]:
            same = [i for i, other in enumerate(ranks) if other == rank]
            end = ends[max(same, key=lambda i: eigenvalues[i][-rank])]
            evaluations += excess.dim + 42 * 12 * 11
            if _is_smooth(excess, scale, order, end, rank, certificate_key):
                least = rank
                break
        found.append(least)
    agreed = found[0] if len(set(found)) == 1 else None
    if agreed is not None and not _is_nearer(excess, scale, end, agreed):
        agreed = None
    return Component(agreed, tuple(found), evaluations)


def _is_nearer(excess: Excess, scale: Scale, end: np.ndarray, rank: int) -> bool:
    """Whether a tenth of the way to a zero there is another one of its rank, no farther than `_STRAY` times that."""
    _, (value,), (eigenvalues,), _ = map(np.asarray, _project(excess, jnp.asarray(end[None] / 10), scale.floor))
    return bool(abs(value) <= scale.floor) and _rank(eigenvalues) == rank


def _starts(excess: Excess, key: PRNGKeyArray) -> np.ndarray:
    """Random offsets, each array of parameters with its own scale."""
    sizes = [leaf.size for leaf in jax.tree.leaves(excess.operator.posterior.position)]
    # A curvature of a component is a product of the squared scales of all layers but one.
    layers = max(sum(leaf.ndim > 1 for leaf in jax.tree.leaves(excess.operator.posterior.position)), 2)
    decades = np.clip(-np.log10(_SMALLEST) / 2 / (layers - 1) + np.log10(min(_DISTANCES)), 0.0, _WIDEST)
    scale_key, key = jax.random.split(key)
    scales = 10.0 ** -np.asarray(jax.random.uniform(scale_key, (_TRIES, len(sizes)), maxval=decades))
    return np.repeat(scales, sizes, axis=1) * np.asarray(jax.random.normal(key, (_TRIES, excess.dim)))


@eqx.filter_jit
def _project(
    excess: Excess, starts: Float[Array, "start dim"], floor: Float[Array, ""] | float
) -> tuple[Float[Array, "start dim"], Float[Array, "start"], Float[Array, "start dim"], Int[Array, "start"]]:
    """The zero next to each start, K there, the eigenvalues of its metric, and the number of steps."""

    def project(start: Offset) -> tuple[Array, Array, Array, Array]:
        def body(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            offset, value, damping, count = state
            curvatures, vectors = jnp.linalg.eigh(excess.metric(offset))
            shift = damping * value / jnp.sum(offset**2)
            scaled = (vectors.T @ excess.gradient(offset)) / (jnp.abs(curvatures) + shift + _TINY)
            # A curvature that is round-off has a slope that is round-off too.
            step = vectors @ jnp.where(jnp.abs(curvatures) + shift > _EPS * jnp.abs(curvatures).max(), scaled, 0.0)
            trial = excess.value(offset - step)
            better = (trial < value) & (jnp.linalg.norm(offset - step) <= _STRAY * jnp.linalg.norm(start))
            return (
                jnp.where(better, offset - step, offset),
                jnp.where(better, trial, value),
                jnp.where(better, damping / 4, damping * 8),
                count + 1,
            )

        def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
            return (state[1] > floor) & (state[2] < _STUCK) & (state[3] < _STEPS)

        first = start, excess.value(start), jnp.ones(()), jnp.zeros((), int)
        offset, value, _, count = jax.lax.while_loop(unfinished, body, first)
        return offset, value, jnp.linalg.eigvalsh(excess.metric(offset)), count

    return jax.lax.map(project, starts, batch_size=len(starts) if excess.dim <= _VECTORIZED else None)


def _threshold(eigenvalues: np.ndarray) -> float:
    return max(8 * _EPS * float(np.abs(eigenvalues).max()), 3 * max(-float(eigenvalues.min()), 0.0))


def _rank(eigenvalues: np.ndarray) -> int | None:
    """Rank of the metric; None without a gap."""
    threshold = _threshold(eigenvalues)
    counted = eigenvalues[eigenvalues > threshold]
    if not len(counted) or counted.min() < 10**_GAP_DECADES * threshold:
        return None
    return len(counted)


def _is_smooth(excess: Excess, scale: Scale, order: int, end: np.ndarray, rank: int, key: PRNGKeyArray) -> bool:
    """Whether the zeros near `end` are a manifold of codimension `rank`."""
    metric = np.asarray(dense_metric(excess, jnp.asarray(end)))
    splitting = split(metric, _threshold(np.linalg.eigvalsh(metric)))
    if splitting.rank == excess.dim:
        return True  # an isolated zero
    distance = float(np.linalg.norm(end)) / np.sqrt(excess.dim)
    profile = remainder_profile(excess, splitting, scale, key, base=end, length=distance)
    return splitting.rank == rank and vanishes(profile, scale, order + 2)
