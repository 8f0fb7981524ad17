r"""Losses of a draw and of w*, on the same rows.

The difference of the two is what is averaged (L(w*) from other rows than L(w) is the largest error of all), so one
`Evaluation` serves both. Its rows are all the data, or one fixed random subset S. There the slope at w* is a control
variate, which takes away what the examples differ by to first order in x = w − w*,

$$ L(w) - L(w^*) \approx L_S(w) - L_S(w^*) - (\nabla L_S(w^*) - \nabla L(w^*)) \cdot x , $$

and for a derivative of the loss along any direction v (of the control variates of λ̂) the same with v instead of x.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior

_EVAL_ROWS = 2048  # rows of one evaluation pass; bounds the memory, not the result
_OF_BATCH = 4  # the same as a multiple of a minibatch, whose gradient fits in memory
_SUBSET_UNITS = 32  # pieces of a subset when the loss is a scalar, for the error of the subset


class Evaluation(eqx.Module):
    """The rows on which losses are evaluated, in `pieces` of equal length and a `rest`.

    A unit is an example where the loss comes per example and a piece where it is a scalar; `weights` add up to 1.
    `center_grad` is ∇L(w*) over all the data, None where the rows are all the data.
    """

    pieces: PyTree
    rest: PyTree
    weights: Float[Array, "unit"]
    center_grad: PyTree
    pointwise: bool = eqx.field(static=True)
    uses_all_data: bool = eqx.field(static=True)  # whether the rows are all the data

    def losses(self, posterior: LocalPosterior, position: PyTree) -> Float[Array, "unit"]:
        """Loss of every unit."""
        params = posterior.params_at(position)

        def of(batch):
            return jnp.atleast_1d(posterior.loss_fn(params, batch))

        losses = jnp.ravel(jax.lax.map(of, self.pieces))
        return losses if self.rest is None else jnp.concatenate([losses, of(self.rest)])

    def losses_and_gradient(self, posterior: LocalPosterior, position: PyTree) -> tuple[Float[Array, "unit"], PyTree]:
        """Loss of every unit, and the gradient of their weighted mean."""

        def of(batch):
            def total(z):
                losses = jnp.atleast_1d(posterior.loss_fn(posterior.params_at(z), batch))
                return jnp.sum(losses), losses

            return jax.grad(total, has_aux=True)(position)

        def add(total, piece):
            gradient, losses = of(piece)
            return jax.tree.map(jnp.add, total, gradient), losses

        total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, position), self.pieces)
        losses = jnp.ravel(losses)  # the units of the pieces have one weight, and so has the rest
        mean = jax.tree.map(lambda g: jnp.asarray(self.weights[0], g.dtype) * g, total)
        if self.rest is None:
            return losses, mean
        gradient, last = of(self.rest)
        mean = jax.tree.map(lambda m, g: m + jnp.asarray(self.weights[-1], g.dtype) * g, mean, gradient)
        return jnp.concatenate([losses, last]), mean

    def losses_and_slopes(
        self, posterior: LocalPosterior, position: PyTree, directions: PyTree
    ) -> tuple[Float[Array, "unit"], Float[Array, "direction unit"]]:
        """Loss of every unit, and its derivatives along `directions`, which have a leading axis."""

        def along(direction):
            return jax.jvp(lambda z: self.losses(posterior, z), (position,), (direction,))

        return jax.vmap(along, out_axes=(None, 0))(directions)

    def excess_slopes(self, posterior: LocalPosterior, directions: PyTree) -> Float[Array, "direction unit"]:
        """Derivatives of every unit's loss at w* along `directions`, less those of L over all the data."""
        _, slopes = self.losses_and_slopes(posterior, posterior.position, directions)
        flat = jax.vmap(lambda direction: optax.tree.vdot(self.center_grad, direction))(directions)
        return slopes - jnp.asarray(flat, slopes.dtype)[:, None]


def make_evaluation(
    posterior: LocalPosterior,
    rows: np.ndarray | None = None,
    *,
    center_grad: PyTree = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluation on `rows` of the posterior's data, or on all of it.

    Args:
        posterior: loss and data.
        rows: of the subset.
        center_grad: ∇L(w*) over all the data, for a subset; None leaves its slope as it is.
        batch_size: rows whose gradient fits in memory; a pass takes four times as many at most.
    """
    data = posterior.data if rows is None else jax.tree.map(lambda x: x[rows], posterior.data)
    num_rows = posterior.num_data if rows is None else len(rows)
    num_pieces = math.ceil(num_rows / min(_EVAL_ROWS, _OF_BATCH * (batch_size or _EVAL_ROWS)))
    if rows is not None and not posterior.per_example:
        num_pieces = max(num_pieces, min(_SUBSET_UNITS, num_rows))
    num_pieces = next((k for k in range(num_pieces, 2 * num_pieces) if num_rows % k == 0), num_pieces)
    length = num_rows // num_pieces
    split = num_pieces * length
    pieces = jax.tree.map(lambda x: x[:split].reshape(num_pieces, length, *x.shape[1:]), data)
    rest = jax.tree.map(lambda x: x[split:], data) if split < num_rows else None
    if posterior.per_example:
        weights = np.full(num_rows, 1 / num_rows)
    else:
        weights = np.array([length] * num_pieces + ([num_rows - split] if split < num_rows else [])) / num_rows
    return Evaluation(
        pieces, rest, jnp.asarray(weights), center_grad, posterior.per_example or rows is not None, rows is None
    )
