r"""Equations between the moments of losses and the draws that they are of.

With d = ℓ(w) − ℓ(w*) of a unit (an example or a piece of the data), and means over the draws of a block:

    Σ weight · mean of d = mean of L(w) − L(w*)
    mean of d² ≥ (mean of d)²,   mean of exp(−d) ≥ exp(−mean of d)                                      (Jensen)
    0 ≤ mean of x·A∇U − nβ · mean of x·A∇L = γ · mean of x·A x ≤ ½ γ · mean of r²         (on a subset; A < ½)

Sums are taken in float32 or better: one of N numbers of size s is right to N ulp of s.
"""

import math

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.schema import CONSTANTS, POINTWISE, POSTERIOR, SAMPLE_STATS, constant, has, settings_of, variable

_ULP = float(np.finfo(np.float32).eps)
_LOOSE = 1e-3  # of products with A, whose eigenvectors are float32
_FEW = 64  # roundings of a mean beside those of its sum


def refuse(source: str, name: str, needed: str, got: str) -> None:
    """Raises ValueError of a variable that contradicts others."""
    raise ValueError(f"{source}: {name} needs to be {needed}, got {got}; it was damaged or changed.")


def check_moments(draws: xr.DataTree, source: str) -> None:
    """Refuses moments that are not of these draws.

    Args:
        draws: with the group `pointwise`.
        source: the file, for messages.

    Raises:
        ValueError: naming file, group and variable.
    """
    blocks = _blocks(draws)
    if blocks is None:
        _check_count(draws, source)
    if (rows := draws[POINTWISE].sizes.get("example")) is not None and rows != constant(draws, schema.EVAL_SIZE):
        got = f"{constant(draws, schema.EVAL_SIZE):g}"
        refuse(source, f"{CONSTANTS}/{schema.EVAL_SIZE}", f"the number of examples in {POINTWISE}, {rows}", got)
    _check_means(draws, source, blocks)
    if blocks is not None:
        _check_slopes(draws, source, blocks)


def _blocks(draws: xr.DataTree) -> list[slice] | None:
    """The draws of each block; None where draws were taken out since."""
    counts = variable(draws, POINTWISE, "num_draws")
    ends = np.cumsum(counts).astype(int)
    if int(ends[-1]) != draws[POSTERIOR].sizes["draw"] or not np.array_equal(counts, counts.astype(int)):
        return None
    return [slice(end - int(count), end) for end, count in zip(ends, counts, strict=True)]


def _unit_weights(draws: xr.DataTree, size: int) -> np.ndarray:
    if has(draws, POINTWISE, "weight"):
        return variable(draws, POINTWISE, "weight").astype(float)
    return np.full(size, 1 / size)


def _check_means(draws: xr.DataTree, source: str, blocks: list[slice] | None) -> None:
    """Means of the units against the energies, and moments against each other."""
    energy, nbeta = variable(draws, POSTERIOR, schema.ENERGY), constant(draws, schema.NBETA)
    name, second = ("paired", "paired_second") if has(draws, POINTWISE, "paired") else ("first", "second")
    means, squares, counts = (variable(draws, POINTWISE, x) for x in (name, second, "num_draws"))
    weights = _unit_weights(draws, means.shape[-1])
    for block, chain in np.ndindex(means.shape[:2]):
        if not np.isfinite(energy[chain]).all():
            continue
        mean, square = means[block, chain].astype(float), squares[block, chain].astype(float)
        ulps = float(counts[block] + mean.size + _FEW) * _ULP
        if blocks is not None and blocks[block].start < blocks[block].stop:
            expected, got = float(energy[chain, blocks[block]].mean()) / nbeta, float(np.sum(weights * mean))
            if abs(got - expected) > ulps * float(np.sum(weights * np.sqrt(np.maximum(square, mean**2)))) + 1e-30:
                needed = f"the means of what {POSTERIOR}/{schema.ENERGY} is the mean over rows of"
                got = f"{got:.6g} for {expected:.6g} in block {block} of chain {chain}"
                refuse(source, f"{POINTWISE}/{name}", needed, got)
        _check_jensen(draws, source, (block, chain), ulps)


def _check_count(draws: xr.DataTree, source: str) -> None:
    """Blocks of another number of draws are an error only where no draws were taken out since."""
    written, there = settings_of(draws, source).get("num_draws"), draws[POSTERIOR].sizes["draw"]
    if written == there:
        total = float(variable(draws, POINTWISE, "num_draws").sum())
        refuse(source, f"{POINTWISE}/num_draws", f"the draws of each block, {there} in all", f"{total:g}")


def _check_jensen(draws: xr.DataTree, source: str, place: tuple[int, int], ulps: float) -> None:
    for mean, name in (("first", "second"), ("paired", "paired_second"), ("first", "exponential")):
        if not (has(draws, POINTWISE, mean) and has(draws, POINTWISE, name)):
            continue
        first, other = (variable(draws, POINTWISE, x)[place].astype(float) for x in (mean, name))
        with np.errstate(over="ignore", invalid="ignore"):
            if name == "exponential":
                wrong = (np.abs(first) < 80) & (other < np.exp(-first) * (1 - ulps * (1 + 2 * np.abs(first))) - 1e-37)
            else:
                wrong = other < first**2 * (1 - 3 * ulps) - 1e-37
        if wrong.any():
            needed = f"at least that of the mean {mean} (Jensen)"
            refuse(source, f"{POINTWISE}/{name}", needed, f"less in block {place[0]} of chain {place[1]}")


def _check_slopes(draws: xr.DataTree, source: str, blocks: list[slice]) -> None:
    """Control variates of draws against the slopes of the same rows."""
    pairs = ((schema.STEIN_CURVED, "slope_curved"), (schema.STEIN_FLAT, "slope_flat"))
    needed = [(SAMPLE_STATS, stein) for stein, _ in pairs] + [(POINTWISE, slope) for _, slope in pairs]
    needed += [(SAMPLE_STATS, schema.DISTANCE), (CONSTANTS, schema.TRACE_CURVED)]
    if any(not has(draws, *place) for place in needed):
        return
    nbeta, gamma, trace = (constant(draws, name) for name in (schema.NBETA, schema.GAMMA, schema.TRACE_CURVED))
    distance = variable(draws, SAMPLE_STATS, schema.DISTANCE)
    stein, slopes = variable(draws, SAMPLE_STATS, schema.STEIN_CURVED), variable(draws, POINTWISE, "slope_curved")
    weights = _unit_weights(draws, slopes.shape[-1])
    for block, chain in np.ndindex(slopes.shape[:2]):
        part = chain, blocks[block]
        if not (np.isfinite(stein[part]).all() and np.isfinite(distance[part]).all() and stein[part].size):
            continue
        most = 0.5 * gamma * float(np.mean(distance[part].astype(float) ** 2))
        slope, size = (nbeta * float(np.sum(weights * x)) for x in (slopes[block, chain], np.abs(slopes[block, chain])))
        localized = float(stein[part].mean()) + trace - slope
        ulps = (len(stein[part]) + weights.size) * _ULP
        allowed = (_LOOSE + ulps) * (float(np.abs(stein[part]).mean()) + trace + size)
        if not -allowed <= localized <= most + allowed or math.isnan(localized):
            refuse(
                source,
                f"{SAMPLE_STATS}/{schema.STEIN_CURVED}",
                f"nβ times the slopes of {POINTWISE}/slope_curved and up to ½ {schema.GAMMA} {schema.DISTANCE}² more, "
                f"less {schema.TRACE_CURVED}",
                f"a difference of {localized:.3g} in block {block} of chain {chain}",
            )
