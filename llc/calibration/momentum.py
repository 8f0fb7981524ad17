r"""Whether momentum pays: a trial of SGHMC after the pilots of SGLD, counted in effective draws per gradient.

With the step ε the energy of a direction of curvature a is correlated over 2/(εa) steps of SGLD, and over a few 1/√(εa)
steps with momentum near critical damping. The friction α is the one of least error on the quadratic at w*
(`energy_friction`), or 2√γ where the Hessian vanishes. λ̂ of SGLD is then correlated over

$$ \tau = \sum_i s_i^2 \frac{2}{\epsilon a_i} \Big/ \sum_i s_i^2, \qquad
   s_i = \frac{n\beta\, h_i}{n\beta\, h_i + \gamma}, \quad a_i = n\beta\, h_i + \gamma , $$

or longer, where flat directions carry energy too. A pilot of 1,000 steps is too short to see that of SGLD (it counted
100 effective draws where a run had 1 in 200 steps), but long enough for momentum, whose effective draws are counted.
Minibatch noise heats

$$ \coth(\alpha \sqrt\epsilon / 2) \approx 2 / (\alpha \sqrt\epsilon) $$

times as much as with SGLD, so that a minibatch needs as many times the rows. Momentum is tried where a step costs more
than its overhead, and where all the data, or a few times the rows, keep the heating below 3 %. It is taken where chains
with momentum keep to places where the step is small enough, and give more effective draws for the same gradients.

It is not tried on overhead-bound models. Their runs are so long that draws are nearly independent anyway, and narrow
arms of singular minima throw out chains with momentum: at the step of SGLD some died in nine of ten runs on
(w₁w₂²)²/2 and on a Gaussian of free weight.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import Batch, predict_heating, rows_for
from llc.calibration.pilots import FAR, LOCAL, run_pilot, shrink_factor
from llc.calibration.record import Pilot, PilotResult, Request, Trial
from llc.calibration.run_length import Plan, is_overhead_bound
from llc.calibration.step_size import Settings
from llc.sampling.momentum import SGHMC, energy_friction, flat_rate

_DRAWS = 64  # of a chain in a pilot, of which the second half counts
_TRIALS, _LOOKS = 4, 4  # pilots with momentum at most, and positions of a chain at which each looks at the curvature
_MOST_ROWS = 4  # times the rows that SGLD takes
_GAIN = 1.0  # in effective draws per gradient; what SGLD can have is an upper bound, and momentum is counted


class _Rows(NamedTuple):
    """Rows of a minibatch with momentum (None takes all the data), and its predicted heating relative to λ_quad."""

    rows: int | None
    heating: float


def exclude_momentum(request: Request, batch: Batch) -> Trial | None:
    """Why momentum is not tried at all; None where it may pay.

    Args:
        request: what calibration started from.
        batch: rows of a minibatch of SGLD.
    """
    posterior = request.posterior
    if request.price.costly:
        return Trial(None, "one gradient a step; momentum is not tried, since pilot runs are costly")
    if batch.uses_control_variates:
        return Trial(
            None, "with control variates; momentum is not tried, since the gradient noise at w* would heat it most"
        )
    if is_overhead_bound(posterior, batch.rows or posterior.num_data):
        why = "gradients are cheap here and it overshoots narrow valleys"
        return Trial(None, f"one gradient a step; momentum is not tried, since {why}")
    return None


def try_momentum(key: PRNGKeyArray, request: Request, batch: Batch, plan: Plan, found: PilotResult) -> Trial:
    """A trial of SGHMC at the γ and ε that pilots of SGLD found.

    Args:
        key: `jax.random.key(seed)`.
        request: what calibration started from.
        batch: rows of a minibatch of SGLD.
        plan: how long the run may be.
        found: by the pilots of SGLD.
    """
    friction = _friction(found, request)
    if found.step_size is None or not found.confirmed or friction is None:
        return Trial(None, "one gradient a step; momentum is not tried, since the pilot runs confirmed no step size")
    step_size = found.step_size
    rows = _rows(request, batch, found, step_size, friction)
    if rows is None:
        return Trial(None, "one gradient a step; minibatches would heat momentum by more than 3 %")
    limit = LOCAL if len(found.pilots) == 1 or found.pilots[0].gamma < found.pilots[-1].gamma else FAR
    pilots: list[Pilot] = []
    for trial_key in jax.random.split(key, _TRIALS):
        settings = Settings(step_size, found.posterior.scale.gamma, request.spectrum.largest)
        sampler = SGHMC(step_size, friction)
        pilot = run_pilot(
            trial_key,
            found.posterior,
            sampler,
            settings,
            request,
            rows.rows,
            plan,
            num_draws=_DRAWS,
            num_looks=_LOOKS,
        )
        pilots.append(pilot)
        if pilot.stiffness <= limit:
            return _judged(sampler, pilots, found, request, batch, rows)
        step_size /= shrink_factor(pilot.stiffness, limit)
    stiffest = max(pilot.stiffness for pilot in pilots)
    reason = f"one gradient a step; {_TRIALS} pilot runs with momentum reached regions too stiff for their step size"
    return Trial(None, reason, evidence={"stiffness": stiffest, "num_trials": _TRIALS})


def with_momentum(found: PilotResult, batch: Batch, trial: Trial) -> tuple[PilotResult, Batch]:
    """What pilots found and the minibatch, with the outcome of the trial."""
    found = found._replace(trial=trial)
    if not isinstance(trial.sampler, SGHMC):
        return found, batch
    step_size = float(np.asarray(trial.sampler.step_size))
    heating = float(trial.evidence.get("heating", 0.0))
    return found._replace(sampler=trial.sampler, step_size=step_size), batch._replace(rows=trial.rows, heating=heating)


def _friction(found: PilotResult, request: Request) -> float | None:
    """α of least error on the quadratic, or 2√γ; None where neither curvature nor γ gives a scale."""
    nbeta, gamma = found.posterior.scale
    try:
        return energy_friction(request.spectrum, nbeta=nbeta, gamma=gamma)
    except ValueError:
        return 2 * math.sqrt(gamma) if gamma > 0 else None


def _rows(request: Request, batch: Batch, found: PilotResult, step_size: float, friction: float) -> _Rows | None:
    """Rows that keep the heating below 3 %; None where they are too many, or others were given or are paid for."""
    num_data = request.posterior.num_data
    if batch.rows is None or batch.rows == num_data:
        return _Rows(batch.rows, 0.0)
    of_row = max(predict_heating(found.posterior, request.spectrum, step_size))
    heat = of_row / math.tanh(friction * math.sqrt(step_size) / 2)
    rows = rows_for(heat, batch.rows)
    if request.asked.batch_size is not None or request.asked.budget is not None:
        return _Rows(batch.rows, heat / batch.rows) if rows <= batch.rows else None
    if rows > num_data // 2 and not request.is_sample:
        return _Rows(None, 0.0) if num_data <= _MOST_ROWS * batch.rows else None
    return _Rows(rows, heat / rows) if rows <= min(_MOST_ROWS * batch.rows, num_data) else None


def _judged(
    sampler: SGHMC, pilots: list[Pilot], found: PilotResult, request: Request, batch: Batch, rows: _Rows
) -> Trial:
    """Momentum where its pilot has more effective draws for the same gradients."""
    num_data, gamma = request.posterior.num_data, found.posterior.scale.gamma
    cost = (rows.rows or num_data) / (batch.rows or num_data)
    gain = pilots[-1].ess_per_gradient / cost * _correlated(request.spectrum, found)
    step_size, friction = (float(np.asarray(x)) for x in (sampler.step_size, sampler.friction))
    evidence = {
        "gain": gain,
        "stiffness": pilots[-1].stiffness,
        "num_trials": len(pilots),
        "friction": friction,
        "heating": rows.heating,
    }
    told = f"{gain:.2g} times the effective draws of SGLD for the same number of gradients"
    if not gain >= _GAIN:
        return Trial(None, f"one gradient a step; momentum had only {told}", evidence=evidence)
    return Trial(sampler, told, flat_rate(step_size, friction, gamma), rows.rows, evidence)


def _correlated(spectrum: Spectrum, found: PilotResult) -> float:
    """Steps over which λ̂ of SGLD is correlated, at least."""
    nbeta, gamma = found.posterior.scale
    if found.step_size is None:
        raise ValueError("momentum needs the step size that pilots found, got None.")
    step_size, tiny = found.step_size, np.finfo(np.float64).tiny

    def share(h: np.ndarray) -> np.ndarray:
        curved = np.maximum(h, 0.0) * (h > spectrum.threshold) * nbeta
        return (curved / np.maximum(curved + gamma, tiny)) ** 2

    def time(h: np.ndarray) -> np.ndarray:
        return share(h) * 2 / np.maximum(step_size * (nbeta * np.maximum(h, 0.0) + gamma), tiny)

    carried = spectrum.sum(share)
    return spectrum.sum(time) / carried if carried > 0 else 2 / max(step_size * gamma, tiny)
