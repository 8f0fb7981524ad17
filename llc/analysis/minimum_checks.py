"""Checks of kind "minimum": whether w* is a minimum with the loss L(w*), by the draws and by the geometry."""

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.cause import Cause
from llc.analysis.check import MAX_BIAS, Check, make_check
from llc.analysis.estimators import Estimate
from llc.analysis.pointwise import Moments, subset_stderr
from llc.analysis.schema import constant, variable
from llc.analysis.series import finite_chains
from llc.analysis.slope import Slope, slope_check, slope_of
from llc.bounds.assumptions import Assumption
from llc.bounds.rank import Bounds
from llc.bounds.shrinkage import shrink
from llc.bounds.spectral_measure import Spectrum

_CURES = {
    "step": "lower step_size until λ̂ no longer changes",
    "mixing": "take more draws and warm-up",
    "shape": "",
    None: "the energy is not Gamma-distributed: the chains have not mixed, L(w*) is wrong, or the chains sample "
    "another basin; look at the trace (llc.plot_trace)",
}
_SHAPE_GAP = 0.10  # of λ̂: mean and variance differ by at most 7 % in every exact finite-n case of docs/theory.md, §2


def minimum_checks(
    draws: xr.DataTree,
    best: Estimate,
    mean: Estimate,
    variance: Estimate,
    bounds: Bounds | None,
    spectrum: Spectrum | None,
    moments: Moments | None,
    cause: Cause,
) -> tuple[Check, ...]:
    """The checks of w*: of the energies of the draws, and of the bounds' assumptions on gradient and curvature.

    Args:
        draws: of one run.
        best: λ̂ as the report has it.
        mean: the mean energy, another estimate of λ̂.
        variance: the energy variance.
        bounds: on the asymptotic λ, if the geometry is known.
        spectrum: of the Hessian, if known.
        moments: of `moments_of(draws)`.
        cause: of energies that are not Gamma-distributed.
    """
    assumed = () if bounds is None else tuple(assumption_check(a) for a in bounds.assumptions if a.kind == "minimum")
    slope = slope_of(draws, spectrum)
    sloping = slope_check(slope, best)
    return (
        _positive(mean),
        _lower_loss(draws, mean, moments),
        _mean_variance(draws, mean, variance, spectrum, cause, slope),
        *assumed,
        *(() if sloping is None else (sloping,)),
    )


def assumption_check(assumption: Assumption) -> Check:
    """An assumption of the bounds, as a check of the assumption's kind."""
    cure = "the bounds do not hold here" + ("; train w* to a sharper minimum" if assumption.kind == "minimum" else "")
    return make_check(
        assumption.name.replace(" ", "_"),
        assumption.kind,
        float(not assumption.holds),
        0,
        passed=assumption.holds,
        seen=assumption.message,
        cure=cure,
    )


def _positive(mean: Estimate) -> Check:
    return make_check(
        "positive",
        "minimum",
        mean.value,
        0,
        passed=mean.value >= 0,
        seen=f"the mean energy is {mean.value:.4g}",
        cure="the draws have lower losses than w* on average, so w* is no minimum of this loss on these data; train "
        "further",
        direction="cold",
    )


def _lower_loss(draws: xr.DataTree, mean: Estimate, moments: Moments | None) -> Check:
    energy = variable(draws, schema.POSTERIOR, schema.ENERGY)
    finite = energy[finite_chains(energy)]
    deficit = max(0.0, -float(finite.min())) if finite.size else np.nan
    noise = constant(draws, schema.NBETA) * subset_stderr(draws, moments=moments)
    threshold = MAX_BIAS * abs(mean.value) + 3 * noise
    return make_check(
        "lower_loss",
        "minimum",
        deficit,
        threshold,
        passed=deficit <= threshold,
        seen=f"the lowest draw lies {deficit:.2g} below L(w*), in units of nβ·loss",
        cure="w* is no minimum, and λ̂ is too low by at least that much; train further, to a smaller gradient",
        direction="cold",
    )


def _mean_variance(
    draws: xr.DataTree,
    mean: Estimate,
    variance: Estimate,
    spectrum: Spectrum | None,
    cause: Cause,
    slope: Slope | None,
) -> Check:
    # The localization lowers the Gaussian parts differently: ½ Σ p in the mean, ½ Σ p² in the variance, p = h / (h +
    # γ/nβ).
    expected = 0.0
    if spectrum is not None:
        scale = schema.localization_scale(draws)
        expected = spectrum.quad(scale) - spectrum.sum(lambda h: 2 * shrink(h, scale) ** 2)
    of_slope = 0.0 if slope is None else slope.energy + slope.variance  # a slope lowers the mean and adds variance
    if slope is not None and slope.is_known:
        expected, of_slope = expected - of_slope, 0.0
    gap = mean.value - variance.value - expected
    # Errors as they would be under a Gamma law of shape λ: those of the draws grow with the outliers to be caught.
    shape = max(mean.value, 0.0)
    error = np.hypot(mean.mcse, np.sqrt((2 * shape**2 + 6 * shape) / max(variance.ess, 1.0)))
    threshold = 3 * error + _SHAPE_GAP * abs(mean.value) + of_slope
    if spectrum is None:
        threshold += mean.value  # without a spectrum, the localization may take all of the variance
    like_gamma = abs(gap) <= threshold
    return make_check(
        "mean_variance",
        "minimum",
        gap,
        threshold,
        passed=like_gamma or cause.name == "shape",
        seen=f"mean energy {mean.value:.3g}, energy variance {variance.value:.3g}; {expected:.2g} of the difference is "
        f"explained by γ{'' if like_gamma else f'; {cause.seen}'}",
        cure=_CURES[cause.name],
        direction="hot" if gap < 0 else None,
        told_by_half_step=True,
    )
