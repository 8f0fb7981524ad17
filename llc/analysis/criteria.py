"""Estimates from the losses of every example: functions of their moments over draws.

With β = nβ/n and ℓ_i the loss of example i:

    singular fluctuation  ν = (β/2) Σ Var[ℓ_i(w)]                       Watanabe 2010, eq. 9
    WAIC                  −(1/n) Σ log E[exp(−ℓ_i)] + (β/n) Σ Var[ℓ_i]  Watanabe 2010, eq. 6

Where the examples are a subset of the data, its sampling error is part of the standard error.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema, validation
from llc.analysis.estimators import Estimate
from llc.analysis.pointwise import Moments, moments_of, pooled, subset_factor, subset_share
from llc.analysis.schema import POSTERIOR, constant
from llc.posterior.arguments import require_type

type _OfExample = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of means of d, d² and exp(−d)


def singular_fluctuation(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate | None:
    """ν = (β/2) Σ Var[ℓ_i]; None unless the loss came per example.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    num_data = constant(draws, schema.NUM_DATA)
    beta = constant(draws, schema.NBETA) / num_data

    def of_example(first: np.ndarray, second: np.ndarray, _: np.ndarray) -> np.ndarray:
        return 0.5 * beta * num_data * (second - first**2)

    return _of_moments("singular fluctuation", draws, of_example, moments)


def waic(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate | None:
    """WAIC in nats per example, at the sampler's β; None unless the loss came per example.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    beta = constant(draws, schema.NBETA) / constant(draws, schema.NUM_DATA)
    init_loss = constant(draws, schema.INIT_LOSS)

    def of_example(first: np.ndarray, second: np.ndarray, exponential: np.ndarray) -> np.ndarray:
        return init_loss - np.log(exponential) + beta * (second - first**2)

    return _of_moments("WAIC", draws, of_example, moments)


def _of_moments(
    method: str,
    draws: xr.DataTree,
    of_example: _OfExample,
    moments: Moments | None,
) -> Estimate | None:
    """The mean over examples of a function of their pooled moments, with a delete-one-group jackknife error.

    That of the examples being a subset of the data is added in quadrature.
    """
    moments = moments or moments_of(draws)
    if moments is None or "example" not in draws[schema.POINTWISE].dims:
        return None

    def values(weights: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # named by a check
            return of_example(*(pooled(x, weights) for x in (moments.first, moments.second, moments.exponential)))

    def mean_of(weights: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):  # infinities of both signs: as above
            return float(np.mean(values(weights)))

    error = np.inf
    if len(moments.weights) > 1:
        left_out = _leave_one_out(moments, of_example)
        error = np.sqrt((len(moments.weights) - 1) * np.var(left_out)) if np.isfinite(left_out).all() else np.inf
    num_chains = draws[POSTERIOR].sizes["chain"]
    per_chain = [
        mean_of(moments.weights * (moments.chains == c)) if (moments.chains == c).any() else np.nan
        for c in range(num_chains)
    ]
    if (share := subset_share(draws)) < 1:
        error = np.hypot(error, _subset_error(values(moments.weights), share))
    return Estimate(method, mean_of(moments.weights), float(error), tuple(per_chain), np.nan, np.nan)


def _leave_one_out(moments: Moments, of_example: _OfExample) -> Float[np.ndarray, "group"]:
    """The mean over examples without each group in turn, from the means over all of them less its own."""
    arrays, total = (moments.first, moments.second, moments.exponential), np.sum(moments.weights)
    shares = moments.weights / total
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # named by a check
        means = [pooled(x, moments.weights) for x in arrays]
        return np.array(
            [
                np.mean(
                    of_example(*((m - s * x[g].astype(float)) / (1 - s) for m, x in zip(means, arrays, strict=True)))
                )
                for g, s in enumerate(shares)
            ]
        )


def _subset_error(values: Float[np.ndarray, "example"], share: float) -> float:
    """Standard error of the mean over examples that are a share of all; inf for one example."""
    if len(values) < 2:
        return np.inf
    with np.errstate(invalid="ignore"):  # infinities, named by a check
        return float(np.std(values, ddof=1) * np.sqrt((1 - share) / len(values))) * subset_factor(values)
