"""Losses example by example: their moments over draws, and the error of evaluating them on a subset of the data.

A subset of m units has its error from the spread between those units. That estimate is itself uncertain, so the error
is widened to what Student's law of m − 1 degrees of freedom asks for where a normal law is read off it (1.96 standard
errors hold 95 %): by 1.2 % at m = 100, 9 % at 15, and without limit at 1.

Energies of single examples are skewed (½ χ² along a direction), and then a subset without the few large ones has both
a low mean and a small spread. In Edgeworth's expansion of the t statistic (Hall, The Bootstrap and Edgeworth Expansion,
1992, §2.6) that takes 1.08 κ² / m of the error at 95 %, with κ the skewness. Subsets show too little of that also, so
3 κ̂² / m is taken, by measurement (3,000 subsets of energies of normal and heavy-tailed inputs in 1 to 20 dimensions,
with skewness up to 6): of the 95 % intervals 94–97 % then cover at 100 rows, 90–99 % at 30 and 84–96 % at 15 (90–95,
82–95 and 76–95 % with Student's law alone). The check `evaluation_rows` refuses fewer than 100.
"""

from dataclasses import dataclass

import numpy as np
import scipy.special
import xarray as xr
from jaxtyping import Float, Int

from llc.analysis import schema
from llc.analysis.schema import POINTWISE, constant, variable
from llc.analysis.series import finite_chains

_TWO_SIDED = 0.975  # the quantile of a 95 % interval
_SKEWED = 3.0  # see above


@dataclass(frozen=True)
class Moments:
    """Means over draws of d, d² and exp(−d) per example: one group for each block of each finite chain.

    They are as large as the data times the groups, and stay in float32, in the arrays of the draws where all chains are
    finite; `pooled` takes means in float64. `paired` is of d less its slope at w* where a subset was evaluated, and d
    else.
    """

    first: Float[np.ndarray, "group unit"]
    second: Float[np.ndarray, "group unit"]
    exponential: Float[np.ndarray, "group unit"]
    paired: Float[np.ndarray, "group unit"]
    paired_second: Float[np.ndarray, "group unit"]
    slopes: tuple[Float[np.ndarray, "group unit"], ...]
    units: Float[np.ndarray, "unit"]  # weights of the units, which add up to 1
    weights: Float[np.ndarray, "group"]
    chains: Int[np.ndarray, "group"]


def moments_of(draws: xr.DataTree) -> Moments | None:
    """Moments of all finite chains; None where the draws have none."""
    if POINTWISE not in draws:
        return None
    group = draws[POINTWISE]
    finite = finite_chains(variable(draws, schema.POSTERIOR, schema.ENERGY))
    if not finite.any():
        return None
    slope_names = ("slope_curved", "slope_flat") if "slope_curved" in group else ()
    pair = ("paired", "paired_second") if "paired" in group else ("first", "second")
    names = ("first", "second", "exponential", *pair, *slope_names)
    arrays = {name: group.dataset[name].to_numpy() for name in set(names)}
    if not finite.all():
        arrays = {name: values[:, finite] for name, values in arrays.items()}
    num_blocks, num_chains, num_units = arrays["first"].shape
    first, second, exponential, paired, paired_second, *slopes = (
        arrays[name].reshape(num_blocks * num_chains, -1) for name in names
    )
    return Moments(
        first=first,
        second=second,
        exponential=exponential,
        paired=paired,
        paired_second=paired_second,
        slopes=tuple(slopes),
        units=variable(draws, POINTWISE, "weight") if "weight" in group else np.full(num_units, 1 / num_units),
        weights=np.repeat(group.dataset["num_draws"].to_numpy().astype(float), num_chains),
        chains=np.tile(np.flatnonzero(finite), num_blocks),
    )


def pooled(values: Float[np.ndarray, "group unit"], weights: Float[np.ndarray, "group"]) -> Float[np.ndarray, "unit"]:
    """Weighted mean over groups in float64, without a copy of all of them."""
    total = np.zeros(values.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite exp(−d) is named by a check
        for group, weight in zip(values, weights, strict=True):
            if weight:
                total += weight * group.astype(np.float64)
        return total / np.sum(weights)


def subset_share(draws: xr.DataTree) -> float:
    """The part of the data that the losses were evaluated on."""
    return constant(draws, schema.EVAL_SIZE) / constant(draws, schema.NUM_DATA)


def small_sample_factor(num_units: int) -> float:
    """By how much a standard error from so few units is to be widened; inf for fewer than two."""
    if num_units < 2:
        return np.inf
    return float(scipy.special.stdtrit(num_units - 1, _TWO_SIDED) / scipy.special.ndtri(_TWO_SIDED))


def subset_factor(values: Float[np.ndarray, "unit"]) -> float:
    """By how much a standard error from the spread of these units is to be widened, as they are few and skewed."""
    spread = float(np.std(values))
    if not spread > 0:
        return small_sample_factor(len(values))
    skewness = float(np.mean(((values - np.mean(values)) / spread) ** 3))
    return small_sample_factor(len(values)) * (1 + _SKEWED * skewness**2 / len(values))


def subset_stderr(
    draws: xr.DataTree, combination: tuple[float, ...] = (1.0,), *, moments: Moments | None = None
) -> float:
    """Standard error of E[L(w)] − L(w*) from evaluating on a subset of the data; 0 on all the data.

    Args:
        draws: of `llc.sample`.
        combination: factors of the loss and of its slopes along the curved directions and the rest, whose sum is
            evaluated; slopes that were not recorded are left out.
        moments: of `moments_of(draws)`; None computes them.

    Returns:
        The error; inf for a subset of one unit, which has no spread.
    """
    share = subset_share(draws)
    if share >= 1 or (moments := moments or moments_of(draws)) is None:
        return 0.0
    parts = moments.paired, *moments.slopes
    means = sum(factor * pooled(part, moments.weights) for factor, part in zip(combination, parts, strict=False))
    size, weights = np.size(means), moments.units
    if size < 2:
        return np.inf
    spread = np.sum(weights**2 * (means - np.sum(weights * means)) ** 2) * size / (size - 1)
    return float(np.sqrt(spread * (1 - share))) * subset_factor(np.asarray(means))


def subset_variance(draws: xr.DataTree, *, moments: Moments | None = None) -> float:
    """Variance that a subset of m of n examples adds to Var[L(w)]: (1 − m/n)/m of the spread within examples.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    share = subset_share(draws)
    if share >= 1 or (moments := moments or moments_of(draws)) is None:
        return 0.0
    first, second = pooled(moments.paired, moments.weights), pooled(moments.paired_second, moments.weights)
    loss = variable(draws, schema.POSTERIOR, schema.LOSS)
    within = np.sum(moments.units * (second - first**2)) - loss[finite_chains(loss)].var()
    return float(max(within, 0.0) * np.sum(moments.units**2) * (1 - share))
