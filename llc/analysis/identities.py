r"""Equations between the numbers of a run, which hold for whatever was sampled: a file in which one fails was changed.

With x = w − w*, r = ‖x‖ and U = nβ L + ½ γ r², and draws one step apart:

    of each draw on all the data     potential = nβ loss + ½ γ r² + a constant (rounding of L(w*))
    of each draw                     |d · virial| = |x·∇U| ≤ ‖∇U‖ r
    where parameters are kept        r² − ‖w − w₀‖² is linear in w (the cosine rule)

`potential`, `virial` and `grad_norm` are those at the draw where a step is accepted or refused, and at the draw before
it elsewhere. A loss of float32, which is many sums one after the other, is taken to be right to 10⁻⁴ of itself, a
thousand roundings. `moment_identities` has those of moments; what no equation sees is said in docs/security.md.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from llc.analysis import schema
from llc.analysis.moment_identities import check_moments, refuse
from llc.analysis.schema import CONSTANTS, POINTWISE, POSTERIOR, SAMPLE_STATS, constant, has, settings_of, variable
from llc.bounds.spectral_measure import Spectrum

_ULP = float(np.finfo(np.float32).eps)
_ROUNDING = 1e-4  # of a loss, see above
_LOOSE = 1e-3  # of products with A, which float32 has beside eigenvectors of its own rounding
_AT_DRAW = ("NUTS", "HMC", "MALA")  # samplers whose steps show U at the draw, and those that show it at the one before
_BEFORE_DRAW = ("SGLD", "SGHMC", "SGNHT")
_MOST_PARAMS = 64  # of which the cosine rule is looked at
_MOST_ROWS = 1000  # draws that it is looked at of


class _Run(NamedTuple):
    """What is known of a run as a whole."""

    nbeta: float
    gamma: float
    sampler: str
    each_step: bool  # whether every step is a draw
    whole: bool  # whether steps and draws are on all the data


def check_identities(draws: xr.DataTree, source: str) -> None:
    """Refuses draws whose numbers contradict each other. Groups and dimensions are those `validation` has looked at.

    Args:
        draws: what a file holds; groups may be missing.
        source: the file, for messages.

    Raises:
        ValueError: naming file, group and variable.
    """
    if not (has(draws, POSTERIOR, schema.ENERGY) and schema.SETTINGS in draws.attrs and CONSTANTS in draws):
        return
    if any(not has(draws, CONSTANTS, name) for name in (schema.NBETA, schema.GAMMA, schema.NUM_DATA, schema.EVAL_SIZE)):
        return
    _check_sizes(draws, source)
    run = _run_of(draws, source)
    for prefix in ("", "warmup_"):
        _check_potential(draws, source, prefix, run)
        _check_virial(draws, source, prefix, run)
    _check_distance(draws, source)
    _check_trace(draws, source)
    if POINTWISE in draws.children:
        check_moments(draws, source)


def _run_of(draws: xr.DataTree, source: str) -> _Run:
    settings, num_data = settings_of(draws, source), constant(draws, schema.NUM_DATA)
    whole = settings.get("batch_size", num_data) >= num_data and constant(draws, schema.EVAL_SIZE) >= num_data
    sampler, thinning = settings.get("sampler"), settings.get("thinning")
    name = str(sampler.get("name")) if isinstance(sampler, dict) else ""
    scale = constant(draws, schema.NBETA), constant(draws, schema.GAMMA)
    return _Run(*scale, name, each_step=thinning == 1, whole=whole and "stream" not in settings)


def _check_sizes(draws: xr.DataTree, source: str) -> None:
    """Whether settings and constants speak of the same rows."""
    settings = settings_of(draws, source)
    for name, written in (("eval_size", settings.get("eval_size")), ("batch_size", settings.get("batch_size"))):
        if isinstance(written, bool) or not isinstance(written, (int, float)):
            continue
        if name == "eval_size" and written != (rows := constant(draws, schema.EVAL_SIZE)):
            refuse(source, f"{CONSTANTS}/{schema.EVAL_SIZE}", f"that of the settings, {written:g}", f"{rows:g}")
        if name == "batch_size" and "stream" not in settings and written > (rows := constant(draws, schema.NUM_DATA)):
            refuse(source, f"{CONSTANTS}/{schema.NUM_DATA}", f"at least the batch_size {written:g}", f"{rows:g}")


def _pairs(
    draws: xr.DataTree, prefix: str, run: _Run, name: str
) -> tuple[Float[np.ndarray, "chain pair"], tuple[slice, slice], Bool[np.ndarray, "pair"]] | None:
    """A statistic of steps, where its draws lie and which of them are one step apart; None where that is not known."""
    group = f"{prefix}{SAMPLE_STATS}"
    needed = ((f"{prefix}{POSTERIOR}", schema.LOSS), (group, schema.DISTANCE), (group, name))
    if not run.each_step or any(not has(draws, *place) for place in needed):
        return None
    values = variable(draws, group, name)
    if run.sampler in _AT_DRAW:
        return values, (slice(None), slice(None)), np.ones(values.shape[1], bool)
    if run.sampler not in _BEFORE_DRAW or values.shape[1] < 2:
        return None
    node = draws[group]
    numbers = np.asarray(node["draw"].values) if "draw" in node.coords else np.arange(values.shape[1])
    return values[:, 1:], (slice(1, None), slice(None, -1)), np.diff(numbers) == 1


def _check_potential(draws: xr.DataTree, source: str, prefix: str, run: _Run) -> None:
    if not run.whole or (found := _pairs(draws, prefix, run, "potential")) is None:
        return
    potential, (_, there), usable = found
    loss = variable(draws, f"{prefix}{POSTERIOR}", schema.LOSS)[:, there].astype(np.float64)
    half = 0.5 * run.gamma * variable(draws, f"{prefix}{SAMPLE_STATS}", schema.DISTANCE)[:, there].astype(float) ** 2
    with np.errstate(invalid="ignore"):
        gap = potential - run.nbeta * loss - half
    good = np.isfinite(gap) & usable
    if not good.any():
        return
    gap -= np.median(gap[good])
    allowed = _ROUNDING * (np.abs(run.nbeta * loss) + half + np.median(np.abs(potential[good])))
    if (wrong := good & (np.abs(gap) > allowed)).any():
        chain, draw = (int(i) for i in np.argwhere(wrong)[0])
        refuse(
            source,
            f"{prefix}{SAMPLE_STATS}/potential",
            f"nβ {schema.LOSS} + ½ {schema.GAMMA} {schema.DISTANCE}² but for a constant",
            f"{abs(gap[chain, draw]):.3g} of difference near draw {draw} of chain {chain} ({schema.GAMMA} or "
            f"{schema.DISTANCE} may be that of another run)",
        )


def _check_virial(draws: xr.DataTree, source: str, prefix: str, run: _Run) -> None:
    found = _pairs(draws, prefix, run, schema.VIRIAL)
    group = f"{prefix}{SAMPLE_STATS}"
    if found is None or not (has(draws, group, "grad_norm") and has(draws, CONSTANTS, schema.NUM_PARAMS)):
        return
    virial, (here, there), usable = found
    product = constant(draws, schema.NUM_PARAMS) * np.abs(virial)
    most = variable(draws, group, "grad_norm")[:, here] * variable(draws, group, schema.DISTANCE)[:, there]
    with np.errstate(invalid="ignore"):
        wrong = usable & (product > (1 + _LOOSE) * most + 1e-30)
    if wrong.any():
        chain, draw = (int(i) for i in np.argwhere(wrong)[0])
        refuse(
            source,
            f"{group}/{schema.VIRIAL}",
            f"at most grad_norm · {schema.DISTANCE} / {schema.NUM_PARAMS}",
            f"{virial[chain, draw]:.3g} near draw {draw} of chain {chain}",
        )


def _check_distance(draws: xr.DataTree, source: str) -> None:
    """The cosine rule: with w₀ the first draw, r² − ‖w − w₀‖² = ‖w* − w₀‖² − 2 (w − w₀)·(w* − w₀)."""
    group = draws[POSTERIOR].to_dataset()
    leaves = [np.asarray(x.values, float) for name, x in group.data_vars.items() if str(name).startswith("params.")]
    leaves = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves if leaf.ndim >= 2 and leaf.dtype.kind == "f"]
    dim = sum(leaf.shape[-1] for leaf in leaves)
    if not (0 < dim <= _MOST_PARAMS and has(draws, SAMPLE_STATS, schema.DISTANCE)):
        return
    params = np.concatenate(leaves, axis=-1).reshape(-1, dim)
    distance = variable(draws, SAMPLE_STATS, schema.DISTANCE).astype(float).ravel()
    good = np.isfinite(params).all(axis=1) & np.isfinite(distance)
    params, distance = params[good], distance[good]
    step = max(1, len(params) // _MOST_ROWS)
    params, distance = params[::step], distance[::step]
    if len(params) < 2 * (dim + 2):
        return
    moved = params - params[0]
    squares = np.sum(moved**2, axis=1)
    rows = np.column_stack([moved, np.ones(len(moved))])
    scale = max(float(np.sqrt(np.mean(squares))), 1e-300)
    rows[:, :-1] /= scale
    left = distance**2 - squares
    left = left - rows @ np.linalg.lstsq(rows, left, rcond=None)[0]
    # Of w in float32: x is right to one ulp of w, so r² to 2 r of it; and the norm to dim ulp.
    ulp = _ULP * float(np.sqrt(np.mean(np.sum(params**2, axis=1))))
    allowed = 4 * ((dim + 4) * _ULP * (distance**2 + squares + scale**2) + 2 * ulp * (distance + scale) + ulp**2)
    if np.abs(left).max() > np.sqrt(len(left)) * allowed.max():
        refuse(
            source,
            f"{SAMPLE_STATS}/{schema.DISTANCE}",
            "the distance of the parameters of each draw from one w*",
            f"another one, by {np.abs(left).max():.3g} in its square",
        )


def _check_trace(draws: xr.DataTree, source: str) -> None:
    """Whether tr A = Σ ½ nβh / (nβh + γ) over some of the directions of the Hessian."""
    if not (has(draws, CONSTANTS, schema.TRACE_CURVED) and has(draws, CONSTANTS, schema.NUM_PARAMS)):
        return
    trace, dim = constant(draws, schema.TRACE_CURVED), constant(draws, schema.NUM_PARAMS)
    most, of = dim / 2, f"half of {schema.NUM_PARAMS}"
    if schema.CURVATURE in draws.children:
        spectrum = Spectrum.from_dataset(draws[schema.CURVATURE])
        if spectrum.exact and spectrum.matrix == "hessian" and spectrum.dim == dim:
            most, of = min(most, spectrum.quad(schema.localization_scale(draws))), f"λ_quad of {schema.CURVATURE}"
    if not 0 <= trace <= (1 + _LOOSE) * most:
        refuse(source, f"{CONSTANTS}/{schema.TRACE_CURVED}", f"from 0 to {of}, {most:.6g}", f"{trace:.6g}")
