"""The record of a check: what was seen, what is allowed, and what to change.

A failed check is data. It never hides the number, and the number never hides it. Code asks the fields `kind`,
`cured_by_draws` and `direction`; names and messages are for people.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_BIAS = 0.02  # of λ̂: the accuracy that a report claims

Kind = Literal["chains", "minimum", "bounds", "scale", "slope", "estimates"]
Direction = Literal["hot", "cold"]


@dataclass(frozen=True)
class Check:
    """One named test of a run.

    Attributes:
        name: what was tested.
        kind: what it judges: whether the `"chains"` sample their posterior, whether w* is a `"minimum"`, whether the
            `"bounds"` hold and contain the estimate, whether the `"scale"` (nβ, γ) lets most of λ be seen, whether
            a `"slope"` at w* contributes little to λ̂ (its value is then the energy that the slope takes), or whether
            the other `"estimates"` beside λ̂ are numbers, which says nothing of λ̂ and leaves the verdict alone.
        passed: whether the value is within its threshold.
        value: what was seen.
        threshold: what is allowed.
        message: what was seen and, if the check failed, why it matters and what to change.
        cured_by_draws: whether more draws of the same chains can make it pass.
        direction: what a failed check says of the energies: `"hot"`, higher than those of the posterior, or `"cold"`,
            lower; None where it does not tell, and for a check that passed.
        told_by_half_step: whether a run at half the step would say why it failed (see `llc.analysis.cause`).
    """

    name: str
    kind: Kind
    passed: bool
    value: float
    threshold: float
    message: str
    cured_by_draws: bool = False
    direction: Direction | None = None
    told_by_half_step: bool = False


def make_check(
    name: str,
    kind: Kind,
    value: float | int,
    threshold: float | int,
    *,
    passed: bool | np.bool_,
    seen: str,
    cure: str,
    cured_by_draws: bool = False,
    direction: Direction | None = None,
    told_by_half_step: bool = False,
) -> Check:
    """A check whose message is `seen`, followed by `cure` if it failed.

    Args:
        name: of the check.
        kind: of the check.
        value: what was seen.
        threshold: what is allowed.
        passed: whether the value is within its threshold.
        seen: the value in words.
        cure: why it matters and what to change.
        cured_by_draws: whether more draws can make it pass.
        direction: what it says of the energies if it failed.
        told_by_half_step: whether a run at half the step would say why, if it failed.
    """
    return Check(
        name=name,
        kind=kind,
        passed=bool(passed),
        value=float(value),
        threshold=float(threshold),
        message=seen if passed else f"{seen}: {cure}",
        cured_by_draws=cured_by_draws,
        direction=None if passed else direction,
        told_by_half_step=told_by_half_step and not passed,
    )
