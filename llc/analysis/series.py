"""The error of the mean of a series of draws (chain, draw), and how a number is written with its error."""

import functools
import importlib
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from llc.analysis.schema import constant as constant
from llc.analysis.schema import variable as variable

LEAST_DRAWS = 4  # of a chain, below which ArviZ defines neither ESS nor R-hat


@functools.cache
def array_stats() -> Any:
    """ArviZ's statistics of arrays, imported when a number needs them, which takes about half a second."""
    return importlib.import_module("arviz_stats.base.array").array_stats


def finite_chains(values: Float[np.ndarray, "chain draw"]) -> np.ndarray:
    """Which chains have finite draws only."""
    return np.isfinite(values).all(axis=1)


def effective_sample_size(values: Float[np.ndarray, "chain draw"]) -> float:
    """ESS of the mean; 0 for chains that do not move (ArviZ gives the number of draws there) or are too short."""
    values = values[finite_chains(values)]
    if values.size == 0 or values.shape[1] < LEAST_DRAWS or np.any(np.ptp(values, axis=1) == 0):
        return 0.0
    return float(array_stats().ess(values, chain_axis=0, draw_axis=1, method="mean"))


def monte_carlo_error(values: Float[np.ndarray, "chain draw"]) -> float:
    """Monte Carlo standard error of the mean over finite chains; inf where there is no effective draw."""
    ess = effective_sample_size(values)
    return float(np.std(values[finite_chains(values)], ddof=1) / np.sqrt(ess)) if ess > 0 else np.inf


def split_rhat(values: Float[np.ndarray, "chain draw"]) -> float:
    """Rank-normalized split R-hat over finite chains; inf for chains that do not move."""
    values = values[finite_chains(values)]
    if values.size == 0 or values.shape[1] < LEAST_DRAWS:
        return np.nan
    if np.any(np.ptp(values, axis=1) == 0):
        return np.inf
    if len(values) == 1:  # ArviZ wants two chains: the halves of the one
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, -half:]])
    return float(array_stats().rhat(values, chain_axis=0, draw_axis=1))


def plus_minus(value: float | None, error: float) -> str:
    """Value ± error as text, with two digits of the error.

    Args:
        value: None or a value that is not finite gives "nan".
        error: standard error; 0 gives the value alone, in four digits, and one that is not finite "± ∞".
    """
    if value is None or not math.isfinite(value):
        return "nan"
    if error == 0:
        return f"{value:.4g}"
    if not math.isfinite(error):
        return f"{value:.4g} ± ∞"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
