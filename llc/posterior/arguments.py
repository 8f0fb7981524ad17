"""Checks of arguments at the public doors, which name the argument and say what it needs."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np

_MOST = 2**31 - 1  # of an integer: what a compiled loop counts up to


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


def require_integer(name: str, value: object, *, least: int, most: int = _MOST, optional: bool = False) -> None:
    """Raises ValueError if `value` is not an integer from `least` to `most`."""
    right = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= most
    if not (right or (optional and value is None)):
        limits = f">= {least}" if not isinstance(value, (int, np.integer)) or value <= most else f"<= {most}"
        raise ValueError(f"{name} needs an integer {limits}{' or None' if optional else ''}, got {_shown(value)}.")


def require_flag(name: str, value: object, *, optional: bool = False) -> None:
    """Raises ValueError if `value` is not True or False."""
    require_type(name, value, (bool, np.bool_), "True or False", optional=optional)


def require_option(name: str, value: object, options: Collection[str]) -> None:
    """Raises ValueError if `value` is not one of the words `options`."""
    if not (isinstance(value, str) and value in options):
        raise ValueError(f"{name} needs one of {tuple(options)}, got {_shown(value)}.")


def require_callable(name: str, value: object, what: str, *, optional: bool = False) -> None:
    """Raises ValueError if `value` can't be called."""
    if not (callable(value) or (optional and value is None)):
        raise ValueError(f"{name} needs to be {what}{' or None' if optional else ''}, got {_shown(value)}.")


def require_number(
    name: str, value: object, *, least: float = 0.0, strict: bool = True, optional: bool = False
) -> None:
    """Raises ValueError if `value` is not a finite real number above `least` (or equal to it, unless `strict`)."""
    if optional and value is None:
        return
    try:
        number = math.nan if is_no_number(value) or np.ndim(value) else float(value)  # pyright: ignore
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and (number > least or (number == least and not strict))):
        sign = ">" if strict else ">="
        raise ValueError(
            f"{name} needs a finite number {sign} {least:g}{' or None' if optional else ''}, got {_shown(value)}."
        )


def is_no_number(value: object) -> bool:
    """Whether NumPy or Python would turn `value` into a number that is none: a flag, text, a date, a complex number."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return isinstance(value, (bool, str, bytes, complex)) or kind in tuple("bcmMUS")


def plain(value: Any) -> Any:
    """A number or flag of NumPy or JAX as one of Python's, which programs and files have as a constant."""
    return (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value
    )


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print one of thousands of digits
        return "an integer of more than 60 digits"
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
