"""Whether the virial ratio x·∇U/d is 1 (equipartition): chains that are too hot, or have not explored all."""

import math

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema
from llc.analysis.advice import larger_batch, stronger_gamma
from llc.analysis.cause import Cause, virial_at_half_step
from llc.analysis.check import Check, make_check
from llc.analysis.estimators import Estimate
from llc.analysis.pointwise import Moments, subset_stderr
from llc.analysis.schema import SAMPLE_STATS, constant, variable
from llc.analysis.series import finite_chains, monte_carlo_error

_MAX_Z = 4.0
_MAX_VIRIAL = 0.05  # docs/theory.md, §7: every unmixed run had .37–.9, every trusted one is within .05
_MAX_VIRIAL_CURVED = 0.03  # the same where λ_quad comes from
_LESS = 0.75  # of the excess that is left at half the step, if the step is what heats: a half is expected


def virial_checks(
    draws: xr.DataTree, mean: Estimate, cause: Cause, moments: Moments | None
) -> tuple[Check | None, ...]:
    """The ratio, its error, and the ratio in the curved directions; None where these are not recorded.

    Args:
        draws: of one run.
        mean: the mean energy λ̂.
        cause: of energies that are not what was expected.
        moments: of `moments_of(draws)`.
    """
    return _virial(draws, mean, cause), _virial_error(draws), _virial_curved(draws, moments)


def _virial(draws: xr.DataTree, mean: Estimate, cause: Cause) -> Check:
    virial = variable(draws, SAMPLE_STATS, schema.VIRIAL)
    value = _mean(virial)
    # Chains that have not mixed make its own error large, so it may excuse little: on (w₁w₂)²/2 at nβ from 3e5 on, λ̂
    # was 6 % too high (6 mcse) at .89 ± .03 to .91 ± .03.
    error = monte_carlo_error(virial)
    noise = 3 * error
    # Heating sits in the stiff directions: an excess of x·∇U/d by δ moves λ̂ by δ d/2.
    dim = constant(draws, schema.NUM_PARAMS)
    hot = max(_MAX_VIRIAL * min(1.0, 2 * max(mean.value, 0.0) / dim), noise)
    cold = max(_MAX_VIRIAL, noise)
    above = value > 1
    threshold = hot if above else cold
    return make_check(
        "virial",
        "chains",
        value,
        threshold,
        passed=abs(value - 1) <= threshold,
        seen=f"x·∇U/d = {value:.3f} ± {error:.2g}, 1 is exact",
        cure=_cooling(draws, cause, value)
        if above
        else "the chains have not explored the posterior; take more draws and warm-up, or give "
        f"{stronger_gamma(draws)}",
        direction="hot" if above else "cold",
        told_by_half_step=above,
    )


def _mean(values: Float[np.ndarray, "chain draw"]) -> float:
    """Over the chains that stay finite; nan where none does."""
    finite = values[finite_chains(values)]
    return float(finite.mean()) if finite.size else math.nan


def _cooling(draws: xr.DataTree, cause: Cause, value: float) -> str:
    """What to change of chains that are too hot: the step, if half of it is known to heat less."""
    hot, half = "the chains are hotter than the posterior; ", virial_at_half_step(draws)
    if math.isnan(half):
        return f"{hot}lower step_size{_or_raise_batch(draws)}"
    seen = f"{hot}at half the step size x·∇U/d is {half:.3f}; {cause.seen}; "
    if half - 1 < _LESS * (value - 1):
        return f"{seen}lower step_size"
    return f"{seen}take more draws and warm-up{_or_raise_batch(draws)}"


def _or_raise_batch(draws: xr.DataTree) -> str:
    """Minibatches heat, all the data do not."""
    num_data = constant(draws, schema.NUM_DATA)
    return f", or {larger_batch(draws)}" if schema.settings_of(draws).get("batch_size", num_data) < num_data else ""


def _virial_error(draws: xr.DataTree) -> Check:
    """Whether `virial` can see what it is there for."""
    error = monte_carlo_error(variable(draws, SAMPLE_STATS, schema.VIRIAL))
    return make_check(
        "virial_error",
        "chains",
        error,
        _MAX_VIRIAL,
        passed=error <= _MAX_VIRIAL,
        seen=f"x·∇U/d has a standard error of {error:.2g}",
        cure="too large to detect chains that have not explored the posterior; take more draws or a larger thinning",
        cured_by_draws=True,
    )


def _virial_curved(draws: xr.DataTree, moments: Moments | None) -> Check | None:
    """The virial ratio weighted by A = ½ nβH (nβH + γ)⁻¹, what each direction has of λ_quad."""
    if not schema.has(draws, SAMPLE_STATS, schema.STEIN_CURVED) or constant(draws, schema.TRACE_CURVED) == 0:
        return None
    trace = constant(draws, schema.TRACE_CURVED)
    ratio = 1 + variable(draws, SAMPLE_STATS, schema.STEIN_CURVED) / trace
    value = _mean(ratio)
    subset = constant(draws, schema.NBETA) * subset_stderr(draws, (0.0, 1.0), moments=moments) / trace
    threshold = max(_MAX_VIRIAL_CURVED, _MAX_Z * np.hypot(monte_carlo_error(ratio), subset))
    return make_check(
        "virial_curved",
        "chains",
        value,
        threshold,
        passed=abs(value - 1) <= threshold,
        seen=f"x·A∇U / tr A = {value:.3f} in the curved directions, 1 is exact",
        cure=f"the sampler heats these directions; lower step_size{_or_raise_batch(draws)}"
        if value > 1
        else "the chains have not explored these directions; take more draws and warm-up",
    )
