"""The Sampler protocol: a pair of pure functions, `init` and `step`.

`State` is what the next step needs (its `position` is the posterior's), `Info` what a reader wants to see of a step.
The posterior is an argument of both and never captured, so that a sweep over posteriors is a `vmap`.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import in_loops
from llc.sampling.energies import make_evaluation

NO_ACCEPT_STEP = -1.0  # no nan, which jax_debug_nans takes for a mistake


class Info(NamedTuple):
    """What a reader wants to see of one step.

    Attributes:
        potential: U at the position where its gradient was taken (an estimate of it on a minibatch).
        virial: x·∇U / d with x = w − w*; its mean is 1 under the exact target (equipartition).
        grad_norm: ‖∇U‖.
        acceptance_rate: Metropolis acceptance probability; `NO_ACCEPT_STEP` for a sampler that has none.
        num_gradients: gradient evaluations that the step took.
        diverging: the step was numerically unstable.
        loss: the mean loss of the step's batch at the position before the step, where the gradient was taken, less its
            slope from w* there where the gradient has that as a control variate; None of a step that has no such
            position. `step_energies` needs it.
    """

    potential: Float[Array, ""]
    virial: Float[Array, ""]
    grad_norm: Float[Array, ""]
    acceptance_rate: Float[Array, ""]
    num_gradients: Float[Array, ""]
    diverging: Bool[Array, ""]
    loss: Float[Array, ""] | None = None


class Sampler(eqx.Module):
    """Settings as fields, two pure functions as methods.

    Attributes:
        needs_full_batch: whether the transition is valid on the full data only (it has an accept step).
        takes_trajectories: whether a step is a trajectory of many gradients.
        has_batch_loss: whether `Info.loss` is the loss of the step's batch.
        adapts_in_warmup: whether anything adapts in the first `num_warmup` steps.
    """

    needs_full_batch: ClassVar[bool]
    takes_trajectories: ClassVar[bool] = False
    has_batch_loss: ClassVar[bool] = False
    adapts_in_warmup: ClassVar[bool] = False

    @property
    def adapts_step(self) -> bool:
        """Whether the step size is found in the warm-up, so that none is known before."""
        return False

    @property
    def langevin_step(self) -> float | None:
        """ε, where a step is one of plain SGLD (P = I) with a step size that is known; None of other dynamics."""
        return None

    def at_half_step(self) -> "Sampler | None":
        """The same dynamics at half of ε, in small steps of which its error is smaller; None of other samplers."""
        return None

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray, posterior: LocalPosterior, *, num_warmup: int = 0) -> Any:
        """State at w*. A sampler that adapts does so in its first `num_warmup` steps."""

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, posterior: LocalPosterior, state: Any, batch: PyTree) -> tuple[Any, Info]:
        """One transition on `batch`."""


class Gradient(NamedTuple):
    """U and its parts at one position; `loss` as in `Info`."""

    potential: Float[Array, ""]
    loss: Float[Array, ""]
    loss_grad: PyTree
    grad: PyTree
    offset: PyTree


def potential_gradient(
    posterior: LocalPosterior, position: PyTree, batch: PyTree, center_grad: PyTree = None
) -> Gradient:
    """U, ∇L and ∇U = nβ ∇L + γ (w − w*) on `batch`; with ∇L(w*) of all data, that on `batch` is replaced by it."""
    loss, loss_grad = _loss_gradient(posterior, position, batch)
    offset, slope = optax.tree.sub(position, posterior.position), 0.0
    if center_grad is not None:
        there = _loss_gradient(posterior, posterior.position, batch)[1]
        loss_grad = jax.tree.map(lambda g, c, whole: g - c + whole, loss_grad, there, center_grad)
        slope = optax.tree.vdot(optax.tree.sub(there, center_grad), offset)
    dtype = jnp.result_type(*jax.tree.leaves(position))  # not the loss's: data may be of another one
    loss, nbeta, gamma = (jnp.asarray(x, dtype) for x in (loss, posterior.nbeta, posterior.gamma))
    grad = jax.tree.map(lambda g, x: (nbeta * g + gamma * x).astype(x.dtype), loss_grad, offset)
    potential = nbeta * loss + 0.5 * gamma * optax.tree.norm(offset, squared=True)
    return Gradient(potential, loss - jnp.asarray(slope, dtype), loss_grad, grad, offset)


def center_gradient(posterior: LocalPosterior, batch_size: int | None = None) -> PyTree:
    """∇L(w*) over all data, at most four times `batch_size` rows at a time; of a stream it is known before."""
    if posterior.whole is not None:
        return jax.tree.map(lambda g, z: jnp.asarray(g, z.dtype), posterior.whole.gradient, posterior.position)
    return make_evaluation(posterior, batch_size=batch_size).losses_and_gradient(posterior, posterior.position)[1]


def _loss_gradient(posterior: LocalPosterior, position: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
    slope = jax.value_and_grad(lambda z, batch: posterior.loss(posterior.params_at(z), batch))
    return in_loops(posterior.loss_fn, slope)(position, batch)


def virial(posterior: LocalPosterior, offset: PyTree, grad: PyTree) -> Float[Array, ""]:
    """x·∇U / d."""
    return jnp.asarray(optax.tree.vdot(offset, grad)) / posterior.num_params
