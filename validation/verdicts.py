"""The verdict of a row by the rule of today, from what the row holds.

Rows are made over months. Before the verdict SCALE_DEPENDENT, CONSISTENT said no more than that λ_corr lies within its
bounds and that all checks passed. Whether λ is determined was not part of it, and a check of the bounds or of the scale
made a run UNRESOLVED. What the rule of today needs is in the rows: the names of the failed checks, the bounds, and
`gamma_converged`. So a table of old rows is made again without new samples. On a row of today the rule gives what the
row says.

1. A failed check of the chains or of the minimum: UNRESOLVED.
2. No valid bounds: SCALE_DEPENDENT; λ̂ is right at its nβ and γ, and there is nothing to compare it with.
3. λ_corr outside of its bounds: BELOW or ABOVE, as before. Where it lies below them and still moves with γ,
   SCALE_DEPENDENT.
4. A failed check of the scale: SCALE_DEPENDENT.
5. CONSISTENT where λ is determined, that is where the bounds meet or where λ_corr is the same at a larger γ; else
   SCALE_DEPENDENT.
"""

import collections
from collections.abc import Collection, Iterable

VERDICTS = ("CONSISTENT", "SCALE_DEPENDENT", "UNRESOLVED", "BELOW", "ABOVE")
COLORS = dict(zip(VERDICTS, ("#009E73", "#56B4E9", "#E69F00", "#0072B2", "#D55E00"), strict=True))
REFUSED = ("UNRESOLVED", "BELOW", "ABOVE")

_OF_BOUNDS = {
    *("no_negative_curvature", "stationary", "smooth", "Gauss–Newton_is_the_Hessian"),
    *("below_bounds", "above_bounds"),
}
_OF_SCALE = {"localization"}


def verdict_today(
    verdict: str,
    failed: Collection[str],
    *,
    bounds: tuple[float, float] | None,
    gamma_converged: bool | None,
) -> str:
    """What `llc.report` says today of a run that it gave `verdict` when it was made.

    Args:
        verdict: of the row.
        failed: names of the failed checks.
        bounds: on λ; None where an assumption fails.
        gamma_converged: as in `llc.Report`.
    """
    if set(failed) - _OF_BOUNDS - _OF_SCALE and verdict not in ("BELOW", "ABOVE"):
        return "UNRESOLVED"
    if verdict in ("BELOW", "ABOVE"):
        return verdict
    if bounds is None or set(failed):
        return "SCALE_DEPENDENT"
    return "CONSISTENT" if bounds[0] == bounds[1] or gamma_converged else "SCALE_DEPENDENT"


def counts(verdicts: Iterable[str]) -> dict[str, int]:
    """How often each verdict was given, in the order of `VERDICTS`."""
    found = collections.Counter(verdicts)
    return {name: found[name] for name in VERDICTS if found[name]}


def listed(number_of: dict[str, int]) -> str:
    """Counts as a cell of a table: "CONSISTENT 3, UNRESOLVED 1"."""
    return ", ".join(f"{name} {number}" for name, number in number_of.items())
