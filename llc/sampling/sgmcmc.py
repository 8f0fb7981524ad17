r"""Stochastic gradient samplers.

SGLD (Welling & Teh 2011), in the ε/2, √ε convention, with a preconditioner P and a minibatch estimate of ∇U:

$$ w_{k+1} = w_k - \tfrac{\epsilon}{2} P \nabla U(w_k) + \sqrt{\epsilon P}\, \xi_k . $$

Euler–Maruyama takes $\xi_k = \eta_k$, standard normal. Leimkuhler–Matthews (2013, arXiv 1203.5428, eq. 8) takes
$\xi_k = (\eta_k + \eta_{k+1}) / 2$, which has no step-size bias on a quadratic potential.
With control variates $\nabla L(w)$ on a minibatch B is $\nabla L_B(w) - \nabla L_B(w^*) + \nabla L(w^*)$: what the
gradients of the examples differ by at w*, with noisy labels nearly all of their noise, drops out.

SGHMC and SGNHT have a momentum p and the leapfrog step h = √ε. A step is a kick, half a drift, friction, half a drift,

$$ p \leftarrow p - h \nabla U(w), \quad w \leftarrow w + \tfrac h2 p, \quad
   p \leftarrow e^{-\alpha h} p + \sqrt{v}\, \eta, \quad w \leftarrow w + \tfrac h2 p : $$

the splitting BAOAB, whose positions have no step-size bias on a quadratic potential either. SGHMC has a fixed friction
α, SGNHT one that follows the kinetic energy and so takes away what minibatches heat.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Gradient, Info, Sampler, center_gradient, potential_gradient, virial
from llc.sampling.preconditioner import Identity, Preconditioner

_INTEGRATORS = ("euler_maruyama", "leimkuhler_matthews")


def _as_array(step_size: Any) -> Any:
    """An array, so that another step size is no other program."""
    return step_size if isinstance(step_size, jax.Array) else np.asarray(step_size, np.float64)


class SGLDState(NamedTuple):
    """Position, preconditioner state, the last normal vector η_k, and ∇L(w*): None where it is not used."""

    position: PyTree
    preconditioner: Any
    noise: PyTree
    center_grad: PyTree


class SGLD(Sampler):
    r"""Stochastic gradient Langevin dynamics on U = nβ L + γ/2 ‖w − w*‖².

    On a quadratic with curvature a = nβh + γ and minibatch noise of variance s² in ∇U the stationary variance is
    (1 + εs²/4) / (a (1 − εa/4)) for Euler–Maruyama, stable for εa < 4; Leimkuhler–Matthews has 1/a plus the same
    heating (εs²/4) / (a (1 − εa/4)). Minibatches without replacement within an epoch heat less where an epoch is
    shorter than the memory 1 / (εa): .37 of that for 4 minibatches an epoch at εa = .5, .91 for 64.

    Args:
        step_size: ε, in units of 1/U's curvature: stable below 4 / (nβ·h_max + γ).
            `llc.estimate` takes an eighth of that.
        integrator: `"leimkuhler_matthews"` (exact on quadratics) or `"euler_maruyama"` (what other tools run).
        preconditioner: `Identity()`, `Curvature.of(spectrum)`, `Diagonal(scales)` or `RMSProp()`.
        control_variates: whether minibatch gradients take those at w* as control variates. Twice the gradients; worth
            it where the examples have large gradients at w* (noisy labels), useless where they have none.

    Raises:
        ValueError: if the step size is not positive or the integrator is unknown.

    References:
        Welling & Teh, Bayesian learning via stochastic gradient Langevin dynamics, ICML 2011.
        Baker et al., Control variates for stochastic gradient MCMC, 2019, eq. 6.
        Leimkuhler & Matthews, Rational construction of stochastic numerical methods for molecular sampling, 2013.
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=_as_array)
    integrator: str = "leimkuhler_matthews"
    preconditioner: Preconditioner = Identity()
    control_variates: bool = False

    needs_full_batch: ClassVar[bool] = False

    @property
    def langevin_step(self) -> float | None:
        """ε without a preconditioner."""
        return float(np.asarray(self.step_size)) if self.preconditioner.is_identity else None

    def __check_init__(self):
        _require_positive("SGLD", step_size=self.step_size)
        if not isinstance(self.preconditioner, Preconditioner):
            raise ValueError(f"SGLD needs a preconditioner such as llc.RMSProp(), got {self.preconditioner!r}.")
        if self.integrator not in _INTEGRATORS:
            raise ValueError(f"SGLD needs an integrator among {_INTEGRATORS}, got {self.integrator!r}.")

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGLDState:  # noqa: ARG002
        """State at w*; nothing adapts, so `num_warmup` has no effect."""
        position = posterior.position
        noise = _normal_like(key, position) if self.integrator == "leimkuhler_matthews" else None
        center_grad = center_gradient(posterior) if self.control_variates else None
        return SGLDState(position, self.preconditioner.init(position), noise, center_grad)

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGLDState, batch: PyTree
    ) -> tuple[SGLDState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch, state.center_grad)
        scaling = self.preconditioner.update(state.preconditioner, gradient.loss_grad)
        fresh = _normal_like(key, state.position)
        noise = fresh if state.noise is None else jax.tree.map(lambda a, b: 0.5 * (a + b), state.noise, fresh)
        drift = self.preconditioner.apply(scaling, gradient.grad)
        noise = self.preconditioner.apply(scaling, noise, power=0.5)

        def move(w, g, xi):
            eps = jnp.asarray(self.step_size, w.dtype)
            return w - 0.5 * eps * g + jnp.sqrt(eps) * xi

        position = jax.tree.map(move, state.position, drift, noise)
        info = _info(posterior, gradient, num_gradients=1 + self.control_variates)
        return SGLDState(position, scaling, None if state.noise is None else fresh, state.center_grad), info


class SGHMCState(NamedTuple):
    """Position and momentum."""

    position: PyTree
    momentum: PyTree


class SGHMC(Sampler):
    r"""Stochastic gradient Hamiltonian Monte Carlo: underdamped Langevin dynamics.

    Minibatch noise of variance s² in ∇U heats the momentum: each step adds h² s² to what friction takes away. Where s²
    is known (`noise`), friction's own noise is that much weaker, $v = 1 - e^{-2 \alpha h} - e^{-2 \alpha h} h^2 s^2$.

    Args:
        step_size: ε = h², in units of 1/U's curvature: stable below 4 / (nβ·h_max + γ).
        friction: α, in units of 1/h's: momentum is forgotten after 1/(α h) steps. Critical damping is 2 √curvature.
        noise: s², the variance of the minibatch estimate of ∂U/∂w, the same for every parameter.

    Raises:
        ValueError: if the step size or the friction is not positive, or the noise is negative.

    References:
        Chen, Fox & Guestrin, Stochastic gradient Hamiltonian Monte Carlo, ICML 2014, eq. 13.
        Leimkuhler & Matthews, Rational construction of stochastic numerical methods for molecular sampling, 2013.
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=_as_array)
    friction: Float[ArrayLike, ""] = eqx.field(converter=_as_array)
    noise: Float[ArrayLike, ""] = eqx.field(default=0.0, converter=_as_array)

    needs_full_batch: ClassVar[bool] = False

    def __check_init__(self):
        _require_positive("SGHMC", step_size=self.step_size, friction=self.friction)
        if not isinstance(self.noise, Tracer) and not 0 <= np.asarray(self.noise) < np.inf:
            raise ValueError(
                f"SGHMC needs a finite noise >= 0, the variance of ∂U/∂w on a minibatch, got {self.noise}."
            )

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGHMCState:  # noqa: ARG002
        """State at w* with a momentum of the stationary law."""
        return SGHMCState(posterior.position, _normal_like(key, posterior.position))

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGHMCState, batch: PyTree
    ) -> tuple[SGHMCState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch)
        h = jnp.sqrt(jnp.asarray(self.step_size))
        kept = jnp.exp(-jnp.asarray(self.friction) * h)
        fresh = jnp.sqrt(jnp.maximum(1 - kept**2 * (1 + h**2 * jnp.asarray(self.noise)), 0.0))
        momentum = _axpy(-h, gradient.grad, state.momentum)
        position = _axpy(h / 2, momentum, state.position)
        momentum = _axpy(fresh, _normal_like(key, momentum), _scaled(kept, momentum))
        position = _axpy(h / 2, momentum, position)
        return SGHMCState(position, momentum), _info(posterior, gradient)


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
        friction: α, the mean of ξ without minibatch noise; it sets the noise that is put in, 2α h a step.

    Raises:
        ValueError: if the step size or the friction is not positive.

    References:
        Ding et al., Bayesian sampling using stochastic gradient thermostats, NeurIPS 2014, eq. 6.
        Leimkuhler & Shang, Adaptive thermostats for noisy gradient systems, 2016, §4 (BADODAB).
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=_as_array)
    friction: Float[ArrayLike, ""] = eqx.field(converter=_as_array)

    needs_full_batch: ClassVar[bool] = False

    def __check_init__(self):
        _require_positive("SGNHT", step_size=self.step_size, friction=self.friction)

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGNHTState:  # noqa: ARG002
        """State at w* with a momentum of the stationary law, and the friction α."""
        momentum = _normal_like(key, posterior.position)
        dtype = jnp.result_type(*jax.tree.leaves(momentum))
        return SGNHTState(posterior.position, momentum, jnp.asarray(self.friction, dtype))

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGNHTState, batch: PyTree
    ) -> tuple[SGNHTState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch)
        dtype = state.thermostat.dtype
        h, alpha = jnp.sqrt(jnp.asarray(self.step_size, dtype)), jnp.asarray(self.friction, dtype)

        def heat(momentum, thermostat):
            kinetic = optax.tree.norm(momentum, squared=True) / posterior.num_params
            return thermostat + h / 2 * (jnp.asarray(kinetic, dtype) - 1)

        momentum = _axpy(-h, gradient.grad, state.momentum)
        position = _axpy(h / 2, momentum, state.position)
        xi = heat(momentum, state.thermostat)
        # ∫₀ʰ 2α e^(−2ξt) dt, also where ξ is zero or negative
        rate = 2 * xi * h
        variance = 2 * alpha * h * jnp.where(jnp.abs(rate) < 1e-4, 1 - rate / 2, -jnp.expm1(-rate) / rate)
        momentum = _axpy(jnp.sqrt(variance), _normal_like(key, momentum), _scaled(jnp.exp(-xi * h), momentum))
        xi = heat(momentum, xi)
        position = _axpy(h / 2, momentum, position)
        return SGNHTState(position, momentum, xi), _info(posterior, gradient)


def _require_positive(name: str, **values: Any) -> None:
    for setting, value in values.items():
        if not isinstance(value, Tracer) and not (np.ndim(value) == 0 and 0 < np.asarray(value) < np.inf):
            raise ValueError(f"{name} needs a finite {setting} > 0, got {value}.")


def _info(posterior: LocalPosterior, gradient: Gradient, num_gradients: int = 1) -> Info:
    grad_norm = optax.tree.norm(gradient.grad)
    return Info(
        potential=gradient.potential,
        virial=virial(posterior, gradient.offset, gradient.grad),
        grad_norm=grad_norm,
        acceptance_rate=jnp.full((), jnp.nan, gradient.potential.dtype),
        num_gradients=jnp.full((), num_gradients, gradient.potential.dtype),
        diverging=~(jnp.isfinite(grad_norm) & jnp.isfinite(gradient.potential)),
    )


def _axpy(scale: Any, x: PyTree, y: PyTree) -> PyTree:
    """Scale · x + y, in the dtype of y."""
    return jax.tree.map(lambda a, b: b + jnp.asarray(scale, b.dtype) * a, x, y)


def _scaled(scale: Any, x: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.asarray(scale, a.dtype) * a, x)


def _normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Standard normal numbers for all leaves from one call, each of which takes a tenth of a second to compile."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))
