"""How long a run is: what a budget leaves, how much longer a cheap run may be, thinning and warm-up.

A step of a small model costs little more than its overhead. Such a run may be up to a hundred times longer, so that a
weaker localization, and so more of λ, can be afforded.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from llc.bounds.rank import rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import Batch, nominal_rows
from llc.calibration.costs import SLOPES, draw_cost, step_cost
from llc.calibration.record import Choice, Request
from llc.calibration.step_size import RELAXATIONS, Settings
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths, RunLengths

_NUM_DRAWS, _WARMUP, _THINNING = 2000, 2000, 10
_OF_FIRST_RUN = 0.8  # of a budget; the rest is for the run at 3γ, a quarter as long
# Of a chain at first, of a costly model. N independent draws of a Gamma(λ) energy have an error of 1/√(λN): with four
# chains 2 % from λ = 4.2 on. Below that, or of chains that are correlated, `target_mcse` adds to them.
_COSTLY_DRAWS = 150
_FEWEST_DRAWS = 40  # below which losses are evaluated on some of the rows
_OF_WARMUP = 0.2  # of the work of a chain
_EVALUATED, _FEWEST_EVALUATED = 8, 128  # part of the rows then, and the least number
OF_COSTLY_RUN = 0.42  # of a budget; a quarter as much is for the run at 3γ, the rest for the spectrum and two pilots
_MOST_THINNING = 500
_MINUTES = 1e13  # operations of a run above which T εγ is no more than is needed (set by eye)
_NEEDED = 150.0  # T εγ for 400 effective draws: a language model of 10,016 parameters had 323 with 81, 393 with 122
_RELAXED = 5  # relaxations of a flat direction in the warm-up
_OVERHEAD_BOUND = 5e4  # parameters × rows of a step below which it costs little more than its overhead
_LONGER = 100  # times that a run may be longer there
_RELAXATIONS = 160.0  # T εγ there: with 80 the standard errors of slow chains are too small (validation/constants.py)
_VISIBLE = 0.75  # of r/2 that λ_quad is to have there; a report wants half (check `localization`)
_LONGER_LOCALIZATION = 32  # times that a run may be longer for that


class Plan(NamedTuple):
    """How long a run may be.

    Attributes:
        num_steps: gradients of a chain, about; γ is set from it.
        max_length_factor: times that a run may be longer than it would be on a model whose steps are costly.
        overhead_bound: whether the run may be made longer: a step costs little more than its overhead, and neither the
            sampler nor a number of steps was given.
        costly: the lengths of a costly model, from what steps and draws cost; None of others.
        relaxations: T εγ over `num_steps`, from which γ is set.
    """

    num_steps: int
    max_length_factor: int
    overhead_bound: bool
    costly: RunLengths | None = None
    relaxations: float = RELAXATIONS


def within_budget(posterior: LocalPosterior, asked: RequestedLengths, sampler: Sampler | None) -> RequestedLengths:
    """The lengths that were asked for, with a warm-up, a thinning and a number of draws that keep to the budget.

    A chain has its part of what the run at 3γ leaves of the budget. A draw every t steps on a share s of the rows costs
    t s + 1 gradients.

    Raises:
        ValueError: if the budget does not suffice for a draw of each chain.
    """
    if asked.budget is None:
        return replace(asked, num_draws=asked.num_draws or _NUM_DRAWS)
    thinning, warmup, per_draw = asked.thinning, asked.num_warmup, steps_per_draw(sampler)
    budget = affordable_steps(posterior, asked, sampler)
    least = (warmup or 0) + (thinning or 1)
    if budget < least:
        raise ValueError(
            f"budget needs to suffice for a draw of each of {asked.num_chains} chains, after num_warmup + thinning = "
            f"{least} steps, got {asked.budget} gradients, or {budget} steps of a chain; raise it, or leave them out."
        )
    most = asked.num_draws or _NUM_DRAWS
    if warmup is None:
        warmup = min(budget // 10, _WARMUP, budget - (thinning or 1))
    if thinning is None and per_draw > 1:
        thinning = min(per_draw, max(1, budget - warmup))
    num_draws = min(most, (budget - warmup) // (thinning or per_draw))
    return replace(asked, num_warmup=warmup, thinning=thinning, num_draws=max(num_draws, 1))


def affordable_steps(posterior: LocalPosterior, asked: RequestedLengths, sampler: Sampler | None) -> int:
    """Steps of a chain that the budget allows, before the rows of a minibatch are chosen.

    Raises:
        ValueError: if there is no budget.
    """
    if asked.budget is None:
        raise ValueError("affordable_steps needs a budget, got None.")
    needs_all = sampler is not None and sampler.needs_full_batch
    rows = asked.batch_size or (posterior.num_data if needs_all else nominal_rows(posterior))
    gradients = _OF_FIRST_RUN * asked.budget / asked.num_chains
    return int(gradients / (rows / posterior.num_data + 1 / (asked.thinning or steps_per_draw(sampler))))


def is_overhead_bound(posterior: LocalPosterior, rows: int) -> bool:
    """Whether a step on `rows` rows costs little more than its overhead."""
    return posterior.num_params * rows < _OVERHEAD_BOUND


def steps_per_draw(sampler: Sampler | None) -> int:
    """Steps between draws where nothing asks for more; a trajectory is many gradients."""
    return 1 if sampler is not None and sampler.takes_trajectories else _THINNING


def num_gradients(lengths: RequestedLengths) -> int:
    """Gradients of a chain, about."""
    warmup = _WARMUP if lengths.num_warmup is None else lengths.num_warmup
    return warmup + (lengths.num_draws or _NUM_DRAWS) * (lengths.thinning or _THINNING)


def usual_cost(asked: RequestedLengths, rows: int, num_data: int) -> float:
    """Gradients over all the data of all chains of a run that is as long as usual; at most the budget.

    Args:
        asked: the lengths that were asked for.
        rows: of a minibatch.
        num_data: of the data.
    """
    cost = asked.num_chains * (num_gradients(asked) * rows / num_data + (asked.num_draws or _NUM_DRAWS))
    return cost if asked.budget is None else min(cost, float(asked.budget))


def plan_length(request: Request, batch: Batch, at_center: Settings) -> Plan:
    """How much longer than usual a run may be, and the number of steps that γ is set from.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch.
        at_center: γ from the curvature at w*, for a run of the usual length.
    """
    lengths, posterior = request.lengths, request.posterior
    if request.price.costly:
        return plan_costly(request, batch, at_center.step_size * at_center.gamma)
    cheap = not request.is_sample and is_overhead_bound(posterior, batch.rows or posterior.num_data)
    factor = _LONGER if lengths.budget is None and cheap else 1
    free = request.sampler is None and lengths.num_warmup is None and lengths.thinning is None
    plan = Plan(num_gradients(lengths), factor, factor > 1 and free)
    if not (request.chooses_gamma and plan.overhead_bound):
        return plan
    times = _times_longer(posterior, request.spectrum, at_center.gamma, factor)
    return plan._replace(num_steps=plan.num_steps * times)


def with_rate(request: Request, batch: Batch, plan: Plan, rate: float | None) -> Plan:
    """The plan with the lengths that εγ after the pilots asks for: steps that had to shrink have to be more."""
    if plan.costly is None or rate is None:
        return plan
    return plan._replace(costly=plan_costly(request, batch, rate).costly)


def plan_costly(request: Request, batch: Batch, rate: float) -> Plan:
    """The lengths of a run whose steps and draws cost about the same, and that its budget pays for.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch.
        rate: εγ.

    Raises:
        ValueError: if the budget does not suffice for a draw of each chain.
    """
    asked, num_data = request.asked, request.posterior.num_data
    share = step_cost(batch.rows, num_data, doubled=batch.uses_control_variates)
    relaxed = min(math.ceil(2 / rate) if rate else _MOST_THINNING, _MOST_THINNING)
    work = None if asked.budget is None else asked.budget * OF_COSTLY_RUN / asked.num_chains
    eval_size, cost = asked.eval_size, draw_cost(asked.eval_size, num_data, is_sample=request.is_sample)

    def lengths(cost: float, eval_size: int | None) -> RunLengths:
        num_draws = asked.num_draws or _COSTLY_DRAWS
        thinning = asked.thinning or _costly_thinning(request, relaxed, num_draws, rate, share, cost, work)
        warmup = asked.num_warmup
        if warmup is None:
            warmup = max(_RELAXED * relaxed, _RELAXED * thinning)
        if work is not None:
            warmup = (
                min(warmup, int(_OF_WARMUP * work / (share + cost / thinning))) if asked.num_warmup is None else warmup
            )
            left = work - warmup * share - math.ceil(warmup / thinning) * cost  # losses are evaluated in it, too
            num_draws = min(num_draws, int(left / (thinning * share + cost)))
            if num_draws < 1:
                raise ValueError(
                    f"budget needs to suffice for a draw of each of {asked.num_chains} chains beside the spectrum, the "
                    f"pilots and {warmup} steps of warm-up, got {asked.budget} gradients; raise it."
                )
        return RunLengths(
            num_chains=asked.num_chains,
            num_warmup=warmup,
            num_draws=num_draws,
            thinning=thinning,
            batch_size=batch.rows,
            eval_size=eval_size,
            max_steps=None if work is None else warmup + num_draws * thinning,
        )

    some = max(num_data // _EVALUATED, min(_FEWEST_EVALUATED, num_data))
    least = min(asked.num_draws or _FEWEST_DRAWS, _FEWEST_DRAWS)
    few = work is not None and (1 - _OF_WARMUP) * work / (2 * cost) < least
    if few and eval_size is None and SLOPES * some < num_data:
        run = lengths(draw_cost(some, num_data), some)
    else:
        run = lengths(cost, eval_size)
    return Plan(run.num_steps, 1, overhead_bound=False, costly=run)


def _costly_thinning(
    request: Request, relaxed: int, num_draws: int, rate: float, share: float, cost: float, work: float | None
) -> int:
    """Steps between draws: at least as many as cost what a draw does, and more while these are enough draws.

    Args:
        request: what calibration started from.
        relaxed: steps in which a flat direction relaxes; draws that are closer repeat each other.
        num_draws: of a chain, at first.
        rate: εγ.
        share: gradients that a step costs.
        cost: gradients that a draw costs.
        work: gradients of a chain; None sets no limit but that of minutes.
    """
    if work is not None:
        most = int(((1 - _OF_WARMUP) * work / _FEWEST_DRAWS - cost) / share)
    else:  # T εγ is 2 · num_draws of draws that do not repeat each other, more than is needed
        minutes = _MINUTES / request.price.operations / request.asked.num_chains
        needed = math.ceil(_NEEDED / (rate * num_draws)) if rate else relaxed
        most = max(int((minutes / num_draws - cost) / share), needed)
    return min(max(math.ceil(cost / share), min(relaxed, most)), _MOST_THINNING)


def choose_num_draws(request: Request, plan: Plan) -> Choice[int]:
    """Draws of a chain, fewer than asked for where the budget is short."""
    num_draws, budget = plan.costly.num_draws if plan.costly else request.num_draws, request.lengths.budget
    if request.asked.num_draws == num_draws:
        return Choice(num_draws, "given", "draws of each chain; target_mcse adds more")
    if budget is None:
        fewer = "; fewer where λ̂ is accurate enough before" if plan.costly else ""
        return Choice(num_draws, "chosen", f"draws of each chain{fewer}; target_mcse adds more")
    return Choice(num_draws, "chosen", f"draws of each chain; no more fit in {budget:,} gradients", {"budget": budget})


def choose_thinning(request: Request, plan: Plan, rate: float | None) -> Choice[int]:
    """Steps between draws.

    Args:
        request: what calibration started from.
        plan: how long a run may be.
        rate: εγ, twice the rate at which a flat direction relaxes; None without pilots, where ε is not known.
    """
    if request.asked.thinning is not None:
        return Choice(request.asked.thinning, "given", "given")
    if plan.costly:
        return Choice(plan.costly.thinning, "chosen", "steps between draws: they cost about as much as the draw itself")
    thinning = request.lengths.thinning  # of the budget
    if thinning is None and rate is not None:
        relaxations = _RELAXATIONS if plan.overhead_bound else RELAXATIONS
        thinning = _relaxing_thinning(rate, request.num_draws, relaxations, plan.max_length_factor)
    reason = "steps between draws: an evaluation of the loss on all rows costs as much as some steps"
    return Choice(thinning or steps_per_draw(request.sampler), "chosen", reason)


def choose_warmup(request: Request, plan: Plan, thinning: int) -> Choice[int]:
    """Steps that are discarded: 2,000, or a tenth of the run if that is more."""
    if request.asked.num_warmup is not None:
        return Choice(request.asked.num_warmup, "given", "given")
    if plan.costly:
        return Choice(plan.costly.num_warmup, "chosen", "steps that are discarded")
    warmup = request.lengths.num_warmup  # of the budget
    if warmup is None:
        warmup = max(_WARMUP, request.num_draws * thinning // 10)
    return Choice(warmup, "chosen", "steps that are discarded")


def _relaxing_thinning(rate: float, num_draws: int, relaxations: float, max_length_factor: int) -> int:
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
