r"""Stochastic gradient samplers with momentum: SGHMC and SGNHT, both underdamped Langevin dynamics.

With a momentum p and the leapfrog step h = √ε, a step is a kick, half a drift, friction, half a drift,

$$ p \leftarrow p - h \nabla U(w), \quad w \leftarrow w + \tfrac h2 p, \quad
   p \leftarrow \kappa p + \sqrt{1 - \kappa^2}\, \eta, \quad w \leftarrow w + \tfrac h2 p,
   \qquad \kappa = e^{-\alpha h} : $$

the splitting BAOAB. Its positions at the ends of steps follow

$$ x_{k+1} = (1 + \kappa - c h a)\, x_k - \kappa\, x_{k-1} + \text{noise}, \quad c = \tfrac h2 (1 + \kappa), $$

on a quadratic potential of curvature a. For the noise of friction the stationary variance of x is 1/a, with no
step-size bias below the limit of stability εa = 4. White minibatch noise of variance s² in ∇U adds, as for any
autoregression of second order,

$$ \frac{1 + \kappa}{1 - \kappa} \cdot \frac{\epsilon s^2 / 4}{a\,(1 - \epsilon a / 4)} : $$

coth(αh/2) ≈ 2/(αh) times what it adds to the variance of SGLD, which is the limit κ → 0.

SGHMC has a fixed friction α, SGNHT one that follows the kinetic energy and so removes the heat of minibatches.
"""

import math
from dataclasses import replace
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_number
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Info, Sampler, potential_gradient
from llc.sampling.noise import normal_like
from llc.sampling.sgmcmc import as_array, require_positive, step_info


def _as_optional_array(friction: ArrayLike | None) -> ArrayLike | None:
    return None if friction is None else as_array(friction)


class SGHMCState(NamedTuple):
    """Position and momentum."""

    position: PyTree
    momentum: PyTree


class SGHMC(Sampler):
    r"""Stochastic gradient Hamiltonian Monte Carlo: underdamped Langevin dynamics.

    Minibatch noise of variance s² in ∇U heats the momentum: each step adds h² s² to what friction takes away. Where s²
    is known (`noise`), friction's own noise is that much weaker, $v = 1 - e^{-2 \alpha h} - e^{-2 \alpha h} h^2 s^2$.
    What it heats where s² is not given: `predicted_heating`.

    Args:
        step_size: ε = h², in units of 1/U's curvature: stable below 4 / (nβ·h_max + γ).
        friction: α, in units of 1/h's: momentum is forgotten after 1/(α h) steps. None takes 2 √γ, the critical
            damping of the softest directions, those that localization alone holds: they relax at the rate √γ, and no
            other direction is slower. `energy_friction` gives the best one for the standard error of λ̂.
        noise: s², the variance of the minibatch estimate of ∂U/∂w, the same for every parameter.

    Raises:
        ValueError: if the step size or the friction is not positive, or the noise is negative.

    References:
        Chen, Fox & Guestrin, Stochastic gradient Hamiltonian Monte Carlo, ICML 2014, eq. 13.
        Leimkuhler & Matthews, Rational construction of stochastic numerical methods for molecular sampling, 2013.
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=as_array)
    friction: Float[ArrayLike, ""] | None = eqx.field(default=None, converter=_as_optional_array)
    noise: Float[ArrayLike, ""] = eqx.field(default=0.0, converter=as_array)

    needs_full_batch: ClassVar[bool] = False
    has_batch_loss: ClassVar[bool] = True

    def __check_init__(self) -> None:
        require_positive("SGHMC", step_size=self.step_size)
        _require_friction("SGHMC", self.friction)
        if not isinstance(self.noise, Tracer):
            require_number("noise", self.noise, strict=False)

    def at_half_step(self) -> "SGHMC":
        """At ε/2 and the same friction, so that the same path is followed in shorter steps."""
        return replace(self, step_size=np.asarray(self.step_size) / 2)

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGHMCState:  # noqa: ARG002
        """State at w* with a momentum of the stationary law."""
        return SGHMCState(posterior.position, normal_like(key, posterior.position))

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGHMCState, batch: PyTree
    ) -> tuple[SGHMCState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch)
        h = jnp.sqrt(jnp.asarray(self.step_size))
        kept = jnp.exp(-_friction(self.friction, posterior, h.dtype) * h)
        fresh = jnp.sqrt(jnp.maximum(1 - kept**2 * (1 + h**2 * jnp.asarray(self.noise)), 0.0))
        momentum = _axpy(-h, gradient.grad, state.momentum)
        position = _axpy(h / 2, momentum, state.position)
        momentum = _axpy(fresh, normal_like(key, momentum), _scaled(kept, momentum))
        position = _axpy(h / 2, momentum, position)
        return SGHMCState(position, momentum), step_info(posterior, gradient)


class SGNHTState(NamedTuple):
    """Position, momentum and thermostat: the friction at this time."""

    position: PyTree
    momentum: PyTree
    thermostat: Float[Array, ""]


class SGNHT(Sampler):
    r"""Stochastic gradient Nosé–Hoover thermostat: friction ξ that keeps the kinetic energy at its temperature.

    With ξ' = ‖p‖² / d − 1 the stationary law of w is exact whatever the variance of the minibatch noise, as long as
    that is the same everywhere and for every parameter; where it is not, only the mean kinetic energy is right.

    Args:
        step_size: ε = h², in units of 1/U's curvature: stable below 4 / (nβ·h_max + γ).
        friction: α, the mean of ξ without minibatch noise; it sets the noise that is put in, 2α h a step. None takes
            2 √γ, as for SGHMC.

    Raises:
        ValueError: if the step size or the friction is not positive.

    References:
        Ding et al., Bayesian sampling using stochastic gradient thermostats, NeurIPS 2014, eq. 6.
        Leimkuhler & Shang, Adaptive thermostats for noisy gradient systems, 2016, §4 (BADODAB).
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=as_array)
    friction: Float[ArrayLike, ""] | None = eqx.field(default=None, converter=_as_optional_array)

    needs_full_batch: ClassVar[bool] = False
    has_batch_loss: ClassVar[bool] = True

    def __check_init__(self) -> None:
        require_positive("SGNHT", step_size=self.step_size)
        _require_friction("SGNHT", self.friction)

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGNHTState:  # noqa: ARG002
        """State at w* with a momentum of the stationary law, and the friction α."""
        momentum = normal_like(key, posterior.position)
        dtype = jnp.result_type(*jax.tree.leaves(momentum))
        return SGNHTState(posterior.position, momentum, _friction(self.friction, posterior, dtype))

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGNHTState, batch: PyTree
    ) -> tuple[SGNHTState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch)
        dtype = state.thermostat.dtype
        h, alpha = jnp.sqrt(jnp.asarray(self.step_size, dtype)), _friction(self.friction, posterior, dtype)

        def heat(momentum: PyTree, thermostat: Float[Array, ""]) -> Float[Array, ""]:
            kinetic = optax.tree.norm(momentum, squared=True) / posterior.num_params
            return thermostat + h / 2 * (jnp.asarray(kinetic, dtype) - 1)

        momentum = _axpy(-h, gradient.grad, state.momentum)
        position = _axpy(h / 2, momentum, state.position)
        xi = heat(momentum, state.thermostat)
        # ∫₀ʰ 2α e^(−2ξt) dt, also where ξ is zero or negative
        rate = 2 * xi * h
        variance = 2 * alpha * h * jnp.where(jnp.abs(rate) < 1e-4, 1 - rate / 2, -jnp.expm1(-rate) / rate)
        momentum = _axpy(jnp.sqrt(variance), normal_like(key, momentum), _scaled(jnp.exp(-xi * h), momentum))
        xi = heat(momentum, xi)
        position = _axpy(h / 2, momentum, position)
        return SGNHTState(position, momentum, xi), step_info(posterior, gradient)


def predicted_heating(
    step_size: Float[ArrayLike, ""],
    friction: Float[ArrayLike, ""],
    curvature: Float[ArrayLike, "..."],
    noise: Float[ArrayLike, "..."],
) -> Float[np.ndarray, "..."]:
    """Share by which white minibatch noise raises SGHMC's stationary variance on a quadratic, exactly.

    The expectation of nβK rises by ½ Σ nβh / (nβh + γ) times this share. Minibatches without replacement within an
    epoch heat less where an epoch is short (see `SGLD`), so this is an upper bound for them.

    Args:
        step_size: ε.
        friction: α; infinity gives what SGLD is heated.
        curvature: a = nβh + γ, along each direction.
        noise: s², the variance of the minibatch estimate of ∂U/∂w along each direction.

    Returns:
        The variance of w times a, less 1; infinity where the step is not stable, εa >= 4.
    """
    step_size, curvature, noise = (np.asarray(x, np.float64) for x in (step_size, curvature, noise))
    stiffness = step_size * curvature
    of_sgld = step_size * noise / 4 / np.where(stiffness < 4, 1 - stiffness / 4, np.nan)
    amplified = of_sgld / np.tanh(np.asarray(friction, np.float64) * np.sqrt(step_size) / 2)
    return np.where(stiffness < 4, amplified, np.inf)


def energy_friction(spectrum: Spectrum, *, nbeta: float, gamma: float) -> float:
    r"""The friction α of SGHMC with the least standard error of λ̂ on the quadratic of `spectrum`.

    Along a direction of curvature a the energy x² is correlated over 2∫ρ² = 1/α + α/a in time: shortest for α = √a,
    half of critical damping, and longer by a quarter at critical damping. The error of λ̂ adds up s² (1/α + α/a) with
    s = nβh/(nβh+γ), which is least at

    $$ \alpha^2 = \sum_i s_i^2 \Big/ \sum_i s_i^2 / a_i, $$

    a harmonic mean of the curvatures that carry energy. It is never below √γ. Above 2 √γ flat directions relax at the
    rate γ/α only; they carry no energy, but warm-up has to last for a few α/γ.

    Args:
        spectrum: of the Hessian at w*; negative and vanishing eigenvalues count for nothing.
        nbeta: nβ.
        gamma: γ.

    Raises:
        ValueError: if no eigenvalue is above the spectrum's threshold.
    """

    def share(h: np.ndarray) -> np.ndarray:
        curved = np.maximum(h, 0.0) * (h > spectrum.threshold) * nbeta
        return (curved / (curved + gamma)) ** 2 if gamma > 0 else (curved > 0).astype(np.float64)

    carried = spectrum.sum(share)
    if not carried > 0:
        raise ValueError("energy_friction needs a spectrum with an eigenvalue above its threshold, got none.")
    per_curvature = spectrum.sum(lambda h: share(h) / np.maximum(nbeta * h + gamma, np.finfo(np.float64).tiny))
    return math.sqrt(carried / per_curvature)


def flat_rate(step_size: float, friction: float, gamma: float) -> float:
    r"""Rate at which x of a direction without curvature forgets where it started, a step of SGHMC.

    Its equation is that of a damped oscillator, so that it decays as exp(−r k) after k steps, with

    $$ r = \sqrt\epsilon\, \left( \tfrac\alpha2 - \mathrm{Re} \sqrt{\tfrac{\alpha^2}{4} - \gamma} \right) . $$

    Args:
        step_size: ε.
        friction: α.
        gamma: γ.
    """
    return math.sqrt(step_size) * (friction / 2 - math.sqrt(max(friction**2 / 4 - gamma, 0.0)))


def _require_friction(name: str, friction: ArrayLike | None) -> None:
    if friction is not None:
        require_positive(name, friction=friction)


def _friction(friction: ArrayLike | None, posterior: LocalPosterior, dtype: DTypeLike) -> Float[Array, ""]:
    """α; 2 √γ where none is given."""
    return 2 * jnp.sqrt(jnp.asarray(posterior.gamma, dtype)) if friction is None else jnp.asarray(friction, dtype)


def _axpy(scale: Float[Array, ""], x: PyTree, y: PyTree) -> PyTree:
    """Scale · x + y, in the dtype of y."""
    return jax.tree.map(lambda a, b: b + jnp.asarray(scale, b.dtype) * a, x, y)


def _scaled(scale: Float[Array, ""], x: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.asarray(scale, a.dtype) * a, x)
