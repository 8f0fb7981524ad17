"""The difference of two λ̂, with its own error.

Two runs by the same key have the same noise and, on the same data, the same minibatches: their chains move alike, and
the difference of a pair of draws varies far less than either of them (common random numbers). Its error comes from the
series of differences, by chains and effective draws as that of λ̂, less the control variates of both, fitted to the
differences: the result may differ from that of the two λ̂ by a part of their errors. Where the steps between draws have
energies, those are paired. Runs by different keys are independent, and their errors add up in quadrature.
"""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema, validation
from llc.analysis.estimators import Estimate, best_energy, energy_and_controls, loss_rounding, with_controls
from llc.analysis.pointwise import subset_stderr
from llc.analysis.series import finite_chains, plus_minus
from llc.posterior.arguments import require_type

_SAME = 1e-6  # relative difference of two nβ or γ that are one scale


@dataclass(frozen=True)
class Comparison:
    """λ̂ of a second run less that of a first one.

    Attributes:
        value: the difference, second − first, of paired draws where there are such, else of the two λ̂.
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
                f"γ = {other[1]:.6g}, so the difference mixes models and scales; run the second again at the "
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
    for name, draws in (("first", first), ("second", second)):
        require_type(name, draws, xr.DataTree, "draws of llc.sample or llc.load")
        validation.require(draws)
    estimates = best_energy(first), best_energy(second)
    found = _paired(first, second)
    scales = tuple((schema.constant(x, schema.NBETA), schema.constant(x, schema.GAMMA)) for x in (first, second))
    independent = estimates[1].value - estimates[0].value, math.hypot(*(x.mcse for x in estimates)), 0.0
    value, mcse, correlation = independent if found is None else found
    return Comparison(
        value=value,
        mcse=mcse,
        first=estimates[0],
        second=estimates[1],
        scales=(scales[0], scales[1]),
        paired=found is not None,
        correlation=correlation,
        num_params=(int(schema.constant(first, schema.NUM_PARAMS)), int(schema.constant(second, schema.NUM_PARAMS))),
    )


def _paired(first: xr.DataTree, second: xr.DataTree) -> tuple[float, float, float] | None:
    """Difference, error and correlation of paired draws; None where draws are not paired, or not all finite."""
    seeds = [draws.attrs.get("seed") for draws in (first, second)]
    energies, controls = zip(*(energy_and_controls(draws) for draws in (first, second)), strict=True)
    if seeds[0] is None or seeds[0] != seeds[1] or energies[0].shape != energies[1].shape:
        return None
    finite = [finite_chains(x) & np.isfinite(c).all(axis=(1, 2)) for x, c in zip(energies, controls, strict=True)]
    if not finite[0].any() or not np.array_equal(*finite):
        return None
    energies = [x[finite[0]] for x in energies]
    differences = energies[1] - energies[0]
    both = _alternating(*(x[finite[0]] for x in controls))
    value, mcse = float(differences.mean()), 0.0
    if np.ptp(differences) > 0:  # else the runs are the same
        value, mcse = with_controls(differences, both)
    # Errors of evaluation rows and of rounding are not those of draws.
    others = (
        schema.constant(draws, schema.NBETA) * math.hypot(subset_stderr(draws), loss_rounding(draws))
        for draws in (first, second)
    )
    return value, math.hypot(mcse, *others), _correlation(*energies)


def _alternating(
    first: Float[np.ndarray, "chain draw one"], second: Float[np.ndarray, "chain draw other"]
) -> Float[np.ndarray, "chain draw control"]:
    """Control variates of both runs, the most useful of each first."""
    order = np.argsort(np.concatenate([np.arange(first.shape[-1]), np.arange(second.shape[-1])]), kind="stable")
    return np.concatenate([first, second], axis=-1)[..., order]


def _correlation(first: Float[np.ndarray, "chain draw"], second: Float[np.ndarray, "chain draw"]) -> float:
    """Of paired draws, each less the mean of its run."""
    x, y = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else 0.0
