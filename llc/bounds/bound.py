"""What one probe says about λ, as a record."""

import math
from dataclasses import dataclass
from typing import Literal

Status = Literal["established", "undecided", "not used", "not needed"]


@dataclass(frozen=True)
class Bound:
    """What one probe says about λ beyond the rank.

    Attributes:
        name: of the probe.
        status: `"established"` (by a theorem, from numbers that are decided well above round-off), `"undecided"` (the
            probe claims nothing), `"not used"` (its assumptions fail) or `"not needed"` (λ is known without it).
        finding: what was seen.
        assumptions: what the bound rests on beside the assumptions of the rank's bounds.
        lower: λ ≥ lower; −inf where there is no lower bound.
        upper: λ ≤ upper; inf where there is no upper bound.
        evaluations: the largest number of gradients or Hessian products that the probe may have taken.
        seconds: time of the probe, compilation included.
        number: the number that was decided on the way: the dimension D of an orbit, the order 2k, the number d₄ of
            variables, the rank ρ or the codimension r'; None where there is none.
    """

    name: str
    status: Status
    finding: str
    assumptions: str = ""
    lower: float = -math.inf
    upper: float = math.inf
    evaluations: int = 0
    seconds: float = 0.0
    number: int | None = None

    def __str__(self) -> str:
        below = f"λ ≥ {self.lower:.4g}" if self.lower > -math.inf else ""
        above = f"λ ≤ {self.upper:.4g}" if self.upper < math.inf else ""
        sides = [f"λ = {self.lower:.4g}"] if self.lower == self.upper else [below, above]
        cost = f"{self.evaluations:,} evaluations, {self.seconds:.1f} s" if self.evaluations else ""
        rests = f"rests on {self.assumptions}" if self.assumptions and self.status == "established" else ""
        return "; ".join(part for part in (f"{self.name}: {self.status}", *sides, self.finding, rests, cost) if part)
