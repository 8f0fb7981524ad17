"""Checks of kind "chains": whether the loss and the params have digits enough for what is measured with them."""

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.check import MAX_BIAS, Check, make_check
from llc.analysis.estimators import Estimate, loss_rounding
from llc.analysis.schema import SAMPLE_STATS, constant, variable
from llc.analysis.series import finite_chains

_MAX_ROUNDING = MAX_BIAS / 2  # of λ̂: the step and the minibatches have the other half
_ANY_LAMBDA = 0.1  # below it what rounding does is compared with this instead of λ̂, which may be 0


def rounding_checks(draws: xr.DataTree, mean: Estimate) -> tuple[Check | None, ...]:
    """The checks of rounding; None where the draws do not have what one needs.

    Args:
        draws: of one run.
        mean: the mean energy λ̂.
    """
    return _rounding(draws, mean), _params_rounding(draws, mean)


def _rounding(draws: xr.DataTree, mean: Estimate) -> Check | None:
    """Whether the loss has digits enough for L(w) − L(w*)."""
    if not schema.has(draws, schema.CONSTANTS, schema.LOSS_ROUNDING):
        return None
    error = constant(draws, schema.NBETA) * loss_rounding(draws)
    share = error / max(abs(mean.value), _ANY_LAMBDA)
    return make_check(
        "rounding",
        "chains",
        share,
        _MAX_ROUNDING,
        passed=share <= _MAX_ROUNDING,
        seen=f"rounding changes nβ (L(w) − L(w*)) by {error:.2g}, at L(w*) = {constant(draws, schema.INIT_LOSS):.4g}",
        cure="the loss has too few digits for so small a difference; return one loss per example, subtract a constant "
        "from the loss, rescale the outputs, or sample in float64 (jax_enable_x64, with params and data in float64)",
    )


def _params_rounding(draws: xr.DataTree, mean: Estimate) -> Check | None:
    """Whether steps are large against the spacing of numbers as large as the params."""
    settings = schema.settings_of(draws)["sampler"]
    step_size = _langevin_step(draws, settings)
    if step_size is None or not schema.has(draws, schema.CONSTANTS, schema.PARAMS_ROUNDING):
        return None
    heat = constant(draws, schema.PARAMS_ROUNDING) / step_size
    share = heat / max(abs(mean.value), _ANY_LAMBDA)
    return make_check(
        "rounding_of_params",
        "chains",
        share,
        _MAX_ROUNDING,
        passed=share <= _MAX_ROUNDING,
        seen=f"steps of √ε = {np.sqrt(step_size):.2g} are rounded to the spacing of numbers as large as w*, which "
        f"raises λ̂ by up to {heat:.2g}",
        cure="the params are too large for their precision; sample in float64 (jax_enable_x64, with params in "
        "float64), or rescale the params or shift them towards 0",
    )


def _langevin_step(draws: xr.DataTree, settings: dict[str, object]) -> float | None:
    """ε of a sampler whose steps are √ε long; the posterior's variance of a parameter for one with trajectories."""
    step_size = settings.get("step_size")
    preconditioner = settings.get("preconditioner")
    plain = preconditioner is None or (isinstance(preconditioner, dict) and preconditioner.get("name") == "Identity")
    if settings["name"] in ("SGLD", "SGHMC", "SGNHT") and plain and isinstance(step_size, (int, float)):
        return float(step_size)
    if not schema.has(draws, SAMPLE_STATS, schema.DISTANCE):
        return None
    distance = variable(draws, SAMPLE_STATS, schema.DISTANCE)
    finite = distance[finite_chains(distance)]
    spread = float(np.mean(finite**2)) / constant(draws, schema.NUM_PARAMS) if finite.size else 0.0
    return spread if spread > 0 else None
