r"""Zeros of a system of forms on the complex unit sphere, those with a derivative of low rank first.

The points of a zero set where its equations are most degenerate decide on its lct, and random starts hardly ever end
there. So each start is given a rank t, and Newton steps solve for a zero θ whose derivative has no larger rank:

$$ Q(\theta) = 0, \qquad U^* Q'(\theta) V = 0, $$

with U and V the singular vectors of Q'(θ) beyond the first t, anew at each step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llc.geometry.higher_order.forms import Forms, at_points

_NEWTON_STEPS = 40
_FAR, _NEAR = 1e-4, 1e-11  # size of the equations above which steps are damped, and below which they are solved
_COUNTED, _NONE = 1e-6, 1e-9  # singular values of a derivative of forms of unit size
_PATIENCE = 12  # steps after which the equations have to become smaller
_TRIES = 3  # starts for each rank in a round
_ROUNDS = 4


class Zero(NamedTuple):
    """A zero θ of unit length, and the rank of Q'(θ)."""

    point: np.ndarray
    rank: int


def zeros(forms: Forms, below: float, rng: np.random.Generator) -> Iterator[list[Zero]]:
    """Zeros whose derivative has a rank below `below`, in rounds: another one as long as the last found a new rank.

    Args:
        forms: Q, of unit size.
        below: ranks from which on zeros are of no interest.
        rng: of the random starts, every other one of them complex.
    """
    num_forms, num_variables = len(forms), forms.shape[-1]
    known: set[int] = set()
    for _ in range(_ROUNDS):
        found = []
        for rank in range(int(np.ceil(min(below, min(num_forms, num_variables) + 1)))):
            for attempt in range(_TRIES):
                start = rng.normal(size=num_variables) + 1j * rng.normal(size=num_variables) * (attempt % 2)
                zero = _zero(forms, start / np.linalg.norm(start), rank)
                if zero is not None and zero.rank < below:
                    found.append(zero)
        yield found
        new = {zero.rank for zero in found} - known
        if not new:
            return
        known |= new


def _zero(forms: Forms, point: np.ndarray, rank: int) -> Zero | None:
    """The zero with a derivative of at most that rank next to `point`; None where Newton steps end at none."""
    previous = size = np.inf
    for count in range(_NEWTON_STEPS):
        equations, derivative = _equations(forms, point, rank)
        size = float(np.linalg.norm(equations))
        if size < _NEAR**1.25 or (count > _PATIENCE and size > 0.5 * previous):
            break
        previous = size if count % 4 == 0 else previous
        point = point - _step(derivative, equations, size)
        point = point / np.linalg.norm(point)
    if not size < _NEAR:
        return None
    sizes = np.linalg.svd(at_points(forms, point, forms.ndim - 2), compute_uv=False)
    if np.any((sizes > _NONE) & (sizes < _COUNTED)):
        return None
    return Zero(point, int(np.sum(sizes > _COUNTED)))


def _equations(forms: Forms, point: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Q(θ), U* Q'(θ) V and 0 for the component along θ, with their derivatives; Q' in units of the degree."""
    degree, size = forms.ndim - 1, len(point)
    jacobian = at_points(forms, point, degree - 1)
    along = point.conj()[None]
    if rank >= min(jacobian.shape):
        return np.append(jacobian @ point, 0), np.concatenate([degree * jacobian, along])
    left, _, right = np.linalg.svd(jacobian)
    left, right = left[:, rank:].conj().T, right[rank:].conj().T
    second = (degree - 1) * at_points(forms, point, degree - 2)
    change = np.einsum("cji,jd->cdi", np.tensordot(left, second, 1), right).reshape(-1, size)
    equations = np.concatenate([jacobian @ point, (left @ jacobian @ right).ravel(), [0]])
    return equations, np.concatenate([degree * jacobian, change, along])


def _step(derivative: np.ndarray, equations: np.ndarray, size: float) -> np.ndarray:
    """Damped far from a solution, where the equations contradict each other; the shortest one near it."""
    if size < _FAR:
        return np.linalg.lstsq(derivative, equations, rcond=1e-7)[0]
    normal = derivative.conj().T @ derivative
    damping = 1e-3 * size**2 + 1e-14
    return np.linalg.solve(normal + damping * np.eye(len(normal)), derivative.conj().T @ equations)
