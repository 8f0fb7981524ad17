"""The report: all that is known of λ at one point, and its text."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.character import Character
from llc.analysis.check import Check
from llc.analysis.estimators import Estimate
from llc.analysis.schema import constant
from llc.analysis.series import plus_minus
from llc.analysis.text import printable
from llc.analysis.verdict import Findings, Verdict
from llc.bounds.rank import Bounds
from llc.bounds.spectral_measure import Spectrum


@dataclass(frozen=True)
class Report:
    """All that is known of λ at one point.

    Attributes:
        estimates: of λ̂ and its relatives: the zero-variance estimate (where there is one, see `best_energy`), the mean
            energy, ….
        corrected: λ_corr, counting the r_lo directions of `bounds.rank_interval`; None where λ̂ could not be corrected:
            without bounds, or with bounds of another scale and no spectrum.
        bounds: on the asymptotic λ, or None.
        checks: named checks with their cures.
        settings: how the draws were made, as in `draws.attrs["settings"]`.
        verdict: CONSISTENT, SCALE_DEPENDENT, BELOW, ABOVE or UNRESOLVED (see `llc.analysis.verdict`).
        draws: the DataTree that all of it was computed from.
        spectrum: of the Hessian, or None.
        gamma_sensitivity: change of λ_corr from a larger γ to that of the draws; None without a second run.
        reason: of the verdict, one sentence.
        character: whether the draws are local, left the basin of w*, or are held by the localization alone, with the
            evidence; None where λ̂ is not above its error.
    """

    estimates: tuple[Estimate, ...]
    corrected: Estimate | None
    bounds: Bounds | None
    checks: tuple[Check, ...]
    settings: dict[str, Any]
    verdict: Verdict
    draws: xr.DataTree
    spectrum: Spectrum | None
    gamma_sensitivity: Estimate | None = None
    reason: str = ""
    character: Character | None = None

    @property
    def llc(self) -> Estimate:
        """λ̂: of steps and draws, else the zero-variance estimate, else the mean energy (see `best_energy`)."""
        return self.estimates[0]

    @property
    def findings(self) -> Findings:
        """What the verdict rests on."""
        return Findings(self.llc, self.corrected, self.bounds, self.checks, self.gamma_sensitivity, self.character)

    @property
    def quad(self) -> float | None:
        """λ_quad, or None without bounds that were made at the draws' γ/nβ (`llc.report` does so from a spectrum)."""
        scale = schema.localization_scale(self.draws)
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
        return str(self.draws.attrs.get(schema.CALIBRATION, ""))

    @property
    def gamma_converged(self) -> bool | None:
        """Whether λ_corr is the same at a larger γ, to 2 %: None if the errors, no second run, or r/2 can't tell.

        It is None, not True, after a failed check too: chains at a saddle or of a dead sampler do not move either.
        """
        return self.findings.gamma_converged

    @property
    def gaussian_only(self) -> bool:
        """Whether λ_corr is r/2 to 2 %, and the bounds leave open whether λ is: flat directions may be suppressed."""
        return self.findings.gaussian_only

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return self.findings.failed

    @property
    def failed_of_chains(self) -> tuple[Check, ...]:
        """The failed checks that tell of the chains alone."""
        return tuple(check for check in self.failed if check.kind == "chains")

    @property
    def shift(self) -> Estimate | None:
        """Deprecated: use `gamma_sensitivity`."""
        _deprecated("Report.shift", "Report.gamma_sensitivity")
        return self.gamma_sensitivity

    @property
    def accepted(self) -> bool | None:
        """Deprecated: use `gamma_converged`."""
        _deprecated("Report.accepted", "Report.gamma_converged")
        return self.gamma_converged

    def __str__(self) -> str:
        lines = [f"{self.verdict}  {self.reason}", "", *_number_lines(self), "", *_check_lines(self)]
        chosen = [f"  {line}" for line in self.calibration.splitlines()]
        return printable("\n".join([*lines, *(["", "settings, with the reason for each", *chosen] if chosen else [])]))

    def to_json(self) -> str:
        """Everything but the draws, as JSON; non-finite numbers are null."""
        fields = {
            "verdict": self.verdict,
            "reason": self.reason,
            "estimates": [asdict(estimate) for estimate in self.estimates],
            "singular": self.singular,
            "corrected": None if self.corrected is None else asdict(self.corrected),
            "gamma_sensitivity": None if self.gamma_sensitivity is None else asdict(self.gamma_sensitivity),
            "gamma_converged": self.gamma_converged,
            "character": None if self.character is None else self.character.as_dict(),
            "bounds": None if self.bounds is None else asdict(self.bounds),
            "checks": [asdict(check) for check in self.checks],
            "constants": schema.scalars(self.draws),
            "settings": self.settings,
            "calibration": self.calibration.splitlines(),
            "attributes": {name: self.draws.attrs.get(name) for name in ("seed", "versions")},
        }
        return printable(json.dumps(_without_nan(fields), indent=2, allow_nan=False, ensure_ascii=False))

    def to_html(self, path: str | Path) -> None:
        """Deprecated: use `llc.save_html(report, path)`."""
        from llc.plotting.html import save_html  # the one way upwards, until the old name goes

        _deprecated("Report.to_html(path)", "llc.save_html(report, path)")
        save_html(self, path)


def _deprecated(old: str, new: str) -> None:
    warnings.warn(f"{old} will go in the next release; use {new}.", DeprecationWarning, stacklevel=3)


def _number_lines(report: Report) -> list[str]:
    nbeta, gamma = constant(report.draws, schema.NBETA), constant(report.draws, schema.GAMMA)
    llc, bounds = report.llc, report.bounds
    at = f"at nβ = {nbeta:.4g}, γ = {gamma:.4g}: {llc.method}, ESS {llc.ess:.0f}, R-hat {llc.rhat:.3f}"
    lines = [_row("λ̂", plus_minus(llc.value, llc.mcse), at)]
    lines += _stream_lines(report)
    if bounds is not None:
        lines.append(_row("bounds of λ", *_interval(bounds)))
    if report.character is not None:
        lines.append(_row("character", report.character.name, report.character.reason))
    if report.findings.symbol == "λ_corr" and report.corrected is not None:
        value = plus_minus(report.corrected.value, report.corrected.mcse)
        compared = ", to be compared with the bounds" if bounds is not None and bounds.valid else ""
        lines.append(_row("λ_corr", value, f"λ̂ corrected for γ{compared}"))
    lines += _sensitivity_lines(report)
    if bounds is not None:
        lines += _geometry_lines(report, bounds)
    lines += [_row(other.method, plus_minus(other.value, other.mcse), "") for other in report.estimates[1:]]
    return lines


def _stream_lines(report: Report) -> Iterator[str]:
    """Which rows of a stream were in memory, and whether another run can meet the others again."""
    rows = report.settings.get("stream")
    if not isinstance(rows, dict):
        return
    order = {
        "same": "minibatches come in the same order in every pass, shuffled in windows",
        "numbered": "minibatches come in an order that follows from the key",
    }.get(str(rows.get("order")), "two passes over the source differed, so that the same key gives other minibatches")
    seen = f"{rows.get('resident')} of {constant(report.draws, schema.NUM_DATA):.0f}"
    yield _row("resident rows", seen, f"of a stream, for losses and curvature; {order}")


def _interval(bounds: Bounds) -> tuple[str, str]:
    """The bounds of λ and where they come from, or why there are none."""
    if not bounds.valid:
        return "none", "an assumption fails at w*"
    if bounds.is_vacuous:
        return "none", f"the rank may be anything from 0 to d = {bounds.dim}, so that no λ up to d/2 is excluded"
    return f"[{bounds.lower:.4g}, {bounds.upper:.4g}]", bounds.source


def _sensitivity_lines(report: Report) -> Iterator[str]:
    """What a second run at a larger γ says."""
    moved, localized = report.gamma_sensitivity, schema.localized_run(report.draws)
    if moved is None or localized is None:
        return
    told = {
        True: "below 2 %, accepted as λ",
        False: "not the asymptotic λ, it still changes with γ",
        None: "undecided: its error is too large to resolve 2 %",
    }[report.gamma_converged]
    symbol = report.findings.symbol
    if report.gamma_converged is None and report.failed:
        told = "undecided: a check failed"
    elif report.gamma_converged is None and report.gaussian_only:
        told = f"undecided: {symbol} is r/2, flat directions may be suppressed by localization"
    times = constant(localized, schema.GAMMA) / constant(report.draws, schema.GAMMA)
    yield _row(f"{symbol} − {symbol}({times:.3g}γ)", plus_minus(moved.value, moved.mcse), told)


def _geometry_lines(report: Report, bounds: Bounds) -> Iterator[str]:
    """λ_quad, the singular contribution, and the rank."""
    if report.quad is not None:
        error = math.hypot(report.llc.mcse, bounds.quad_stderr)
        yield _row("λ_quad", plus_minus(report.quad, bounds.quad_stderr), "Gaussian part of λ̂ at the same nβ and γ")
        yield _row("λ̂ − λ_quad", plus_minus(report.singular, error), "singular contribution")
    low, high = bounds.rank_interval
    rank = f"{low:.0f}" if low == high else f"{low:.0f} … {high:.0f}"
    yield _row("rank", f"{rank} of {bounds.dim}", f"at τ = {bounds.threshold:.2g}, {bounds.spacing}")
    if bounds.note:
        yield _row("note", "", bounds.note)


def _row(name: str, value: str, note: str) -> str:
    return f"  {name:<21} {value:<21} {note}".rstrip()


def _check_lines(report: Report) -> list[str]:
    passed = len(report.checks) - len(report.failed)
    lines = [f"checks: {passed} passed, {len(report.failed)} failed"]
    for check in sorted(report.checks, key=lambda check: check.passed):
        lines.append(f"  {'ok  ' if check.passed else 'FAIL'} {check.name:<21} {check.message}")
    return lines


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
