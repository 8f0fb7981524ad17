"""How long a run is: what a budget leaves, how much longer a cheap run may be, thinning and warm-up.

A step of a small model costs little more than its overhead. Such a run may be up to a hundred times longer, so that a
weaker localization, and so more of λ, can be afforded.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from llc.bounds.rank import rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import Batch
from llc.calibration.record import Choice, Request
from llc.calibration.step_size import RELAXATIONS, Settings
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths

_WARMUP, _THINNING = 2000, 10
_OVERHEAD_BOUND = 5e4  # parameters × rows of a step below which it costs little more than its overhead
_LONGER = 100  # times that a run may be longer there
_RELAXATIONS = 160  # T εγ there: with 80 the standard errors of slow chains are too small (validation/constants.py)
_VISIBLE = 0.75  # of r/2 that λ_quad is to have there; a report wants half (check `localization`)
_LONGER_LOCALIZATION = 32  # times that a run may be longer for that


class Plan(NamedTuple):
    """How long a run may be.

    Attributes:
        num_steps: gradients of a chain, about; γ is set from it.
        max_length_factor: times that a run may be longer than it would be on a model whose steps are costly.
        overhead_bound: whether the run may be made longer: a step costs little more than its overhead, and neither the
            sampler nor a number of steps was given.
    """

    num_steps: int
    max_length_factor: int
    overhead_bound: bool


def within_budget(asked: RequestedLengths, sampler: Sampler | None) -> RequestedLengths:
    """The lengths that were asked for, with a warm-up, a thinning and a number of draws that keep to the budget."""
    budget, thinning, warmup = asked.budget, asked.thinning, asked.num_warmup
    if budget is None:
        return asked
    per_draw = steps_per_draw(sampler)
    if warmup is None:
        warmup = min(budget // 10, _WARMUP, budget - (thinning or 1))
    if thinning is None and per_draw > 1:
        thinning = min(per_draw, max(1, (budget - warmup) // asked.num_draws))
    num_draws = min(asked.num_draws, (budget - warmup) // (thinning or per_draw))
    return replace(asked, num_warmup=warmup, thinning=thinning, num_draws=num_draws)


def steps_per_draw(sampler: Sampler | None) -> int:
    """Steps between draws where nothing asks for more; a trajectory is many gradients."""
    return 1 if sampler is not None and sampler.takes_trajectories else _THINNING


def num_gradients(lengths: RequestedLengths) -> int:
    """Gradients of a chain, about."""
    warmup = _WARMUP if lengths.num_warmup is None else lengths.num_warmup
    return warmup + lengths.num_draws * (lengths.thinning or _THINNING)


def plan_length(request: Request, batch: Batch, at_center: Settings) -> Plan:
    """How much longer than usual a run may be, and the number of steps that γ is set from.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch.
        at_center: γ from the curvature at w*, for a run of the usual length.
    """
    lengths, posterior = request.lengths, request.posterior
    cheap = posterior.num_params * (batch.rows or posterior.num_data) < _OVERHEAD_BOUND
    factor = _LONGER if lengths.budget is None and cheap else 1
    free = request.sampler is None and lengths.num_warmup is None and lengths.thinning is None
    plan = Plan(num_gradients(lengths), factor, factor > 1 and free)
    if not (request.chooses_gamma and plan.overhead_bound):
        return plan
    times = _times_longer(posterior, request.spectrum, at_center.gamma, factor)
    return plan._replace(num_steps=plan.num_steps * times)


def choose_num_draws(request: Request) -> Choice[int]:
    """Draws of a chain, fewer than asked for where the budget is short."""
    num_draws, budget = request.lengths.num_draws, request.lengths.budget
    if budget is None or num_draws == request.asked.num_draws:
        return Choice(num_draws, "given", "of a chain; `target_mcse` adds to them")
    return Choice(num_draws, "chosen", f"of a chain; no more fit in {budget:,} steps", {"budget": budget})


def choose_thinning(request: Request, plan: Plan, rate: float | None) -> Choice[int]:
    """Steps between draws.

    Args:
        request: what calibration started from.
        plan: how long a run may be.
        rate: εγ, twice the rate at which a flat direction relaxes; None without pilots, where ε is not known.
    """
    if request.asked.thinning is not None:
        return Choice(request.asked.thinning, "given", "given")
    thinning = request.lengths.thinning  # of the budget
    if thinning is None and rate is not None:
        relaxations = _RELAXATIONS if plan.overhead_bound else RELAXATIONS
        thinning = _relaxing_thinning(rate, request.lengths.num_draws, relaxations, plan.max_length_factor)
    reason = "steps between draws: an evaluation of the loss on all rows costs as much as some steps"
    return Choice(thinning or steps_per_draw(request.sampler), "chosen", reason)


def choose_warmup(request: Request, thinning: int) -> Choice[int]:
    """Steps that are discarded: 2,000, or a tenth of the run if that is more."""
    if request.asked.num_warmup is not None:
        return Choice(request.asked.num_warmup, "given", "given")
    warmup = request.lengths.num_warmup  # of the budget
    if warmup is None:
        warmup = max(_WARMUP, request.lengths.num_draws * thinning // 10)
    return Choice(warmup, "chosen", "steps that are discarded")


def _relaxing_thinning(rate: float, num_draws: int, relaxations: int, max_length_factor: int) -> int:
    """Steps between draws with which `num_draws` draws are T εγ = `relaxations` long; `rate` is εγ."""
    relaxed = math.ceil(relaxations / (rate * num_draws)) if rate else max_length_factor * _THINNING
    return min(max(_THINNING, relaxed), max_length_factor * _THINNING)


def _times_longer(posterior: LocalPosterior, spectrum: Spectrum, gamma: float, max_length_factor: int) -> int:
    """A power of two of times that a run has to be longer for a localization which hides at most a quarter of r/2."""
    nbeta, times, bounds = float(posterior.nbeta), 1, rank_bounds(spectrum)
    most = min(max_length_factor, _LONGER_LOCALIZATION) if bounds.rank_is_unique else 1
    while 2 * times <= most and 2 * spectrum.quad(gamma / times / nbeta) < _VISIBLE * bounds.rank:
        times *= 2
    return times
