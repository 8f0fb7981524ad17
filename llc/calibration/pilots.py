r"""Pilot runs: γ and a step size that hold where the chains go, not only at w*.

Far from w* the curvature may be many times that of w* (68 times in a three-layer linear net at n = 500 and γ = 1, where
SGLD was 34 % too hot). Pilots look at

$$ \epsilon\, (n\beta\, h_{max}(w) + \gamma) $$

where they pass. Where it is more than twice what was aimed at, the step shrinks. Where γ follows from the length of the
run (no localization was found from the loss, see localization.py), γ grows instead, as the localization is too weak to
be local then.
"""

import math
from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from llc.analysis.series import effective_sample_size
from llc.calibration.batch_size import Batch
from llc.calibration.price import Price
from llc.calibration.record import Pilot, PilotResult, Request
from llc.calibration.run_length import Plan
from llc.calibration.step_energies import may_have_step_energies, row_variance
from llc.calibration.step_size import COURANT, Settings, settings_from_curvature
from llc.geometry.curvature.lanczos import NotFiniteError
from llc.geometry.curvature.methods import top_eigenvalue
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.chains import Chains
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RunLengths
from llc.sampling.sgmcmc import SGLD

_PILOTS, _STEPS, _MATVECS = 16, 1000, 12
_LOOKS = 32  # positions of a chain at which the curvature is looked at where that is cheap: narrow arms are rare
_RELAXATIONS = 8  # T εγ of a pilot, which has to reach the places that the chains will
LOCAL = 2.0  # limit of ε (nβ h + γ) where the chains go, in units of COURANT: a quarter of the stable range
_COUNTED = 32  # draws of a chain from which on they are counted
_FEW_PILOTS, _FEW_POSITIONS = 2, 2  # of a costly model
_OF_WARMUP = 2  # a pilot of a costly model with a budget is at most half as long as the warm-up
_LOOK_OPERATIONS, _FEWEST_ROWS, _MOST_ROWS = 2e10, 16, 1024  # operations of one gradient in a look there, and its rows
_SOME = 16  # part of the rows that a look takes at most: it is some seventy gradients
FAR = 0.5  # the same where it varies from place to place and chains have seen only some of them


def run_pilots(key: PRNGKeyArray, request: Request, batch: Batch, plan: Plan) -> PilotResult:
    """γ and the step size that hold where pilots pass.

    Pilots run SGLD, also for a sampler that adapts the step of a Langevin proposal: its steps are about as long.

    Args:
        key: `jax.random.key(seed)`.
        request: what calibration started from; a γ of its posterior is kept.
        batch: rows of a minibatch, the same as of the run that follows, so that both are the same program.
        plan: how long the run may be.
    """
    posterior, limit, confirmed = request.local_posterior, LOCAL, False
    raises_gamma = request.chooses_gamma and request.localization is None
    num_pilots = _FEW_PILOTS if request.price.costly else _PILOTS
    settings_of = partial(
        settings_from_curvature,
        largest=request.spectrum.largest,
        num_steps=plan.num_steps,
        relaxations=plan.relaxations,
    )
    settings = settings_of(posterior)
    pilots: list[Pilot] = []
    for pilot_key in jax.random.split(key, num_pilots):
        posterior = posterior.with_scale(gamma=settings.gamma)
        sampler = SGLD(step_size=settings.step_size, control_variates=batch.uses_control_variates)
        of_steps = may_have_step_energies(request, batch)
        pilot = run_pilot(pilot_key, posterior, sampler, settings, request, batch.rows, plan, step_energies=of_steps)
        pilots.append(pilot)
        stiffness = pilot.stiffness
        confirmed = stiffness <= limit
        if confirmed:
            break
        if raises_gamma:
            posterior = posterior.with_scale(gamma=2 * settings.gamma)
            settings = settings_of(posterior)
        else:
            if not request.price.costly:
                limit = FAR  # a step too large keeps chains away from stiff places, so a smaller one has to confirm
            settings = settings._replace(step_size=settings.step_size / shrink_factor(stiffness, limit))
    sampler = SGLD(step_size=settings.step_size, control_variates=batch.uses_control_variates)
    sampler = sampler if request.sampler is None else request.sampler
    return PilotResult(posterior, sampler, settings.step_size, tuple(pilots), confirmed)


def shrink_factor(stiffness: float, limit: float) -> float:
    """By what ε is divided where a pilot was `stiffness` stiff and `limit` is allowed: 2 to 16."""
    return min(max(stiffness / limit, 2.0), 16.0)


def run_pilot(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    sampler: Sampler,
    settings: Settings,
    request: Request,
    rows: int | None,
    plan: Plan,
    *,
    num_draws: int = 1,
    num_looks: int = 1,
    step_energies: bool = False,
) -> Pilot:
    """One pilot, with the largest stiffness that its chains come by.

    Args:
        key: `jax.random.key(seed)`.
        posterior: with its γ.
        sampler: with the step size of `settings`.
        settings: ε and γ, and h_max at w*.
        request: what calibration started from.
        rows: of a minibatch; None takes all the data.
        plan: how long the run may be.
        num_draws: of a chain, at least.
        num_looks: positions of a chain at which the curvature is looked at, at least.
        step_energies: whether the run that follows may have them, so that both are the same program.
    """
    looks = _LOOKS if plan.max_length_factor > 1 else num_looks
    num_draws = max(num_draws, looks)
    relaxed = math.ceil(_RELAXATIONS / max(settings.step_size * settings.gamma, 1e-12))
    longest, eval_size = plan.max_length_factor * _STEPS, request.lengths.eval_size
    steps = min(max(_STEPS, relaxed), longest) // num_draws
    if plan.costly is not None:
        most = plan.costly.num_warmup
        if request.asked.budget is not None:
            most //= _OF_WARMUP
        steps, eval_size = max(min(relaxed, most), 1), plan.costly.eval_size
    lengths = RunLengths(
        num_chains=request.lengths.num_chains,
        num_warmup=0,
        num_draws=num_draws,
        thinning=steps,
        batch_size=rows,
        eval_size=eval_size,
        step_energies=step_energies,
    )
    # The spectrum is needless here, but with it the run that follows is the same program.
    chains = Chains(key, posterior, sampler, lengths, spectrum=request.spectrum)
    stiffness, deltas = 0.0, []
    for i in range(num_draws):
        chains.draw(1, progress=False)
        deltas.append(chains.last_deltas)
        if (i + 1) % (num_draws // looks) == 0:
            some = None if plan.costly is None else request.price
            stiffness = max(stiffness, stiffness_at(chains.positions, posterior, settings, some))
    energies = tuple(float(x) for x in posterior.scale.nbeta * deltas[-1])
    second_half = np.stack(deltas[num_draws // 2 :], axis=1)
    ess = effective_sample_size(second_half) / (second_half.size * steps) if num_draws >= _COUNTED else math.nan
    of_rows = row_variance(chains, posterior.scale.nbeta)
    return Pilot(settings.gamma, settings.step_size, stiffness, energies, ess, of_rows)


def stiffness_at(
    positions: Sequence[PyTree], posterior: LocalPosterior, settings: Settings, price: Price | None = None
) -> float:
    """Largest ε (nβ h_max + γ) at the positions, in units of what was aimed at; inf where there is no curvature.

    With the price of a costly model, h_max comes from some rows, relative to that of w* on the same rows.
    """
    stiffest, unit = 0.0, 1.0
    if price is not None:
        posterior, positions = _few_rows(posterior, price), positions[:_FEW_POSITIONS]
        unit = settings.largest / top_eigenvalue(posterior, num_matvecs=_MATVECS)
    for position in positions:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(position)):
            return math.inf
        there = eqx.tree_at(lambda p: p.center, posterior, posterior.params_at(position))
        try:
            largest = top_eigenvalue(there, num_matvecs=_MATVECS)
        except NotFiniteError:  # it overflows, far out
            return math.inf
        stiffest = max(stiffest, settings.step_size * (float(posterior.nbeta) * unit * largest + settings.gamma))
    return stiffest / COURANT


def _few_rows(posterior: LocalPosterior, price: Price) -> LocalPosterior:
    """The posterior on as many rows as a look at the curvature may cost; nβ stays."""
    num_data = posterior.num_data
    affordable = min(_LOOK_OPERATIONS * num_data / price.operations, num_data / _SOME)
    size = int(min(num_data, _MOST_ROWS, max(affordable, _FEWEST_ROWS)))
    rows = np.sort(np.random.default_rng(0).permutation(num_data)[:size])  # data may be in order
    return eqx.tree_at(lambda p: p.data, posterior, jax.tree.map(lambda x: x[rows], posterior.data))
