"""Settings of a run, each with its reason: from the curvature at w*, and from short pilot runs.

`calibrate` is read from top to bottom. Each step takes what is known and says what follows from it:

    curvature at w*  →  ε, γ  →  rows of a minibatch  →  length of the run  →  pilots, momentum or none  →  a `Choice`
    for each setting
"""

from dataclasses import replace
from functools import partial

import jax
from jaxtyping import PRNGKeyArray

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import Batch, choose_batch_size, choose_sampler, nominal_rows, plan_batch
from llc.calibration.costs import run_cost
from llc.calibration.localization import Localization, choose_localization, has_use_for_localization
from llc.calibration.momentum import exclude_momentum, try_momentum, with_momentum
from llc.calibration.pilots import run_pilots
from llc.calibration.price import Price, affordable_spectrum, price_of
from llc.calibration.record import Calibration, Choice, PilotResult, Request
from llc.calibration.run_length import (
    Plan,
    affordable_steps,
    choose_num_draws,
    choose_thinning,
    choose_warmup,
    is_overhead_bound,
    plan_length,
    with_rate,
    within_budget,
)
from llc.calibration.short_run import enough_draws, takes_minutes, with_length
from llc.calibration.step_energies import choose_step_energies, space_draws
from llc.calibration.step_size import choose_gamma, choose_step_size, settings_from_curvature
from llc.calibration.telling import curvature_found, forecast, gamma_found, pilot_found, run_planned, say
from llc.posterior.arguments import require_flag, require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.whole import on_resident_rows
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from llc.sampling.step_energies import check_step_energies
from llc.sampling.validation import check_key, require_fine_params
from llc.sampling.windows import check_steps_of_stream


def calibrate(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    sampler: Sampler | None = None,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    thinning: int | None = None,
    batch_size: int | None = None,
    eval_size: int | None = None,
    step_energies: bool | None = None,
    budget: int | None = None,
    spectrum: Spectrum | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Settings for `llc.sample` from the spectrum at w* and pilot runs; what is given is kept.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum; its γ is kept if it has one.
        sampler: None takes SGHMC, SGLD with momentum, where a step costs more than its overhead and a trial has more
            effective draws for the same gradients (validation/momentum.py), and else SGLD, with
            ε = 0.5 / (nβ h_max + γ), also on small models: where NUTS has trajectories that diverge, at most singular
            points, it misses their narrow arms (validation/results/accuracy.txt).
        num_chains: independent chains.
        num_warmup: steps discarded. None takes 2,000, or a tenth of the run if that is more.
        num_draws: recorded draws a chain. None takes 2,000, and of a costly model 150, or 100 to 150 where steps have
            energies.
        thinning: steps between draws. None takes 10 steps; more (up to 1,000) of the default sampler and of MALA whose
            step adapts, where γ is so weak that the chains relax slowly and the model is small; and 1 of HMC and NUTS,
            whose steps take many gradients.
        batch_size: rows of a minibatch. None takes all the data up to 4,096 rows (and of a sampler with an accept
            step), and beyond as many as keep the heating of the curved directions below 3 %, from 512 to 8,192.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all.
        step_energies: whether each step's own minibatch gives an energy as well, as of `llc.sample`. None takes them of
            a costly model with one loss an example, where the noise of their rows is small beside a draw's.
        budget: most work of all chains together, in gradients of the loss over all the data: a step on B of n rows
            counts B/n, a draw one, a product with the Hessian two. The spectrum of a costly model takes at most a
            third. None sets no limit. Of a stream, all the data are its resident rows here.
        spectrum: of the Hessian at w*; None computes it.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is out of range or the curvature at w* gives no scale.
    """
    check_key(key)
    require_differentiable(posterior)
    require_fine_params(posterior)
    require_type("sampler", sampler, Sampler, "a sampler, such as llc.NUTS()", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_flag("progress", progress, optional=True)
    asked = RequestedLengths(
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        step_energies=step_energies,
        budget=budget,
    )
    asked.check_rows(posterior.num_data)
    return calibrate_for(key, posterior, sampler, asked, price_of(posterior), spectrum=spectrum, progress=progress)


def calibrate_for(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    sampler: Sampler | None,
    asked: RequestedLengths,
    price: Price,
    *,
    spectrum: Spectrum | None = None,
    localization: Localization | None = None,
    progress: bool | None = None,
) -> Calibration:
    """What `calibrate` does once it is known what a gradient costs.

    Args:
        key: `jax.random.key(seed)`.
        posterior: as of `calibrate`.
        sampler: as of `calibrate`.
        asked: the lengths that were asked for.
        price: of a gradient; of a costly model every step is told as it is done.
        spectrum: as of `calibrate`.
        localization: the γ to take where the posterior has none; None finds it.
        progress: as of `calibrate`.
    """
    given, posterior = posterior, on_resident_rows(posterior)
    if given.stream is not None:
        check_steps_of_stream(sampler, step_energies=asked.step_energies)
    elif asked.step_energies and sampler is not None:
        check_step_energies(sampler)
    _check_resident(posterior, asked)
    lengths = asked if price.costly else within_budget(posterior, asked, sampler)
    told = takes_minutes(posterior, price, asked)
    tell = partial(say, progress=progress if told else False)
    tell(lambda: forecast(posterior, price, asked, has_spectrum=spectrum is not None))
    if spectrum is None:
        spectrum = affordable_spectrum(posterior, price, asked.budget, progress=progress)
    request = Request(posterior, sampler, asked, lengths, spectrum, price, is_sample=given.stream is not None)
    request, length = with_length(request)
    price = request.price

    key, points_key = jax.random.split(key)
    settings = partial(settings_from_curvature, largest=spectrum.largest, **length._asdict())
    if localization is None:
        localization = find_localization(points_key, request, settings(posterior).gamma)
    request = replace(request, localization=localization)
    at_center = settings(request.local_posterior)
    tell(curvature_found(spectrum, at_center.gamma / float(posterior.nbeta)))
    tell(gamma_found(request, at_center.gamma))
    batch = plan_batch(request, at_center)
    plan = plan_length(request, batch, at_center)
    if price.costly:
        plan = plan._replace(**length._asdict())  # where pilots are left to choose γ, it is the one that was told
    if sampler is None or request.needs_pilots:
        found, batch = _pilots(key, request, batch, plan)
        plan = with_rate(request, batch, plan, found.rate)
        tell(pilot_found(found))
    else:
        found = PilotResult(posterior.with_scale(gamma=at_center.gamma), sampler)
    calibration = _choose(request, batch, plan, found)
    doubled = batch.uses_control_variates
    is_sample = request.is_sample
    tell(run_planned(calibration.lengths, posterior.num_data, doubled=doubled, is_sample=is_sample))
    scale = calibration.posterior.scale
    cost = run_cost(calibration.lengths, posterior.num_data, doubled=doubled, is_sample=is_sample)
    return replace(
        calibration,
        posterior=given.with_scale(nbeta=scale.nbeta, gamma=scale.gamma),
        enough_draws=enough_draws(calibration.lengths.num_draws, cost, price) if told else None,
    )


def _check_resident(posterior: LocalPosterior, asked: RequestedLengths) -> None:
    """Raises ValueError if more rows are asked for than pilots have, which run on the resident rows of a stream."""
    for name, value in (("batch_size", asked.batch_size), ("eval_size", asked.eval_size)):
        if value is not None and value > posterior.num_data:
            raise ValueError(
                f"{name} needs to be at most the {posterior.num_data} rows that lie in memory, got {value}; give a "
                f"smaller one, or of a stream llc.stream(source, resident={value})."
            )


def _pilots(key: PRNGKeyArray, request: Request, batch: Batch, plan: Plan) -> tuple[PilotResult, Batch]:
    """What pilots find, and the minibatch, where momentum may have another one."""
    pilots_key, trial_key = jax.random.split(key)
    found = run_pilots(pilots_key, request, batch, plan)
    if request.sampler is not None:
        return found, batch
    if trial := exclude_momentum(request, batch):
        return found._replace(trial=trial), batch
    return with_momentum(found, batch, try_momentum(trial_key, request, batch, plan, found))


def _choose(request: Request, batch: Batch, plan: Plan, found: PilotResult) -> Calibration:
    """A choice for each setting, from all that is known by now."""
    sampler = choose_sampler(request, batch, found)
    num_draws = choose_num_draws(request, plan)
    thinning = choose_thinning(request, plan, found.rate)
    warmup = choose_warmup(request, plan, thinning.value)
    rows = choose_batch_size(request, batch)
    step_energies = choose_step_energies(request, batch, found, thinning.value)
    if plan.costly is not None and step_energies.value:
        num_draws, thinning = space_draws(request, batch, num_draws, thinning)
    num_chains, eval_size = request.lengths.num_chains, request.lengths.eval_size
    if plan.costly is not None:
        eval_size = plan.costly.eval_size
    choices: dict[str, Choice[object]] = {
        "sampler": sampler,
        "step_size": choose_step_size(request, found),
        "gamma": choose_gamma(request, found, num_draws.value * thinning.value),
        "nbeta": Choice(found.posterior.scale.nbeta, "posterior", "of the posterior"),
        "num_chains": Choice(num_chains, "given", "independent chains, so that disagreement shows"),
        "num_warmup": warmup,
        "num_draws": num_draws,
        "thinning": thinning,
        "batch_size": rows,
        "eval_size": Choice(eval_size, "given", "rows on which L(w) − L(w*) of a draw is evaluated"),
        "step_energies": step_energies,
    }
    lengths = RunLengths(
        num_chains=num_chains,
        num_warmup=warmup.value,
        num_draws=num_draws.value,
        thinning=thinning.value,
        batch_size=rows.value,
        eval_size=eval_size,
        step_energies=step_energies.value,
        max_steps=_max_steps(request, plan, warmup.value + num_draws.value * thinning.value),
    )
    return Calibration(
        posterior=found.posterior,
        sampler=sampler.value,
        lengths=lengths,
        choices=choices,
        pilots=found.pilots,
        spectrum=request.spectrum,
        overhead_bound=plan.overhead_bound,
    )


def localization_for(
    key: PRNGKeyArray, posterior: LocalPosterior, asked: RequestedLengths, price: Price, spectrum: Spectrum
) -> Localization | None:
    """The localization that `calibrate_for` would choose for the default sampler, without anything else.

    Args:
        key: of the points at which the loss is looked at.
        posterior: as of `calibrate`.
        asked: the lengths that were asked for.
        price: of a gradient.
        spectrum: of the Hessian at w*.
    """
    is_sample, posterior = posterior.stream is not None, on_resident_rows(posterior)
    lengths = asked if price.costly else within_budget(posterior, asked, None)
    request, length = with_length(Request(posterior, None, asked, lengths, spectrum, price, is_sample=is_sample))
    if not request.chooses_gamma or not has_use_for_localization(spectrum):
        return None
    weakest = settings_from_curvature(posterior, spectrum.largest, **length._asdict()).gamma
    return find_localization(key, request, weakest)


def find_localization(key: PRNGKeyArray, request: Request, weakest: float) -> Localization | None:
    """The γ at which the loss is quadratic; None where γ is given, or follows from the length of the run.

    Args:
        key: of the points at which the loss is looked at.
        request: what calibration started from.
        weakest: γ that the length of the run allows.
    """
    posterior = request.posterior
    overhead_bound = not request.is_sample and is_overhead_bound(posterior, nominal_rows(posterior))
    if not request.chooses_gamma or overhead_bound or not has_use_for_localization(request.spectrum):
        return None
    return choose_localization(key, posterior, request.spectrum, weakest, operations=request.price.operations)


def _max_steps(request: Request, plan: Plan, first: int) -> int | None:
    """Most steps of a chain, draws that are added included."""
    if plan.costly is not None:
        return plan.costly.max_steps
    if request.asked.budget is None:
        return None
    return max(first, affordable_steps(request.posterior, request.asked, request.sampler))
