"""Why a run's energies are not what was expected of them: the step, the mixing, or the shape of the posterior itself.

Mean and variance of the energy are equal under a Gamma law, which holds where the loss is quadratic or homogeneous. A
posterior far from that has another law, and nothing is wrong with its draws. A run at half the step tells the cases
apart: a step that is too large heats less there, chains that have not mixed disagree, and a shape stays.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.check import MAX_BIAS
from llc.analysis.estimators import Estimate, energy_variance, mean_energy
from llc.analysis.schema import SAMPLE_STATS, variable
from llc.analysis.series import finite_chains

_SIGMAS = 3
_MAX_RHAT = 1.05  # of chains that agree: that of the check `rhat`
_LIKE = 0.25  # of the variance of the energy, that two runs of one law may differ by beside their errors (set by eye)


@dataclass(frozen=True)
class Cause:
    """What a failed check of the energies comes from.

    Attributes:
        name: "step" if λ̂ falls at half the step, "mixing" if the chains disagree, "shape" if neither is so and the
            energies have the same mean and variance at half the step; None where there is no such run.
        seen: the evidence, a sentence without a full stop.
    """

    name: Literal["step", "mixing", "shape"] | None
    seen: str


def cause_of(draws: xr.DataTree, mean: Estimate, variance: Estimate) -> Cause:
    """The cause of energies that are not Gamma-distributed, or of a virial ratio that is not 1.

    Args:
        draws: of one run; with a run at half the step, the step and the shape can be told.
        mean: the mean energy λ̂.
        variance: the energy variance.
    """
    if not mean.rhat <= _MAX_RHAT:
        return Cause("mixing", f"the chains disagree, with an R-hat of {mean.rhat:.2f}")
    half = schema.half_step_run(draws)
    if half is None:
        return Cause(None, "a run at half the step size would show whether the step size is the cause")
    other, spread = mean_energy(half), energy_variance(half)
    change, error = mean.value - other.value, math.hypot(mean.mcse, other.mcse)
    seen = (
        f"at half the step size λ̂ is {other.value:.3g} instead of {mean.value:.3g}, with an energy variance of "
        f"{spread.value:.3g}"
    )
    if not (math.isfinite(error) and math.isfinite(spread.value)):
        return Cause(None, f"{seen}, which is not finite and can't be compared")
    if change > max(_SIGMAS * error, MAX_BIAS * abs(mean.value)):
        return Cause("step", f"{seen}, so the step size heats the chains")
    if not other.rhat <= _MAX_RHAT or change < -_SIGMAS * error - MAX_BIAS * abs(mean.value):
        return Cause("mixing", f"{seen}, so the chains have not mixed")
    allowed = _LIKE * abs(variance.value) + _SIGMAS * math.hypot(variance.mcse, spread.mcse)
    if abs(variance.value - spread.value) > allowed:
        return Cause(None, f"{seen}, so rare energies dominate the variance")
    return Cause("shape", f"{seen}, so the cause is the shape of the posterior")


def virial_at_half_step(draws: xr.DataTree) -> float:
    """x·∇U/d of the run at half the step; nan where there is none."""
    half = schema.half_step_run(draws)
    if half is None:
        return math.nan
    virial = variable(half, SAMPLE_STATS, schema.VIRIAL)
    finite = virial[finite_chains(virial)]
    return float(np.mean(finite)) if finite.size else math.nan
