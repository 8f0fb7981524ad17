"""The groups and variables of a file of draws: their names, how they are read, and what a report needs of them.

Names follow ArviZ's schema where it has one. `draws` is an `xarray.DataTree`; every number in it that code asks for is
read with `variable` or `constant`, by a name from this module. `validate` and `require` are the door: what they let in
has the types and shapes that the rest of the code relies on.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import xarray as xr

from llc.analysis.contents import check_settings, check_spectrum, short

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
    CENTER_NORM,
    CENTER_GRADIENT,
    REFERENCE_LOSS,
    REACHED_CHANGE,
    REACHED_DISTANCE,
)

_NEEDED = {
    POSTERIOR: (LOSS, ENERGY),
    SAMPLE_STATS: (VIRIAL, DIVERGING),
    CONSTANTS: (INIT_LOSS, NBETA, GAMMA, NUM_DATA, NUM_PARAMS, EVAL_SIZE),
}
_DRAWN, _UNITS = ("chain", "draw"), ("example", "piece")  # dimensions; losses come in units of one of the two
_STATISTICS = (VIRIAL, DIVERGING, DISTANCE, STEIN_CURVED, STEIN_FLAT, STEP_ENERGY)
_DIMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    POSTERIOR: dict.fromkeys((LOSS, ENERGY), _DRAWN),
    SAMPLE_STATS: dict.fromkeys(_STATISTICS, _DRAWN),
    f"warmup_{POSTERIOR}": dict.fromkeys((LOSS, ENERGY), _DRAWN),
    f"warmup_{SAMPLE_STATS}": dict.fromkeys(_STATISTICS, _DRAWN),
    CONSTANTS: dict.fromkeys(CONSTANT_NAMES, ()),
    CURVATURE: {
        "nodes": ("probe", "node"),
        "weights": ("probe", "node"),
        "gradient_nodes": ("gradient_node",),
        "gradient_weights": ("gradient_node",),
        "half_nodes": ("probe", "half_node"),
        "half_weights": ("probe", "half_node"),
    },
    POINTWISE: {"weight": ("unit",), "num_draws": ("block",)}
    | dict.fromkeys(
        ("first", "second", "exponential", "paired", "paired_second", "slope_curved", "slope_flat"),
        ("block", "chain", "unit"),
    ),
}
_TOGETHER = (("slope_curved", "slope_flat"), ("paired", "paired_second"))  # both or none
_RANGES = {  # least and largest value of a constant
    INIT_LOSS: (-math.inf, math.inf),
    NBETA: (np.finfo(np.float64).tiny, math.inf),
    GAMMA: (0.0, math.inf),
    NUM_DATA: (1.0, math.inf),
    NUM_PARAMS: (1.0, math.inf),
    EVAL_SIZE: (1.0, math.inf),
    REFERENCE_LOSS: (-math.inf, math.inf),
}
_TEXTS = ("sampler", "seed", "versions", CALIBRATION)  # attributes of the root
_MOST_LEVELS = 500  # brackets in the settings, which are read by recursion


def variable(draws: xr.DataTree, group: str, name: str) -> np.ndarray:
    """A variable of a group, as a NumPy array.

    Raises:
        ValueError: if there is none; the message names it.
    """
    if not has(draws, group, name):
        raise ValueError(f"{source_of(draws)} needs the variable {group}/{name}, but there is none.")
    return draws[group].dataset[name].to_numpy()


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


def require(draws: xr.DataTree) -> None:
    """Refuses draws that lack what every report needs, or have something else in its place.

    Raises:
        ValueError: if `draws` is no DataTree, or lacks groups, variables or settings; the message names them.
    """
    if not isinstance(draws, xr.DataTree):
        raise ValueError(f"draws need to be a DataTree of llc.sample or llc.load, got {type(draws).__name__}.")
    _require(draws, source_of(draws))


def _require(draws: xr.DataTree, source: str) -> None:
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
        where = "" if source == "draws" else f"{source}: "
        raise ValueError(f"{where}draws need what llc.sample writes, but they lack {missing}.")
    validate(draws, source)
    for name in (LOCALIZED, HALF_STEP):
        if name in draws:
            _require(cast("xr.DataTree", draws[name]), f"{source}, group {name}")


def validate(draws: xr.DataTree, source: str) -> None:
    """Refuses whatever is there but not as this module says: types, dimensions, sizes and ranges.

    Args:
        draws: what a file holds; groups may be missing.
        source: the file, for messages.

    Raises:
        ValueError: naming file, group and variable.
    """
    for group in _DIMS:
        if group in draws.children:
            _check_group(draws, source, group)
    if POSTERIOR in draws.children:
        _check_sizes(draws, source)
    if OBSERVABLES in draws.children:
        _check_observables(draws.children[OBSERVABLES].to_dataset(), source)
    if CURVATURE in draws.children:
        check_spectrum(draws.children[CURVATURE], f"{source}, group {CURVATURE}")
    for name in _TEXTS:
        if not isinstance(draws.attrs.get(name, ""), str):
            raise ValueError(f"{source} needs the attribute {name} to be text, got {short(draws.attrs[name])}.")
    if SETTINGS in draws.attrs:
        check_settings(settings_of(draws, source), source)
    if (localized := localized_run(draws)) is not None:
        if has(draws, CONSTANTS, GAMMA) and not constant(draws, GAMMA) > 0:
            raise ValueError(
                f"{source} needs {CONSTANTS}/{GAMMA} > 0 beside the group {LOCALIZED}, which is at 3γ, got 0."
            )
        validate(localized, f"{source}, group {LOCALIZED}")
    if (half := half_step_run(draws)) is not None:
        validate(half, f"{source}, group {HALF_STEP}")


def _check_group(draws: xr.DataTree, source: str, group: str) -> None:
    node = draws[group].to_dataset()
    unit = next((name for name in _UNITS if name in node.dims), _UNITS[0])
    for name, dims in _DIMS[group].items():
        if name not in node:
            continue
        found, expected = node[name], tuple(unit if dim == "unit" else dim for dim in dims)
        if found.dims != expected or found.dtype.kind not in "biuf" or (not found.size and group != CURVATURE):
            got = f"{found.dtype} with dimensions {dict(found.sizes)}"
            raise ValueError(
                f"{source} needs numbers with the dimensions {expected}, none empty, in {group}/{name}, got {got}."
            )
        if group == CONSTANTS and name in _RANGES:
            low, high = _RANGES[name]
            if not (math.isfinite(value := float(found)) and low <= value <= high):
                raise ValueError(f"{source} needs {group}/{name} to be finite and at least {low:g}, got {value}.")
    if group == POINTWISE:
        absent = [name for name in ("first", "second", "exponential", "num_draws") if name not in node]
        absent += [
            name for pair in _TOGETHER for name in pair if (pair[0] in node or pair[1] in node) and name not in node
        ]
        if absent:
            raise ValueError(f"{source} needs the variables {absent} in {group}, but there are none.")


def _check_sizes(draws: xr.DataTree, source: str) -> None:
    """Chains and draws of the groups that are read together."""
    sizes = dict(draws[POSTERIOR].sizes)
    for group, dims in ((SAMPLE_STATS, _DRAWN), (POINTWISE, ("chain",)), (OBSERVABLES, _DRAWN)):
        for dim in dims if group in draws.children else ():
            if (size := draws[group].sizes.get(dim, sizes.get(dim))) != sizes.get(dim):
                raise ValueError(
                    f"{source} needs as many {dim}s in {group} as in {POSTERIOR}, got {size} and {sizes.get(dim)}."
                )
    first, second = f"warmup_{POSTERIOR}", f"warmup_{SAMPLE_STATS}"
    if (first in draws.children) != (second in draws.children):
        raise ValueError(f"{source} needs both {first} and {second} or none, got one of them.")
    if first in draws.children:
        for group, other in ((POSTERIOR, first), (SAMPLE_STATS, second)):
            names = [n for n in _DIMS[group] if has(draws, group, n) and not has(draws, other, n)]
            if names or draws[other].sizes.get("chain") != sizes.get("chain"):
                raise ValueError(f"{source} needs in {other} the variables and chains of {group}; it lacks {names}.")


def _check_observables(group: xr.Dataset, source: str) -> None:
    """Whether they are numbers, in draws or blocks of every chain."""
    for name, found in group.data_vars.items():
        leading = tuple(found.dims[:2]) if name != "num_draws" else ("block", "chain")
        if found.dtype.kind not in "biuf" or not found.size or leading not in (_DRAWN, ("block", "chain")):
            raise ValueError(
                f"{source} needs numbers with the dimensions {_DRAWN} or ('block', 'chain') first, none empty, in "
                f"{OBSERVABLES}/{name}, got {found.dtype} with dimensions {dict(found.sizes)}."
            )
