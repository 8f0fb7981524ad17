"""Control variates with coefficients that are fitted to the draws, and the error that has the part of the fit."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

_BATCHES = 10  # a chain, whose means count as independent: ten effective draws each, where ESS is 100 a chain
_BATCHES_A_CONTROL = 5  # below which the fit of a coefficient costs more than it brings


def batch_means(values: Float[np.ndarray, "chain draw kind"]) -> Float[np.ndarray, "batch kind"]:
    """Means of consecutive draws, which are independent where the draws are not."""
    parts = np.array_split(values, min(_BATCHES, values.shape[1]), axis=1)
    return np.concatenate([part.mean(axis=1) for part in parts])


def most_controls(batches: Float[np.ndarray, "batch kind"]) -> int:
    """How many of the control variates the batches suffice for, the first ones first."""
    return min(batches.shape[1] - 1, len(batches) // _BATCHES_A_CONTROL)


def fitted_coefficients(batches: Float[np.ndarray, "batch kind"]) -> Float[np.ndarray, "control"]:
    """Coefficients of least long-run variance: by least squares of batch means, which autocorrelation does not fool."""
    centered = batches - batches.mean(axis=0)
    sizes = np.linalg.norm(centered[:, 1:], axis=0)
    scale = np.where(sizes > 0, sizes, 1.0)
    return np.linalg.lstsq(centered[:, 1:] / scale, centered[:, 0])[0] / scale


def fitted_error(
    batches: Float[np.ndarray, "batch kind"], fit: Callable[[np.ndarray], np.ndarray] = fitted_coefficients
) -> float:
    """Standard error with that of the coefficients, which a rare large control variate bends: one batch left out.

    Args:
        batches: means of the series and of its control variates.
        fit: gives the coefficients.
    """
    if len(batches) < 2:
        return math.inf
    values = []
    for i in range(len(batches)):
        others = np.delete(batches, i, axis=0)
        mean = others.mean(axis=0)
        values.append(mean[0] - mean[1:] @ fit(others))
    return float(np.sqrt((len(batches) - 1) * np.var(values)))
