"""The first line of a study's text: whether the claim holds, fails, or is undecided."""

from collections.abc import Sequence

HOLDS, FAILS, UNDECIDED = "HOLDS", "FAILS", "UNDECIDED"


def verdict(parts: Sequence[bool | None]) -> str:
    """HOLDS where all parts do, FAILS where one does not, UNDECIDED where one can't be told and none fails."""
    if any(part is False for part in parts):
        return FAILS
    return UNDECIDED if not parts or any(part is None for part in parts) else HOLDS


def headline(parts: Sequence[bool | None], claim: str, found: str) -> str:
    """Verdict and claim in the first line, and below what was found."""
    return f"{verdict(parts)} — {claim}\n{found}\n"


def sign_part(found: tuple[float, float, float], sign: int) -> bool | None:
    """Whether all of an interval (value, low, high) has the claimed sign, all the other one, or neither."""
    low, high = sorted(sign * end for end in found[1:])
    return True if low > 0 else False if high < 0 else None


def interval(found: tuple[float, float, float]) -> str:
    """Value and interval as text."""
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"
