"""From draws to a report: estimates, λ_corr, checks and verdict, in that order.

The raw λ̂(nβ, γ) belongs beside λ_quad at the same scale; only the γ-corrected λ_corr, in which every counted
direction has its full ½, is compared with the bounds of the asymptotic λ:

    λ_corr = λ̂ + ½ Σ_counted (γ/nβ) / (h + γ/nβ).

What it lacks are the directions without curvature, which still gain as γ falls. A second run at a larger γ shows them:
λ_corr is accepted as a value of λ where it moves by less than 2 % between the two, unless all of it is r/2. Then the
localization may be so strong that at both γ only the curved directions show (λ_corr is up to 63 % too low so in
validation/results/deep_linear.txt), and only bounds that meet tell more.
"""

import math
from dataclasses import replace

import numpy as np
import xarray as xr

from llc.analysis import schema, validation
from llc.analysis.bound_checks import bound_checks
from llc.analysis.cause import cause_of
from llc.analysis.chain_checks import chain_checks
from llc.analysis.character import character_checks, character_of
from llc.analysis.check import Check, make_check
from llc.analysis.criteria import singular_fluctuation, waic
from llc.analysis.estimators import (
    Estimate,
    best_energy,
    energy_variance,
    mean_energy,
    wbic,
)
from llc.analysis.minimum_checks import minimum_checks
from llc.analysis.pointwise import moments_of
from llc.analysis.report import Report
from llc.analysis.verdict import Findings, judge
from llc.bounds.rank import Bounds
from llc.bounds.spectral_measure import Spectrum


def assemble(draws: xr.DataTree, *, bounds: Bounds | None = None, spectrum: Spectrum | None = None) -> Report:
    """Report on `draws`, checked against the bounds as far as the geometry is given.

    Args:
        draws: of `llc.sample`, or read from a file.
        bounds: on the asymptotic λ, best made at the scale of the draws.
        spectrum: that the bounds were made from. Without it λ_corr needs bounds at the scale of the draws.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes.
    """
    validation.require(draws)
    moments = moments_of(draws)
    mean, variance = mean_energy(draws, moments=moments), energy_variance(draws, moments=moments)
    best = best_energy(draws, moments=moments)
    others = [
        *(() if best.method == mean.method else (mean,)),
        variance,
        *(estimator(draws, moments=moments) for estimator in (wbic, singular_fluctuation, waic)),
    ]
    corrected = None if bounds is None else _corrected(best, bounds, spectrum, schema.localization_scale(draws))
    sensitivity = _gamma_sensitivity(draws, corrected, bounds, spectrum)
    quad = None if spectrum is None else spectrum.quad(schema.localization_scale(draws))
    character = character_of(draws, mean, variance, quad)
    cause = cause_of(draws, mean, variance)
    checks = (
        *chain_checks(draws, mean, spectrum, moments, cause),
        *minimum_checks(draws, best, mean, variance, bounds, spectrum, moments, cause),
        *bound_checks(
            draws, mean, bounds, spectrum, corrected or best, corrected=corrected is not None, sensitivity=sensitivity
        ),
        *character_checks(draws, character),
    )
    checks += tuple(_finite(estimate) for estimate in others if estimate is not None and not _is_finite(estimate))
    judgement = judge(Findings(best, corrected, bounds, checks, sensitivity, character))
    return Report(
        estimates=(best, *(estimate for estimate in others if estimate is not None)),
        corrected=corrected,
        bounds=bounds,
        checks=checks,
        settings=schema.settings_of(draws),
        verdict=judgement.verdict,
        reason=judgement.reason,
        draws=draws,
        spectrum=spectrum,
        gamma_sensitivity=sensitivity,
        character=character,
    )


def _is_finite(estimate: Estimate) -> bool:
    return math.isfinite(estimate.value) and math.isfinite(estimate.mcse)


def _finite(estimate: Estimate) -> Check:
    """A check that fails, of an estimate beside λ̂ that is not finite."""
    return make_check(
        estimate.method.replace(" ", "_").lower(),
        "estimates",
        estimate.value,
        np.nan,
        passed=False,
        seen=f"{estimate.method} is {estimate.value:.4g} ± {estimate.mcse:.2g}",
        cure="it can't be used: either the loss of some example differs from that at w* by more than exp(−ℓ) can "
        "represent (88 nats in float32; divide the loss by its scale), or there are too few draws or rows",
    )


def _corrected(mean: Estimate, bounds: Bounds, spectrum: Spectrum | None, scale: float) -> Estimate | None:
    """λ_corr, with the full ½ for the r_lo directions of largest curvature; None where that can't be computed.

    Args:
        mean: λ̂.
        bounds: their rank says how many directions count.
        spectrum: has the curvature of each; without it, bounds at the same scale have the sum if the rank is unique.
        scale: γ/nβ of the draws.
    """
    if spectrum is not None:
        hidden = _hidden(bounds, spectrum)
    elif bounds.rank_interval[0] == 0:
        hidden = 0.0
    elif bounds.rank_is_unique and math.isclose(bounds.localization_scale, scale, rel_tol=1e-6):
        hidden = bounds.rank / 2 - bounds.quad
    else:
        return None
    return replace(
        mean,
        method="corrected" if hidden else mean.method,
        value=mean.value + hidden,
        mcse=math.hypot(mean.mcse, bounds.quad_stderr),
        per_chain=tuple(value + hidden for value in mean.per_chain),
    )


def _hidden(bounds: Bounds, spectrum: Spectrum) -> float:
    """½ Σ (γ/nβ) / (h + γ/nβ) over the r_lo directions of largest curvature, which localization keeps from λ̂."""
    scale, rank = bounds.localization_scale, bounds.rank_interval[0]
    if not (scale > 0 and rank > 0):
        return 0.0
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel() / len(spectrum.nodes)
    order = np.argsort(-nodes)
    counted = np.diff(np.minimum(np.cumsum(weights[order]), rank), prepend=0.0)
    return float(np.sum(counted * 0.5 * scale / (np.maximum(nodes[order], 0.0) + scale)))


def _gamma_sensitivity(
    draws: xr.DataTree, corrected: Estimate | None, bounds: Bounds | None, spectrum: Spectrum | None
) -> Estimate | None:
    """λ_corr less that of the run at a larger γ; the error of the trace estimate is common to both, and left out."""
    localized = schema.localized_run(draws)
    if localized is None or corrected is None or bounds is None or spectrum is None:
        return None
    scale = schema.localization_scale(localized)
    other = _corrected(best_energy(localized), replace(bounds, localization_scale=scale), spectrum, scale)
    if other is None:
        return None
    errors = (math.sqrt(max(x.mcse**2 - bounds.quad_stderr**2, 0.0)) for x in (corrected, other))
    return replace(
        other, method="gamma sensitivity", value=corrected.value - other.value, mcse=math.hypot(*errors), per_chain=()
    )
