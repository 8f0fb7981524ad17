"""Where the two roads meet: estimates, bounds, checks and one verdict.

The raw λ̂(nβ, γ) belongs beside λ_quad at the same scale; only the γ-corrected λ_corr, in which every counted
direction has its full ½, is compared with the bounds of the asymptotic λ:

    λ_corr = λ̂ + ½ Σ_counted (γ/nβ) / (h + γ/nβ).

What it lacks are the directions without curvature, which still gain as γ falls. A second run at a larger γ shows them:
λ_corr is accepted as a value of λ where it moves by less than 2 % between the two, unless all of it is r/2. Then the
localization may be so strong that at both γ only the curved directions show (λ_corr is up to 63 % too low so in
validation/results/deep_linear.txt), and only bounds that meet tell more.
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import xarray as xr

from llc.analysis.checks import OF_CHAINS, Check, run_checks
from llc.analysis.estimators import (
    Estimate,
    best_energy,
    energy_variance,
    mean_energy,
    singular_fluctuation,
    waic,
    wbic,
)
from llc.analysis.series import constant, plus_minus

if TYPE_CHECKING:
    from llc.bounds.rank import Bounds
    from llc.bounds.spectral_measure import Spectrum

_MOVES = 0.02  # of λ_corr; singular points lose 5–48 % from γ to 3γ (THEORY: harmonic correction)

Verdict = Literal["CONSISTENT", "BELOW", "ABOVE", "UNRESOLVED"]


@dataclass(frozen=True)
class Report:
    """All that is known of λ at one point.

    Attributes:
        estimates: of λ̂ and its relatives: the zero-variance estimate (where there is one, see `best_energy`), the mean
            energy, ….
        corrected: λ_corr, counting the r_lo directions of `bounds.rank_interval`; None without bounds and spectrum.
        bounds: on the asymptotic λ, or None.
        checks: named checks with their cures.
        settings: how the draws were made, as in `draws.attrs["settings"]`.
        verdict: CONSISTENT (within the bounds, all checks passed), BELOW or ABOVE (λ_corr outside of the bounds beyond
            its error; BELOW not where λ_corr still moves with γ), UNRESOLVED (no valid bounds, or a failed check).
        draws: the DataTree that all of it was computed from.
        spectrum: of the Hessian, or None.
        gamma_sensitivity: change of λ_corr from a larger γ to that of the draws; None without a second run.
    """

    estimates: tuple[Estimate, ...]
    corrected: Estimate | None
    bounds: "Bounds | None"
    checks: tuple[Check, ...]
    settings: dict
    verdict: Verdict
    draws: xr.DataTree
    spectrum: "Spectrum | None"
    gamma_sensitivity: Estimate | None = None

    @property
    def llc(self) -> Estimate:
        """λ̂: the zero-variance estimate where there is one to be trusted, else the mean energy (see `best_energy`)."""
        return self.estimates[0]

    @property
    def quad(self) -> float | None:
        """λ_quad, or None without bounds that were made at the draws' γ/nβ (`llc.report` does so from a spectrum)."""
        scale = constant(self.draws, "gamma") / constant(self.draws, "nbeta")
        if self.bounds is None or not math.isclose(self.bounds.localization_scale, scale, rel_tol=1e-6):
            return None
        return self.bounds.quad

    @property
    def singular(self) -> float | None:
        """λ̂ − λ_quad, the singular contribution."""
        return None if self.quad is None else self.llc.value - self.quad

    @property
    def calibration(self) -> str:
        """The settings that `llc.estimate` chose or was given, a line each, with its reason; empty of other draws."""
        return str(self.draws.attrs.get("calibration", ""))

    @property
    def gamma_converged(self) -> bool | None:
        """Whether λ_corr is the same at a larger γ, to 2 %: None if the errors, no second run, or r/2 can't tell.

        It is None, not True, after a failed check too: chains at a saddle or of a dead sampler do not move either.
        """
        if self.gamma_sensitivity is None or self.corrected is None:
            return None
        moved, error = abs(self.gamma_sensitivity.value), 2 * self.gamma_sensitivity.mcse
        limit = _MOVES * abs(self.corrected.value)
        if moved + error <= limit:
            return None if self.gaussian_only or self.failed else True
        return False if moved - error > limit else None

    @property
    def gaussian_only(self) -> bool:
        """Whether λ_corr is r/2 to 2 %, and the bounds leave open whether λ is: the rest may not show at this γ."""
        bounds, corrected = self.bounds, self.corrected
        if bounds is None or corrected is None or bounds.lower == bounds.upper or bounds.rank_interval[0] == bounds.dim:
            return False
        return abs(corrected.value - bounds.rank_interval[0] / 2) <= _MOVES * abs(corrected.value) + 2 * corrected.mcse

    @property
    def failed_of_chains(self) -> tuple[Check, ...]:
        """The failed checks that tell of the chains alone."""
        return tuple(check for check in self.failed if check.name in OF_CHAINS)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        lines = [f"{self.verdict}  {_reason(self)}", "", *_number_lines(self), "", *_check_lines(self)]
        chosen = [f"  {line}" for line in self.calibration.splitlines()]
        return "\n".join([*lines, *(["", "settings, with the reason for each", *chosen] if chosen else [])])

    def to_json(self) -> str:
        """Everything but the draws, as JSON; non-finite numbers are null."""
        fields = {
            "verdict": self.verdict,
            "reason": _reason(self),
            "estimates": [asdict(estimate) for estimate in self.estimates],
            "singular": self.singular,
            "corrected": None if self.corrected is None else asdict(self.corrected),
            "gamma_sensitivity": None if self.gamma_sensitivity is None else asdict(self.gamma_sensitivity),
            "gamma_converged": self.gamma_converged,
            "bounds": None if self.bounds is None else asdict(self.bounds),
            "checks": [asdict(check) for check in self.checks],
            "constants": {str(name): constant(self.draws, str(name)) for name in self.draws["constant_data"].data_vars},
            "settings": self.settings,
            "calibration": self.calibration.splitlines(),
            "attributes": {name: self.draws.attrs.get(name) for name in ("seed", "versions")},
        }
        return json.dumps(_without_nan(fields), indent=2, allow_nan=False, ensure_ascii=False)

    def to_html(self, path: str | Path) -> None:
        """Deprecated: use `llc.save_html(report, path)`."""
        from llc.plotting.html import save_html  # the one way upwards, until the old name goes

        message = "Report.to_html(path) will go in the next release; use llc.save_html(report, path)."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        save_html(self, path)


def assemble(draws: xr.DataTree, *, bounds: "Bounds | None" = None, spectrum: "Spectrum | None" = None) -> Report:
    """Report on `draws`, checked against the bounds as far as the geometry is given.

    Args:
        draws: of `llc.sample`, or read from a file.
        bounds: at the scale of the draws.
        spectrum: that the bounds were made from.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes.
    """
    _check_draws(draws)
    mean, variance = mean_energy(draws), energy_variance(draws)
    best = best_energy(draws)
    others = (*(() if best.method == mean.method else (mean,)), variance, wbic(draws), singular_fluctuation(draws))
    estimates = tuple(estimate for estimate in (best, *others, waic(draws)) if estimate is not None)
    corrected = None if bounds is None or spectrum is None else _corrected(estimates[0], bounds, spectrum)
    shift = None
    if "localized" in draws and bounds is not None and spectrum is not None and corrected is not None:
        shift = _shift(corrected, _localized(draws), bounds, spectrum)
    checks = run_checks(draws, mean, variance, bounds, spectrum, corrected, shift)
    result = Report(
        estimates=estimates,
        corrected=corrected,
        bounds=bounds,
        checks=checks,
        settings=json.loads(draws.attrs["settings"]),
        verdict="UNRESOLVED",
        draws=draws,
        spectrum=spectrum,
        gamma_sensitivity=shift,
    )
    return replace(result, verdict=_verdict(result))


def _check_draws(draws: xr.DataTree) -> None:
    if not isinstance(draws, xr.DataTree):
        raise ValueError(f"draws need to be those of llc.sample or llc.load, got {type(draws).__name__}.")
    needed = {"posterior": {"loss", "llc"}, "sample_stats": {"virial"}, "constant_data": {"nbeta", "gamma"}}
    missing = [name for name in needed if name not in draws.children]
    missing += [
        f"{group}/{name}"
        for group, names in needed.items()
        if group in draws.children
        for name in sorted(names - {str(x) for x in draws[group].data_vars})
    ]
    missing += ["attribute settings"] * ("settings" not in draws.attrs)
    if missing:
        raise ValueError(f"draws need what llc.sample writes, but they lack {missing}.")


def _localized(draws: xr.DataTree) -> xr.DataTree:
    """The run at a larger γ, which `llc.estimate` keeps among the draws."""
    return cast("xr.DataTree", draws["localized"])


def _shift(corrected: Estimate, localized: xr.DataTree, bounds: "Bounds", spectrum: "Spectrum") -> Estimate:
    """λ_corr less that of a run at a larger γ; the error of the trace estimate is common to both, and left out."""
    scale = constant(localized, "gamma") / constant(localized, "nbeta")
    other = _corrected(best_energy(localized), replace(bounds, localization_scale=scale), spectrum)
    errors = (math.sqrt(max(x.mcse**2 - bounds.quad_stderr**2, 0.0)) for x in (corrected, other))
    return replace(
        other, method="gamma sensitivity", value=corrected.value - other.value, mcse=math.hypot(*errors), per_chain=()
    )


def _corrected(mean: Estimate, bounds: "Bounds", spectrum: "Spectrum") -> Estimate:
    """λ_corr, with the full ½ for the r_lo directions of largest curvature."""
    scale, rank = bounds.localization_scale, bounds.rank_interval[0]
    hidden = 0.0
    if scale > 0 and rank > 0:
        nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel() / len(spectrum.nodes)
        order = np.argsort(-nodes)
        counted = np.diff(np.minimum(np.cumsum(weights[order]), rank), prepend=0.0)
        hidden = float(np.sum(counted * 0.5 * scale / (np.maximum(nodes[order], 0.0) + scale)))
    return replace(
        mean,
        method="corrected",
        value=mean.value + hidden,
        mcse=math.hypot(mean.mcse, bounds.quad_stderr),
        per_chain=tuple(value + hidden for value in mean.per_chain),
    )


def _verdict(report: Report) -> Verdict:
    failed = {check.name for check in report.failed}
    bounds, corrected = report.bounds, report.corrected
    if bounds is None or corrected is None or not bounds.valid or not math.isfinite(corrected.value):
        return "UNRESOLVED"
    if "below_bounds" in failed and report.gamma_converged is not False:
        return "BELOW"
    if "above_bounds" in failed:
        return "ABOVE"
    return "UNRESOLVED" if failed else "CONSISTENT"


def _reason(report: Report) -> str:
    failed = ", ".join(check.name for check in report.failed)
    if report.bounds is None:
        return "no bounds to compare with" + (f"; failed: {failed}" if failed else "")
    if not report.bounds.valid:
        return f"the bounds do not hold at this point; failed: {failed}"
    interval = f"[{report.bounds.lower:.4g}, {report.bounds.upper:.4g}]"
    if report.verdict == "CONSISTENT":
        inside = report.corrected is not None and report.bounds.lower <= report.corrected.value <= report.bounds.upper
        within = f"within its bounds {interval}" if inside else f"as near to its bounds {interval} as its errors tell"
        return f"λ_corr lies {within}, all {len(report.checks)} checks passed"
    if report.verdict in ("BELOW", "ABOVE"):
        return f"λ_corr lies {report.verdict.lower()} its bounds {interval}; failed: {failed}"
    if report.failed_of_chains:
        return f"not converged, failed: {failed}"
    return f"failed: {failed}"


def _number_lines(report: Report) -> list[str]:
    nbeta, gamma = constant(report.draws, "nbeta"), constant(report.draws, "gamma")
    llc, bounds = report.llc, report.bounds
    lines = [
        _row(
            "λ̂",
            plus_minus(llc.value, llc.mcse),
            f"{llc.method} at nβ = {nbeta:.4g}, γ = {gamma:.4g}; ESS {llc.ess:.0f}, R-hat {llc.rhat:.3f}",
        ),
    ]
    if bounds is not None and report.quad is not None:
        value = plus_minus(report.quad, bounds.quad_stderr)
        lines.append(_row("λ_quad", value, "Gaussian part of λ̂ at the same nβ and γ"))
        error = math.hypot(llc.mcse, bounds.quad_stderr)
        lines.append(_row("λ̂ − λ_quad", plus_minus(report.singular, error), "singular contribution"))
    if report.corrected is not None:
        value = plus_minus(report.corrected.value, report.corrected.mcse)
        lines.append(_row("λ_corr", value, "γ-corrected, to be compared with the bounds"))
    if report.gamma_sensitivity is not None:
        told = {
            True: "below 2 %, accepted as λ",
            False: "not the asymptotic λ, it still moves with γ",
            None: "undecided: its error is too large for 2 %",
        }[report.gamma_converged]
        if report.gamma_converged is None and report.failed:
            told = "undecided: a check failed"
        elif report.gamma_converged is None and report.gaussian_only:
            told = "undecided: λ_corr is r/2, what has no curvature may not show at this γ"
        scale = constant(_localized(report.draws), "gamma") / gamma
        name = f"λ_corr − λ_corr({scale:.3g}γ)"
        lines.append(_row(name, plus_minus(report.gamma_sensitivity.value, report.gamma_sensitivity.mcse), told))
    if bounds is not None:
        interval = f"[{bounds.lower:.4g}, {bounds.upper:.4g}]" if bounds.valid else "none"
        lines.append(_row("bounds", interval, bounds.source if bounds.valid else "an assumption fails at this point"))
        low, high = bounds.rank_interval
        rank = f"{low:.0f}" if low == high else f"{low:.0f} … {high:.0f}"
        lines.append(_row("rank", f"{rank} of {bounds.dim}", f"at τ = {bounds.threshold:.2g}, {bounds.spacing}"))
        lines += [_row("note", "", bounds.note)] * bool(bounds.note)
    for estimate in report.estimates[1:]:
        lines.append(_row(estimate.method, plus_minus(estimate.value, estimate.mcse), ""))
    return lines


def _row(name: str, value: str, note: str) -> str:
    return f"  {name:<21} {value:<21} {note}".rstrip()


def _check_lines(report: Report) -> list[str]:
    passed = len(report.checks) - len(report.failed)
    lines = [f"checks: {passed} passed, {len(report.failed)} failed"]
    for check in sorted(report.checks, key=lambda check: check.passed):
        lines.append(f"  {'ok  ' if check.passed else 'FAIL'} {check.name:<21} {check.message}")
    return lines


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
