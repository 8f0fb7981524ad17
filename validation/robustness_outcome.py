"""What came of one case of the robustness study."""

from typing import Literal, NamedTuple


class Outcome(NamedTuple):
    """What came of one case.

    Attributes:
        kind: `right`; `refused`, by a message that names what is wrong; or `other`, of which there must be none.
        detail: of what is other.
        z: (estimate − exact) / error, where a number was estimated.
        of_energy: the same for the mean energy, whose error is one of sampling alone.
    """

    kind: Literal["right", "refused", "other"]
    detail: str = ""
    z: float | None = None
    of_energy: float | None = None
