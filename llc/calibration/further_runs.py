"""Shorter runs beside the first one: at a larger γ, and at half the step. Each costs a quarter of it.

What they say is read off their draws by `llc.analysis`: whether λ_corr still changes with γ, and whether energies that
are not what was expected come from the step.
"""

import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis.stored_run import StoredRun
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.record import Calibration
from llc.calibration.running import Run
from llc.calibration.telling import about, say
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.chains import Chains
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RunLengths

_STRONGER, _FEWER = 3, 4  # γ of the run that λ_corr is compared with, and the part of the draws that it takes


def tell_further_run(run: Run, purpose: str, *, progress: bool | None) -> None:
    """Tells what a run beside the first one is for and, where that took minutes, how long this one takes.

    Args:
        run: the first one.
        purpose: of the further one.
        progress: as of `localized_draws`.
    """
    lengths, pace = run.calibration.lengths, run.chains.seconds_per_draw
    if run.calibration.enough_draws is not None and pace:
        seconds = pace * (lengths.num_warmup_draws + lengths.num_draws) / _FEWER
        say(f"{purpose}: {about(seconds)}", progress=progress)


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
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    sampler: Sampler,
    lengths: RunLengths,
    spectrum: Spectrum,
    *,
    progress: bool | None,
    mesh: Mesh | None = None,
) -> xr.DataTree | None:
    """A run at half the step, with half the draws of the one at 3γ, twice as far apart; None where there is no ε.

    Args:
        key: `jax.random.key(seed)`.
        posterior: of the first run.
        sampler: of it.
        lengths: of it.
        spectrum: of the Hessian at w*.
        mesh: devices to spread it over.
        progress: whether to show a progress bar; None shows it on a terminal.
    """
    slower = sampler.at_half_step()
    if slower is None:
        return None
    lengths = lengths.shorter(2 * _FEWER).slower(2)
    chains = Chains(key, posterior, slower, lengths, spectrum=spectrum, mesh=mesh)
    chains.draw(lengths.num_draws, progress=progress)
    return chains.tree()
