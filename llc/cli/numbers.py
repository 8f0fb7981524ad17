"""Numbers of flags: one that is out of range is refused by the flag's name, before a model's file is executed."""

import argparse
import math
from collections.abc import Callable

_MOST = 2**31 - 1  # of an integer: what a compiled loop counts up to
_MOST_SEED = 2**32 - 1  # of JAX's keys
_MOST_WORK = 2**53  # of a budget, which no loop counts


def integer(least: int, most: int = _MOST) -> Callable[[str], int]:
    """A type of argparse: an integer from `least` to `most`."""

    def of(text: str) -> int:
        try:
            value = int(text) if len(text) <= 100 else None  # Python refuses thousands of digits
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"it needs an integer from {least} to {most}, got {text[:40]!r}")
        return value

    return of


def number(least: float = -math.inf, *, strict: bool = False) -> Callable[[str], float]:
    """A type of argparse: a finite number, at least `least`, or above it where that is `strict`."""

    def of(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (strict and value == least):
            limit = "" if least == -math.inf else f" {'>' if strict else '>='} {least:g}"
            raise argparse.ArgumentTypeError(f"it needs a finite number{limit}, got {text[:40]!r}")
        return value

    return of


count, length, budget, seed = integer(1), integer(0), integer(1, _MOST_WORK), integer(0, _MOST_SEED)
positive, not_negative, finite = number(0.0, strict=True), number(0.0), number()
