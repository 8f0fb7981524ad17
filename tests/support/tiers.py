"""Parameters of which CI runs some, and the others once a week."""

import pytest


def weekly(values, *, but):
    """The values of one argument, marked `study` but for some."""
    values = list(values)
    assert set(but) <= set(values)
    return [pytest.param(value, marks=[pytest.mark.study] * (value not in but)) for value in values]


def weekly_cases(cases, *, but):
    """The values of several arguments by their ids, marked `study` but for some."""
    assert set(but) <= set(cases)
    return [pytest.param(*case, id=name, marks=[pytest.mark.study] * (name not in but)) for name, case in cases.items()]
