r"""The loss along single directions, as functions of the distance from w*, and what each adds to λ̂.

Along a direction with the excess loss K(t) at the distance t, and as if it were alone,

$$ E[n\beta K] = \frac{\int n\beta K(t)\, e^{-n\beta K(t) - \gamma t^2 / 2}\, dt}
                      {\int e^{-n\beta K(t) - \gamma t^2 / 2}\, dt} , $$

which is ½ nβh / (nβh + γ) for K = ½ h t², tends to 1/2k for K ∝ t^{2k} as γ falls, and is 0 where K is flat. Where m
directions share a zero set they are no longer alone. Along rays u of that space, drawn uniformly,

$$ E[n\beta K] = \frac{\sum_u \int n\beta K(\rho u)\, e^{-n\beta K(\rho u) - \gamma \rho^2/2}\, \rho^{m-1} d\rho}
                      {\sum_u \int e^{-n\beta K(\rho u) - \gamma \rho^2/2}\, \rho^{m-1} d\rho} , $$

with the error of a ratio of means. K is known at some distances; K/t² is interpolated between them, monotonically and
in log t, so that a power of t is exact.
"""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

_POINTS = 400  # of the trapezoidal rule in log t: 1e-5 of E for powers up to 8 (measured)
_INNER = 30.0  # it starts at this part of the first distance, below which K is quadratic
_HIDDEN = 10.0  # factor in t beyond which a loss that is not yet seen above round-off counts as flat


def mean_energies(
    steps: Float[np.ndarray, "direction step"],
    values: Float[np.ndarray, "direction side step"],
    nbeta: float,
    gamma: float,
) -> Float[np.ndarray, "direction"]:
    """E[nβK] of each direction by quadrature over both of its sides.

    Args:
        steps: distances from w*, rising.
        values: K there, ahead and behind.
        nbeta: nβ.
        gamma: γ.
    """
    return np.array([_mean_energy(t, sides, nbeta, gamma) for t, sides in zip(steps, values, strict=True)])


def _mean_energy(steps: np.ndarray, sides: np.ndarray, nbeta: float, gamma: float) -> float:
    logs = np.linspace(np.log(steps[0] / _INNER), np.log(steps[-1]), _POINTS)
    t = np.exp(logs)
    energies = np.stack([nbeta * t**2 * _Ratio(steps, side)(logs) for side in sides])
    exponents = -energies - 0.5 * gamma * t**2
    weights = np.exp(exponents - exponents.max()) * t * np.gradient(logs)
    weights[:, 0] += np.exp(exponents[:, 0] - exponents.max()) * t[0]  # from 0 to the first point
    return float((weights * energies).sum() / weights.sum())


class JointEnergy(NamedTuple):
    """E[nβK] of several directions together, its standard error, and the number of rays that carry the weight."""

    value: float
    stderr: float
    effective_rays: float


def joint_energy(
    steps: Float[np.ndarray, "step"], values: Float[np.ndarray, "ray step"], dim: int, nbeta: float, gamma: float
) -> JointEnergy:
    """E[nβK] in a space of `dim` directions from uniform rays in it.

    Args:
        steps: distances from w* along the rays, rising.
        values: K there.
        dim: m.
        nbeta: nβ.
        gamma: γ.
    """
    logs = np.linspace(np.log(steps[0] / _INNER), np.log(steps[-1]), _POINTS)
    t = np.exp(logs)
    energies = np.stack([nbeta * t**2 * _Ratio(steps, ray)(logs) for ray in values])
    exponents = -energies - 0.5 * gamma * t**2 + dim * logs  # dρ = ρ d log ρ
    density = np.exp(exponents - exponents.max())
    mass = density.sum(axis=1)
    mean = float((density * energies).sum() / mass.sum())
    residuals = (density * energies).sum(axis=1) - mean * mass
    stderr = float(np.sqrt((residuals**2).sum()) / mass.sum())
    return JointEnergy(mean, stderr, float(mass.sum() ** 2 / (mass**2).sum()))


class _Ratio:
    """K/t² as a function of log t; constant beyond the distances at which K is known."""

    def __init__(self, steps: np.ndarray, values: np.ndarray) -> None:
        ratios = values / steps**2
        self._is_positive = bool((ratios > 0).all())
        self._ends = np.log(steps[[0, -1]])
        self._of = scipy.interpolate.PchipInterpolator(  # imported here, at its first use
            np.log(steps), np.log(ratios) if self._is_positive else ratios
        )

    def __call__(self, logs: np.ndarray) -> np.ndarray:
        inside = self._of(np.clip(logs, *self._ends))
        return np.exp(inside) if self._is_positive else inside


def local_orders(
    steps: Float[np.ndarray, "direction step"],
    values: Float[np.ndarray, "direction side step"],
    floor: float,
    distance: float,
) -> Float[np.ndarray, "direction"]:
    """Local power of t in the mean of both sides at `distance`; 0 where it is flat, −1 where it is below w*.

    Args:
        steps: distances from w*, rising.
        values: K there.
        floor: K up to it is round-off. A loss that stands above it only farther out, by less than a factor of 10, has
            the order that it has where it is first seen.
        distance: at which to look.
    """
    return np.array([_local_order(t, k.mean(axis=0), floor, distance) for t, k in zip(steps, values, strict=True)])


def _local_order(steps: np.ndarray, values: np.ndarray, floor: float, distance: float) -> float:
    near = steps <= distance * (steps[1] / steps[0]) ** 0.5
    if values[near][-1:].min(initial=np.inf) < -floor:
        return -1.0
    seen = np.flatnonzero(values > floor)
    # From where on it stands above round-off up to the end of what is looked at.
    reachable = seen[steps[seen] <= max(distance, steps[0]) * _HIDDEN]
    if len(reachable) < 2:
        return 0.0
    first = max(int(np.searchsorted(steps, distance)), int(reachable[0]))
    window = [i for i in seen if abs(i - first) <= 1]
    if len(window) < 2:
        return 0.0
    logs = np.log(steps[window]), np.log(values[window])
    return float((logs[1][-1] - logs[1][0]) / (logs[0][-1] - logs[0][0]))
