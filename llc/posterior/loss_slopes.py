"""Whether the gradient of a loss is its derivative: finite differences along directions, and along each leaf.

A kink is no mismatch: with steps of 10⁻⁶ a share of about 10⁻⁶ of the rectifiers is crossed. A buffer under
`stop_gradient`, a straight-through estimate, and a custom derivative that is clipped or wrong are.

A jump is seen by neither. Along a line, the loss of two points differs by the integral of its slope. Where it does not,
the interval is halved until it is too short for any slope to explain what is left.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.mask import path_name

_SHOWN = 6  # leaves in a message
_LEAVES = 32  # with zero gradient that are looked at one by one
_DIRECTIONS = 2  # along all leaves at once
_LARGE_LEAF = 10**6  # parameters
_LONGER, _FINE = 30, 1e-4  # a step by which a difference is confirmed, where it is finer than this
_INTERVALS, _SUSPECTS, _HALVINGS = 16, 3, 20  # of a line as long as the params, in the search for jumps
_STRIDES = (0.3, 0.15, -0.3)  # of the size of a leaf: by these a function of steps changes, whatever its width


_Point = tuple[float, float, float]  # on a line: where it is, the loss, and its slope


@dataclass(frozen=True)
class Slopes:
    """A loss, its gradient, and what rounding and curvature may do to its finite differences.

    Attributes:
        value_fn: loss at a position.
        gradient_fn: its gradient there.
        gradient: at `position`, of the same structure.
        position: NumPy arrays.
        step: of finite differences, as a share of the size of the parameters.
        share: of the slope by which a finite difference may be off.
        noise: by which it may be off in any case.
        may_jump: whether the loss has steps somewhere that depend on the params.
    """

    value_fn: Callable[[PyTree], float]
    gradient_fn: Callable[[PyTree], PyTree]
    gradient: PyTree
    position: PyTree
    step: float
    share: float
    noise: float
    may_jump: bool = False


def wrong_slope(slopes: Slopes) -> str | None:
    """What is wrong with the gradient, and the cure; None if nothing is.

    It takes 4 evaluations of the loss, 8 for each leaf whose gradient is zero and, if something is wrong, 2 for each of
    the other leaves; and up to 77 with their gradients where it may jump.
    """
    leaves = jax.tree_util.tree_leaves_with_path(slopes.gradient)
    if not all(np.isfinite(leaf).all() for _, leaf in leaves):
        return None
    found = [_mismatch(slopes, _direction(slopes, seed)) for seed in range(1, _DIRECTIONS)]
    whole = _direction(slopes, 0)
    found = [pair for pair in (*found, _mismatch(slopes, whole)) if pair is not None]
    silent = [i for i, (_, leaf) in enumerate(leaves) if leaf.size and not np.any(leaf)]
    for i in range(len(leaves)) if found else silent[:_LEAVES]:
        alone = [leaf if j == i else np.zeros_like(leaf) for j, leaf in enumerate(jax.tree.leaves(whole))]
        direction, name = jax.tree.unflatten(jax.tree.structure(slopes.position), alone), path_name(leaves[i][0])
        if (pair := _mismatch(slopes, direction)) is not None:
            return _message(name or "params", *pair)
        if i in silent and _has_steps(slopes, direction, i):
            return _steps_message(name or "params")
    if found:
        return _message("params", *found[0])
    size = _jump(slopes, whole) if slopes.may_jump else 0.0
    return _jump_message(size) if size else None


def _direction(slopes: Slopes, seed: int) -> PyTree:
    """A random one, of the size of each leaf; that of a large one in float32, of which several are held in memory."""
    rng = np.random.default_rng([1, seed])

    def of_leaf(leaf: np.ndarray) -> np.ndarray:
        dtype = np.float32 if leaf.size > _LARGE_LEAF else np.float64
        return rng.standard_normal(leaf.shape, dtype) * dtype(_size(leaf))

    return jax.tree.map(of_leaf, slopes.position)


def undefined_slope(gradient: PyTree) -> str | None:
    """What is wrong with a gradient where the loss is finite, and the cure; None if all of it is finite."""
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    wrong = [path_name(path) or "params" for path, leaf in leaves if not np.isfinite(leaf).all()]
    if not wrong:
        return None
    return (
        f"loss_fn needs a finite gradient at w*, but that of {wrong[:_SHOWN]} is nan or infinite although the loss is "
        "finite: a square root, a norm or a power at 0, or a jnp.where whose other branch is not finite there. Add a "
        "small number under the root, or give that branch a safe argument by another jnp.where within it."
    )


def _mismatch(slopes: Slopes, direction: PyTree) -> tuple[float, float] | None:
    """Finite difference and slope along `direction`, where they differ by more than they may.

    A loss that is a small difference of large numbers, as a cross entropy of 1e-8 is of logits, rounds by more than its
    own size tells. A longer step then gives another difference, and nothing is known of the slope.
    """
    seen = _difference(slopes, direction, slopes.step)
    parts = [float(np.vdot(g, v)) for g, v in zip(*map(jax.tree.leaves, (slopes.gradient, direction)), strict=True)]
    said = sum(parts)
    allowed = slopes.noise + slopes.share * max(abs(seen), sum(map(abs, parts)))
    if not (np.isfinite(seen) and abs(seen - said) > allowed):
        return None
    if slopes.step < _FINE:
        again = _difference(slopes, direction, _LONGER * slopes.step)
        if np.isfinite(again) and not abs(again - seen) < abs(again - said):
            return None
    return seen, said


def _difference(slopes: Slopes, direction: PyTree, step: float) -> float:
    ahead, behind = (
        slopes.value_fn(jax.tree.map(lambda x, v, h=h: (x + h * v).astype(x.dtype), slopes.position, direction))
        for h in (step, -step)
    )
    return (ahead - behind) / (2 * step)


def _has_steps(slopes: Slopes, direction: PyTree, leaf: int) -> bool:
    """Whether the loss changes along a leaf with a gradient that is zero wherever one looks."""
    here, changes = slopes.value_fn(slopes.position), False
    for stride in _STRIDES:
        there = jax.tree.map(lambda x, v, h=stride: (x + h * v).astype(x.dtype), slopes.position, direction)
        if np.any(jax.tree.leaves(slopes.gradient_fn(there))[leaf]):
            return False
        changes |= bool(abs(slopes.value_fn(there) - here) > slopes.noise)
    return changes


def _jump(slopes: Slopes, direction: PyTree) -> float:
    """Size of a jump of the loss along a line around the position; 0 where none was found."""

    def point(t: float) -> _Point:
        there = jax.tree.map(lambda x, v: (x + t * v).astype(x.dtype), slopes.position, direction)
        pairs = zip(*map(jax.tree.leaves, (slopes.gradient_fn(there), direction)), strict=True)
        return t, slopes.value_fn(there), sum(float(np.vdot(g, v)) for g, v in pairs)

    points = [point(t) for t in np.linspace(-0.5, 0.5, _INTERVALS + 1)]
    intervals = [pair for pair in itertools.pairwise(points) if np.isfinite(pair).all()]
    for interval in sorted(intervals, key=lambda pair: -_defect(*pair))[:_SUSPECTS]:
        left, right = interval
        for _ in range(_HALVINGS):
            if not _defect(left, right) > slopes.noise:
                break
            middle = point((left[0] + right[0]) / 2)
            left, right = max([(left, middle), (middle, right)], key=lambda pair: _defect(*pair))
        steepest = 10 * (right[0] - left[0]) * (abs(left[2]) + abs(right[2]))
        if _defect(left, right) > slopes.noise + steepest:
            return abs(right[1] - left[1])
    return 0.0


def _defect(left: _Point, right: _Point) -> float:
    """What the loss changes by between two points, less the integral of its slope by the trapezoidal rule."""
    return abs(right[1] - left[1] - (right[0] - left[0]) * (left[2] + right[2]) / 2)


def _jump_message(size: float) -> str:
    return (
        f"loss_fn needs to be continuous in the params, but on a line near w* it jumps by {size:.3g}: a heaviside, a "
        "sign, a rounding, a comparison or an argmax changes its value there, and the gradient does not show that. "
        "Samplers and curvature would see another function than the loss. Take a smooth version (a sigmoid, a "
        "softmax), leave counts of errors out of the loss, or keep the params that cause the jump fixed, with mask."
    )


def _steps_message(name: str) -> str:
    return (
        f"loss_fn needs a gradient, but along {name!r} the loss is piecewise constant: it changes although its "
        "gradient is 0 everywhere, as with rounding, a threshold or an argmax (top-1 routing). Samplers that follow "
        "the gradient can't see that. Take a smooth version (a softmax, quantized params), or keep "
        f"{name!r} fixed, with mask."
    )


def _size(leaf: Any) -> float:
    return float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64)))) if leaf.size else 0.0


def _message(name: str, seen: float, said: float) -> str:
    if said == 0:
        return (
            "loss_fn needs the gradient to be the derivative of the loss, but the loss depends on "
            f"{name!r} (finite differences along a direction give a slope of {seen:.3g}), and the gradient is 0 "
            f"there: {name!r} lies under stop_gradient, or is a buffer. Keep it fixed, with a mask in which only the "
            "other leaves move."
        )
    return (
        f"loss_fn needs the gradient to be the derivative of the loss, but along {name!r} finite differences give "
        f"{seen:.4g} and the gradient {said:.4g}: stop_gradient, a straight-through estimate (of quantization, "
        "rounding or a threshold), or a custom derivative that is clipped, scaled or wrong. Samplers and curvature "
        "would see another function than the loss. Use the true derivative, leave clipping to the optimizer, and "
        f"quantize params before they are given; or keep {name!r} fixed, with mask."
    )
