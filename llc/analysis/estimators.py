r"""From draws to estimates of λ and its relatives, each with a Monte Carlo standard error.

With t = nβ, expectations over draws, and ℓ_i the loss of example i:

    mean energy           λ̂ = t (E[L(w)] − L(w*))                      Lau et al. 2023, eq. 14
    zero variance         mean energy − Σ c (E[x·A∇U] − tr A)           see `zero_variance`
    two temperatures      (E₁[L] − E₂[L]) / (1/t₁ − 1/t₂)               Watanabe 2013, Corollary 3
    energy variance       t² Var[L(w)]                                  Watanabe 2013, Theorem 4 (tK is Gamma(λ, 1))
    WBIC                  n E[L(w)] at β = 1 / log n                    Watanabe 2013, eq. 20
    singular fluctuation  ν = (β/2) Σ Var[ℓ_i(w)]                       Watanabe 2010, eq. 9
    WAIC                  −(1/n) Σ log E[exp(−ℓ_i)] + (β/n) Σ Var[ℓ_i]  Watanabe 2010, eq. 6

Where the losses come from a fixed subset of the data, its sampling error is part of the standard error.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import xarray as xr
from arviz_stats.base.array import array_stats
from jaxtyping import Float, Int

_BATCHES = 10  # a chain, whose means count as independent: ten effective draws each, where ESS is 100 a chain
_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a difference of two sums in the precision of the draws


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


def mean_energy(draws: xr.DataTree) -> Estimate:
    """λ̂ = nβ (E[L(w)] − L(w*)), the LLC."""
    llc = variable(draws, "posterior", "llc")
    return _of_series("mean energy", llc, llc.mean(axis=1), stderr=constant(draws, "nbeta") * subset_stderr(draws))


def zero_variance(draws: xr.DataTree, coefficients: tuple[float, float] | None = None) -> Estimate | None:
    """λ̂ less its control variates x·A∇U − tr A, whose means are zero; None where the draws do not have them.

    The harmonic part of the loss drops out with c = 1: of the variance, and of the sampler's bias with it. Only for
    chains that have mixed: a chain that has not left w* gives λ_quad with a small error (see the `virial` checks).

    Args:
        draws: of `llc.sample` with a spectrum.
        coefficients: c of the curved directions and of the rest; None fits them to the draws, by least squares, and
            the standard error has their part.

    References:
        Mira, Solgi & Imparato, Zero variance Markov chain Monte Carlo for Bayesian estimators, 2013, eq. 7.
    """
    if "stein_curved" not in draws["sample_stats"]:
        return None
    llc = variable(draws, "posterior", "llc")
    controls = np.stack([variable(draws, "sample_stats", f"stein_{name}") for name in ("curved", "flat")], axis=-1)
    finite = finite_chains(llc) & np.isfinite(controls).all(axis=(1, 2))
    if not finite.any():
        return _nothing("zero variance", llc)
    batches = _batches(np.concatenate([llc[finite][..., None], controls[finite]], axis=-1))
    fitted = _fitted(batches) if coefficients is None else np.asarray(coefficients, float)
    series = np.where(finite[:, None], llc - controls @ fitted, np.nan)
    subset = constant(draws, "nbeta") * subset_stderr(draws, (1.0, *-fitted))
    rounding = _ROUNDING * (abs(llc[finite].mean()) + abs(fitted[0]) * constant(draws, "trace_curved"))
    estimate = _of_series("zero variance", series, series.mean(axis=1), stderr=float(np.hypot(subset, rounding)))
    return estimate if coefficients is not None else replace(estimate, mcse=max(estimate.mcse, _jackknife(batches)))


def _batches(values: Float[np.ndarray, "chain draw kind"]) -> Float[np.ndarray, "batch kind"]:
    """Means of consecutive draws, which are independent where the draws are not."""
    parts = np.array_split(values, min(_BATCHES, values.shape[1]), axis=1)
    return np.concatenate([part.mean(axis=1) for part in parts])


def _fitted(batches: Float[np.ndarray, "batch 3"]) -> Float[np.ndarray, "2"]:
    """Coefficients of least long-run variance: by least squares of batch means, which autocorrelation does not fool."""
    centered = batches - batches.mean(axis=0)
    sizes = np.linalg.norm(centered[:, 1:], axis=0)
    scale = np.where(sizes > 0, sizes, 1.0)
    return np.linalg.lstsq(centered[:, 1:] / scale, centered[:, 0])[0] / scale


def _jackknife(batches: Float[np.ndarray, "batch 3"]) -> float:
    """Standard error with that of the coefficients, which a rare large control variate bends: one batch left out."""
    if len(batches) < 2:
        return math.inf
    values = []
    for i in range(len(batches)):
        others = np.delete(batches, i, axis=0)
        mean = others.mean(axis=0)
        values.append(mean[0] - mean[1:] @ _fitted(others))
    return float(np.sqrt((len(batches) - 1) * np.var(values)))


def best_energy(draws: xr.DataTree) -> Estimate:
    """The zero-variance estimate, or the mean energy where there is none or where trajectories diverged.

    Trajectories that diverge miss the narrow arms of a singular minimum. The energy is nearly the same in them, so its
    mean hardly suffers; x·∇U grows along them, so its mean is no longer tr A (NUTS on (w₁w₂)²/2: 63 % of the 95 %
    intervals covered with control variates, 96 % without).
    """
    diverged = variable(draws, "sample_stats", "diverging")[finite_chains(variable(draws, "posterior", "llc"))].any()
    return (None if diverged else zero_variance(draws)) or mean_energy(draws)


def two_temperatures(hot: xr.DataTree, cold: xr.DataTree) -> Estimate:
    """λ from the mean energies at two nβ, (E₁[L] − E₂[L]) / (1/t₁ − 1/t₂), which needs no L(w*).

    Args:
        hot: draws at the smaller nβ.
        cold: draws at the larger nβ, of the same posterior otherwise.

    Raises:
        ValueError: if the two are at the same nβ, or L(w*) is not the same.
    """
    first, second = constant(hot, "nbeta"), constant(cold, "nbeta")
    if not 0 < first < second:
        raise ValueError(f"two_temperatures needs two nβ, the smaller one first, got {first:g} and {second:g}.")
    losses = constant(hot, "init_loss"), constant(cold, "init_loss")
    if losses[0] != losses[1]:
        raise ValueError(f"two_temperatures needs the same w* and rows in both runs, got L(w*) = {losses}.")
    parts = [(best_energy(draws), constant(draws, "nbeta")) for draws in (hot, cold)]
    width = 1 / first - 1 / second
    return Estimate(
        method="two temperatures",
        value=(parts[0][0].value / first - parts[1][0].value / second) / width,
        mcse=math.hypot(*(part.mcse / nbeta for part, nbeta in parts)) / width,
        per_chain=(),
        ess=min(part.ess for part, _ in parts),
        rhat=max(part.rhat for part, _ in parts),
    )


def energy_variance(draws: xr.DataTree) -> Estimate:
    """(nβ)² Var[L(w)], which needs no L(w*); the noise of an evaluation subset is subtracted."""
    llc = variable(draws, "posterior", "llc")
    finite = llc[finite_chains(llc)]
    if not finite.size:
        return _nothing("energy variance", llc)
    noise = constant(draws, "nbeta") ** 2 * _subset_variance(draws)
    return _of_series("energy variance", (llc - finite.mean()) ** 2 - noise, llc.var(axis=1) - noise)


def wbic(draws: xr.DataTree) -> Estimate | None:
    """WBIC = n E[L(w)] in nats, an estimate of the free energy; None unless nβ = n / log n, where it is defined."""
    num_data = constant(draws, "num_data")
    if not math.isclose(constant(draws, "nbeta"), num_data / math.log(num_data), rel_tol=1e-6):
        return None
    loss = num_data * variable(draws, "posterior", "loss")
    return _of_series("WBIC", loss, loss.mean(axis=1), stderr=num_data * subset_stderr(draws))


def singular_fluctuation(draws: xr.DataTree) -> Estimate | None:
    """ν = (β/2) Σ Var[ℓ_i]; None unless the loss came per example."""
    beta, num_data = constant(draws, "nbeta") / constant(draws, "num_data"), constant(draws, "num_data")
    return _of_moments(
        "singular fluctuation",
        draws,
        lambda first, second, _: 0.5 * beta * num_data * np.mean(second - first**2),
    )


def waic(draws: xr.DataTree) -> Estimate | None:
    """WAIC in nats per example, at the sampler's β; None unless the loss came per example."""
    beta, init_loss = constant(draws, "nbeta") / constant(draws, "num_data"), constant(draws, "init_loss")

    def statistic(first, second, exponential):
        return init_loss - np.mean(np.log(exponential)) + beta * np.mean(second - first**2)

    return _of_moments("WAIC", draws, statistic)


def constant(draws: xr.DataTree, name: str) -> float:
    """A number from the `constant_data` group."""
    return float(variable(draws, "constant_data", name))


def variable(draws: xr.DataTree, group: str, name: str) -> np.ndarray:
    """A variable of a group, as a NumPy array."""
    return draws[group].dataset[name].to_numpy()


def finite_chains(values: Float[np.ndarray, "chain draw"]) -> np.ndarray:
    """Which chains have finite draws only."""
    return np.isfinite(values).all(axis=1)


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


def subset_stderr(draws: xr.DataTree, combination: tuple[float, ...] = (1.0,)) -> float:
    """Standard error of E[L(w)] − L(w*) from evaluating on a subset of the data; 0 on all the data.

    Args:
        draws: of `llc.sample`.
        combination: factors of the loss and of its slopes along the curved directions and the rest, whose sum is
            evaluated; slopes that were not recorded are left out.
    """
    share = constant(draws, "eval_size") / constant(draws, "num_data")
    moments = _moments(draws)
    if share >= 1 or moments is None:
        return 0.0
    parts = (moments.paired, *(() if moments.slopes is None else moments.slopes))
    means = sum(
        factor * np.average(part, axis=0, weights=moments.weights)
        for factor, part in zip(combination, parts, strict=False)
    )
    return float(np.std(means, ddof=1) / np.sqrt(np.size(means)) * np.sqrt(1 - share))


def effective_sample_size(values: Float[np.ndarray, "chain draw"]) -> float:
    """ESS of the mean; 0 for chains that do not move (ArviZ gives the number of draws there) or are too short."""
    values = values[finite_chains(values)]
    if values.size == 0 or values.shape[1] < 4 or np.any(np.ptp(values, axis=1) == 0):
        return 0.0
    return float(cast("float", array_stats.ess(values, chain_axis=0, draw_axis=1, method="mean")))


def monte_carlo_error(values: Float[np.ndarray, "chain draw"]) -> float:
    """Monte Carlo standard error of the mean over finite chains; inf where there is no effective draw."""
    ess = effective_sample_size(values)
    return float(np.std(values[finite_chains(values)], ddof=1) / np.sqrt(ess)) if ess > 0 else np.inf


def split_rhat(values: Float[np.ndarray, "chain draw"]) -> float:
    """Rank-normalized split R-hat over finite chains; inf for chains that do not move."""
    values = values[finite_chains(values)]
    if values.size == 0 or values.shape[1] < 4:
        return np.nan
    if np.any(np.ptp(values, axis=1) == 0):
        return np.inf
    if len(values) == 1:  # ArviZ wants two chains: the halves of the one
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, -half:]])
    return float(cast("float", array_stats.rhat(values, chain_axis=0, draw_axis=1)))


def _of_series(method: str, series: np.ndarray, per_chain: np.ndarray, stderr: float = 0.0) -> Estimate:
    """The mean of a series (chain, draw), with `stderr` added in quadrature."""
    finite = finite_chains(series)
    if not finite.any():
        return _nothing(method, series)
    return Estimate(
        method=method,
        value=float(series[finite].mean()),
        mcse=float(np.hypot(monte_carlo_error(series), stderr)),
        per_chain=tuple(float(x) if ok else np.nan for x, ok in zip(per_chain, finite, strict=True)),
        ess=effective_sample_size(series),
        rhat=split_rhat(series),
    )


def _nothing(method: str, series: np.ndarray) -> Estimate:
    return Estimate(method, np.nan, np.inf, (np.nan,) * len(series), 0.0, np.nan)


@dataclass(frozen=True)
class _Moments:
    """Means over draws of d, d² and exp(−d) per example: one group for each block of each finite chain.

    `paired` is of d less its slope at w* where a subset was evaluated, and d else.
    """

    first: Float[np.ndarray, "group unit"]
    second: Float[np.ndarray, "group unit"]
    exponential: Float[np.ndarray, "group unit"]
    paired: Float[np.ndarray, "group unit"]
    paired_second: Float[np.ndarray, "group unit"]
    slopes: Float[np.ndarray, "2 group unit"] | None
    weights: Float[np.ndarray, "group"]
    chains: Int[np.ndarray, "group"]


def _moments(draws: xr.DataTree) -> _Moments | None:
    if "pointwise" not in draws:
        return None
    group = draws["pointwise"]
    finite = finite_chains(variable(draws, "posterior", "llc"))
    if not finite.any():
        return None
    slope_names = ("slope_curved", "slope_flat") if "slope_curved" in group else ()
    pair = ("paired", "paired_second") if "paired" in group else ("first", "second")
    names = ("first", "second", "exponential", *pair, *slope_names)
    first, second, exponential, paired, paired_second, *slopes = (
        group.dataset[name].to_numpy()[:, finite].astype(np.float64) for name in names
    )
    num_blocks, num_chains = first.shape[:2]
    groups = num_blocks * num_chains
    return _Moments(
        first=first.reshape(groups, -1),
        second=second.reshape(groups, -1),
        exponential=exponential.reshape(groups, -1),
        paired=paired.reshape(groups, -1),
        paired_second=paired_second.reshape(groups, -1),
        slopes=np.stack([slope.reshape(groups, -1) for slope in slopes]) if slopes else None,
        weights=np.repeat(group.dataset["num_draws"].to_numpy().astype(float), num_chains),
        chains=np.tile(np.flatnonzero(finite), num_blocks),
    )


def _subset_variance(draws: xr.DataTree) -> float:
    """Variance that a subset of m of n examples adds to Var[L(w)]: (1 − m/n)/m of the spread within examples."""
    share = constant(draws, "eval_size") / constant(draws, "num_data")
    moments = _moments(draws)
    if share >= 1 or moments is None:
        return 0.0
    first = np.average(moments.paired, axis=0, weights=moments.weights)
    second = np.average(moments.paired_second, axis=0, weights=moments.weights)
    loss = variable(draws, "posterior", "loss")
    within = np.mean(second - first**2) - loss[finite_chains(loss)].var()
    return float(max(within, 0.0) / len(first) * (1 - share))


def _of_moments(method, draws, statistic) -> Estimate | None:
    """A statistic of the pooled moments, with a delete-one-group jackknife error."""
    moments = _moments(draws)
    if moments is None or "example" not in draws["pointwise"].dims:
        return None

    def pooled(weights):
        arrays = moments.first, moments.second, moments.exponential
        return statistic(*(np.average(x, axis=0, weights=weights) for x in arrays))

    groups = np.arange(len(moments.weights))
    error = np.inf
    if len(groups) > 1:
        left_out = np.array([pooled(moments.weights * (groups != g)) for g in groups])
        error = np.sqrt((len(groups) - 1) * np.var(left_out))
    num_chains = draws["posterior"].sizes["chain"]
    per_chain = [
        float(pooled(moments.weights * (moments.chains == c))) if (moments.chains == c).any() else np.nan
        for c in range(num_chains)
    ]
    return Estimate(method, float(pooled(moments.weights)), float(error), tuple(per_chain), np.nan, np.nan)
