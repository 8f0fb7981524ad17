r"""Whether the mean potential of the steps is that of the draws, E[U] = nβ E[L] + ½ γ E[r²], within its error.

`llc.analysis.identities` asks it of each draw where that is exact. Steps between draws have the law of the draws, and
independent minibatches are alike, so that elsewhere the means are the same. They differ where the γ or the distances of
a file are not those of its run.

Minibatches of one epoch have no row in common, so that a batch is what the steps before have not seen, and its loss is
higher. Steps of ½ε nβ g_B for n/B batches, whose gradients have the covariance −Σ/n, raise nβ L_B by up to
ε nβ² tr Σ / (4B). That is twice what minibatches heat nβ L by, of which the check `virial` lets 5 % of λ̂ pass.
"""

import math

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.check import Check, make_check
from llc.analysis.pointwise import subset_stderr
from llc.analysis.schema import POSTERIOR, SAMPLE_STATS, constant, has, settings_of, variable
from llc.analysis.series import finite_chains, monte_carlo_error

_MAX_Z = 5.0  # of a normal law: one run in two million, as the check is of the file and not of the sampler
_ROUNDING = 1e-4  # of the loss in float32, as in `identities`
_OF_EPOCHS = 0.1  # of λ̂, that batches of one epoch may raise U by, see above
_KNOWN = ("NUTS", "HMC", "MALA", "SGLD", "SGHMC", "SGNHT")  # samplers whose potential is U itself


def potential_check(draws: xr.DataTree) -> Check | None:
    """A check that fails; None where the means agree, or can't be compared.

    Args:
        draws: of one run, whose run at 3γ is looked at too.
    """
    localized = schema.localized_run(draws)
    runs = [("", draws), *([("; in the run at 3γ", localized)] if localized is not None else [])]
    for where, run in runs:
        if (found := _difference(run)) is not None and abs(found[0]) > _MAX_Z * found[1] + _of_epochs(run):
            return make_check(
                "potential",
                "chains",
                found[0],
                _MAX_Z * found[1] + _of_epochs(run),
                passed=False,
                seen=f"the mean of U is off nβ E[L] + γ/2 E[‖w − w*‖²] by {found[0]:+.3g} ± {found[1]:.2g}{where}",
                cure="either the file was changed, and its γ, losses or distances are not those of the run: take the "
                "original file; or the chains are not stationary: take more warm-up",
            )
    return None


def _difference(draws: xr.DataTree) -> tuple[float, float] | None:
    """The difference of the means and its standard error; None where one of them is not known."""
    settings = settings_of(draws)
    needed = (schema.DISTANCE, "potential")
    if "stream" in settings or settings["sampler"]["name"] not in _KNOWN:
        return None
    if not all(has(draws, SAMPLE_STATS, name) for name in needed):
        return None
    distance, potential = (variable(draws, SAMPLE_STATS, name).astype(np.float64) for name in needed)
    loss = variable(draws, POSTERIOR, schema.LOSS).astype(np.float64)
    nbeta, gamma = constant(draws, schema.NBETA), constant(draws, schema.GAMMA)
    gap = potential - nbeta * loss - 0.5 * gamma * distance**2
    finite = finite_chains(gap)
    if not finite.any():
        return None
    of_losses = nbeta * math.hypot(subset_stderr(draws), schema.optional_constant(draws, schema.LOSS_ROUNDING))
    of_rounding = _ROUNDING * nbeta * float(np.mean(np.abs(loss[finite])))
    error = math.hypot(monte_carlo_error(gap), of_losses, of_rounding)
    return float(gap[finite].mean()), error


def _of_epochs(draws: xr.DataTree) -> float:
    """What batches that are drawn within epochs may raise U by."""
    settings, num_data = settings_of(draws), constant(draws, schema.NUM_DATA)
    if settings.get("batch_size", num_data) >= num_data or settings.get("step_energies"):
        return 0.0
    energy = variable(draws, POSTERIOR, schema.ENERGY)
    finite = energy[finite_chains(energy)]
    return _OF_EPOCHS * max(float(finite.mean()), 0.0) if finite.size else 0.0
