"""The groups and variables of a file of draws: their names, and how they are read.

Names follow ArviZ's schema where it has one. `draws` is an `xarray.DataTree`; every number in it that code asks for is
read with `variable` or `constant`, by a name from this module. `llc.analysis.validation` says which types and shapes
they have.
"""

import json
from typing import Any, cast

import numpy as np
import xarray as xr

# Groups.
POSTERIOR, SAMPLE_STATS, CONSTANTS = "posterior", "sample_stats", "constant_data"
POINTWISE, CURVATURE, LOCALIZED, HALF_STEP = "pointwise", "curvature", "localized", "half_step"
OBSERVABLES = "observables"  # (chain, draw, …) of each, or moments in blocks; not in every file

# Variables of `posterior` and of `sample_stats`, each (chain, draw).
ENERGY, LOSS = "llc", "loss"  # nβ (L(w) − L(w*)), and L(w)
VIRIAL, DIVERGING, DISTANCE, STEP_ENERGY = "virial", "diverging", "distance", "step_energy"
STEIN_CURVED, STEIN_FLAT = "stein_curved", "stein_flat"  # x·A∇U − tr A along the curved directions and the rest

# Scalars of `constant_data`.
NBETA, GAMMA, INIT_LOSS = "nbeta", "gamma", "init_loss"
NUM_DATA, NUM_PARAMS, EVAL_SIZE = "num_data", "num_params", "eval_size"
TRACE_CURVED = "trace_curved"  # tr A; only beside the two above
LOSS_ROUNDING = "loss_rounding"  # error of L(w) − L(w*) by rounding; not in every file
PARAMS_ROUNDING = "params_rounding"  # ½ Σ u(w*)²/12: what λ̂ is heated by, in units of 1/ε; not in every file
CENTER_NORM = "center_norm"  # ‖w*‖; not in every file
REFERENCE_LOSS = "reference_loss"  # of a model that has learnt nothing; not in every file
REACHED_CHANGE, REACHED_DISTANCE = "reached_change", "reached_distance"  # L(w_γ) − L(w*), ‖w_γ − w*‖; of sweeps
CENTER_GRADIENT = "center_gradient"  # ‖∇L(w*)‖ over the parameters that move; not in every file

# Attributes of the root.
SETTINGS, CALIBRATION = "settings", "calibration"
GAMMA_ORIGIN = "gamma_origin"  # "given", or what calibration chose it by: "run length", "quadratic loss", …
WEAKER_GAMMA = "weaker_gamma"  # a number: another γ that calibration names; not in every file

CONSTANT_NAMES = (
    INIT_LOSS,
    NBETA,
    GAMMA,
    NUM_DATA,
    NUM_PARAMS,
    EVAL_SIZE,
    TRACE_CURVED,
    LOSS_ROUNDING,
    PARAMS_ROUNDING,
    CENTER_NORM,
    CENTER_GRADIENT,
    REFERENCE_LOSS,
    REACHED_CHANGE,
    REACHED_DISTANCE,
)

_DRAWN = (POSTERIOR, SAMPLE_STATS, f"warmup_{POSTERIOR}", f"warmup_{SAMPLE_STATS}")
_MOST_DRAWN = 1e50  # beyond it a draw is as good as infinite: fourth powers up to here are numbers
_MOST_LEVELS = 500  # brackets in the settings, which are read by recursion


def variable(draws: xr.DataTree, group: str, name: str) -> np.ndarray:
    """A variable of a group, as a NumPy array. Of draws, numbers that are infinite or beyond all measure are NaN.

    A chain that leaves its basin for good may go through such numbers. Nothing is computed with them.

    Raises:
        ValueError: if there is none; the message names it.
    """
    if not has(draws, group, name):
        raise ValueError(f"{source_of(draws)} needs the variable {group}/{name}, but there is none.")
    values = draws[group].dataset[name].to_numpy()
    if group in _DRAWN and values.dtype.kind == "f":
        beyond = ~(np.abs(values) <= min(_MOST_DRAWN, float(np.finfo(values.dtype).max)))
        return np.where(beyond, np.nan, values) if beyond.any() else values
    return values


def constant(draws: xr.DataTree, name: str) -> float:
    """A number from the `constant_data` group.

    Raises:
        ValueError: if there is none; the message names it.
    """
    value = variable(draws, CONSTANTS, name)
    if value.ndim or value.dtype.kind not in "biuf":
        raise ValueError(
            f"{source_of(draws)} needs {CONSTANTS}/{name} to be one number, got shape {value.shape} of {value.dtype}."
        )
    return float(value)


def scalars(draws: xr.DataTree) -> dict[str, float]:
    """All single numbers of `constant_data`, those of other programs too."""
    found = draws[CONSTANTS].to_dataset().data_vars
    return {str(name): float(x) for name, x in found.items() if x.ndim == 0 and x.dtype.kind in "biuf"}


def source_of(draws: xr.DataTree) -> str:
    """The file that draws were loaded from, or "draws"."""
    return str(draws.encoding.get("source", "draws"))


def optional_constant(draws: xr.DataTree, name: str) -> float:
    """A number from the `constant_data` group, 0 in a file that does not have it."""
    return constant(draws, name) if has(draws, CONSTANTS, name) else 0.0


def localization_scale(draws: xr.DataTree) -> float:
    """γ/nβ of the draws."""
    return constant(draws, GAMMA) / constant(draws, NBETA)


def has(draws: xr.DataTree, group: str, name: str) -> bool:
    """Whether the draws have that variable."""
    return group in draws and name in draws[group].data_vars


def settings_of(draws: xr.DataTree, source: str | None = None) -> dict[str, Any]:
    """How the draws were made, as `llc.sample` wrote it.

    Raises:
        ValueError: if they do not say it as a JSON object.
    """
    try:
        text = draws.attrs[SETTINGS]
        settings = json.loads(text) if text.count("[") + text.count("{") <= _MOST_LEVELS else None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        source = source_of(draws) if source is None else source
        raise ValueError(f"{source} needs the attribute {SETTINGS} to be a JSON object of llc.sample.")
    return settings


def localized_run(draws: xr.DataTree) -> xr.DataTree | None:
    """The run at a larger γ that `llc.estimate` keeps among the draws; None where there is none."""
    return cast("xr.DataTree", draws[LOCALIZED]) if LOCALIZED in draws else None


def half_step_run(draws: xr.DataTree) -> xr.DataTree | None:
    """The run at half the step that `llc.estimate` keeps where a check asked for it; None where there is none."""
    return cast("xr.DataTree", draws[HALF_STEP]) if HALF_STEP in draws else None


def is_of_llc(draws: xr.DataTree) -> bool:
    """Whether a file has draws or a spectrum of this library, and so may be added to or replaced by it."""
    has_draws = SETTINGS in draws.attrs and has(draws, CONSTANTS, NBETA) and has(draws, POSTERIOR, ENERGY)
    has_spectrum = has(draws, CURVATURE, "nodes") and "dim" in draws[CURVATURE].attrs
    others = [name for name in draws.children if name != CURVATURE]
    return has_draws or (has_spectrum and not others)
