"""The verdict of a row by the rule of today, from what the row holds.

Rows are made over months. Before the verdict SCALE_DEPENDENT, CONSISTENT said no more than that λ_corr lies within its
bounds and that all checks passed. Whether λ is determined was no part of it, and a failed check of the bounds or of the
scale made a run UNRESOLVED. What the rule of today needs is in the rows: the names of the failed checks, the bounds,
λ_corr with its error, and `gamma_converged`. So a table of old rows is made again without new samples. On a row of
today the rule gives what the row says.

1. UNRESOLVED where a check of the chains failed, where λ̂ is negative, or where draws have lower losses than w* although
   gradient and curvature at w* are those of a minimum. (`mean_variance` counts as a check of the chains here: rows do
   not tell in which direction it failed.)
2. BELOW or ABOVE as before; but a λ_corr below its bounds that still changes with γ is SCALE_DEPENDENT.
3. SCALE_DEPENDENT where there are no valid bounds, or where another check of the bounds or of the scale failed.
4. CONSISTENT where λ is determined: λ_corr is the same at a larger γ, or the bounds meet and it agrees with them to
   2 % and three standard errors.
5. SCALE_DEPENDENT else: λ̂ is right at its own nβ and γ.
"""

import collections
from collections.abc import Collection, Iterable

VERDICTS = ("CONSISTENT", "SCALE_DEPENDENT", "UNRESOLVED", "BELOW", "ABOVE")
COLORS = dict(zip(VERDICTS, ("#009E73", "#56B4E9", "#E69F00", "#0072B2", "#D55E00"), strict=True))
REFUSED = ("UNRESOLVED", "BELOW", "ABOVE")

_GEOMETRY = {"no_negative_curvature", "stationary"}
_OF_BOUNDS = {"smooth", "Gauss–Newton_is_the_Hessian", "spectrum_resolution", "below_bounds", "above_bounds"}
_OF_SCALE = {"localization"}
_NOT_OF_CHAINS = _GEOMETRY | _OF_BOUNDS | _OF_SCALE | {"lower_loss"}
_AGREES, _ERRORS = 0.02, 3  # of the bound, and in standard errors of λ_corr


def verdict_today(
    verdict: str,
    failed: Collection[str],
    *,
    bounds: tuple[float, float] | None,
    corrected: tuple[float, float] | None,
    gamma_converged: bool | None,
) -> str:
    """What `llc.report` says today of a run to which it gave `verdict` when it was made.

    Args:
        verdict: of the row.
        failed: names of the failed checks.
        bounds: on λ; None where an assumption fails.
        corrected: λ_corr and its standard error, where they are finite.
        gamma_converged: as in `llc.Report`.
    """
    names = set(failed)
    if names - _NOT_OF_CHAINS or ("lower_loss" in names and not names & _GEOMETRY):
        return "UNRESOLVED"
    if verdict in ("BELOW", "ABOVE"):
        return verdict
    if names or bounds is None or corrected is None:
        return "SCALE_DEPENDENT"
    lower, upper = bounds
    value, error = corrected
    meet = lower == upper and abs(value - lower) <= _AGREES * lower + _ERRORS * error
    return "CONSISTENT" if meet or gamma_converged else "SCALE_DEPENDENT"


def counts(verdicts: Iterable[str]) -> dict[str, int]:
    """How often each verdict was given, in the order of `VERDICTS`."""
    found = collections.Counter(verdicts)
    return {name: found[name] for name in VERDICTS if found[name]}


def listed(number_of: dict[str, int]) -> str:
    """Counts as a cell of a table: "CONSISTENT 3, UNRESOLVED 1"."""
    return ", ".join(f"{name} {number}" for name, number in number_of.items())
