"""Whether the numbers of draws are such as a run can have, and do not contradict each other.

Single numbers lie in a range, whose ends are such that no product or square of two of them overflows. Of draws, NaN and
huge values are no fault of the file: a chain that left its basin has them, and a check of the report counts it. What no
run can write is refused: a negative distance, a moment that is NaN for a chain which is not, and nβ (L(w) − L(w*)) that
is another number than the loss of the same draw says.
"""

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import xarray as xr

from llc.analysis.identities import check_identities
from llc.analysis.schema import (
    CENTER_GRADIENT,
    CENTER_NORM,
    CONSTANTS,
    DISTANCE,
    DIVERGING,
    ENERGY,
    EVAL_SIZE,
    GAMMA,
    HALF_STEP,
    INIT_LOSS,
    LOCALIZED,
    LOSS,
    LOSS_ROUNDING,
    NBETA,
    NUM_DATA,
    NUM_PARAMS,
    PARAMS_ROUNDING,
    POINTWISE,
    POSTERIOR,
    REACHED_CHANGE,
    REACHED_DISTANCE,
    REFERENCE_LOSS,
    SAMPLE_STATS,
    TRACE_CURVED,
    constant,
    has,
    variable,
)

_MOST, _MOST_SCALE = 1e100, 1e50  # of a number; and of nβ and γ, which are divided by each other and squared
_ANY, _SIZE, _COUNT = (-_MOST, _MOST), (0.0, _MOST), (1.0, _MOST)
RANGES: Mapping[str, tuple[float, float]] = {  # least and largest value of a constant
    INIT_LOSS: _ANY,
    NBETA: (1 / _MOST_SCALE, _MOST_SCALE),
    GAMMA: (0.0, _MOST_SCALE),
    NUM_DATA: _COUNT,
    NUM_PARAMS: _COUNT,
    EVAL_SIZE: _COUNT,
    TRACE_CURVED: _ANY,
    LOSS_ROUNDING: _SIZE,
    PARAMS_ROUNDING: _SIZE,
    CENTER_NORM: _SIZE,
    CENTER_GRADIENT: _SIZE,
    REFERENCE_LOSS: _ANY,
    REACHED_CHANGE: _ANY,
    REACHED_DISTANCE: _SIZE,
}
_NOT_NEGATIVE = {
    SAMPLE_STATS: (DISTANCE,),
    f"warmup_{SAMPLE_STATS}": (DISTANCE,),
    POINTWISE: ("second", "paired_second", "exponential", "weight", "num_draws"),
}
_OF_FINITE_CHAINS = {  # moments of chains whose losses are finite, and whether they may be infinite all the same
    "first": False,
    "paired": False,
    "second": True,
    "paired_second": True,
    "exponential": True,
}
# In a run and in those beside it.
_SAME = (INIT_LOSS, NBETA, NUM_DATA, NUM_PARAMS, CENTER_NORM, REFERENCE_LOSS, PARAMS_ROUNDING)
_ULPS = 64  # by which an energy may differ from what its loss says: some roundings, of numbers as large as the loss


def check_constants(draws: xr.DataTree, source: str) -> None:
    """Raises ValueError, naming file and variable, if a constant is out of its range."""
    for name, (low, high) in RANGES.items():
        if has(draws, CONSTANTS, name) and not low <= (value := constant(draws, name)) <= high:
            raise ValueError(
                f"{source}: {CONSTANTS}/{name} needs to be a number from {low:g} to {high:g}, got {value}; it was "
                "damaged or changed."
            )
    if has(draws, CONSTANTS, EVAL_SIZE) and has(draws, CONSTANTS, NUM_DATA):
        rows, of = constant(draws, EVAL_SIZE), constant(draws, NUM_DATA)
        if rows > of:
            raise ValueError(f"{source}: {CONSTANTS}/{EVAL_SIZE} needs to be at most {NUM_DATA}, {of:g}, got {rows:g}.")


def check_beside(draws: xr.DataTree, source: str) -> None:
    """Raises ValueError if a run beside the draws is of another posterior, or not at the γ that makes it one."""
    for group in (LOCALIZED, HALF_STEP):
        if group not in draws.children:
            continue
        beside = cast("xr.DataTree", draws[group])
        for name in _SAME:
            if has(draws, CONSTANTS, name) and has(beside, CONSTANTS, name):
                here, there = constant(draws, name), constant(beside, name)
                if not math.isclose(here, there, rel_tol=1e-6, abs_tol=1e-12):
                    raise ValueError(
                        f"{source}, group {group}: {CONSTANTS}/{name} needs to be that of the run that it lies beside, "
                        f"{here:.9g}, got {there:.9g}."
                    )
        if group == LOCALIZED and has(draws, CONSTANTS, GAMMA) and has(beside, CONSTANTS, GAMMA):
            here, there = constant(draws, GAMMA), constant(beside, GAMMA)
            if not there > here > 0:
                raise ValueError(
                    f"{source}, group {group}, which is at 3γ: {CONSTANTS}/{GAMMA} needs to be above that of the run "
                    f"that it lies beside, and both above 0, got {there:g} and {here:g}."
                )


def check_values(draws: xr.DataTree, source: str) -> None:
    """Refuses draws with numbers that no run has. Groups and dimensions are those that `validation` has looked at.

    Args:
        draws: what a file holds; groups may be missing.
        source: the file, for messages.

    Raises:
        ValueError: naming file, group and variable.
    """
    for group, names in _NOT_NEGATIVE.items():
        for name in (name for name in names if has(draws, group, name)):
            if (least := _least(variable(draws, group, name))) < 0:
                raise ValueError(f"{source}: {group}/{name} needs to have no negative values, got {least:g}.")
        if has(draws, group, DIVERGING) and not np.isin(variable(draws, group, DIVERGING), (0, 1)).all():
            raise ValueError(f"{source}: {group}/{DIVERGING} needs to be true or false in each draw.")
    for prefix in ("", "warmup_"):
        _check_energies(draws, source, f"{prefix}{POSTERIOR}")
    if POINTWISE in draws.children and has(draws, POSTERIOR, ENERGY):
        _check_moments(draws, source)
    check_identities(draws, source)
    for name in (LOCALIZED, HALF_STEP):
        if name in draws.children:
            check_values(cast("xr.DataTree", draws[name]), f"{source}, group {name}")


def _least(values: np.ndarray) -> float:
    """The least value that is a number; 0 where there is none."""
    return float(np.fmin.reduce(values, axis=None, initial=0.0)) if values.dtype.kind == "f" else float(values.min())


def _check_energies(draws: xr.DataTree, source: str, group: str) -> None:
    """Whether each draw has nβ (L(w) − L(w*)) as its loss says it, wherever one of the two is a number."""
    if not (has(draws, group, ENERGY) and has(draws, group, LOSS) and has(draws, CONSTANTS, INIT_LOSS)):
        return
    energy, loss = variable(draws, group, ENERGY), variable(draws, group, LOSS)
    nbeta, init_loss = constant(draws, NBETA), constant(draws, INIT_LOSS)
    usable = np.isfinite(energy) | np.isfinite(loss)
    eps = max(float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else 0.0 for x in (energy, loss))
    eps = max(eps, float(np.finfo(np.float64).eps))
    expected = nbeta * (loss.astype(np.float64) - init_loss)
    allowed = _ULPS * eps * (np.abs(energy) + nbeta * (np.abs(loss) + abs(init_loss)))
    wrong = usable & ~(np.abs(energy - expected) <= allowed)
    if wrong.any():
        chain, draw = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{source}: {group}/{ENERGY} needs to be nβ ({LOSS} − {INIT_LOSS}) of the same draw, got "
            f"{float(energy[chain, draw]):g} for {float(expected[chain, draw]):g} in draw {draw} of chain {chain}; "
            "it was damaged or changed."
        )


def _check_moments(draws: xr.DataTree, source: str) -> None:
    """Whether the weights make a mean, and whether chains with finite losses have finite moments of them."""
    for name in ("weight", "num_draws"):
        if has(draws, POINTWISE, name):
            total = float(np.sum(variable(draws, POINTWISE, name), dtype=np.float64))
            if not 0 < total < _MOST or (name == "weight" and not math.isclose(total, 1, rel_tol=1e-3)):
                what = "1" if name == "weight" else "the number of draws"
                raise ValueError(f"{source}: {POINTWISE}/{name} needs to add up to {what}, got {total:g}.")
    finite = np.flatnonzero(np.isfinite(variable(draws, POSTERIOR, ENERGY)).all(axis=1))
    for name, unbounded in _OF_FINITE_CHAINS.items():
        blocks = variable(draws, POINTWISE, name) if has(draws, POINTWISE, name) else ()
        # Each chain of each block alone: all of them are as large as the data many times over.
        if not all(_are_numbers(block[chain], unbounded=unbounded) for block in blocks for chain in finite):
            raise ValueError(
                f"{source}: {POINTWISE}/{name} needs finite numbers for chains whose losses are finite; it was damaged "
                "or changed."
            )


def _are_numbers(values: np.ndarray, *, unbounded: bool) -> bool:
    if values.dtype.kind != "f":
        return True
    sizes = np.abs(values)
    good = sizes <= min(_MOST, float(np.finfo(values.dtype).max))
    return bool((good | np.isinf(sizes) if unbounded else good).all())
