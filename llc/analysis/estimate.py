"""A number and how well the draws determine it."""

from dataclasses import dataclass

import numpy as np

from llc.analysis.series import effective_sample_size, finite_chains, monte_carlo_error, split_rhat


@dataclass(frozen=True)
class Estimate:
    """A number and how well the draws determine it.

    Attributes:
        method: name of the estimator.
        value: the estimate from all finite chains; nan if there is none.
        mcse: its Monte Carlo standard error, the error of an evaluation subset included.
        per_chain: the estimate from each chain alone; nan for a chain with non-finite draws.
        ess: effective sample size (nan where it is not defined).
        rhat: rank-normalized split R-hat (nan where it is not defined).
    """

    method: str
    value: float
    mcse: float
    per_chain: tuple[float, ...]
    ess: float
    rhat: float


def of_series(method: str, series: np.ndarray, per_chain: np.ndarray, stderr: float = 0.0) -> Estimate:
    """The mean of a series (chain, draw), with `stderr` added in quadrature."""
    finite = finite_chains(series)
    if not finite.any():
        return nothing(method, series)
    return Estimate(
        method=method,
        value=float(series[finite].mean()),
        mcse=float(np.hypot(monte_carlo_error(series), stderr)),
        per_chain=tuple(float(x) if ok else np.nan for x, ok in zip(per_chain, finite, strict=True)),
        ess=effective_sample_size(series),
        rhat=split_rhat(series),
    )


def nothing(method: str, series: np.ndarray) -> Estimate:
    """The estimate of chains none of which is finite."""
    return Estimate(method, np.nan, np.inf, (np.nan,) * len(series), 0.0, np.nan)
