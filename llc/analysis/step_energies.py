r"""λ̂ from the energies of all steps and of draws together.

Between two draws each step has an energy of its own minibatch (see llc/sampling/step_energies.py). Their mean s has the
same expectation as the energy f of the draw, more noise by the rows of the minibatches, and less by the place of the
draw. f − s and the two parts of x·A∇U − tr A of the draw have means of zero, so that

$$ \hat\lambda = \bar s + c_0\, (\bar f - \bar s) - \sum_k c_k\, \bar z_k $$

is unbiased for fixed coefficients. They are fitted to the draws by least squares of batch means: c₀ is near 0 where
steps say it all, near 1 where their rows are too few, and never beyond. Rows are drawn anew in each step, so that their
noise is in the spread of s, and in the standard error.

x·∇U of the steps is not among the control variates, though it comes for nothing: of a network whose energies come in
bursts it moved λ̂ by −4 % (12 runs of 600 draws), where f − s moved it by .1 %.

Where draws are evaluated on a subset of the data, f − s has the error of the subset as its mean, and is left out.
"""

import math
from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema, validation
from llc.analysis.check import Check, make_check
from llc.analysis.estimate import Estimate, nothing, of_series
from llc.analysis.fitting import batch_means, fitted_coefficients, fitted_error, most_controls
from llc.analysis.pointwise import Moments, subset_share, subset_stderr
from llc.analysis.schema import POSTERIOR, SAMPLE_STATS, constant, variable
from llc.analysis.series import finite_chains, monte_carlo_error
from llc.posterior.arguments import require_type

_MAX_Z = 4.0


def combined_energy(draws: xr.DataTree) -> Estimate | None:
    """λ̂ from the minibatches of all steps and the evaluations of draws, with control variates.

    Only for chains that have mixed, as `zero_variance`. None where the steps have no energies.

    Args:
        draws: of `llc.sample` with `step_energies=True`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import llc
        >>> data = jnp.linspace(-1.0, 1.0, 100)
        >>> posterior = llc.LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.zeros(()), data, gamma=1.0)
        >>> lengths = {"num_draws": 200, "thinning": 10, "batch_size": 20, "step_energies": True}
        >>> draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(0.05), **lengths)
        >>> llc.combined_energy(draws).method
        'steps and draws'
    """
    validation.require(draws)
    series = steps_and_controls(draws)
    if series is None:
        return None
    energy, controls = series
    finite = finite_chains(variable(draws, POSTERIOR, schema.ENERGY)) & finite_chains(energy)
    finite &= np.isfinite(controls).all(axis=(1, 2))
    if not finite.any():
        return nothing("steps and draws", energy)
    batches = batch_means(np.concatenate([energy[finite][..., None], controls[finite]], axis=-1))
    number = most_controls(batches)
    batches, controls = batches[:, : 1 + number], controls[..., :number]
    series = np.where(finite[:, None], energy - controls @ _coefficients(batches), np.nan)
    rounding = constant(draws, schema.NBETA) * schema.optional_constant(draws, schema.LOSS_ROUNDING)
    estimate = of_series("steps and draws", series, series.mean(axis=1), stderr=rounding)
    return replace(estimate, mcse=max(estimate.mcse, math.hypot(fitted_error(batches, _coefficients), rounding)))


def steps_and_controls(
    draws: xr.DataTree,
) -> tuple[Float[np.ndarray, "chain draw"], Float[np.ndarray, "chain draw control"]] | None:
    """Mean energy of the steps before each draw, and its control variates; None where steps have no energies.

    Args:
        draws: of `llc.sample`.
    """
    if not schema.has(draws, SAMPLE_STATS, schema.STEP_ENERGY):
        return None
    return variable(draws, SAMPLE_STATS, schema.STEP_ENERGY), _controls(draws)


def _controls(draws: xr.DataTree) -> Float[np.ndarray, "chain draw control"]:
    """What has a mean of zero, the most useful first; x·A∇U − tr A has not where trajectories diverge."""
    energy = variable(draws, SAMPLE_STATS, schema.STEP_ENERGY)
    if subset_share(draws) < 1:
        return np.zeros((*energy.shape, 0))
    controls = [energy - variable(draws, POSTERIOR, schema.ENERGY)]
    diverged = variable(draws, SAMPLE_STATS, schema.DIVERGING)[finite_chains(energy)].any()
    if not diverged and schema.has(draws, SAMPLE_STATS, schema.STEIN_CURVED):
        controls += [variable(draws, SAMPLE_STATS, name) for name in (schema.STEIN_CURVED, schema.STEIN_FLAT)]
    return np.stack(controls, axis=-1)


def _coefficients(batches: Float[np.ndarray, "batch kind"]) -> Float[np.ndarray, "control"]:
    """By least squares, that of the draws' energies between 0 and 1: beyond, it would fit their chance."""
    fitted = fitted_coefficients(batches)
    if not fitted.size or 0 <= fitted[0] <= 1:
        return fitted
    share = np.clip(fitted[0], 0.0, 1.0)
    rest = np.delete(batches, 1, axis=1)
    rest[:, 0] -= share * batches[:, 1]
    return np.concatenate([[share], fitted_coefficients(rest)])


def step_energies_check(draws: xr.DataTree, moments: Moments | None) -> Check | None:
    """Whether steps and draws have the same mean energy; None where steps have none.

    Args:
        draws: of one run.
        moments: of `moments_of(draws)`.
    """
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    if not schema.has(draws, SAMPLE_STATS, schema.STEP_ENERGY):
        return None
    change = variable(draws, SAMPLE_STATS, schema.STEP_ENERGY) - variable(draws, POSTERIOR, schema.ENERGY)
    finite = change[finite_chains(change)]
    others = np.hypot(subset_stderr(draws, moments=moments), schema.optional_constant(draws, schema.LOSS_ROUNDING))
    error = float(np.hypot(monte_carlo_error(change), constant(draws, schema.NBETA) * others))
    value = float(finite.mean()) if finite.size else np.nan
    return make_check(
        "step_energies",
        "chains",
        value,
        _MAX_Z * error,
        passed=abs(value) <= _MAX_Z * error,
        seen=f"energies of steps − energies of draws = {value:+.3g} ± {error:.2g}",
        cure="the chains still drift, or the loss of a batch is not the mean over its rows; raise num_warmup, or "
        "sample with step_energies=False",
    )
