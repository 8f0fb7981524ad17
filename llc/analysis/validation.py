"""Whether draws are what the rest of the code relies on: groups, variables, types, dimensions, sizes and ranges.

`validate` looks through a file, whatever it has; `require` also refuses draws that lack what every report needs.
"""

from collections.abc import Mapping
from typing import cast

import xarray as xr

from llc.analysis.contents import check_settings, check_spectrum, short
from llc.analysis.schema import (
    CALIBRATION,
    CONSTANT_NAMES,
    CONSTANTS,
    CURVATURE,
    DISTANCE,
    DIVERGING,
    ENERGY,
    EVAL_SIZE,
    GAMMA,
    GAMMA_ORIGIN,
    HALF_STEP,
    INIT_LOSS,
    LOCALIZED,
    LOSS,
    NBETA,
    NUM_DATA,
    NUM_PARAMS,
    OBSERVABLES,
    POINTWISE,
    POSTERIOR,
    SAMPLE_STATS,
    SETTINGS,
    STEIN_CURVED,
    STEIN_FLAT,
    STEP_ENERGY,
    VIRIAL,
    has,
    settings_of,
    source_of,
)
from llc.analysis.text import one_line
from llc.analysis.values import check_beside, check_constants

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
_TEXTS = ("sampler", "seed", "versions", CALIBRATION, GAMMA_ORIGIN)  # attributes of the root


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
    present = draws.children
    for group in _DIMS:
        if group in present:
            _check_group(draws, source, group)
    if POINTWISE in present:
        _check_pointwise(present[POINTWISE].to_dataset(), source)
    if POSTERIOR in present:
        _check_sizes(draws, source)
    if OBSERVABLES in present:
        _check_observables(present[OBSERVABLES].to_dataset(), source)
    if CURVATURE in present:
        check_spectrum(present[CURVATURE], f"{source}, group {CURVATURE}")
    _check_attributes(draws, source)
    check_constants(draws, source)
    check_beside(draws, source)
    for name in (LOCALIZED, HALF_STEP):
        if name in present:
            validate(present[name], f"{source}, group {name}")


def _check_group(draws: xr.DataTree, source: str, group: str) -> None:
    """Dimensions, dtypes and ranges of the variables that a group has."""
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


def _check_pointwise(group: xr.Dataset, source: str) -> None:
    """Whether the moments that are read together are all there."""
    needed = {"first", "second", "exponential", "num_draws"}
    needed |= {name for pair in _TOGETHER for name in pair if pair[0] in group or pair[1] in group}
    if absent := sorted(needed - set(group.data_vars)):
        raise ValueError(f"{source} needs the variables {absent} in {POINTWISE}, but there are none.")


def _check_attributes(draws: xr.DataTree, source: str) -> None:
    for name in _TEXTS:
        if not isinstance(draws.attrs.get(name, ""), str):
            raise ValueError(f"{source} needs the attribute {name} to be text, got {short(draws.attrs[name])}.")
    if SETTINGS in draws.attrs:
        check_settings(settings_of(draws, source), source)


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
                f"{OBSERVABLES}/{one_line(str(name))}, got {found.dtype} with dimensions {dict(found.sizes)}."
            )
