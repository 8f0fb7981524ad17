r"""Whether the energies of steps' own minibatches are worth having: by the noise of their rows, which a pilot shows.

Between two draws T steps have an energy each. The noise of their rows adds to the variance of the mean

$$ \frac{(n\beta)^2\, \mathrm{Var}_i\,(\ell_i(w) - \ell_i(w^*))}{B\, T} , $$

with B rows a step, where a draw has about the variance λ of a Gamma energy. Below half of that, the steps say more than
the draw does: as much as all of it where the energy forgets in less than T steps, nothing where it remembers for many
times T. They cost 1 % to 3 % of a step where the loss comes per example, and minibatches that are drawn anew in each
step, which heat as `plan_batch` predicts; those within an epoch heat less where it is short.
"""

import math
from dataclasses import replace

import numpy as np

from llc.calibration.batch_size import Batch
from llc.calibration.costs import draw_cost, step_cost
from llc.calibration.record import Choice, PilotResult, Request
from llc.sampling.chains import Chains

_NOISE = 0.5  # of the variance of a draw
_COST_OF_DRAWS = 0.5  # of the steps between them
_FEWEST_DRAWS = 100  # of a chain: four have then the 400 that R-hat and ESS are reliable from (Vehtari et al. 2021, §4)


def may_have_step_energies(request: Request, batch: Batch) -> bool:
    """Whether the run may be given the energies of steps: that of a costly model, with one loss an example.

    The rows of a stream come in passes, within which their losses are no unbiased energies.
    """
    if request.asked.step_energies is not None:
        return request.asked.step_energies
    fits = request.sampler is None and request.posterior.per_example and not request.is_sample
    return fits and request.price.costly and batch.rows is not None


def choose_step_energies(request: Request, batch: Batch, found: PilotResult, thinning: int) -> Choice[bool]:
    """Whether every step gives an energy.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch.
        found: by the pilots.
        thinning: steps between draws.
    """
    if request.asked.step_energies is not None:
        return Choice(request.asked.step_energies, "given", "given")
    if not may_have_step_energies(request, batch) or batch.rows is None or not found.pilots:
        return Choice(value=False, origin="chosen", reason="energies come from the draws only")
    pilot = found.pilots[-1]
    of_draw = max(float(np.mean(pilot.energies)), 0.5)
    of_rows = pilot.row_variance / (batch.rows * thinning)
    evidence = {"of_rows": of_rows, "of_draw": of_draw}
    told = f"the minibatch noise of {thinning} steps is {of_rows / of_draw:.2g} times the variance of a draw's energy"
    pays = math.isfinite(of_rows) and of_rows <= _NOISE * of_draw
    return Choice(pays, "chosen", told if pays else f"energies come from the draws only; {told}", evidence)


def space_draws(
    request: Request, batch: Batch, num_draws: Choice[int], thinning: Choice[int]
) -> tuple[Choice[int], Choice[int]]:
    """Draws of a chain and steps between them, of a run whose steps have energies: as many steps with fewer draws.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch.
        num_draws: of a chain, where draws alone have energies.
        thinning: steps between those.
    """
    if "given" in {num_draws.origin, thinning.origin}:
        return num_draws, thinning
    num_data = request.posterior.num_data
    of_step = step_cost(batch.rows, num_data, doubled=batch.uses_control_variates)
    of_draw = draw_cost(request.asked.eval_size, num_data, is_sample=request.is_sample)
    steps = num_draws.value * thinning.value
    wanted = steps * _COST_OF_DRAWS * of_step / of_draw
    fewer = min(max(math.ceil(wanted), _FEWEST_DRAWS), num_draws.value)
    if fewer == num_draws.value:
        return num_draws, thinning
    return replace(num_draws, value=fewer), Choice(
        steps // fewer, "chosen", "steps between draws, which cost half as much as the steps; every step has an energy"
    )


def row_variance(chains: Chains, nbeta: float) -> float:
    """(nβ)² times the variance over rows of ℓ(w) − ℓ(w*) at the one draw that chains have; nan of a scalar loss."""
    values = []
    for sums in chains.moments:
        if sums.units is None or chains.done != 1:
            return math.nan
        first, second = (np.asarray(x, np.float64) for x in (sums.units.first, sums.units.second))
        values.append(np.mean(second, axis=-1) - np.mean(first, axis=-1) ** 2)
    return float(nbeta**2 * np.mean(np.concatenate([np.atleast_1d(x) for x in values])))
