"""The whole way from a loss and a minimum to a checked estimate: settings, draws, bounds, report."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

from llc.analysis import schema
from llc.analysis.assembly import assemble
from llc.analysis.estimators import mean_energy
from llc.analysis.files import same
from llc.analysis.report import Report
from llc.analysis.schema import constant, variable
from llc.analysis.series import finite_chains, plus_minus
from llc.bounds.rank import Bounds, at_scale, rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import add_beyond, to_dataset
from llc.calibration.pipeline import calibrate
from llc.calibration.record import Calibration
from llc.calibration.telling import say
from llc.posterior.arguments import require_type
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
_STRONGER, _FEWER = 3, 4  # γ of the run that λ_corr is compared with, and the part of the draws that it takes


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
    observables: _Observables = None,
    progress: bool | None = None,
) -> Report:
    """Report on λ at w*, from one call: settings, draws, bounds, checks and a verdict.

    The settings are those of `llc.calibrate`; where a step costs next to nothing, chains that turn out too hot are run
    again with a smaller one. Draws are added until the standard error is `target_mcse` of λ̂ and the chains agree,
    unless a check fails that more draws cannot pass. A shorter run at 3γ tells whether λ_corr still depends on γ.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum.
        sampler: None takes SGLD with a step size from the curvature; another one runs as it is given (`llc.NUTS()` on a
            model of up to a few thousand parameters is the reference).
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
        observables: functions that are recorded in the draws, as of `llc.sample`; not in the pilots and the run at 3γ.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is out of range, the curvature at w* gives no scale, or `like` is given together with
            `nbeta` or `gamma`.

    References:
        Lau et al., The local learning coefficient, arXiv 2308.12108.
    """
    require_type("sampler", sampler, Sampler, "a sampler, such as llc.NUTS()", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_type("like", like, Report, "an llc.Report", optional=True)
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
    run = draw_cool_enough(keys.runs, calibration, bounds, observables=observables, progress=progress)
    result = _extended(run, target_mcse, bounds, progress=progress)
    draws = result.draws
    open_scale = result.corrected is not None and result.bounds is not None and result.bounds.valid
    if not open_scale or not constant(draws, "gamma"):
        return result
    draws["localized"] = _localized_draws(keys.localized, run.calibration, progress=progress)
    return report(draws, bounds=bounds, spectrum=calibration.spectrum)


class Keys(NamedTuple):
    """One key for each use.

    Attributes:
        pilots: of calibration.
        runs: of the first run, and of those with a smaller step.
        localized: of the run at 3γ.
    """

    pilots: PRNGKeyArray
    runs: tuple[PRNGKeyArray, ...]
    localized: PRNGKeyArray


def split_key(key: PRNGKeyArray) -> Keys:
    """A key for each use; none of them is derived from another one."""
    pilots, localized, *runs = jax.random.split(key, 3 + _MAX_RESTARTS)
    return Keys(pilots, tuple(runs), localized)


def _check_target(target_mcse: object) -> None:
    if target_mcse is not None and not (isinstance(target_mcse, (int, float)) and target_mcse > 0):
        raise ValueError(f"target_mcse needs a number > 0, relative to λ̂, got {target_mcse!r}; 0.02 is the default.")


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


class Run(NamedTuple):
    """Chains under way, with the settings that they run by and a report on their draws so far."""

    calibration: Calibration
    chains: Chains
    report: Report


def draw_cool_enough(
    keys: tuple[PRNGKeyArray, ...],
    calibration: Calibration,
    bounds: Bounds | None,
    *,
    observables: _Observables = None,
    progress: bool | None,
) -> Run:
    """The first draws of a run; again with a smaller step, as long as there are keys, where that one was too large."""
    run = _start(keys[0], calibration, bounds, observables, progress=progress)
    for key in keys[1:]:
        if not (calibration.overhead_bound and _step_too_large(run.report)):
            break
        run = _start(key, run.calibration.with_smaller_step(), bounds, observables, progress=progress)
    return run


def _start(
    key: PRNGKeyArray,
    calibration: Calibration,
    bounds: Bounds | None,
    observables: _Observables,
    *,
    progress: bool | None,
) -> Run:
    spectrum, lengths = calibration.spectrum, calibration.lengths
    posterior, sampler = calibration.posterior, calibration.sampler
    chains = Chains(key, posterior, sampler, lengths, spectrum=spectrum, observables=observables)
    _draw(chains, lengths.num_draws, calibration, progress=progress)
    return Run(calibration, chains, report(_tree(chains, calibration), bounds=bounds, spectrum=spectrum))


def _tree(chains: Chains, calibration: Calibration) -> xr.DataTree:
    """The draws so far, with how their settings were chosen."""
    draws = chains.tree()
    draws.attrs[schema.CALIBRATION] = str(calibration)
    draws.attrs[schema.GAMMA_ORIGIN] = calibration.gamma_origin
    return draws


def _draw(chains: Chains, num_draws: int, calibration: Calibration, *, progress: bool | None) -> None:
    """Draws of a run; where each takes long, λ̂ so far is told as they come in."""
    if not calibration.costly or progress is False:
        chains.draw(num_draws, progress=progress)
        return
    looks = np.unique(np.linspace(min(_FIRST_LOOK, num_draws), num_draws, 1 + _LOOKS).astype(int))
    for part in np.diff(looks, prepend=0).tolist():
        chains.draw(part, progress=progress)
        draws = chains.tree()
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
    done, most = calibration.lengths.num_draws, calibration.lengths.max_draws(_MAX_FACTOR)
    while done < most and (more := _num_extra_draws(result, target_mcse, done)):
        more = min(more, most - done)
        _draw(chains, more, calibration, progress=progress)
        done += more
        result = report(_tree(chains, calibration), bounds=bounds, spectrum=calibration.spectrum)
    return result


def _num_extra_draws(result: Report, target_mcse: float, done: int) -> int:
    """Draws to add for the target, at most as many as there are; 0 where it is reached or out of reach."""
    failed = result.failed_of_chains
    if not all(check.cured_by_draws for check in failed) or not math.isfinite(result.llc.value):
        return 0
    excess = result.llc.mcse / (target_mcse * abs(result.llc.value)) if result.llc.value else 0.0
    if excess <= 1 and not failed:
        return 0
    return done if excess**2 >= 2 or excess <= 1 else max(1, int((excess**2 - 1) * done * 1.1))


def _localized_draws(key: PRNGKeyArray, calibration: Calibration, *, progress: bool | None) -> xr.DataTree:
    """A shorter run at 3γ, whose chains relax three times as fast."""
    posterior, lengths = calibration.posterior, calibration.lengths.shorter(_FEWER)
    posterior = posterior.with_scale(gamma=_STRONGER * posterior.scale.gamma)
    chains = Chains(key, posterior, calibration.sampler, lengths, spectrum=calibration.spectrum)
    chains.draw(lengths.num_draws, progress=progress)
    return chains.tree()


def report(draws: xr.DataTree, *, bounds: Bounds | None = None, spectrum: Spectrum | None = None) -> Report:
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

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes, or the spectrum is of other parameters or another w*.

    Example:
        See the quickstart in the README.
    """
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    schema.require(draws)
    draws = draws.copy()  # shallow: the arrays are shared, the groups are not
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
