r"""What a polish of w* within the localization's reach would change: the minimum of U that w* runs down to.

At a checkpoint in the middle of training the minimum w_γ of U = nβ L + γ/2 ‖w − w*‖² is not w*. It is measured here, by
L-BFGS on the loss itself and not on its Gaussian, which a point with negative curvature does not have; nβ (L(w_γ) −
L(w*)) is the part of λ̂ that comes from the slope (see llc/analysis/slope.py).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.whole import on_resident_rows
from llc.sampling.energies import make_evaluation

_STEPS = 60  # of L-BFGS at most, each about two gradients of all the data
_DONE = 1e-3  # of nβ L that a step still has to win


class Reached(NamedTuple):
    """The minimum of U below w*.

    Attributes:
        change: L(w_γ) − L(w*) in nats per example; 0 or less.
        distance: ‖w_γ − w*‖.
        num_steps: that it took.
    """

    change: float
    distance: float
    num_steps: int


def reach(posterior: LocalPosterior, batch_size: int | None = None) -> Reached:
    """The minimum of U that w* runs down to, and the loss there.

    Args:
        posterior: with γ.
        batch_size: rows that fit in memory at a time; None takes all where they do.
    """
    change, distance, num_steps = _descended(on_resident_rows(posterior), batch_size)
    return Reached(min(float(change), 0.0), float(distance), int(num_steps))


@eqx.filter_jit
def _descended(posterior: LocalPosterior, batch_size: int | None) -> tuple[Float[Array, ""], Float[Array, ""], Array]:
    evaluation = make_evaluation(posterior, batch_size=batch_size)
    # As a list: a parameter called "value" would be taken for what optax keeps under that name.
    start, structure = jax.tree.flatten(posterior.position)
    at_center = evaluation.losses(posterior, posterior.position)
    weights = jnp.asarray(evaluation.weights, at_center.dtype)
    nbeta, gamma = (jnp.asarray(x, at_center.dtype) for x in (posterior.nbeta, posterior.gamma))
    optimizer = optax.lbfgs()
    whole = posterior.whole
    tilt = [jnp.zeros_like(x) for x in start]
    if whole is not None:  # what the resident rows of a stream lack of the slope
        tilt = [jnp.asarray(g, x.dtype) for g, x in zip(structure.flatten_up_to(whole.slope), start, strict=True)]

    def energy_and_gradient(position: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """U(w) − U(w*), of differences of losses, which float32 holds better than losses, and its gradient."""
        losses, slope = evaluation.losses_and_gradient(posterior, structure.unflatten(position))
        offset = optax.tree.sub(position, start)
        energy = nbeta * (jnp.sum(weights * (losses - at_center)) + optax.tree.vdot(tilt, offset))
        energy += 0.5 * gamma * optax.tree.norm(offset, squared=True)
        gradient = jax.tree.map(
            lambda g, t, x: (nbeta * (g + t) + gamma * x).astype(x.dtype), structure.flatten_up_to(slope), tilt, offset
        )
        return energy, gradient

    @jax.custom_vjp
    def energy(position: PyTree) -> Float[Array, ""]:
        return energy_and_gradient(position)[0]

    # The line search differentiates it: by the gradient that goes over the data in pieces.
    energy.defvjp(energy_and_gradient, lambda gradient, of: (jax.tree.map(lambda g: of * g, gradient),))
    value_and_grad = optax.value_and_grad_from_state(energy)

    def step(loop: tuple[PyTree, PyTree, Array, Array]) -> tuple[PyTree, PyTree, Array, Array]:
        position, state, i, _ = loop
        value, gradient = value_and_grad(position, state=state)
        updates, state = optimizer.update(gradient, state, position, value=value, grad=gradient, value_fn=energy)
        moved = optax.apply_updates(position, updates)
        return moved, state, i + 1, value - optax.tree.get(state, "value")

    def goes_on(loop: tuple[PyTree, PyTree, Array, Array]) -> Array:
        return (loop[2] < _STEPS) & (loop[3] > _DONE)

    begin = start, optimizer.init(start), jnp.zeros((), int), jnp.full((), jnp.inf, at_center.dtype)
    end, _, num_steps, _ = jax.lax.while_loop(goes_on, step, begin)
    offset = optax.tree.sub(end, start)
    change = jnp.sum(weights * (evaluation.losses(posterior, structure.unflatten(end)) - at_center))
    return change + optax.tree.vdot(tilt, offset), jnp.asarray(optax.tree.norm(offset)), num_steps
