r"""The excess loss along directions, with the stiff ones relaxed: matrix-free, from their eigenvectors.

A sampler of inverse temperature nβ is at the distance t in a direction that only γ = 1/t² holds. Curvatures above
γ/nβ = 1/(nβ t²) are stiff to it then. Along a direction v of curvature h

$$ K_v(t) = \min_u K(t v + u), \qquad u \in \mathrm{span}\{ v_j : h_j > \max(h, 0.1 / n\beta t^2) \} , $$

so that a valley is followed where it is narrower than the step. The minimum is found by gradient steps in the variables
in which the stiff curvatures are one, of lengths by Barzilai and Borwein (1988), from the minimum at the distance
before, scaled by the square of t.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llc.geometry.higher_order.excess import Excess, Offset

_HELD = 0.1  # of 1/(nβ t²): curvatures above it are relaxed at t (1 and 0.01 change no prediction by 1 %)
_EVALUATIONS = 40  # of a gradient at each distance, at most
_CONVERGED = 1e-4  # part of K that a step would win
_SHORTEST, _LONGEST = 0.01, 4.0  # lengths of steps, in units of those where the Hessian is that of w*
_BATCH_BYTES = 2.0**28


class Profiles(NamedTuple):
    """K along directions.

    Attributes:
        values: K at each distance, ahead and behind.
        ends: the last points, tv + u, ahead and behind.
    """

    values: Float[Array, "direction side step"]
    ends: Float[Array, "direction side dim"]


class Stiff(NamedTuple):
    """Eigenvectors that are known, one a row, and their curvatures."""

    curvatures: Float[Array, "known"]
    vectors: Float[Array, "known dim"]


@eqx.filter_jit
def relaxed_profiles(
    excess: Excess,
    stiff: Stiff,
    directions: Float[Array, "direction dim"],
    curvatures: Float[Array, "direction"],
    steps: Float[Array, "direction step"],
    nbeta: Float[Array, ""],
    floor: Float[Array, ""],
) -> Profiles:
    """K along each direction, at most 40 gradients a distance and side.

    Args:
        excess: K around w*.
        stiff: what may be relaxed.
        directions: unit vectors.
        curvatures: of K along them.
        steps: distances, rising.
        nbeta: nβ, which says what is stiff at a distance.
        floor: K below it is round-off.
    """
    num_directions, dim = directions.shape

    def along(one: tuple[Array, ...]) -> tuple[Float[Array, "step"], Offset]:
        direction, curvature, distances = one

        def at(carry: tuple[Array, Array], distance: Array) -> tuple[tuple[Array, Array], Array]:
            moved, before = carry
            counted = stiff.curvatures > jnp.maximum(curvature, _HELD / (nbeta * distance**2))
            roots = jnp.where(counted, 1 / jnp.sqrt(jnp.where(counted, stiff.curvatures, 1.0)), 0.0)
            start = jnp.where(counted, moved * (distance / before) ** 2, 0.0)
            value, moved = _minimize(excess, stiff.vectors, roots, distance * direction, start, floor)
            return (moved, distance), value

        first = jnp.zeros(len(stiff.curvatures)), distances[0]
        (moved, last), values = jax.lax.scan(at, first, distances)
        return values, last * direction + moved @ stiff.vectors

    both = jnp.stack([directions, -directions], axis=1).reshape(-1, dim)
    each = both, jnp.repeat(curvatures, 2), jnp.repeat(steps, 2, axis=0)
    batch = int(max(1, min(len(both), _BATCH_BYTES // (64 * 8 * dim))))
    values, ends = jax.lax.map(along, each, batch_size=batch)
    return Profiles(values.reshape(num_directions, 2, -1), ends.reshape(num_directions, 2, dim))


class _Search(NamedTuple):
    """The point in preconditioned variables, K and its slope there, the next length, and the evaluations."""

    point: Array
    value: Array
    slope: Array
    length: Array
    evaluations: Array


def _minimize(
    excess: Excess, vectors: Array, roots: Array, offset: Offset, start: Array, floor: Array
) -> tuple[Float[Array, ""], Float[Array, "known"]]:
    """K at its minimum over the stiff directions, and the coordinates of the minimum in them."""

    def evaluate(point: Array) -> tuple[Array, Array]:
        there = offset + (roots * point) @ vectors
        return excess.value(there), roots * (vectors @ excess.gradient(there))

    def body(search: _Search) -> _Search:
        trial = search.point - search.length * search.slope
        value, slope = evaluate(trial)
        change = slope - search.slope
        bend = (trial - search.point) @ change
        length = jnp.where(bend > 0, (trial - search.point) @ (trial - search.point) / bend, _LONGEST)
        better = value < search.value  # False where K is not finite
        return _Search(
            jnp.where(better, trial, search.point),
            jnp.where(better, value, search.value),
            jnp.where(better, slope, search.slope),
            jnp.where(better, jnp.clip(length, _SHORTEST, _LONGEST), search.length / 4),
            search.evaluations + 1,
        )

    def unfinished(search: _Search) -> Array:
        wins = 0.5 * jnp.sum(search.slope**2) > _CONVERGED * jnp.abs(search.value)
        return wins & (jnp.abs(search.value) > floor) & (search.evaluations < _EVALUATIONS) & (search.length > 1e-6)

    point = jnp.where(roots > 0, start / jnp.where(roots > 0, roots, 1.0), 0.0)
    points = jnp.stack([jnp.zeros_like(point), point])
    values, slopes = jax.vmap(evaluate)(points)
    best = jnp.where(values[1] < values[0], 1, 0)
    first = _Search(points[best], values[best], slopes[best], jnp.ones(()), jnp.zeros((), int))
    found = jax.lax.while_loop(unfinished, body, first)
    return found.value, roots * found.point


def beside(vectors: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The part of each vector that is orthogonal to those taken."""
    for _ in range(2):  # once more, for what round-off leaves
        vectors = vectors - (vectors @ taken.T) @ taken
    return vectors


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the span of independent rows."""
    return np.linalg.qr(vectors.T)[0].T if len(vectors) else vectors
