r"""Losses of a draw and of w*, on the same rows.

Their difference is averaged, and L(w*) on other rows than L(w) would be the largest error of all. One `Evaluation`
therefore serves both. Its rows are all the data, or one fixed random subset S. On a subset the slope at w* is a control
variate, which removes the difference between examples to first order in x = w − w*,

$$ L(w) - L(w^*) \approx L_S(w) - L_S(w^*) - (\nabla L_S(w^*) - \nabla L(w^*)) \cdot x , $$

and the same holds with v instead of x for the derivative of the loss along any direction v (of the control variates of
λ̂).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import in_loops
from llc.posterior.rows import Rows, even_length, in_pieces, rows_that_fit, shapes_of

_EVAL_ROWS = 2048  # rows of one evaluation pass; bounds the memory, not the result
_OF_SLOPES = 4.0  # bytes alive in slopes of a subset, in units of those of a gradient
_OF_BATCH = 4  # the same as a multiple of a minibatch, whose gradient fits in memory
_SUBSET_UNITS = 32  # pieces of a subset when the loss is a scalar, for the error of the subset


class Evaluation(eqx.Module):
    """The rows on which losses are evaluated.

    A unit is an example where the loss comes per example and a piece where it is a scalar; `weights` add up to 1.
    `center_grad` is ∇L(w*) over all the data, None where the rows are all the data.
    """

    rows: Rows
    weights: Float[Array, "unit"]
    center_grad: PyTree
    pointwise: bool = eqx.field(static=True)
    uses_all_data: bool = eqx.field(static=True)  # whether the rows are all the data

    def losses(self, posterior: LocalPosterior, position: PyTree) -> Float[Array, "unit"]:
        """Loss of every unit."""
        return self.rows.map(lambda batch: in_loops(posterior.loss_fn, _losses)(posterior, position, batch))

    def losses_and_gradient(self, posterior: LocalPosterior, position: PyTree) -> tuple[Float[Array, "unit"], PyTree]:
        """Loss of every unit, and the gradient of their weighted mean."""

        def of(position: PyTree, batch: PyTree) -> tuple[PyTree, Array]:
            def total(z: PyTree) -> tuple[Array, Array]:
                losses = _losses(posterior, z, batch)
                return jnp.sum(losses), losses

            return jax.grad(total, has_aux=True)(position)

        of_batch = in_loops(posterior.loss_fn, of)

        def add(total: PyTree, piece: PyTree) -> tuple[PyTree, Array]:
            gradient, losses = of_batch(position, piece)
            return jax.tree.map(jnp.add, total, gradient), losses

        total, losses = self.rows.scan(add, jax.tree.map(jnp.zeros_like, position))
        losses = jnp.ravel(losses)  # the units of the pieces have one weight, and so has the rest
        mean = jax.tree.map(lambda g: jnp.asarray(self.weights[0], g.dtype) * g, total)
        if self.rows.rest is None:
            return losses, mean
        gradient, last = of_batch(position, self.rows.rest)
        mean = jax.tree.map(lambda m, g: m + jnp.asarray(self.weights[-1], g.dtype) * g, mean, gradient)
        return jnp.concatenate([losses, last]), mean

    def losses_and_slopes(
        self, posterior: LocalPosterior, position: PyTree, directions: PyTree
    ) -> tuple[Float[Array, "unit"], Float[Array, "direction unit"]]:
        """Loss of every unit, and its derivatives along `directions`, which have a leading axis."""

        def of_batch(position: PyTree, direction: PyTree, batch: PyTree) -> tuple[Array, Array]:
            return jax.jvp(lambda z: _losses(posterior, z, batch), (position,), (direction,))

        def along(direction: PyTree) -> tuple[Array, Array]:
            return self.rows.map(lambda batch: in_loops(posterior.loss_fn, of_batch)(position, direction, batch))

        return jax.vmap(along, out_axes=(None, 0))(directions)

    def excess_slopes(self, posterior: LocalPosterior, directions: PyTree) -> Float[Array, "direction unit"]:
        """Derivatives of every unit's loss at w* along `directions`, less those of L over all the data."""
        _, slopes = self.losses_and_slopes(posterior, posterior.position, directions)
        flat = jax.vmap(lambda direction: optax.tree.vdot(self.center_grad, direction))(directions)
        return slopes - jnp.asarray(flat, slopes.dtype)[:, None]


def _losses(posterior: LocalPosterior, position: PyTree, batch: PyTree) -> Float[Array, "unit"]:
    return jnp.atleast_1d(posterior.loss_fn(posterior.params_at(position), batch))


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
    most = min(_EVAL_ROWS, _OF_BATCH * (batch_size or _EVAL_ROWS))

    def gradient(batch: PyTree) -> PyTree:
        return jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)

    # The slopes of a subset are two derivatives along a direction at once, at w and at w*.
    times = 1.0 if rows is None else _OF_SLOPES
    least = max(int((batch_size or 1) / times), 1)
    program = ("gradient", posterior.loss_fn, shapes_of(posterior.center), shapes_of(posterior.position))
    gradient = in_loops(posterior.loss_fn, gradient)
    fit = rows_that_fit(gradient, data, most, times=times, least=least, program=program)
    num_pieces = math.ceil(num_rows / fit)
    if rows is not None and not posterior.per_example:
        num_pieces = max(num_pieces, min(_SUBSET_UNITS, num_rows))
    length = even_length(num_rows, num_pieces)
    pieces = in_pieces(data, length)
    if posterior.per_example:
        weights = np.full(num_rows, 1 / num_rows)
    else:
        rest = num_rows - pieces.num_pieces * length
        weights = np.array([length] * pieces.num_pieces + [rest] * (rest > 0)) / num_rows
    return Evaluation(
        pieces, jnp.asarray(weights), center_grad, posterior.per_example or rows is not None, rows is None
    )
