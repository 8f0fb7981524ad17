r"""Settings of a run from the curvature at w* and from short pilot runs, each with its reason.

The step size and γ come from h_max (see sampling/calibration.py), corrected by pilot runs (pilots.py).

A minibatch of B rows heats the curved directions, at ε (nβ h_max + γ) = c, by about

$$ \frac{c}{4} \cdot \frac{2 \lambda_{quad}}{B} \qquad\text{and}\qquad
   \frac{\epsilon\, (n\beta)^2\, \mathrm{tr}(\Sigma A)}{4 B\, \lambda_{quad}} : $$

by the curvature that differs between examples, and by their gradients at w*, of covariance Σ, with
A = ½ nβH (nβH + γ)⁻¹. B keeps each below 3 %. Control variates take the second away, for twice the gradients: they are
used where it asks for more than twice the rows.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from llc.bounds.rank import rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.pilots import Pilot, run_pilots
from llc.calibration.step_size import RELAXATIONS, settings_from_curvature
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.control_variates import make_control_variates
from llc.sampling.kernel import Sampler
from llc.sampling.mcmc import MALA
from llc.sampling.preconditioner import Identity
from llc.sampling.sgmcmc import SGLD
from llc.sampling.validation import check_key, check_lengths

_FULL_BATCH, _MINIBATCH, _LARGEST_BATCH = 4096, 512, 8192
_HEATING = 0.03  # of λ_quad; the zero-variance estimate takes the first order of it away, `virial_curved` sees it
_NOISE_ROWS = 512  # examples from which the covariance of gradients is taken
_WARMUP, _THINNING = 2000, 10
_CHEAP = 5e4  # parameters × rows of a step below which it costs little more than its overhead
_LONGER = 100  # times that a run may be longer where a step costs little more than its overhead
_RELAXATIONS = 160  # T εγ there: with 80 the standard errors of slow chains are too small (validation/constants.py)
_SEEN = 0.75  # of r/2 that λ_quad is to have on such models; a report wants half (check `localization`)
_LONGER_LOCALIZATION = 32  # times that a run may be longer for that
_COOLER = 4  # factor by which a step shrinks that was too large for places no pilot had seen


@dataclass(frozen=True)
class Calibration:
    """Settings of a run, with the reason for each.

    Attributes:
        posterior: with γ.
        sampler: with its step size.
        lengths: `num_chains`, `num_warmup`, `num_draws`, `thinning`, `batch_size` and `eval_size` of `llc.sample`.
        reasons: why each setting is what it is.
        pilots: the short runs that γ and ε come from.
        spectrum: of the Hessian at w*.
        overhead_bound: whether a step costs little more than its overhead, so that runs may be many times longer, and
            no length of them was given.
    """

    posterior: LocalPosterior
    sampler: Sampler
    lengths: dict[str, Any]
    reasons: dict[str, str]
    pilots: tuple[Pilot, ...]
    spectrum: Spectrum
    overhead_bound: bool = False

    def with_smaller_step(self) -> "Calibration":
        """A quarter of the step size and four times the steps between draws, for chains that were too hot.

        Raises:
            ValueError: if the model is not overhead-bound, or a length was given.
        """
        if not self.overhead_bound:
            raise ValueError(
                "with_smaller_step needs a calibration that is overhead_bound, got one that is not, or given lengths."
            )
        step_size = float(np.asarray(self.sampler.step_size)) / _COOLER  # pyright: ignore[reportAttributeAccessIssue]
        lengths = self.lengths | {name: _COOLER * self.lengths[name] for name in ("num_warmup", "thinning")}
        why = f"a step of {_COOLER * step_size:.3g} was too large for places that the pilots had not seen"
        reasons = self.reasons | {"step_size": why}
        sampler = eqx.tree_at(lambda s: s.step_size, self.sampler, np.asarray(step_size))
        return replace(self, sampler=sampler, lengths=lengths, reasons=reasons)

    @property
    def num_steps(self) -> int:
        """Steps of a chain, the warm-up included."""
        return self.lengths["num_warmup"] + self.lengths["num_draws"] * self.lengths["thinning"]

    def __str__(self) -> str:
        step_size = getattr(self.sampler, "step_size", None)
        values = {
            "sampler": type(self.sampler).__name__,
            "step_size": "adapted" if step_size is None else f"{float(step_size):.4g}",
            "gamma": f"{float(self.posterior.gamma):.4g}",  # pyright: ignore[reportArgumentType] - set by calibrate
            "nbeta": f"{float(self.posterior.nbeta):.4g}",
            **{name: "all" if value is None else f"{value:,}" for name, value in self.lengths.items()},
        }
        return "\n".join(f"{name:<11} {value:>9}  {self.reasons[name]}" for name, value in values.items())


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
    chosen = sampler is None  # by us
    given = {"num_warmup": num_warmup, "thinning": thinning, "batch_size": batch_size}
    lengths = {"num_chains": num_chains, "num_draws": num_draws, "budget": budget} | given
    rows = {"batch_size": lengths.pop("batch_size"), "eval_size": eval_size}
    check_lengths(posterior, {name: value for name, value in lengths.items() if value is not None}, rows)
    least = (num_warmup or 0) + (thinning or 1)
    if budget is not None and budget < least:
        raise ValueError(
            f"budget needs at least num_warmup + thinning = {least} steps for a single draw, got {budget}; "
            "raise it, or leave them out."
        )
    reasons = {"nbeta": "of the posterior", "num_chains": "independent, so that they can disagree"}
    spectrum = hessian_spectrum(posterior) if spectrum is None else spectrum
    reasons["eval_size"] = "rows of L(w) − L(w*)"
    per_draw = 1 if sampler is not None and sampler.takes_trajectories else _THINNING  # a trajectory is many gradients
    if budget is not None:
        num_warmup = min(budget // 10, _WARMUP, budget - (thinning or 1)) if num_warmup is None else num_warmup
        if thinning is None and per_draw > 1:
            thinning = min(per_draw, max(1, (budget - num_warmup) // num_draws))
        num_draws = min(num_draws, (budget - num_warmup) // (thinning or per_draw))
    discarded = _WARMUP if num_warmup is None else num_warmup
    num_steps = discarded + num_draws * (thinning or _THINNING)  # of gradients, about
    scale = settings_from_curvature(posterior, spectrum.largest, num_steps)
    accepts, batch = sampler is not None and sampler.needs_full_batch, _Batch(batch_size, 0.0)
    if batch_size is None and not accepts and posterior.num_data > _FULL_BATCH:
        scaled = posterior.with_scale(gamma=scale.gamma)
        step_size = scale.step_size
        if isinstance(sampler, SGLD) and isinstance(sampler.preconditioner, Identity):
            step_size = float(np.asarray(sampler.step_size))
        batch = _choose_batch(scaled, spectrum, step_size, free=sampler is None)
        batch_size = batch.rows
    max_length_factor = 1
    if budget is None and posterior.num_params * (batch_size or posterior.num_data) < _CHEAP:
        max_length_factor = _LONGER
    free, pilots = posterior.gamma is None, ()
    overhead_bound = max_length_factor > 1 and sampler is None and num_warmup is None and thinning is None
    if sampler is None or (isinstance(sampler, MALA) and sampler.step_size is None):  # MALA proposes a step of SGLD
        if free and overhead_bound:
            num_steps *= _times_longer(posterior, spectrum, scale.gamma, max_length_factor)
            scale = settings_from_curvature(posterior, spectrum.largest, num_steps)
        lengths = {"num_steps": num_steps, "max_length_factor": max_length_factor, "num_chains": num_chains}
        batches = {"batch_size": batch.rows, "eval_size": eval_size, "control_variates": batch.without > 0}
        posterior, settled, pilots, confirmed = run_pilots(key, posterior, spectrum, **lengths, **batches)
        gamma = float(posterior.gamma)  # pyright: ignore[reportArgumentType] - set there
        step_size = float(np.asarray(settled.step_size))
        rate = step_size * gamma
        if thinning is None:
            thinning = _relaxing_thinning(
                rate, num_draws, _RELAXATIONS if overhead_bound else RELAXATIONS, max_length_factor
            )
        stiffness = rate + step_size * float(posterior.nbeta) * spectrum.largest
        reasons["sampler"] = "costs one gradient a step; `llc.NUTS()` is the reference on a small model"
        if batch.without:
            reasons["sampler"] = f"with control variates; without, noise at w* takes batches of {batch.without:,} rows"
        reasons["step_size"] = f"ε (nβ h_max + γ) = {stiffness:.2g}, stable below 4; h_max = {spectrum.largest:.3g}"
        if not confirmed:
            reasons["step_size"] += f"; none of {len(pilots)} pilots kept to places where that holds"
        relaxations = rate * (num_steps if thinning is None else num_draws * thinning) / 2
        why = f"a flat direction relaxes {relaxations:.0f} times over the run"
        if free and len(pilots) > 1:
            why += f", and {len(pilots)} pilots asked for a localization {gamma / scale.gamma:.3g} times as strong"
        reasons["gamma"] = why if free else "of the posterior"
        sampler = sampler or settled
    else:
        posterior = posterior.with_scale(gamma=scale.gamma)
        reasons["gamma"] = "for the length of a run at ε = 0.5 / (nβ h_max + γ)" if free else "of the posterior"
    if not chosen:
        reasons |= {"sampler": "given", "step_size": "of the sampler"}
    thinning = thinning or per_draw
    if num_warmup is None:
        num_warmup = max(_WARMUP, num_draws * thinning // 10)
    reasons["num_warmup"] = "steps that are discarded"
    reasons["num_draws"] = "of a chain; `target_mcse` adds to them"
    reasons["thinning"] = "steps between draws: an evaluation of the loss on all rows costs as much as some steps"
    reasons["batch_size"] = "full batches have no heating"
    if batch_size is not None and batch_size < posterior.num_data:
        reasons["batch_size"] = f"rows; predicted to heat the curved directions by {batch.heating:.1%}"
    reasons |= {name: "given" for name, value in given.items() if value is not None}
    return Calibration(
        posterior=posterior,
        sampler=sampler,
        lengths={
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "num_draws": num_draws,
            "thinning": thinning,
            "batch_size": batch_size,
            "eval_size": eval_size,
        },
        reasons=reasons,
        pilots=pilots,
        spectrum=spectrum,
        overhead_bound=overhead_bound,
    )


def _relaxing_thinning(rate: float, num_draws: int, relaxations: int, max_length_factor: int) -> int:
    """Steps between draws with which `num_draws` draws are T εγ = `relaxations` long; `rate` is εγ."""
    relaxed = math.ceil(relaxations / (rate * num_draws)) if rate else max_length_factor * _THINNING
    return min(max(_THINNING, relaxed), max_length_factor * _THINNING)


def _times_longer(posterior: LocalPosterior, spectrum: Spectrum, gamma: float, max_length_factor: int) -> int:
    """A power of two of times that a run has to be longer for a localization which hides at most a quarter of r/2."""
    nbeta, times, bounds = float(posterior.nbeta), 1, rank_bounds(spectrum)
    most = min(max_length_factor, _LONGER_LOCALIZATION) if bounds.rank_is_unique else 1
    while 2 * times <= most and 2 * spectrum.quad(gamma / times / nbeta) < _SEEN * bounds.rank:
        times *= 2
    return times


class _Batch(NamedTuple):
    """Rows of a minibatch (None: all), the heating they are predicted to bring, and the rows without control variates.

    The last is 0 where they are not used.
    """

    rows: int | None
    heating: float
    without: int = 0


def _choose_batch(posterior: LocalPosterior, spectrum: Spectrum, step_size: float, *, free: bool) -> _Batch:
    """A minibatch (all rows where it would be half of the data); with control variates if `free` and they pay."""
    nbeta, gamma = float(posterior.nbeta), float(posterior.gamma)  # pyright: ignore[reportArgumentType] - set before
    quad = max(spectrum.quad(gamma / nbeta), 0.5)
    of_curvature, of_gradients = 0.25 * step_size * nbeta * spectrum.largest * 2 * quad, 0.0  # of one row
    stein = make_control_variates(posterior, spectrum)
    if stein is not None and stein.coefficients.size:
        rows = np.random.default_rng(0).permutation(posterior.num_data)[:_NOISE_ROWS]  # data may be in order
        some = jax.tree.map(lambda x: x[rows], posterior.data)
        noise = float(_gradient_noise(posterior, stein.vectors, stein.coefficients, some))
        of_gradients = 0.25 * step_size * nbeta**2 * noise / quad

    def rows_for(heat):
        rows = 2 ** math.ceil(math.log2(max(heat / _HEATING, 1.0)))
        return min(max(rows, _MINIBATCH), _LARGEST_BATCH)

    heat, without = max(of_curvature, of_gradients), 0
    rows = rows_for(heat)
    if free and rows > 2 * rows_for(of_curvature):
        heat, without, rows = of_curvature, rows, rows_for(of_curvature)
    return _Batch(None, 0.0) if rows > posterior.num_data // 2 else _Batch(rows, heat / rows, without)


@eqx.filter_jit
def _gradient_noise(posterior: LocalPosterior, vectors: Array, shares: Array, data: Any) -> Float[Array, ""]:
    """Trace of Σ A over examples: the variance of their gradients along the curved directions, weighted by A."""

    def along(example):
        batch = jax.tree.map(lambda x: x[None], example)
        gradient = jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)
        return vectors @ ravel_pytree(gradient)[0]

    return jnp.sum(shares * jnp.var(jax.lax.map(along, data, batch_size=32), axis=0))
