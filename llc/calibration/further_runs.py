"""Shorter runs beside the first one: at a larger γ, and at half the step. Each costs a quarter of it.

What they say is read off their draws by `llc.analysis`: whether λ_corr still changes with γ, and whether energies that
are not what was expected come from the step.
"""

from dataclasses import replace

import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis.stored_run import StoredRun
from llc.calibration.record import Calibration
from llc.sampling.chains import Chains

_STRONGER, _FEWER = 3, 4  # γ of the run that λ_corr is compared with, and the part of the draws that it takes


def localized_draws(
    key: PRNGKeyArray,
    calibration: Calibration,
    *,
    progress: bool | None,
    store: StoredRun | None = None,
    mesh: Mesh | None = None,
) -> xr.DataTree:
    """A shorter run at 3γ, whose chains relax three times as fast.

    Args:
        key: `jax.random.key(seed)`.
        calibration: of the first run.
        store: where it is kept; None keeps nothing.
        mesh: devices to spread it over.
        progress: whether to show a progress bar; None shows it on a terminal.
    """
    posterior, lengths = calibration.posterior, calibration.lengths.shorter(_FEWER)
    posterior = posterior.with_scale(gamma=_STRONGER * posterior.scale.gamma)
    spectrum = calibration.spectrum
    chains = Chains(key, posterior, calibration.sampler, lengths, spectrum=spectrum, store=store, mesh=mesh)
    chains.draw_until(lengths.num_draws, progress=progress)
    return chains.tree()


def half_step_draws(
    key: PRNGKeyArray, calibration: Calibration, *, progress: bool | None, mesh: Mesh | None = None
) -> xr.DataTree | None:
    """A run at half the step, with half the draws of the one at 3γ, twice as far apart; None of other dynamics.

    Args:
        key: `jax.random.key(seed)`.
        calibration: of the first run.
        mesh: devices to spread it over.
        progress: whether to show a progress bar; None shows it on a terminal.
    """
    before = calibration.sampler.langevin_step
    if before is None:
        return None
    sampler = replace(calibration.sampler, step_size=np.asarray(before / 2))
    lengths = calibration.lengths.shorter(2 * _FEWER).slower(2)
    chains = Chains(key, calibration.posterior, sampler, lengths, spectrum=calibration.spectrum, mesh=mesh)
    chains.draw(lengths.num_draws, progress=progress)
    return chains.tree()
