r"""The part of the loss beyond its Hessian: g of the splitting lemma, its order, and whether it is zero.

In suitable coordinates an analytic K ≥ 0 is |u|² + g(v), with u in the range of H and v in its kernel, so that
λ = r/2 + λ(g) (Watanabe 2009, Theorem 6.5). Those coordinates are not needed to evaluate g:

$$ g(v) = \min_{u \in \mathrm{range} H} K(v + u) , $$

by Newton steps inside the range. Along a random v, g(tv) ∝ t^{2k} as t → 0, with 2k ≥ 4 the order of g. Hence
r/2 + 1/2k ≤ λ ≤ r/2 + (d − r)/2k: the upper bound by Taylor's theorem, the lower one since a sublevel set meets each
line in a length of e^{1/2k}. Where g is zero at random points it is zero everywhere. The minima form a manifold then,
and λ = r/2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset, Scale
from llc.geometry.higher_order.ranges import Splitting, project

_NUM_DIRECTIONS = 3
_STEPS = 0.4 ** np.arange(14.0)  # distances, in units of a typical parameter
_NEWTON_STEPS, _CG_STEPS = 12, 10
PROFILE_PRICE = _NUM_DIRECTIONS * len(_STEPS) * _NEWTON_STEPS * (_CG_STEPS + 1)  # Hessian products, at most
_SHARES = np.array([1.0, 0.5, 0.1])  # of a step that are tried
_LONGEST = 4.0  # step in units of the slope, which it equals where the Hessian is that of the base
_FINISHED = 1e-10  # part of g that the last Newton step would win
_SETTLED = 0.01  # part of the round-off of K that it would win
_ROUNDING = (64 * float(np.finfo(np.float64).eps)) ** 2  # of K that is cancelled by the step into the range
_TINY = float(np.finfo(np.float64).tiny)
_CONVERGED = 1e-4  # part of g that another Newton step would win
_NEAR = 0.5  # |u| / |v|: u falls as t² on the branch of zeros through w*
_HIDDEN_ORDER = 12  # g of a lower order would be seen where g is said to vanish
_SLOPE_ERROR = 0.1  # of a power law over a factor of 16 in t; the next even order is 2 away
_NUM_SLOPES = 3
_BATCH_BYTES = 2.0**27


class Profile(NamedTuple):
    """g along random directions: one row a direction, one column a distance.

    Attributes:
        steps: distances t.
        values: g(tv).
        decided: whether the minimum over u was reached, and near v.
        floors: round-off of the values.
    """

    steps: Float[np.ndarray, "step"]
    values: Float[np.ndarray, "direction step"]
    decided: np.ndarray
    floors: Float[np.ndarray, "direction step"]


def remainder_profile(
    excess: Excess,
    splitting: Splitting,
    scale: Scale,
    key: PRNGKeyArray,
    *,
    base: Float[np.ndarray, "dim"] | None = None,
    length: float | None = None,
    spend: Callable[[int], None] = lambda _: None,
) -> Profile:
    """The function g along three random directions of the kernel, at fourteen distances.

    Costs at most `PROFILE_PRICE` Hessian products: 42 minimisations of 12 Newton steps of 11 products each.

    Args:
        excess: K around w*.
        splitting: of the Hessian of K at `base`.
        scale: of K around w*.
        key: of the directions.
        base: offset from w* of the point whose g is looked at; None takes w*.
        length: largest distance; None takes the typical size of a parameter.
        spend: called with the products of each part of the work.
    """
    dim = excess.dim
    base = np.zeros(dim) if base is None else base
    steps = (scale.length if length is None else length) * _STEPS
    directions = np.asarray(project(splitting, jax.random.normal(key, (_NUM_DIRECTIONS, dim))))
    displacements = (steps[:, None] * directions[:, None]).reshape(-1, dim)
    at_once = max(1, max(_BATCH_BYTES, splitting.pass_bytes) // (64 * 8 * dim))  # no more memory than the range takes
    size = -(-len(displacements) // math.ceil(len(displacements) / at_once))
    parts = []
    for first in range(0, len(displacements), int(size)):
        rows = np.arange(first, first + int(size)) % len(displacements)  # whole parts: one program
        parts.append(_minimize(excess, splitting, jnp.asarray(base + displacements[rows]), jnp.asarray(scale.floor)))
        spend(PROFILE_PRICE * int(size) // len(displacements))
    start, value, newton_decrement, moved = (
        np.concatenate(x)[: len(displacements)].reshape(_NUM_DIRECTIONS, len(steps)) for x in zip(*parts, strict=True)
    )
    floors = np.maximum(scale.floor, _ROUNDING * start)
    near = moved <= _NEAR * np.linalg.norm(displacements, axis=1).reshape(moved.shape)
    decided = near & (newton_decrement <= np.maximum(_CONVERGED * np.abs(value), floors)) & np.isfinite(value)
    return Profile(steps, value, decided, floors)


@eqx.filter_jit
def _minimize(
    excess: Excess, splitting: Splitting, starts: Float[Array, "start dim"], floor: Float[Array, ""]
) -> tuple[Float[Array, "start"], Float[Array, "start"], Float[Array, "start"], Float[Array, "start"]]:
    """K at the start, K at its minimum over start + range, the Newton decrement there, and the distance."""

    def minimize(start: Offset) -> tuple[Array, Array, Array, Array]:
        def gradient(y: Array) -> Array:  # in y the Hessian at the base is the identity
            return splitting.pull(excess.gradient(start + splitting.root(y)))

        def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            y, slope, count = state
            newton, _ = cg(lambda p: jax.jvp(gradient, (y,), (p,))[1], -slope, tol=1e-10, maxiter=_CG_STEPS)
            longest = _LONGEST * jnp.linalg.norm(slope)  # a slope that is round-off has no Newton step
            newton = newton * jnp.minimum(1.0, longest / (jnp.linalg.norm(newton) + _TINY))
            trials = y + jnp.concatenate([jnp.outer(_SHARES, newton), jnp.outer(_SHARES, -slope)])
            values = jax.lax.map(lambda y: excess.value(start + splitting.root(y)), trials)
            y = trials[jnp.nanargmin(values)]  # far from w* a full step may climb; the last ones are all full
            return y, gradient(y), count + 1

        def unfinished(state: tuple[Array, Array, Array]) -> Array:
            y, slope, count = state
            value = jnp.abs(excess.value(start + splitting.root(y)))
            return (count < _NEWTON_STEPS) & (0.5 * jnp.sum(slope**2) > jnp.maximum(_FINISHED * value, round_off))

        zero, height = jnp.zeros_like(splitting.curvatures), excess.value(start)
        round_off = _SETTLED * jnp.maximum(floor, _ROUNDING * height)
        y, slope, _ = jax.lax.while_loop(unfinished, body, (zero, gradient(zero), jnp.zeros((), int)))
        offset = splitting.root(y)
        moved = jnp.linalg.norm(offset)
        return height, excess.value(start + offset), 0.5 * jnp.sum(slope**2), moved

    return jax.vmap(minimize)(starts)


def order(profile: Profile) -> int | None:
    """2k, the order of g: the slope of log g in log t at the smallest distances that count; None if undecided."""
    orders = {_slope(profile, row) for row in range(len(profile.values))}
    return orders.pop() if len(orders) == 1 else None


def _slope(profile: Profile, row: int) -> int | None:
    """The even order along one direction; None where the distances that count show no single power law."""
    counted = profile.decided[row] & (profile.values[row] > profile.floors[row])  # not where K < 0
    last = np.flatnonzero(counted)[-1:]
    if not last.size or last[0] < _NUM_SLOPES:
        return None
    window = slice(int(last[0]) - _NUM_SLOPES, int(last[0]) + 1)
    if not counted[window].all():
        return None
    slopes = np.diff(np.log(profile.values[row, window])) / np.diff(np.log(profile.steps[window]))
    nearest = 2 * round(float(slopes[-1]) / 2)
    return nearest if nearest >= 4 and np.abs(slopes - nearest).max() <= _SLOPE_ERROR else None


def vanishes(profile: Profile, scale: Scale, hidden_order: int = _HIDDEN_ORDER) -> bool:
    """Whether g ≡ 0: at two distances it is at round-off in all directions, although a part of low order would be seen.

    Args:
        profile: of g.
        scale: of K around w*.
        hidden_order: the largest order that would be seen, if its coefficient is that of K over a typical parameter;
            a quartic of coefficient 1 has to be seen in any case.
    """
    zero = (profile.decided & (np.abs(profile.values) <= profile.floors)).all(axis=0)
    visible = scale.height * (profile.steps / scale.length) ** hidden_order > profile.floors.max(axis=0)
    visible &= profile.steps**4 > profile.floors.max(axis=0)  # parameters may be small in units of the loss
    return int(np.sum(zero & visible)) >= 2
