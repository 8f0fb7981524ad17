"""The whole way from a loss and a minimum to a checked estimate: settings, draws, bounds, report."""

from pathlib import Path
from typing import NamedTuple

import jax
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis import schema
from llc.analysis.report import Report
from llc.analysis.reporting import report, set_reference
from llc.analysis.schema import constant
from llc.analysis.store import LOCALIZED, Store, opened
from llc.bounds.rank import Bounds
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.further_runs import half_step_draws, localized_draws, tell_further_run
from llc.calibration.pipeline import calibrate
from llc.calibration.record import Calibration
from llc.calibration.running import Observables, Place, draw_cool_enough, extended, report_so_far
from llc.calibration.telling import say
from llc.posterior.arguments import require_flag, require_number, require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.sampling.kernel import Sampler
from llc.sampling.observables import prepare_observables
from llc.sampling.placement import on_device
from llc.sampling.run_lengths import RunLengths
from llc.sampling.validation import check_key, require_fine_params

_MAX_RESTARTS = 2  # times that a run of an overhead-bound model may be made again with a smaller step


def estimate(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    sampler: Sampler | None = None,
    nbeta: float | None = None,
    gamma: float | None = None,
    like: Report | None = None,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    thinning: int | None = None,
    batch_size: int | None = None,
    eval_size: int | None = None,
    step_energies: bool | None = None,
    target_mcse: float | None = None,
    budget: int | None = None,
    spectrum: Spectrum | None = None,
    bounds: Bounds | None = None,
    reference_loss: float | None = None,
    observables: Observables = None,
    progress: bool | None = None,
    store: str | Path | Store | None = None,
    mesh: Mesh | None = None,
) -> Report:
    """Report on λ at w*, from one call: settings, draws, bounds, checks and a verdict.

    The settings are those of `llc.calibrate`; where a step costs next to nothing, chains that turn out too hot are run
    again with a smaller one. Draws are added until the standard error is `target_mcse` of λ̂ and the chains agree,
    unless a check fails that more draws cannot pass; a run of minutes ends as soon as that is reached, unless
    `num_draws` or observables ask for its draws. A shorter run at 3γ tells whether λ_corr still depends on γ.
    Ctrl-C gives the report on the draws so far, if there are any; with a `store` it raises, and the same call goes on.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum.
        sampler: None takes SGLD with a step size from the curvature, with momentum where that pays (`llc.calibrate`);
            another one runs as it is given (`llc.NUTS()` on a model of up to a few thousand parameters is the
            reference).
        nbeta: nβ; None takes the posterior's.
        gamma: γ; None takes the posterior's, or lets calibration choose it.
        like: another report, whose nβ and γ this one takes, so that the two λ̂ can be compared.
        num_chains: independent chains.
        num_warmup: steps discarded; None: see `llc.calibrate`.
        num_draws: recorded draws a chain, at first.
        thinning: steps between draws; None: see `llc.calibrate`.
        batch_size: rows of a minibatch; None: see `llc.calibrate`.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all.
        step_energies: whether each step's own minibatch gives an energy as well; None: see `llc.calibrate`.
        target_mcse: standard error to be reached, relative to λ̂. None takes 2 %, and 1 % where a step costs next to
            nothing and no length was given; a run that would take more than about five minutes ends before that.
        budget: most work of all chains together, in gradients of the loss over all the data, the spectrum of a costly
            model and the run at 3γ included (see `llc.calibrate`); None allows eight times the first draws,
            and fewer of a run of minutes.
        spectrum: of the Hessian at w*; None computes it (see `llc.spectrum` for what it takes of a large model).
        bounds: of `llc.higher_bounds`, the tightest; None takes those of the rank.
        reference_loss: as of `llc.report`: the loss of a model that has learnt nothing.
        observables: functions that are recorded in the draws, as of `llc.sample`; not in the pilots and the run at 3γ.
        progress: whether to show a progress bar; None shows it on a terminal.
        store: a folder such as `"run.zarr"` in which the chains are kept as they go, so that the same call goes on from
            there after a kill, to the same bits (see `llc.sample`). Calibration is made again: give `spectrum` where
            that takes long.
        mesh: devices to spread the chains over (see `llc.sample`); calibration stays on one.

    Raises:
        ValueError: if a setting is out of range, the curvature at w* gives no scale, `like` is given together with
            `nbeta` or `gamma`, or the store is of a run with other settings.
        OSError: if the store can't be written; what was written before stays.
        KeyboardInterrupt: on Ctrl-C before the first draw, or with a store.

    References:
        Lau et al., The local learning coefficient, arXiv 2308.12108.
    """
    require_type("sampler", sampler, Sampler, "a sampler, such as llc.NUTS()", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_type("like", like, Report, "an llc.Report", optional=True)
    require_flag("progress", progress, optional=True)
    _check_target(target_mcse)
    check_key(key)
    require_differentiable(posterior)
    require_fine_params(posterior)
    # What can't be recorded is refused before the pilots run.
    at_first = RunLengths(num_chains=num_chains, num_warmup=0, num_draws=1, thinning=1)
    with lenient():
        prepare_observables(observables, on_device(posterior), at_first)
    keys = split_key(key)
    calibration = calibrate(
        keys.pilots,
        _at_scale(posterior, nbeta, gamma, like),
        sampler=sampler,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        step_energies=step_energies,
        budget=budget,
        spectrum=spectrum,
        progress=progress,
    )
    with opened(store) as folder:
        place = Place(folder, mesh, observables, under_way=[])
        try:
            return _estimated(keys, calibration, bounds, place, target_mcse, reference_loss, progress=progress)
        except KeyboardInterrupt:
            # With a store the same call goes on from there.
            if folder is not None or (result := report_so_far(place, bounds)) is None:
                raise
            draws = result.draws["posterior"].sizes["draw"]
            say(f"interrupted; the report is on the first {draws} draws of each chain", progress=progress)
            return _with_reference(result, calibration, bounds, reference_loss)


def _with_reference(
    result: Report, calibration: Calibration, bounds: Bounds | None, reference_loss: float | None
) -> Report:
    if reference_loss is None:
        return result
    return report(result.draws, bounds=bounds, spectrum=calibration.spectrum, reference_loss=reference_loss)


def _referring(draws: xr.DataTree, reference_loss: float | None) -> xr.DataTree:
    """Draws of a run beside the first one, with the loss of reference that was given for that one."""
    if reference_loss is not None:
        set_reference(draws, reference_loss)
    return draws


def _estimated(
    keys: "Keys",
    calibration: Calibration,
    bounds: Bounds | None,
    place: Place,
    target_mcse: float | None,
    reference_loss: float | None,
    *,
    progress: bool | None,
) -> Report:
    """The run by calibrated settings, as long as the target takes, and the shorter ones beside it."""
    run = draw_cool_enough(keys.runs, calibration, bounds, place, target_mcse, progress=progress)
    result = extended(run, target_mcse, bounds, progress=progress)
    result = _with_reference(result, calibration, bounds, reference_loss)
    draws = result.draws
    if any(check.told_by_half_step for check in result.failed):
        made = run.calibration
        tell_further_run(run, "a run at half the step size, to find the cause of failed checks", progress=progress)
        half = half_step_draws(
            keys.half_step,
            made.posterior,
            made.sampler,
            made.lengths,
            made.spectrum,
            mesh=place.mesh,
            progress=progress,
        )
        if half is not None:
            draws[schema.HALF_STEP] = _referring(half, reference_loss)
            result = report(draws, bounds=bounds, spectrum=calibration.spectrum)
            draws = result.draws
    open_scale = result.corrected is not None and result.bounds is not None and result.bounds.valid
    if not open_scale or not constant(draws, "gamma"):
        return result
    tell_further_run(run, "a run at 3γ, to see whether λ_corr depends on γ", progress=progress)
    kept = place.store and place.store.run(LOCALIZED)
    localized = localized_draws(keys.localized, run.calibration, store=kept, mesh=place.mesh, progress=progress)
    draws[schema.LOCALIZED] = _referring(localized, reference_loss)
    return report(draws, bounds=bounds, spectrum=calibration.spectrum)


class Keys(NamedTuple):
    """One key for each use.

    Attributes:
        pilots: of calibration.
        runs: of the first run, and of those with a smaller step.
        localized: of the run at 3γ.
        half_step: of the run at half the step.
    """

    pilots: PRNGKeyArray
    runs: tuple[PRNGKeyArray, ...]
    localized: PRNGKeyArray
    half_step: PRNGKeyArray


def split_key(key: PRNGKeyArray) -> Keys:
    """A key for each use; none of them is derived from another one."""
    pilots, localized, *runs, half_step = jax.random.split(key, 4 + _MAX_RESTARTS)
    return Keys(pilots, tuple(runs), localized, half_step)


def _check_target(target_mcse: object) -> None:
    require_number("target_mcse", target_mcse, optional=True)  # relative to λ̂


def _at_scale(
    posterior: LocalPosterior, nbeta: float | None, gamma: float | None, like: Report | None
) -> LocalPosterior:
    """The posterior at the scale that was asked for."""
    if like is None:
        return posterior.with_scale(nbeta=nbeta, gamma=gamma)
    if nbeta is not None or gamma is not None:
        raise ValueError(
            f"like needs nbeta and gamma to be None, as it sets both, got nbeta = {nbeta} and gamma = {gamma}; "
            "leave them out, or like."
        )
    return posterior.with_scale(nbeta=constant(like.draws, "nbeta"), gamma=constant(like.draws, "gamma"))
