"""Settings of a run, each with its reason: from the curvature at w*, and from short pilot runs.

`calibrate` is read from top to bottom. Each step takes what is known and says what follows from it:

    curvature at w*  →  ε, γ  →  rows of a minibatch  →  length of the run  →  pilots  →  a `Choice` for each setting
"""

from jaxtyping import PRNGKeyArray

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import Batch, choose_batch_size, choose_sampler, plan_batch
from llc.calibration.pilots import run_pilots
from llc.calibration.record import Calibration, Choice, PilotResult, Request
from llc.calibration.run_length import (
    Plan,
    choose_num_draws,
    choose_thinning,
    choose_warmup,
    num_gradients,
    plan_length,
    within_budget,
)
from llc.calibration.step_size import choose_gamma, choose_step_size, settings_from_curvature
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.posterior.arguments import require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from llc.sampling.validation import check_key, check_posterior


def calibrate(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    sampler: Sampler | None = None,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_draws: int = 2000,
    thinning: int | None = None,
    batch_size: int | None = None,
    eval_size: int | None = None,
    budget: int | None = None,
    spectrum: Spectrum | None = None,
) -> Calibration:
    """Settings for `llc.sample` from the spectrum at w* and pilot runs; what is given is kept.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum; its γ is kept if it has one.
        sampler: None takes SGLD with ε = 0.5 / (nβ h_max + γ), also on small models: where NUTS has trajectories that
            diverge, at most singular points, it misses their narrow arms (validation/results/accuracy.txt).
        num_chains: independent chains.
        num_warmup: steps discarded. None takes 2,000, or a tenth of the run if that is more.
        num_draws: recorded draws a chain.
        thinning: steps between draws. None takes 10 steps; more (up to 1,000) of the default sampler and of MALA whose
            step adapts, where γ is so weak that the chains relax slowly and the model is small; and 1 of HMC and NUTS,
            whose steps take many gradients.
        batch_size: rows of a minibatch. None takes all the data up to 4,096 rows (and of a sampler with an accept
            step), and beyond as many as keep the heating of the curved directions below 3 %, from 512 to 8,192.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all.
        budget: most steps of a chain, pilots apart; None sets no limit. Draws are left out to keep to it.
        spectrum: of the Hessian at w*; None computes it.

    Raises:
        ValueError: if a setting is out of range or the curvature at w* gives no scale.
    """
    check_key(key)
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    require_type("sampler", sampler, Sampler, "a sampler, such as llc.NUTS()", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    check_key(key)
    check_posterior(posterior)
    asked = RequestedLengths(
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        budget=budget,
    )
    asked.check_rows(posterior.num_data)
    spectrum = hessian_spectrum(posterior) if spectrum is None else spectrum
    request = Request(posterior, sampler, asked, within_budget(asked, sampler), spectrum)

    at_center = settings_from_curvature(posterior, spectrum.largest, num_gradients(request.lengths))
    batch = plan_batch(request, at_center)
    plan = plan_length(request, batch, at_center)
    if sampler is None or request.needs_pilots:
        found = run_pilots(key, request, batch, plan)
    else:
        found = PilotResult(posterior.with_scale(gamma=at_center.gamma), sampler)
    return _choose(request, batch, plan, found)


def _choose(request: Request, batch: Batch, plan: Plan, found: PilotResult) -> Calibration:
    """A choice for each setting, from all that is known by now."""
    sampler = choose_sampler(request, batch, found)
    num_draws = choose_num_draws(request)
    thinning = choose_thinning(request, plan, found.rate)
    warmup = choose_warmup(request, thinning.value)
    rows = choose_batch_size(request, batch)
    num_chains, eval_size = request.lengths.num_chains, request.lengths.eval_size
    choices: dict[str, Choice[object]] = {
        "sampler": sampler,
        "step_size": choose_step_size(request, found),
        "gamma": choose_gamma(request, found, num_draws.value * thinning.value),
        "nbeta": Choice(found.posterior.scale.nbeta, "posterior", "of the posterior"),
        "num_chains": Choice(num_chains, "given", "independent, so that they can disagree"),
        "num_warmup": warmup,
        "num_draws": num_draws,
        "thinning": thinning,
        "batch_size": rows,
        "eval_size": Choice(eval_size, "given", "rows of L(w) − L(w*)"),
    }
    lengths = RunLengths(
        num_chains=num_chains,
        num_warmup=warmup.value,
        num_draws=num_draws.value,
        thinning=thinning.value,
        batch_size=rows.value,
        eval_size=eval_size,
        budget=request.lengths.budget,
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
