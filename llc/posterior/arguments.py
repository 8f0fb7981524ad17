"""Checks of arguments at the public doors, which name the argument and say what it needs."""

import math

import numpy as np


def require_type(name: str, value: object, kind: type | tuple[type, ...], what: str, *, optional: bool = False) -> None:
    """Raises ValueError if `value` is not of `kind`.

    Args:
        name: of the argument.
        value: that was given.
        kind: types that it may have.
        what: where such a value comes from, for the message.
        optional: whether None will do.
    """
    if not (isinstance(value, kind) or (optional and value is None)):
        raise ValueError(f"{name} needs to be {what}{' or None' if optional else ''}, got {_shown(value)}.")


def require_integer(name: str, value: object, *, least: int, optional: bool = False) -> None:
    """Raises ValueError if `value` is not an integer of at least `least`."""
    right = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least
    if not (right or (optional and value is None)):
        raise ValueError(f"{name} needs an integer >= {least}{' or None' if optional else ''}, got {_shown(value)}.")


def require_number(
    name: str, value: object, *, least: float = 0.0, strict: bool = True, optional: bool = False
) -> None:
    """Raises ValueError if `value` is not a finite real number above `least` (or equal to it, unless `strict`)."""
    if optional and value is None:
        return
    try:
        number = math.nan if isinstance(value, (str, bytes)) or np.ndim(value) else float(value)  # pyright: ignore
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and (number > least or (number == least and not strict))):
        sign = ">" if strict else ">="
        raise ValueError(
            f"{name} needs a finite number {sign} {least:g}{' or None' if optional else ''}, got {_shown(value)}."
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
