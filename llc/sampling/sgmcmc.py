r"""Stochastic gradient Langevin dynamics (SGLD, Welling & Teh 2011).

A step in the ε/2, √ε convention, with a preconditioner P and a minibatch estimate of ∇U:

$$ w_{k+1} = w_k - \tfrac{\epsilon}{2} P \nabla U(w_k) + \sqrt{\epsilon P}\, \xi_k . $$

Euler–Maruyama takes $\xi_k = \eta_k$, standard normal. Leimkuhler–Matthews (2013, arXiv 1203.5428, eq. 8) takes
$\xi_k = (\eta_k + \eta_{k+1}) / 2$, which has no step-size bias on a quadratic potential.
With control variates $\nabla L(w)$ on a minibatch B is $\nabla L_B(w) - \nabla L_B(w^*) + \nabla L(w^*)$: what the
gradients of the examples differ by at w*, with noisy labels nearly all of their noise, drops out.
"""

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from llc.posterior.arguments import is_no_number, plain, require_flag, require_option
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import check_single
from llc.sampling.kernel import NO_ACCEPT_STEP, Gradient, Info, Sampler, center_gradient, potential_gradient, virial
from llc.sampling.noise import normal_like
from llc.sampling.preconditioner import Identity, Preconditioner

_INTEGRATORS = ("euler_maruyama", "leimkuhler_matthews")


def as_array(step_size: Any) -> Any:
    """An array, so that another step size is no other program."""
    if isinstance(step_size, jax.Array) and not is_no_number(step_size):
        return step_size
    try:
        return np.asarray(np.nan if is_no_number(step_size) else step_size, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.asarray(np.nan)  # which no setting may be


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

    step_size: Float[ArrayLike, ""] = eqx.field(converter=as_array)
    integrator: str = "leimkuhler_matthews"
    preconditioner: Preconditioner = Identity()
    control_variates: bool = eqx.field(default=False, converter=plain)

    needs_full_batch: ClassVar[bool] = False
    has_batch_loss: ClassVar[bool] = True

    @property
    def langevin_step(self) -> float | None:
        """ε without a preconditioner."""
        return float(np.asarray(self.step_size)) if self.preconditioner.is_identity else None

    def at_half_step(self) -> "SGLD | None":
        """At ε/2, without a preconditioner."""
        return replace(self, step_size=np.asarray(self.step_size) / 2) if self.preconditioner.is_identity else None

    def __check_init__(self) -> None:
        require_positive("SGLD", step_size=self.step_size)
        if not isinstance(self.preconditioner, Preconditioner):
            raise ValueError(f"SGLD needs a preconditioner such as llc.RMSProp(), got {self.preconditioner!r}.")
        require_option("integrator", self.integrator, _INTEGRATORS)
        require_flag("control_variates", self.control_variates)

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGLDState:  # noqa: ARG002
        """State at w*; nothing adapts, so `num_warmup` has no effect."""
        position = posterior.position
        noise = normal_like(key, position) if self.integrator == "leimkuhler_matthews" else None
        center_grad = center_gradient(posterior) if self.control_variates else None
        return SGLDState(position, self.preconditioner.init(position), noise, center_grad)

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGLDState, batch: PyTree
    ) -> tuple[SGLDState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch, state.center_grad)
        scaling = self.preconditioner.update(state.preconditioner, gradient.loss_grad)
        fresh = normal_like(key, state.position)
        noise = fresh if state.noise is None else jax.tree.map(lambda a, b: 0.5 * (a + b), state.noise, fresh)
        drift = self.preconditioner.apply(scaling, gradient.grad)
        noise = self.preconditioner.apply(scaling, noise, power=0.5)

        def move(w: Array, g: Array, xi: Array) -> Array:
            eps = jnp.asarray(self.step_size, w.dtype)
            return w - 0.5 * eps * g + jnp.sqrt(eps) * xi

        position = jax.tree.map(move, state.position, drift, noise)
        info = step_info(posterior, gradient, num_gradients=1 + self.control_variates)
        return SGLDState(position, scaling, None if state.noise is None else fresh, state.center_grad), info


def require_positive(name: str, **values: Any) -> None:
    """Raises a ValueError that names the setting which is no finite number above zero; traced ones pass."""
    for setting, value in values.items():
        if isinstance(value, Tracer):
            continue
        if not (np.ndim(value) == 0 and 0 < np.asarray(value) < np.inf):
            raise ValueError(f"{name} needs a finite {setting} > 0, got {value}.")
        check_single(f"the {setting} of {name}", np.asarray(value))


def step_info(posterior: LocalPosterior, gradient: Gradient, num_gradients: int = 1) -> Info:
    """What a step without an accept step shows, from its gradient."""
    grad_norm = optax.tree.norm(gradient.grad)
    return Info(
        potential=gradient.potential,
        virial=virial(posterior, gradient.offset, gradient.grad),
        grad_norm=grad_norm,
        acceptance_rate=jnp.full((), NO_ACCEPT_STEP, gradient.potential.dtype),
        num_gradients=jnp.full((), num_gradients, gradient.potential.dtype),
        diverging=~(jnp.isfinite(grad_norm) & jnp.isfinite(gradient.potential)),
        loss=gradient.loss,
    )
