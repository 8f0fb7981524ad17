"""Checks of kinds "bounds" and "scale": whether the bounds hold, contain the estimate, and are comparable with it."""

import math
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.advice import larger_batch, was_chosen
from llc.analysis.check import MAX_BIAS, Check, make_check
from llc.analysis.estimators import Estimate
from llc.analysis.minimum_checks import assumption_check
from llc.analysis.schema import constant
from llc.bounds.rank import Bounds
from llc.bounds.spectral_measure import Spectrum

_MIN_SHARE = 0.5  # of r/2 in λ_quad; below it λ_corr is more extrapolated than measured
# Of the gradient's change: ReLU networks of 56 and 84 parameters have .003 to .04, ReLU transformer layers .22 and .30.
_MAX_KINKS = 0.1
_MOST_HALVINGS = 60  # of γ that are tried
_EXACT = ("NUTS", "HMC", "MALA")  # samplers with an accept step, which have no bias of the step
_FEW_DATA = 100  # below it terms of finite n are not small beside what is allowed (set by eye; 30 % at n = 15)
_FINITE_TERM = 1.0  # of λ / log t, what E[nβK] may differ from λ at finite t = nβ (set by eye)


@dataclass(frozen=True)
class Allowance:
    """By how much an estimate may lie outside of the bounds.

    The 2 % stay where the change with γ has been measured too: they are also what the checks of the chains let pass as
    bias of the step. (Of the 43 deep linear networks whose λ_corr is known to be right within 2 % plus three standard
    errors and which had a second run, 41 lie within what λ_corr moves plus three standard errors.)

    Attributes:
        bias: 2 % of the bound.
        noise: three standard errors.
        moved: change of λ_corr from a larger γ, where it is significant: as much may still be missing.
        finite: bound / log nβ where n is below 100, and 0 from there on. E[nβK] = λ − (m − 1)/log nβ + O(1/nβ) reaches
            λ as slowly as that, and the bounds are those of the limit.
    """

    bias: float
    noise: float
    moved: float
    finite: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.bias + self.noise + self.moved + self.finite

    def __str__(self) -> str:
        moved = f" + {self.moved:.2g} (its change with γ)" if self.moved else ""
        finite = f" + {self.finite:.2g} (terms of finite n, of order 1/log nβ)" if self.finite else ""
        return f"2 % + 3 standard errors{moved}{finite}"


def bound_checks(
    draws: xr.DataTree,
    mean: Estimate,
    bounds: Bounds | None,
    spectrum: Spectrum | None,
    compared: Estimate,
    *,
    corrected: bool,
    sensitivity: Estimate | None,
) -> tuple[Check, ...]:
    """The checks of bounds, and of the estimate against them.

    Args:
        draws: of one run.
        mean: the mean energy λ̂.
        bounds: on the asymptotic λ, if the geometry is known.
        spectrum: of the Hessian, if known.
        compared: what is compared with the bounds: λ_corr, or λ̂ where it could not be corrected.
        corrected: whether `compared` is λ_corr; if not, it is compared with the upper side only, since λ̂ lacks what
            the localization suppresses.
        sensitivity: the change of λ_corr from a larger γ.
    """
    checks = [] if spectrum is None else [_resolution(draws, spectrum), _kinks(spectrum)]
    if bounds is not None:
        checks += [assumption_check(a) for a in bounds.assumptions if a.kind != "minimum"]
        if corrected:  # of the curvature at w*, whether bounds follow from it or not
            cure = _localization_cure(draws, bounds, spectrum)
            checks.append(_localization(bounds, mean, compared, sensitivity, cure))
        if bounds.valid:
            if corrected:
                checks.append(_below(draws, compared, bounds, sensitivity))
            checks.append(_above(draws, compared, bounds, sensitivity, spectrum))
    return tuple(check for check in checks if check is not None)


def allowance(bound: float, compared: Estimate, sensitivity: Estimate | None) -> Allowance:
    """By how much `compared` may lie outside of `bound`."""
    return Allowance(MAX_BIAS * bound, 3 * compared.mcse, abs(_moved(sensitivity)))


def _moved(sensitivity: Estimate | None) -> float:
    """The change of λ_corr from a larger γ; 0 where it is not significant or not known."""
    significant = sensitivity is not None and abs(sensitivity.value) > 2 * sensitivity.mcse
    return sensitivity.value if sensitivity is not None and significant else 0.0


def _resolution(draws: xr.DataTree, spectrum: Spectrum) -> Check | None:
    if spectrum.exact:
        return None
    scale = schema.localization_scale(draws)
    steps = spectrum.nodes.shape[1]
    return make_check(
        "spectrum_resolution",
        "bounds",
        steps,
        np.nan,
        passed=spectrum.resolves(scale),
        seen=f"{steps} Lanczos steps for γ/nβ = {scale:.2g} and h_max = {spectrum.largest:.2g}",
        cure="the spectrum is not resolved at γ/nβ, so λ_quad may be wrong; raise num_matvecs, or gamma",
    )


def _localization_cure(draws: xr.DataTree, bounds: Bounds, spectrum: Spectrum | None) -> str:
    """What to do about a localization that hides most of λ: a γ that was chosen is not to be lowered."""
    hidden = "localization suppresses most of λ, and λ_corr is more extrapolated than measured; "
    if not was_chosen(draws):
        gamma = constant(draws, schema.GAMMA)
        factor = _weaker(bounds, spectrum)
        return f"{hidden}take gamma = {gamma / factor:.2g} and {factor} times the steps"
    return hidden + _chosen_gamma(draws)


def _weaker(bounds: Bounds, spectrum: Spectrum | None) -> int:
    """By which power of two γ has to be smaller for half of r/2 to be seen; 2 where the spectrum doesn't tell."""
    if spectrum is None or not (bounds.rank_is_unique and bounds.rank > 0):
        return 2
    for k in range(1, _MOST_HALVINGS):
        if 2 * spectrum.quad(bounds.localization_scale / 2**k) / bounds.rank >= _MIN_SHARE:
            return 2**k
    return 2


def _kinks(spectrum: Spectrum) -> Check | None:
    """Whether the curvature around w* is that of the Hessian at w*, which leaves kinks out."""
    share = math.nan if spectrum.smoothness is None else spectrum.smoothness.kinks
    if math.isnan(share):
        return None
    return make_check(
        "kinks",
        "scale",
        share,
        _MAX_KINKS,
        passed=share <= _MAX_KINKS,
        seen=f"{share:.0%} of the change of the gradient around w* sits in kinks, which the Hessian at w* leaves out",
        cure="the chains cross kinks (ReLU), or the loss is smooth but far from quadratic (the check can't distinguish "
        "the two); λ_quad, the rank and λ_corr may be off by that share, λ̂ is not: compare λ̂ at the same nβ and γ",
    )


def _chosen_gamma(draws: xr.DataTree) -> str:
    """What can be done instead of lowering a γ that calibration chose as the weakest."""
    gamma = constant(draws, schema.GAMMA)
    alike = "compare λ̂ with others at the same scale (`llc.estimate(…, like=report)`)"
    if draws.attrs.get(schema.GAMMA_ORIGIN) == "run length":
        return f"γ = {gamma:.4g} is the weakest that a run of this length allows; take more steps, or {alike}"
    if draws.attrs.get(schema.GAMMA_ORIGIN) == "nearest to quadratic":
        return f"the loss is not quadratic at any γ, and closest to it at γ = {gamma:.4g}; {alike}"
    if draws.attrs.get(schema.GAMMA_ORIGIN) == "sweep":
        return f"γ = {gamma:.4g} is the weakest at which the loss is about quadratic at all items of the sweep; {alike}"
    return f"γ = {gamma:.4g} is the weakest at which the loss is about quadratic; {alike}"


def _localization(
    bounds: Bounds, mean: Estimate, corrected: Estimate, sensitivity: Estimate | None, cure: str
) -> Check | None:
    if bounds.localization_scale == 0:
        return None
    at = f"at γ/nβ = {bounds.localization_scale:.2g}"
    if bounds.rank_is_unique and bounds.rank > 0:
        share = 2 * bounds.quad / bounds.rank
        seen = f"{at} λ_quad is {share:.0%} of r/2"
        return _scale_check(share, _MIN_SHARE, share >= _MIN_SHARE, seen, cure)
    if not corrected.value > 0:
        return None
    # Without one rank to compare with: λ̂ against λ_corr, which adds what the localization hides of the r_lo sure
    # directions.
    shown, error = mean.value / corrected.value, 2 * mean.mcse / corrected.value
    if sensitivity is None or shown + error < _MIN_SHARE:
        seen = f"{at} λ̂ is {shown:.0%} of the estimate of λ"
        return _scale_check(shown, _MIN_SHARE, shown + error >= _MIN_SHARE, seen, cure)
    # The others, with none added: directions of one curvature h that show a share p = h / (h + γ/nβ) at γ lose
    # 2 (1 − p) / (3 − 2p) of it at 3γ, a half at p = 1/2.
    moved = sensitivity.value / corrected.value
    most = 2 * (1 - _MIN_SHARE) / (3 - 2 * _MIN_SHARE)
    passed = moved - 2 * sensitivity.mcse / corrected.value <= most
    return _scale_check(moved, most, passed, f"at the larger γ the estimate of λ is {moved:.0%} smaller", cure)


def _scale_check(value: float, threshold: float, passed: bool, seen: str, cure: str) -> Check:  # noqa: FBT001
    return make_check("localization", "scale", value, threshold, passed=passed, seen=seen, cure=cure)


def _below(draws: xr.DataTree, compared: Estimate, bounds: Bounds, sensitivity: Estimate | None) -> Check:
    allowed = allowance(bounds.lower, compared, sensitivity)
    least = bounds.lower - allowed.total
    return make_check(
        "below_bounds",
        "bounds",
        compared.value,
        least,
        passed=compared.value >= least,
        seen=f"{compared.value:.4g} against λ ≥ {bounds.lower:.4g}, less {allowed}",
        cure=f"the estimate is too low: {_too_low(draws, sensitivity)}",
        direction="cold",
    )


def _too_low(draws: xr.DataTree, sensitivity: Estimate | None) -> str:
    """The causes that are left, with what to do; the run at 3γ tells on which side γ is wrong."""
    causes = ["the chains have not mixed (take more draws)"]
    gamma, moved = constant(draws, schema.GAMMA), _moved(sensitivity)
    if moved > 0:
        given = not was_chosen(draws)
        cure = f"take gamma = {gamma / 3:.2g} and 3 times the steps" if given else _chosen_gamma(draws)
        causes.append(f"localization suppresses flat directions, as λ_corr is {moved:.2g} lower at 3γ ({cure})")
    elif moved < 0:
        seen = f"λ_corr is {-moved:.2g} higher at 3γ"
        causes.append(f"chains reach parameters of smaller λ, as {seen} (take gamma = {3 * gamma:.3g})")
    elif sensitivity is None:
        causes.append("γ is too strong or too weak (llc.estimate finds out by a run at 3γ)")
    causes.append("the rank is too high because w* is an imperfect minimum (train further, or llc.polish)")
    return f"{'; '.join(causes[:-1])}; or {causes[-1]}"


def _above(
    draws: xr.DataTree,
    compared: Estimate,
    bounds: Bounds,
    sensitivity: Estimate | None,
    spectrum: Spectrum | None,
) -> Check:
    allowed = replace(allowance(bounds.upper, compared, sensitivity), finite=_finite_term(draws, bounds.upper))
    most = bounds.upper + allowed.total
    return make_check(
        "above_bounds",
        "bounds",
        compared.value,
        most,
        passed=compared.value <= most,
        seen=f"{compared.value:.4g} against λ ≤ {bounds.upper:.4g}, plus {allowed}",
        cure=f"the estimate is too high: {_too_high(draws, spectrum)}",
        direction="hot",
    )


def _too_high(draws: xr.DataTree, spectrum: Spectrum | None) -> str:
    """The causes that this run can have, with what to do: none is heated by a step that is accepted or rejected."""
    settings, num_data = schema.settings_of(draws), constant(draws, schema.NUM_DATA)
    sampler, causes = settings["sampler"], []
    if num_data < _FEW_DATA:
        causes.append(f"terms of finite n, which are large at n = {num_data:.0f} (the bounds are those of n → ∞)")
    if spectrum is not None and (kinks := _kinks(spectrum)) is not None and not kinks.passed:
        causes.append("curvature around w* (kinks of a ReLU) that the Hessian at w* does not have")
    if sampler["name"] not in _EXACT:
        step_size = sampler.get("step_size")
        causes.append(
            f"heating by the step (take step_size = {step_size / 2:.2g})"
            if isinstance(step_size, (int, float))
            else "heating by the step (lower step_size)"
        )
        if settings.get("batch_size", num_data) < num_data:
            causes.append(f"heating by minibatches ({larger_batch(draws)})")
    return f"{', '.join([*causes, 'a wrong L(w*)'])}, or chains in another basin"


def _finite_term(draws: xr.DataTree, bound: float) -> float:
    """What the bounds, which are those of n → ∞, do not cover where n is small."""
    if constant(draws, schema.NUM_DATA) >= _FEW_DATA:
        return 0.0
    return _FINITE_TERM * bound / max(math.log(constant(draws, schema.NBETA)), 1.0)
