"""The whole way from a loss and a minimum to a checked estimate: curvature, settings, pilots, draws, bounds, report."""

import math

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

from llc.analysis.estimators import constant
from llc.analysis.report import Report, assemble
from llc.geometry.bounds import Bounds, at_scale, rank_bounds
from llc.geometry.spectrum import Spectrum, top_eigenvalue
from llc.geometry.spectrum import spectrum as hessian_spectrum
from llc.posterior import LocalPosterior
from llc.sampling.calibration import COURANT, RELAXATIONS, settings_from_curvature
from llc.sampling.chains import run, sample
from llc.sampling.kernel import Sampler
from llc.sampling.sgmcmc import SGLD

_FULL_BATCH, _MINIBATCH = 4096, 512
_WARMUP, _THINNING = 2000, 10
_PILOTS, _PILOT_STEPS, _PILOT_MATVECS = 8, 1000, 12
_PILOT_RELAXATIONS = 8  # T εγ of a pilot, which has to reach the places that the chains will
_LOCAL = 2.0  # limit of ε (nβ h + γ) where the chains go, in units of COURANT: a quarter of the stable range
_FAR = 0.5  # the same where it varies from place to place and chains have seen only some of them
_CHEAP = 5e4  # parameters × rows of a step below which it costs little more than its overhead
_LONGER = 100  # times that a run may be longer where a step is cheap


def estimate(
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
    progress: bool | None = None,
) -> Report:
    """Report on λ at w*, from one call: spectrum, settings, SGLD draws, bounds, checks and a verdict.

    The step size is ε = 0.5 / (nβ h_max + γ). Where the posterior has no γ it is set for the length of the run, and
    raised until pilot chains stay where the curvature is that of w*; λ_corr undoes its effect on the curved directions.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum.
        sampler: None takes SGLD with the step size above; another one runs as it is given (`llc.NUTS()` on a model of
            up to a few thousand parameters is the reference).
        num_chains: independent chains.
        num_warmup: steps discarded. None takes 2,000, or a tenth of the run if that is more.
        num_draws: recorded draws a chain.
        thinning: steps between draws; a draw evaluates the loss on `eval_size` rows. None takes 10 steps, more
            (up to 1,000) where a given γ is so weak that the chains relax slowly and the model is small, and 1 of
            HMC and NUTS, whose steps take many gradients.
        batch_size: rows of a minibatch. None takes all the data up to 4,096 rows and 512 beyond (all of it for a
            sampler with an accept step); minibatches heat the chains, which the `virial` check sees.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is out of range or the curvature at w* gives no scale.

    References:
        Lau et al., The local learning coefficient, arXiv 2308.12108.
    """
    accepts = sampler is not None and sampler.full_batch
    if batch_size is None and not accepts and posterior.num_data > _FULL_BATCH:
        batch_size = _MINIBATCH
    spectrum = hessian_spectrum(posterior)
    pilot_key, key = jax.random.split(key)
    num_steps = (num_warmup or _WARMUP) + num_draws * (thinning or _THINNING)  # of gradients, about
    longest = _LONGER if posterior.num_params * (batch_size or posterior.num_data) < _CHEAP else 1
    if sampler is None:
        pilot = num_steps, longest, num_chains, batch_size, eval_size
        posterior, sampler = _settle(pilot_key, posterior, spectrum.largest, *pilot)
        if thinning is None:
            rate = float(sampler.step_size) * float(posterior.gamma)  # pyright: ignore[reportArgumentType] - set there
            relaxed = math.ceil(RELAXATIONS / (rate * num_draws))
            thinning = min(max(_THINNING, relaxed), longest * _THINNING)
    else:
        posterior = posterior.with_scale(gamma=settings_from_curvature(posterior, spectrum.largest, num_steps).gamma)
    thinning = thinning or (1 if sampler.trajectories else _THINNING)
    if num_warmup is None:
        num_warmup = max(_WARMUP, num_draws * thinning // 10)
    draws = sample(
        key,
        posterior,
        sampler,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        spectrum=spectrum,
        progress=progress,
    )
    return report(draws, spectrum=spectrum)


def _settle(key, posterior, largest, num_steps, longest, num_chains, batch_size, eval_size):
    """γ and a step size that hold where the chains go, not only at w*.

    Far from w* the curvature may be many times that of w* (up to 68 times in a three-layer linear net at n = 500 and
    γ = 1, where SGLD was 34 % too hot). A pilot run shows it: where its ends are more than twice as stiff as w*,
    the tether is too weak to be local, so γ grows if it is ours to choose, and the step shrinks if not.
    """
    free, limit = posterior.gamma is None, _LOCAL
    settings = settings_from_curvature(posterior, largest, num_steps)
    for pilot_key in jax.random.split(key, _PILOTS):
        posterior = posterior.with_scale(gamma=settings.gamma)
        sampler = SGLD(step_size=settings.step_size)
        relaxed = math.ceil(_PILOT_RELAXATIONS / (settings.step_size * settings.gamma))
        _, ends = run(
            pilot_key,
            posterior,
            sampler,
            num_chains=num_chains,
            num_warmup=0,
            num_draws=1,
            thinning=min(max(_PILOT_STEPS, relaxed), longest * _PILOT_STEPS),
            batch_size=batch_size,
            eval_size=eval_size,
            progress=False,
        )
        ratio = _stiffness_at(ends, posterior, settings)
        if ratio <= limit:
            break
        if free:
            settings = settings._replace(gamma=2 * settings.gamma)
            posterior = posterior.with_scale(gamma=settings.gamma)
            settings = settings_from_curvature(posterior, largest, num_steps)
        else:
            limit = _FAR  # a step too large keeps chains away from the stiff places, so a smaller one has to confirm
            settings = settings._replace(step_size=settings.step_size / min(max(ratio / limit, 2.0), 16.0))
    return posterior, SGLD(step_size=settings.step_size)


def _stiffness_at(positions, posterior, settings) -> float:
    """Largest ε (nβ h_max + γ) at the positions, in units of what was aimed at."""
    stiffest = 0.0
    for position in positions:
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(position)):
            return np.inf
        there = eqx.tree_at(lambda p: p.center, posterior, posterior.params_at(position))
        largest = top_eigenvalue(there, num_matvecs=_PILOT_MATVECS)
        stiffest = max(stiffest, settings.step_size * (float(posterior.nbeta) * largest + settings.gamma))
    return stiffest / COURANT


def report(draws: xr.DataTree, *, bounds: Bounds | None = None, spectrum: Spectrum | None = None) -> Report:
    """Report on draws: estimates, checks and the verdict against bounds.

    Args:
        draws: of `llc.sample`, or `llc.load`ed from a file. A `curvature` group serves where no spectrum is given; a
            spectrum that is given becomes that group, so that the file holds all of the report.
        bounds: on the asymptotic λ; None makes them from the spectrum at the draws' nβ and γ. Bounds that were made at
            another scale are made anew where there is a spectrum, so that λ_quad belongs to the draws.
        spectrum: of the Hessian at w*.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes.

    Example:
        See the quickstart in the README.
    """
    if spectrum is None and "curvature" in draws:
        spectrum = Spectrum.from_dataset(draws["curvature"])
    elif spectrum is not None:
        draws["curvature"] = xr.DataTree(spectrum.to_dataset())
    if spectrum is not None and "constant_data" in draws:
        nbeta, gamma = constant(draws, "nbeta"), constant(draws, "gamma")
        if bounds is None:
            bounds = rank_bounds(spectrum, nbeta=nbeta, gamma=gamma)
        elif bounds.noise_scale != gamma / nbeta:
            bounds = at_scale(bounds, spectrum, nbeta=nbeta, gamma=gamma)
    return assemble(draws, bounds=bounds, spectrum=spectrum)
