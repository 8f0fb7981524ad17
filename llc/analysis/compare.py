"""The difference of two λ̂, with its own error.

Two runs by the same key have the same noise and, on the same data, the same minibatches: their chains move alike, and
the difference of a pair of draws varies far less than either of them (common random numbers). Its error comes from the
series of differences, by chains and effective draws as that of λ̂. Runs by different keys are independent, and their
errors add up in quadrature.
"""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema
from llc.analysis.estimators import Estimate, best_energy, energy_series
from llc.analysis.series import effective_sample_size, finite_chains, monte_carlo_error, plus_minus

_SAME = 1e-6  # relative difference of two nβ or γ that are one scale


@dataclass(frozen=True)
class Comparison:
    """λ̂ of a second run less that of a first one.

    Attributes:
        value: the difference, second − first.
        mcse: its standard error.
        first: λ̂ of the first run.
        second: λ̂ of the second run.
        scales: (nβ, γ) of the two.
        paired: whether draws were paired, as of runs by the same key.
        correlation: of the paired draws; 0 where they are not paired.
        num_params: numbers of parameters that move in the two.
    """

    value: float
    mcse: float
    first: Estimate
    second: Estimate
    scales: tuple[tuple[float, float], tuple[float, float]]
    paired: bool
    correlation: float
    num_params: tuple[int, int]

    @property
    def same_scale(self) -> bool:
        """Whether both were made at the same nβ and γ, without which the difference says nothing of the models."""
        return all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(*self.scales, strict=True))

    def __str__(self) -> str:
        (nbeta, gamma), other = self.scales
        rows = [("λ̂ of the first", self.first), ("λ̂ of the second", self.second)]
        lines = [f"{name:<18} {plus_minus(x.value, x.mcse):<20} {x.method}" for name, x in rows]
        how = "independent runs, errors in quadrature"
        if self.paired:
            how = f"paired draws of one key, correlation {self.correlation:.2f}"
        lines.insert(0, f"{'difference':<18} {plus_minus(self.value, self.mcse):<20} second − first, {how}")
        if self.same_scale:
            lines.append(f"{'scale':<18} the same: nβ = {nbeta:.6g}, γ = {gamma:.6g}")
        else:
            lines.append(
                f"{'scale':<18} NOT the same: nβ = {nbeta:.6g}, γ = {gamma:.6g} against nβ = {other[0]:.6g}, "
                f"γ = {other[1]:.6g}, so that the difference is one of scales too; run the second again at the "
                "first's (llc.estimate(…, like=report), or --nbeta and --gamma)"
            )
        if self.num_params[0] != self.num_params[1]:
            one, two = self.num_params
            lines.append(f"{'parameters':<18} {one:,} move in the first, {two:,} in the second")
        return "\n".join(lines)


def compare(first: xr.DataTree, second: xr.DataTree) -> Comparison:
    """λ̂ of `second` less that of `first`, its standard error, and whether both were made at the same scale.

    Args:
        first: draws of `llc.sample`, `llc.load`, or the `draws` of a report or of a sweep.
        second: the same of another run. Draws by the same key and of the same lengths are paired: chains of two
            checkpoints of one model then have common random numbers.

    Raises:
        ValueError: if `first` or `second` lacks what `llc.sample` writes.

    Example:
        `print(llc.compare(llc.load("a.nc"), llc.load("b.nc")))`, or `llc compare a.nc b.nc`.
    """
    schema.require(first)
    schema.require(second)
    estimates = best_energy(first), best_energy(second)
    series = energy_series(first), energy_series(second)
    finite = finite_chains(series[0])
    paired = first.attrs.get("seed") == second.attrs.get("seed") is not None and series[0].shape == series[1].shape
    paired = paired and bool(finite.any() and np.array_equal(finite, finite_chains(series[1])))
    correlation, mcse = 0.0, math.hypot(*(x.mcse for x in estimates))
    if paired:
        correlation = _correlation(series[0][finite], series[1][finite])
        # What an estimate's error has beside that of its draws: of evaluation rows, rounding, fitted coefficients.
        others = (_beside(x, y) for x, y in zip(estimates, series, strict=True))
        mcse = math.hypot(_paired_error(series[1] - series[0]), *others)
    scales = tuple((schema.constant(x, schema.NBETA), schema.constant(x, schema.GAMMA)) for x in (first, second))
    return Comparison(
        value=estimates[1].value - estimates[0].value,
        mcse=mcse,
        first=estimates[0],
        second=estimates[1],
        scales=(scales[0], scales[1]),
        paired=paired,
        correlation=correlation,
        num_params=(int(schema.constant(first, schema.NUM_PARAMS)), int(schema.constant(second, schema.NUM_PARAMS))),
    )


def _beside(estimate: Estimate, series: Float[np.ndarray, "chain draw"]) -> float:
    """The part of an estimate's error that is not that of its series; 0 where that is infinite."""
    own = monte_carlo_error(series)
    return math.sqrt(max(estimate.mcse**2 - own**2, 0.0)) if math.isfinite(own) else 0.0


def _paired_error(differences: Float[np.ndarray, "chain draw"]) -> float:
    """Standard error of their mean over finite chains; 0 of runs that are the same."""
    finite = differences[finite_chains(differences)]
    if finite.size and np.ptp(finite) == 0:
        return 0.0
    return monte_carlo_error(finite) if effective_sample_size(finite) > 0 else math.inf


def _correlation(first: Float[np.ndarray, "chain draw"], second: Float[np.ndarray, "chain draw"]) -> float:
    """Of paired draws, each less the mean of its run."""
    x, y = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else 0.0
