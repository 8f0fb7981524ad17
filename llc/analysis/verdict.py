"""One verdict from the estimates, the bounds and the checks, with its reason in one sentence.

    CONSISTENT       all checks passed, λ_corr lies in its bounds, and λ is determined: the bounds meet, or λ_corr is
                     the same at another γ within 2 %
    SCALE_DEPENDENT  the chains are sound, so that λ̂ is right at its nβ and γ; but it changes with γ, or that is not
                     known, or there are no valid bounds
    BELOW, ABOVE     λ_corr lies outside of its bounds by more than is allowed
    UNRESOLVED       a check of the chains failed, the draws left the basin of w* or contradict a minimum there, or a
                     number is not finite

The sampler and the bounds are judged apart. All of it is a function of fields: no name and no message of a check
decides anything, and neither does a comparison with a number that is not finite.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llc.analysis.bound_checks import allowance
from llc.analysis.character import Character
from llc.analysis.check import Check
from llc.analysis.estimators import Estimate
from llc.analysis.series import plus_minus
from llc.bounds.rank import Bounds

Verdict = Literal["CONSISTENT", "SCALE_DEPENDENT", "BELOW", "ABOVE", "UNRESOLVED"]

_MOVES = 0.02  # of λ_corr; singular points lose 5–48 % from γ to 3γ (docs/theory.md, λ_quad and λ_corr)
_SIGMAS = 3  # standard errors by which λ̂ must be below zero to be called negative


@dataclass(frozen=True)
class Findings:
    """What a verdict rests on.

    Attributes:
        llc: λ̂.
        corrected: λ_corr, or None where λ̂ could not be corrected.
        bounds: on the asymptotic λ, or None.
        checks: all checks.
        sensitivity: change of λ_corr from a larger γ, or None without a second run.
        character: what kind of run it was, or None where that is not told.
    """

    llc: Estimate
    corrected: Estimate | None
    bounds: Bounds | None
    checks: tuple[Check, ...]
    sensitivity: Estimate | None = None
    character: Character | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def slope_energy(self) -> float:
        """What a slope at w* takes from λ̂ (or may take at most), where it is more than is allowed; else 0."""
        return sum((check.value for check in self.failed if check.kind == "slope"), 0.0)

    @property
    def symbol(self) -> str:
        """What is compared with the bounds: λ_corr, or λ̂ where nothing was added to it."""
        return "λ̂" if self.corrected is None or self.corrected.value == self.llc.value else "λ_corr"

    @property
    def gaussian_only(self) -> bool:
        """Whether λ_corr is r/2 to 2 %, and the bounds leave open whether λ is: flat directions may be suppressed."""
        bounds, corrected = self.bounds, self.corrected
        if bounds is None or corrected is None or bounds.lower == bounds.upper or bounds.rank_interval[0] == bounds.dim:
            return False
        return abs(corrected.value - bounds.rank_interval[0] / 2) <= _MOVES * abs(corrected.value) + 2 * corrected.mcse

    @property
    def gamma_converged(self) -> bool | None:
        """Whether λ_corr is the same at a larger γ, to 2 %; None where that can't be told (see `Report`)."""
        if self.sensitivity is None or self.corrected is None:
            return None
        moved, error = abs(self.sensitivity.value), 2 * self.sensitivity.mcse
        limit = _MOVES * abs(self.corrected.value)
        if moved + error <= limit:
            broken = any(check.kind != "estimates" for check in self.failed)
            return None if self.gaussian_only or broken else True
        return False if moved - error > limit else None


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reason, one sentence without a full stop."""

    verdict: Verdict
    reason: str


def judge(found: Findings) -> Judgement:
    """The verdict on what was found, with the reason for it."""
    return _refused(found) or _outside(found) or _contradicted(found) or _undetermined(found) or _consistent(found)


def _refused(found: Findings) -> Judgement | None:
    """Numbers and chains that nothing can be said from."""
    if found.character is not None and found.character.name == "left the basin":
        return Judgement("UNRESOLVED", f"the draws left the basin of w*: {found.character.reason}")
    numbers = [found.llc, *(() if found.corrected is None else (found.corrected,))]
    if not all(math.isfinite(number) for x in numbers for number in (x.value, x.mcse)):
        because = _names(found.failed)
        return Judgement("UNRESOLVED", f"λ̂ or its standard error is not finite{because}")
    if found.llc.value + found.slope_energy < -_SIGMAS * found.llc.mcse:
        return Judgement(
            "UNRESOLVED",
            "λ̂ is negative beyond its error: the draws have lower losses than w*; train w* further, to a smaller "
            "gradient",
        )
    chains = [check for check in found.failed if check.kind == "chains"]
    # Rare high energies are the chains' fault, unless draws below L(w*) show that it is L(w*) which is wrong.
    energies = [check for check in found.failed if check.kind == "minimum" and check.direction is not None]
    hot = energies if all(check.direction == "hot" for check in energies) else []
    if chains or hot:
        short = all(check.cured_by_draws for check in (*chains, *hot))
        seen = "there are too few draws to trust the chains" if short else "the chains can't be trusted"
        besides = "; besides, w* is no minimum (slope)" if found.slope_energy else ""
        return Judgement("UNRESOLVED", f"{seen}{_names([*chains, *hot])}{besides}")
    return None


def _outside(found: Findings) -> Judgement | None:
    """λ_corr beyond bounds that hold; below them only if it does not rise as γ falls."""
    failed = [check for check in found.failed if check.kind == "bounds"]
    directions = {check.direction for check in failed}
    if found.bounds is None or not found.bounds.valid or None in directions or not directions:
        return None
    verdict = "ABOVE" if "hot" in directions else "BELOW"
    if verdict == "BELOW" and found.gamma_converged is False:
        return None
    compared = found.corrected or found.llc
    bound = found.bounds.upper if verdict == "ABOVE" else found.bounds.lower
    allowed = allowance(bound, compared, found.sensitivity)
    reason = f"{found.symbol} lies {verdict.lower()} {_interval(found.bounds)} by more than {allowed}"
    return Judgement(verdict, reason)


def _contradicted(found: Findings) -> Judgement | None:
    """Draws with too low losses, which only a slope, or a w* that the geometry knows for no minimum, explains."""
    geometry = () if found.bounds is None else found.bounds.assumptions
    if found.slope_energy or any(not assumption.holds and assumption.kind == "minimum" for assumption in geometry):
        return None
    failed = [check for check in found.failed if check.kind == "minimum"]
    return Judgement("UNRESOLVED", f"the draws contradict that w* is a minimum{_names(failed)}") if failed else None


def _undetermined(found: Findings) -> Judgement | None:
    """Why λ̂ is the value at its own scale only; None if λ is determined."""
    reason = _sloping(found) or _no_bounds(found) or _hidden(found) or _moving(found)
    return None if reason is None else Judgement("SCALE_DEPENDENT", reason)


def _sloping(found: Findings) -> str | None:
    return "; ".join(check.message for check in found.failed if check.kind == "slope") or None


def _no_bounds(found: Findings) -> str | None:
    only = "λ̂ holds at this nβ and γ only"
    bounds = found.bounds
    if bounds is None:
        return f"no bounds to compare with, and no spectrum to show whether w* is a minimum: {only}"
    broken = [assumption for assumption in bounds.assumptions if not assumption.holds]
    if broken or not bounds.valid:
        why = "; ".join(assumption.message for assumption in broken) or "an assumption fails at this point"
        return f"no bounds: {why}; {only}"
    unresolved = [check for check in found.failed if check.kind == "bounds" and check.direction is None]
    if unresolved:
        return f"{found.symbol} can't be compared with the bounds{_names(unresolved)}; {only}"
    if found.corrected is None:
        return f"the bounds were not made at the scale of the draws, so only their upper side could be compared: {only}"
    return None


def _hidden(found: Findings) -> str | None:
    scale = [check for check in found.failed if check.kind == "scale"]
    return "; ".join(check.message for check in scale) or None


def _moving(found: Findings) -> str | None:
    """Whether γ, or the bounds, leave λ open."""
    bounds, symbol = found.bounds, found.symbol
    assert bounds is not None
    assert found.corrected is not None
    meet = bounds.lower == bounds.upper
    allowed = allowance(bounds.lower, found.corrected, None)
    if found.gamma_converged is True or (meet and abs(found.corrected.value - bounds.lower) <= allowed.total):
        return None
    if found.gamma_converged is False and found.sensitivity is not None:
        moved = plus_minus(found.sensitivity.value, found.sensitivity.mcse)
        return f"{symbol} still changes with γ, by {moved} from the larger γ; compare it at the same nβ and γ only"
    if meet:
        return f"{symbol} differs from λ = {bounds.lower:.4g}, where the bounds meet, by more than {allowed}"
    if found.sensitivity is None:
        why = "there is no second run at a larger γ"
    elif found.gaussian_only:
        why = f"{symbol} is r/2, so flat directions may be suppressed by localization at both γ"
    else:
        why = "the error of that change is too large to tell; take more draws"
    return f"it is not known whether {symbol} changes with γ: {why}"


def _consistent(found: Findings) -> Judgement:
    bounds, compared = found.bounds, found.corrected
    assert bounds is not None
    assert compared is not None
    inside = bounds.lower <= compared.value <= bounds.upper
    where = "within" if inside else f"within {allowance(bounds.upper, compared, found.sensitivity)} of"
    meets = bounds.lower == bounds.upper
    determined = "which meet" if meets else "and is the same at a larger γ to 2 %"
    return Judgement("CONSISTENT", f"{found.symbol} lies {where} {_interval(bounds)}, {determined}")


def _interval(bounds: Bounds) -> str:
    if bounds.is_vacuous:
        return f"bounds that exclude nothing (the rank may be anything from 0 to {bounds.dim})"
    return f"the bounds [{bounds.lower:.4g}, {bounds.upper:.4g}]"


def _names(checks: Iterable[Check]) -> str:
    names = ", ".join(check.name for check in checks)
    return f"; failed checks: {names}" if names else ""
