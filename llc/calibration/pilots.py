r"""Pilot runs: γ and a step size that hold where the chains go, not only at w*.

Far from w* the curvature may be many times that of w* (68 times in a three-layer linear net at n = 500 and γ = 1, where
SGLD was 34 % too hot). Pilots look at

$$ \epsilon\, (n\beta\, h_{max}(w) + \gamma) $$

where they pass. Where it is more than twice what was aimed at, the localization is too weak to be local: γ grows if
it is
ours to choose, and the step shrinks if not.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.step_size import COURANT, settings_from_curvature
from llc.geometry.curvature.lanczos import NotFiniteError
from llc.geometry.curvature.methods import top_eigenvalue
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.chains import Chains
from llc.sampling.sgmcmc import SGLD

_PILOTS, _STEPS, _MATVECS = 16, 1000, 12
_LOOKS = 32  # positions of a chain at which the curvature is looked at where that is cheap: narrow arms are rare
_RELAXATIONS = 8  # T εγ of a pilot, which has to reach the places that the chains will
_LOCAL = 2.0  # limit of ε (nβ h + γ) where the chains go, in units of COURANT: a quarter of the stable range
_FAR = 0.5  # the same where it varies from place to place and chains have seen only some of them


class Pilot(NamedTuple):
    """A short run: its settings, and the largest ε (nβ h_max + γ) where it was, in units of what was aimed at."""

    gamma: float
    step_size: float
    stiffness: float


class PilotResult(NamedTuple):
    """What pilots settled: the posterior with its γ, SGLD with its step size, and whether the last one confirmed them.

    Where none did, γ or ε has moved once more after the last pilot.
    """

    posterior: LocalPosterior
    sampler: SGLD
    pilots: tuple[Pilot, ...]
    confirmed: bool


def run_pilots(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    spectrum: Spectrum,
    *,
    num_steps: int,
    max_length_factor: int,
    num_chains: int,
    batch_size: int | None,
    eval_size: int | None,
    control_variates: bool,
) -> PilotResult:
    """γ and the step size that hold where pilots pass.

    Args:
        key: `jax.random.key(seed)`.
        posterior: its γ is kept if it has one.
        spectrum: of the Hessian at w*.
        num_steps: of a chain of the run that follows.
        max_length_factor: times that a pilot may be longer than 1,000 steps.
        num_chains: of a pilot, and of the run that follows, so that both are the same program.
        batch_size: the same.
        eval_size: the same.
        control_variates: the same.
    """
    free, limit, confirmed = posterior.gamma is None, _LOCAL, False
    settings = settings_from_curvature(posterior, spectrum.largest, num_steps)
    looks = _LOOKS if max_length_factor > 1 else 1
    pilots = []
    for pilot_key in jax.random.split(key, _PILOTS):
        posterior = posterior.with_scale(gamma=settings.gamma)
        relaxed = math.ceil(_RELAXATIONS / max(settings.step_size * settings.gamma, 1e-12))
        chains = Chains(
            pilot_key,
            posterior,
            SGLD(step_size=settings.step_size, control_variates=control_variates),
            num_chains=num_chains,
            num_warmup=0,
            num_draws=looks,
            thinning=min(max(_STEPS, relaxed), max_length_factor * _STEPS) // looks,
            batch_size=batch_size,
            eval_size=eval_size,
            spectrum=spectrum,  # needless here, but so the run that follows is the same program
        )
        ratio = 0.0
        for _ in range(looks):
            chains.draw(1, progress=False)
            ratio = max(ratio, _stiffness_at(chains.positions, posterior, settings))
        pilots.append(Pilot(settings.gamma, settings.step_size, ratio))
        confirmed = ratio <= limit
        if confirmed:
            break
        if free:
            settings = settings._replace(gamma=2 * settings.gamma)
            posterior = posterior.with_scale(gamma=settings.gamma)
            settings = settings_from_curvature(posterior, spectrum.largest, num_steps)
        else:
            limit = _FAR  # a step too large keeps chains away from the stiff places, so a smaller one has to confirm
            settings = settings._replace(step_size=settings.step_size / min(max(ratio / limit, 2.0), 16.0))
    sampler = SGLD(step_size=settings.step_size, control_variates=control_variates)
    return PilotResult(posterior, sampler, tuple(pilots), confirmed)


def _stiffness_at(positions, posterior, settings) -> float:
    """Largest ε (nβ h_max + γ) at the positions, in units of what was aimed at."""
    stiffest = 0.0
    for position in positions:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(position)):
            return np.inf
        there = eqx.tree_at(lambda p: p.center, posterior, posterior.params_at(position))
        try:
            largest = top_eigenvalue(there, num_matvecs=_MATVECS)
        except NotFiniteError:  # it overflows, far out
            return np.inf
        stiffest = max(stiffest, settings.step_size * (float(posterior.nbeta) * largest + settings.gamma))
    return stiffest / COURANT
