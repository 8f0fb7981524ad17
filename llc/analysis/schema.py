"""The groups and variables of a file of draws: their names, how they are read, and what a report needs of them.

Names follow ArviZ's schema where it has one. `draws` is an `xarray.DataTree`; every number in it that code asks for is
read with `variable` or `constant`, by a name from this module.
"""

import json
from typing import Any, cast

import numpy as np
import xarray as xr

# Groups.
POSTERIOR, SAMPLE_STATS, CONSTANTS = "posterior", "sample_stats", "constant_data"
POINTWISE, CURVATURE, LOCALIZED = "pointwise", "curvature", "localized"

# Variables of `posterior` and of `sample_stats`, each (chain, draw).
ENERGY, LOSS = "llc", "loss"  # nβ (L(w) − L(w*)), and L(w)
VIRIAL, DIVERGING, DISTANCE = "virial", "diverging", "distance"
STEIN_CURVED, STEIN_FLAT = "stein_curved", "stein_flat"  # x·A∇U − tr A along the curved directions and the rest

# Scalars of `constant_data`.
NBETA, GAMMA, INIT_LOSS = "nbeta", "gamma", "init_loss"
NUM_DATA, NUM_PARAMS, EVAL_SIZE = "num_data", "num_params", "eval_size"
TRACE_CURVED = "trace_curved"  # tr A; only beside the two above
LOSS_ROUNDING = "loss_rounding"  # error of L(w) − L(w*) by rounding; not in every file
PARAMS_ROUNDING = "params_rounding"  # ½ Σ u(w*)²/12: what λ̂ is heated by, in units of 1/ε; not in every file
CENTER_NORM = "center_norm"  # ‖w*‖; not in every file

# Attributes of the root.
SETTINGS, CALIBRATION = "settings", "calibration"

_NEEDED = {
    POSTERIOR: (LOSS, ENERGY),
    SAMPLE_STATS: (VIRIAL, DIVERGING),
    CONSTANTS: (INIT_LOSS, NBETA, GAMMA, NUM_DATA, NUM_PARAMS, EVAL_SIZE),
}


def variable(draws: xr.DataTree, group: str, name: str) -> np.ndarray:
    """A variable of a group, as a NumPy array."""
    return draws[group].dataset[name].to_numpy()


def constant(draws: xr.DataTree, name: str) -> float:
    """A number from the `constant_data` group."""
    return float(variable(draws, CONSTANTS, name))


def optional_constant(draws: xr.DataTree, name: str) -> float:
    """A number from the `constant_data` group, 0 in a file that does not have it."""
    return constant(draws, name) if has(draws, CONSTANTS, name) else 0.0


def localization_scale(draws: xr.DataTree) -> float:
    """γ/nβ of the draws."""
    return constant(draws, GAMMA) / constant(draws, NBETA)


def has(draws: xr.DataTree, group: str, name: str) -> bool:
    """Whether the draws have that variable."""
    return group in draws and name in draws[group].data_vars


def settings_of(draws: xr.DataTree) -> dict[str, Any]:
    """How the draws were made, as `llc.sample` wrote it."""
    return json.loads(draws.attrs[SETTINGS])


def localized_run(draws: xr.DataTree) -> xr.DataTree | None:
    """The run at a larger γ that `llc.estimate` keeps among the draws; None where there is none."""
    return cast("xr.DataTree", draws[LOCALIZED]) if LOCALIZED in draws else None


def require(draws: xr.DataTree) -> None:
    """Refuses draws that lack what every report needs.

    Raises:
        ValueError: if `draws` is no DataTree, or lacks groups, variables or settings; the message names them.
    """
    if not isinstance(draws, xr.DataTree):
        raise ValueError(f"draws need to be a DataTree of llc.sample or llc.load, got {type(draws).__name__}.")
    missing = [group for group in _NEEDED if group not in draws.children]
    missing += [
        f"{group}/{name}"
        for group, names in _NEEDED.items()
        if group in draws.children
        for name in sorted(names)
        if name not in draws[group].data_vars
    ]
    missing += ["attribute settings"] * (SETTINGS not in draws.attrs)
    if missing:
        raise ValueError(f"draws need what llc.sample writes, but they lack {missing}.")
