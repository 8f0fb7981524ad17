r"""Runs that are cut short: of models on which one of the usual length takes minutes, and γ of those with a budget.

Where the rank is one number, λ may be determined, and a run of the usual length is made whatever it costs. Elsewhere λ̂
belongs to its scale, and is told to 2 % by a run of a few thousand steps on minibatches, as that of a costly model.

How many steps a chain of a costly model has, and on how many rows, follows from its budget.

A chain that may look at W rows takes T = W/B steps on minibatches of B. Over them a flat direction relaxes R = T εγ/2
times, and minibatches heat the curved directions (batch_size.py) by

$$ \frac{\epsilon\, n\beta h_{max} \lambda_{quad}(\gamma)}{2 B}
   = \frac{R\, n\beta h_{max} \lambda_{quad}(\gamma)}{\gamma W} $$

whatever B is: little work asks for a strong localization, however it is cut into steps. γ is the weakest at which a
flat direction relaxes R = 10 times on the smallest minibatches that heat by at most 3 %, or on all the data. At a
weaker one λ̂ would tell of the chains' start: at the γ of 5,000 steps, those of a language model of 2.8 million
parameters had seven steps within a budget of 100 gradients.
"""

from dataclasses import replace
from typing import NamedTuple

from llc.bounds.rank import rank_bounds
from llc.calibration.batch_size import MAX_HEATING, fewest_rows, measure_noise, noise_rows, nominal_rows
from llc.calibration.price import Price
from llc.calibration.record import Request
from llc.calibration.run_length import OF_COSTLY_RUN, num_gradients, usual_cost
from llc.calibration.step_size import RELAXATIONS, Settings, settings_from_curvature
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.run_lengths import RequestedLengths

_LONG = 5000  # steps of a chain, for which γ of a costly model is not weaker than the run's length allows
_RELAXATIONS = 20.0  # T εγ = 2R of a short run, of which a fifth is warm-up
_OF_STEPS = 0.5  # of a chain's work; the other half evaluates its draws
_COSTLY = 2e12  # operations of a run above which it takes minutes (set by eye)
_ENOUGH = 1.5e13  # operations up to which draws are added without being asked for, some five minutes on two cores


class Length(NamedTuple):
    """Steps of a chain, and T εγ over them."""

    num_steps: int
    relaxations: float


def takes_minutes(posterior: LocalPosterior, price: Price, asked: RequestedLengths) -> bool:
    """Whether the spectrum or a run of the usual length takes minutes.

    Args:
        posterior: loss, data and w*.
        price: of a gradient.
        asked: the lengths that were asked for.
    """
    cost = usual_cost(asked, nominal_rows(posterior), posterior.num_data)
    return price.costly or cost * price.operations > _COSTLY


def enough_draws(num_draws: int, cost: float, price: Price) -> int:
    """Draws of a chain that a run of minutes has, unless an accuracy is asked for: the first ones at least.

    Args:
        num_draws: of a chain, at first.
        cost: of the run with these draws, in gradients over all the data.
        price: of a gradient.
    """
    return max(num_draws, int(num_draws * _ENOUGH / (cost * price.operations)))


def is_costly(request: Request) -> bool:
    """Whether the run is to be that of a costly model: its spectrum is, or the usual run is and has no rank to find.

    Args:
        request: what calibration started from.
    """
    if request.price.costly or request.sampler is not None or request.is_sample:
        return request.price.costly
    has_rank = rank_bounds(request.spectrum).rank_is_unique
    return not has_rank and takes_minutes(request.posterior, request.price, request.asked)


def with_length(request: Request) -> tuple[Request, Length]:
    """The request with the lengths of a costly model where it is one, and the length from which γ follows.

    Args:
        request: what calibration started from.
    """
    if is_costly(request):
        request = replace(request, lengths=request.asked, price=request.price._replace(costly=True))
        return request, costly_length(request)
    return request, Length(num_gradients(request.lengths), RELAXATIONS)


def costly_length(request: Request) -> Length:
    """Steps of a chain of a costly model from which γ follows: many, or what the budget pays for.

    Args:
        request: what calibration started from.
    """
    long, budget = Length(_LONG, RELAXATIONS), request.asked.budget
    if budget is None or not request.chooses_gamma:
        return long
    num_data = request.posterior.num_data
    gradients = _OF_STEPS * OF_COSTLY_RUN * budget / request.asked.num_chains
    weakest = _settings(request, long)
    posterior = request.posterior.with_scale(gamma=weakest.gamma)
    noise = measure_noise(posterior, request.spectrum, num_rows=noise_rows(request))
    length = long
    for rows in _candidates(request):
        length = Length(max(int(gradients * num_data / rows), 1), _RELAXATIONS)
        found = _settings(request, length)
        if found.gamma <= weakest.gamma:
            return long
        heating = noise.heating(posterior.scale.nbeta, found.gamma, found.step_size)
        if max(heating) <= MAX_HEATING * rows:
            break
    return length


def _settings(request: Request, length: Length) -> Settings:
    return settings_from_curvature(
        request.posterior, request.spectrum.largest, length.num_steps, relaxations=length.relaxations
    )


def _candidates(request: Request) -> list[int]:
    """Rows of a minibatch: those that were given, or powers of two up to half of the data, and all of them."""
    num_data, given = request.posterior.num_data, request.asked.batch_size
    if given is not None:
        return [given]
    if request.sampler is not None and request.sampler.needs_full_batch:
        return [num_data]
    rows, tried = fewest_rows(num_data), []
    while rows <= num_data // 2:
        tried.append(rows)
        rows *= 2
    return [*tried, num_data]
