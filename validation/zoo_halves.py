"""The cases of the zoo with an exact value in two halves: constants are searched on one and reported on the other."""

from zoo import CASES

TWO_MINIMA = "|w|^8"  # their exact value integrates over a second minimum, see accuracy.py
NAMES = tuple(case.name for case in CASES if case.moments and TWO_MINIMA not in case.name)
HALVES = "search", "report"


def half(name: str) -> str:
    """Every other case of a family, so that both halves have all families of more than one."""
    family = next(case.family for case in CASES if case.name == name)
    members = [case.name for case in CASES if case.family == family and case.name in NAMES]
    return HALVES[members.index(name) % 2]
