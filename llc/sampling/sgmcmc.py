r"""Stochastic gradient samplers.

SGLD (Welling & Teh 2011), in the ε/2, √ε convention, with a preconditioner P and a minibatch estimate of ∇U:

$$ w_{k+1} = w_k - \tfrac{\epsilon}{2} P \nabla U(w_k) + \sqrt{\epsilon P}\, \xi_k . $$

Euler–Maruyama takes $\xi_k = \eta_k$, standard normal. Leimkuhler–Matthews (2013, arXiv 1203.5428, eq. 8) takes
$\xi_k = (\eta_k + \eta_{k+1}) / 2$, which has no step-size bias on a quadratic potential.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, Float, PRNGKeyArray, PyTree

from llc.posterior import LocalPosterior
from llc.sampling.kernel import Info, Sampler, potential_gradient, virial
from llc.sampling.preconditioner import Identity, Preconditioner

_INTEGRATORS = ("euler_maruyama", "leimkuhler_matthews")


def _as_array(step_size: Any) -> Any:
    """An array, so that another step size is no other program."""
    return step_size if isinstance(step_size, jax.Array) else np.asarray(step_size, np.float64)


class SGLDState(NamedTuple):
    """Position, preconditioner state, and the last normal vector η_k (None for Euler–Maruyama)."""

    position: PyTree
    preconditioner: Any
    noise: PyTree


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
        preconditioner: `Identity()` or `RMSProp()`.

    Raises:
        ValueError: if the step size is not positive or the integrator is unknown.

    References:
        Welling & Teh, Bayesian learning via stochastic gradient Langevin dynamics, ICML 2011.
        Leimkuhler & Matthews, Rational construction of stochastic numerical methods for molecular sampling, 2013.
    """

    step_size: Float[ArrayLike, ""] = eqx.field(converter=_as_array)
    integrator: str = "leimkuhler_matthews"
    preconditioner: Preconditioner = Identity()

    full_batch: ClassVar[bool] = False

    def __check_init__(self):
        if isinstance(self.step_size, np.ndarray) and not 0 < self.step_size < np.inf:
            raise ValueError(f"SGLD needs a finite step_size > 0, got {self.step_size}; try 0.5 / (nβ·h_max + γ).")
        if self.integrator not in _INTEGRATORS:
            raise ValueError(f"SGLD needs an integrator among {_INTEGRATORS}, got {self.integrator!r}.")

    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> SGLDState:  # noqa: ARG002
        """State at w*; nothing adapts, so `num_warmup` has no effect."""
        position = posterior.position
        noise = _normal_like(key, position) if self.integrator == "leimkuhler_matthews" else None
        return SGLDState(position, self.preconditioner.init(position), noise)

    def step(
        self, key: PRNGKeyArray, posterior: LocalPosterior, state: SGLDState, batch: PyTree
    ) -> tuple[SGLDState, Info]:
        """One step on `batch`."""
        gradient = potential_gradient(posterior, state.position, batch)
        scaling = self.preconditioner.update(state.preconditioner, gradient.loss_grad)
        fresh = _normal_like(key, state.position)
        noise = fresh if state.noise is None else jax.tree.map(lambda a, b: 0.5 * (a + b), state.noise, fresh)
        drift = self.preconditioner.apply(scaling, gradient.grad)
        noise = self.preconditioner.apply(scaling, noise, power=0.5)

        def move(w, g, xi):
            eps = jnp.asarray(self.step_size, w.dtype)
            return w - 0.5 * eps * g + jnp.sqrt(eps) * xi

        position = jax.tree.map(move, state.position, drift, noise)
        grad_norm = optax.tree.norm(gradient.grad)
        info = Info(
            potential=gradient.potential,
            virial=virial(posterior, gradient.offset, gradient.grad),
            grad_norm=grad_norm,
            acceptance_rate=jnp.full((), jnp.nan, gradient.potential.dtype),
            num_gradients=jnp.ones((), gradient.potential.dtype),
            diverging=~(jnp.isfinite(grad_norm) & jnp.isfinite(gradient.potential)),
        )
        return SGLDState(position, scaling, None if state.noise is None else fresh), info


def _normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    return optax.tree.random_like(key, tree, jax.random.normal)
