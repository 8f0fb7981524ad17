"""The whole way from a loss and a minimum to a checked estimate: settings, draws, bounds, report."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis import schema
from llc.analysis.assembly import assemble
from llc.analysis.estimators import mean_energy
from llc.analysis.files import same
from llc.analysis.report import Report
from llc.analysis.schema import constant, variable
from llc.analysis.series import finite_chains, plus_minus
from llc.analysis.store import LOCALIZED, MAIN, Store, opened
from llc.bounds.rank import Bounds, at_scale, rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import add_beyond, to_dataset
from llc.calibration.further_runs import half_step_draws, localized_draws
from llc.calibration.pipeline import calibrate
from llc.calibration.record import Calibration
from llc.calibration.telling import say
from llc.posterior.arguments import require_flag, require_number, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.sampling.chains import Chains
from llc.sampling.kernel import Sampler
from llc.sampling.observable import Observable
from llc.sampling.observables import prepare_observables
from llc.sampling.placement import on_device
from llc.sampling.run_lengths import RunLengths
from llc.sampling.validation import check_key, check_posterior

_Observables = Mapping[str, Callable[..., Any] | Observable] | None

_FIRST_LOOK, _LOOKS = 8, 4  # draws before the first λ̂ that a costly run tells, and how often it does afterwards
_MAX_FACTOR = 8  # times the first draws that `target_mcse` may take without a budget
_TARGET, _TARGET_OVERHEAD_BOUND = 0.02, 0.01  # of λ̂: with the second the 95 % interval is λ̂ ± 2 %
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
    target_mcse: float | None = None,
    budget: int | None = None,
    spectrum: Spectrum | None = None,
    bounds: Bounds | None = None,
    reference_loss: float | None = None,
    observables: _Observables = None,
    progress: bool | None = None,
    store: str | Path | Store | None = None,
    mesh: Mesh | None = None,
) -> Report:
    """Report on λ at w*, from one call: settings, draws, bounds, checks and a verdict.

    The settings are those of `llc.calibrate`; where a step costs next to nothing, chains that turn out too hot are run
    again with a smaller one. Draws are added until the standard error is `target_mcse` of λ̂ and the chains agree,
    unless a check fails that more draws cannot pass. A shorter run at 3γ tells whether λ_corr still depends on γ.

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
        target_mcse: standard error to be reached, relative to λ̂. None takes 2 %, and 1 % where a step costs next to
            nothing and no length was given.
        budget: most work of all chains together, in gradients of the loss over all the data, the spectrum of a costly
            model and the run at 3γ included (see `llc.calibrate`); None allows eight times the first draws.
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
    check_posterior(posterior)
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
        budget=budget,
        spectrum=spectrum,
        progress=progress,
    )
    with opened(store) as folder:
        place = Place(folder, mesh, observables)
        run = draw_cool_enough(keys.runs, calibration, bounds, place, progress=progress)
        result = _extended(run, target_mcse, bounds, progress=progress)
        draws = result.draws
        if reference_loss is not None:
            result = report(draws, bounds=bounds, spectrum=calibration.spectrum, reference_loss=reference_loss)
            draws = result.draws
        if any(check.told_by_half_step for check in result.failed):
            half = half_step_draws(keys.half_step, run.calibration, mesh=mesh, progress=progress)
            if half is not None:
                draws[schema.HALF_STEP] = half
                result = report(draws, bounds=bounds, spectrum=calibration.spectrum)
                draws = result.draws
        open_scale = result.corrected is not None and result.bounds is not None and result.bounds.valid
        if not open_scale or not constant(draws, "gamma"):
            return result
        kept = folder and folder.run(LOCALIZED)
        localized = localized_draws(keys.localized, run.calibration, store=kept, mesh=mesh, progress=progress)
        draws[schema.LOCALIZED] = localized
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


class Place(NamedTuple):
    """Where chains run and are kept, and what is recorded beside the loss."""

    store: Store | None = None
    mesh: Mesh | None = None
    observables: _Observables = None


class Run(NamedTuple):
    """Chains under way, with the settings that they run by and a report on their draws so far."""

    calibration: Calibration
    chains: Chains
    report: Report


def draw_cool_enough(
    keys: tuple[PRNGKeyArray, ...],
    calibration: Calibration,
    bounds: Bounds | None,
    place: Place = Place(),
    *,
    progress: bool | None,
) -> Run:
    """The first draws of a run; again with a smaller step, as long as there are keys, where that one was too large."""
    run = _start(keys[0], calibration, bounds, place, MAIN, progress=progress)
    for number, key in enumerate(keys[1:], start=2):
        extended = run.chains.asked > run.calibration.lengths.num_draws  # in the store, so that its step was not
        if extended or not (calibration.overhead_bound and _step_too_large(run.report)):
            break
        run = _start(key, run.calibration.with_smaller_step(), bounds, place, f"{MAIN}-{number}", progress=progress)
    return run


def _start(
    key: PRNGKeyArray,
    calibration: Calibration,
    bounds: Bounds | None,
    place: Place,
    name: str,
    *,
    progress: bool | None,
) -> Run:
    """The first draws of a run, or all that it has in its store under `name`."""
    spectrum, lengths = calibration.spectrum, calibration.lengths
    chains = Chains(
        key,
        calibration.posterior,
        calibration.sampler,
        lengths,
        spectrum=spectrum,
        observables=place.observables,
        store=place.store and place.store.run(name),
        mesh=place.mesh,
    )
    _draw(chains, max(lengths.num_draws, chains.asked), calibration, progress=progress)
    return Run(calibration, chains, _report(chains, calibration, bounds))


def _report(chains: Chains, calibration: Calibration, bounds: Bounds | None) -> Report:
    """On the draws so far, with how their settings were chosen."""
    draws = chains.tree()
    draws.attrs[schema.CALIBRATION] = str(calibration)
    draws.attrs[schema.GAMMA_ORIGIN] = calibration.gamma_origin
    if math.isfinite(weaker := calibration.choices["gamma"].evidence.get("weaker", math.nan)):
        draws.attrs[schema.WEAKER_GAMMA] = weaker
    result = report(draws, bounds=bounds, spectrum=calibration.spectrum)
    chains.note(result.draws.filter(lambda node: node.path in ("/", f"/{schema.CURVATURE}")))
    return result


def _draw(chains: Chains, num_draws: int, calibration: Calibration, *, progress: bool | None) -> None:
    """Draws of a run, up to `num_draws` of a chain; where each takes long, λ̂ so far is told as they come in."""
    if not calibration.costly or progress is False:
        chains.draw_until(num_draws, progress=progress)
        return
    there = chains.num_drawn
    first = min(there + _FIRST_LOOK, num_draws)
    for look in np.unique(np.linspace(first, num_draws, 1 + _LOOKS).astype(int)).tolist():
        chains.draw_until(look, asked=num_draws, progress=progress)
        draws = chains.so_far()
        llc, total = mean_energy(draws), draws["posterior"].sizes["draw"]
        say(f"λ̂ = {plus_minus(llc.value, llc.mcse)} after {total} draws of each chain", progress=progress)


def _step_too_large(result: Report) -> bool:
    """Whether chains were thrown out of stiff places: dead, hotter than the posterior, or with rare high energies."""
    if not finite_chains(variable(result.draws, "posterior", "llc")).all():
        return True
    # Below a w* that is no minimum the energies say nothing of the step.
    no_minimum = any(check.kind == "minimum" and check.direction is None for check in result.failed)
    return not no_minimum and any(check.direction == "hot" for check in result.failed)


def _extended(run: Run, target_mcse: float | None, bounds: Bounds | None, *, progress: bool | None) -> Report:
    """A report on the run with as many more draws as the target takes and the budget allows."""
    calibration, chains, result = run
    if target_mcse is None:
        target_mcse = _TARGET_OVERHEAD_BOUND if calibration.overhead_bound else _TARGET
    most = calibration.lengths.max_draws(_MAX_FACTOR)
    while (done := chains.num_drawn) < most and (more := _num_extra_draws(result, target_mcse, done)):
        _draw(chains, min(done + more, most), calibration, progress=progress)
        result = _report(chains, calibration, bounds)
    return result


def _num_extra_draws(result: Report, target_mcse: float, done: int) -> int:
    """Draws to add for the target, at most as many as there are; 0 where it is reached or out of reach."""
    failed, character = result.failed_of_chains, result.character
    if character is not None and character.name == "left the basin":
        return 0
    if not all(check.cured_by_draws for check in failed) or not math.isfinite(result.llc.value):
        return 0
    excess = result.llc.mcse / (target_mcse * abs(result.llc.value)) if result.llc.value else 0.0
    if excess <= 1 and not failed:
        return 0
    return done if excess**2 >= 2 or excess <= 1 else max(1, int((excess**2 - 1) * done * 1.1))


def report(
    draws: xr.DataTree,
    *,
    bounds: Bounds | None = None,
    spectrum: Spectrum | None = None,
    reference_loss: float | None = None,
) -> Report:
    """Report on draws: estimates, checks and the verdict against bounds.

    Args:
        draws: of `llc.sample`, or `llc.load`ed from a file; they are left as they are. A `curvature` group serves where
            no spectrum is given; a spectrum that is given becomes that group of `Report.draws`, so that a file of those
            holds all of the report.
        bounds: on the asymptotic λ; None makes them from the spectrum at the draws' nβ and γ, with what is known beyond
            the rank if the draws' file holds it (`llc bounds --higher`). Bounds that were made at another scale are
            made anew where there is a spectrum, so that λ_quad belongs to the draws. Without a spectrum, bounds are
            compared with λ̂ itself, and on their upper side only, unless they were made at the draws' nβ and γ.
        spectrum: of the Hessian at w*.
        reference_loss: mean loss, in nats per example, of a model that has learnt nothing, by which `report.character`
            tells draws that left the basin of w*; it becomes part of `Report.draws`. None takes the one in the draws:
            the loss with all parameters at zero, which is chance for most networks.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes, the spectrum is of other parameters or another w*, or
            reference_loss is not finite.

    Example:
        See the quickstart in the README.
    """
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    schema.require(draws)
    draws = draws.copy()  # shallow: the arrays are shared, the groups are not
    if reference_loss is not None:
        require_number("reference_loss", reference_loss, least=-math.inf)
        constants = draws[schema.CONSTANTS].to_dataset()
        draws[schema.CONSTANTS] = constants.assign({schema.REFERENCE_LOSS: float(reference_loss)})
    beyond = str(draws[schema.CURVATURE].attrs.get("beyond", "")) if schema.CURVATURE in draws else ""
    given, spectrum = spectrum, _spectrum_of(draws, spectrum)
    if spectrum is not None:
        nbeta, gamma = constant(draws, schema.NBETA), constant(draws, schema.GAMMA)
        if bounds is None:
            bounds = add_beyond(rank_bounds(spectrum, nbeta=nbeta, gamma=gamma), beyond)
        elif bounds.localization_scale != gamma / nbeta:
            bounds = at_scale(bounds, spectrum, nbeta=nbeta, gamma=gamma)
    if given is not None:
        draws[schema.CURVATURE] = xr.DataTree(to_dataset(given, bounds))
    return assemble(draws, bounds=bounds, spectrum=spectrum)


def _spectrum_of(draws: xr.DataTree, spectrum: Spectrum | None) -> Spectrum | None:
    """The given spectrum or the one among the draws, if it is of the same parameters and the same w*."""
    if spectrum is None and schema.CURVATURE not in draws:
        return None
    if spectrum is None:
        spectrum = Spectrum.from_dataset(draws[schema.CURVATURE])
        written = float(draws[schema.CURVATURE].attrs.get("init_loss", math.nan))
        if not same(written, here := constant(draws, schema.INIT_LOSS)):
            raise ValueError(
                f"draws need a spectrum at their own w*, got one where L(w*) = {written:.9g} for draws around one "
                f"where it is {here:.9g}; compute it anew (llc bounds --out)."
            )
    if spectrum.dim != (num_params := constant(draws, schema.NUM_PARAMS)):
        raise ValueError(
            f"draws need a spectrum of their own {num_params:.0f} parameters, got one of {spectrum.dim}; compute it "
            "for this posterior (llc.spectrum, or llc bounds --out)."
        )
    return spectrum
