"""A loss in small pieces, for gradients of a batch that do not fit in memory."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from llc.posterior.arguments import require_callable, require_integer
from llc.posterior.rows import in_pieces, num_rows


def microbatched(loss_fn: Callable[[PyTree, PyTree], Array], microbatch_size: int) -> Callable[[PyTree, PyTree], Array]:
    """The same loss, computed `microbatch_size` examples at a time.

    What a gradient keeps in memory is what one piece of the batch needs, whatever the batch: pieces run one after the
    other, and each is computed again on the way back, so that a gradient costs about 4/3 of the time. Losses,
    gradients and derivatives along a direction are the same up to rounding, for sampling, evaluation and curvature.

    Args:
        loss_fn: as of `LocalPosterior`, one loss per example or their mean.
        microbatch_size: examples at a time.

    Raises:
        ValueError: if `microbatch_size` is no whole number >= 1.

    Example:
        >>> import numpy as np
        >>> loss_fn = microbatched(lambda w, x: (w - x) ** 2, 4)
        >>> loss_fn(1.0, np.arange(10.0)).shape
        (10,)
    """
    require_callable("loss_fn", loss_fn, "a function of (params, batch)")
    require_integer("microbatch_size", microbatch_size, least=1, most=2**31 - 1)
    return _Microbatched(loss_fn, int(microbatch_size))


class _Microbatched(eqx.Module):
    """See `microbatched`. Two of the same loss and size are equal, so that posteriors share what is compiled."""

    loss_fn: Callable[[PyTree, PyTree], Array] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        """The loss of `batch`: one value per example, or their mean."""
        if num_rows(batch) <= self.size:
            return self.loss_fn(params, batch)
        rows = in_pieces(jax.tree.map(jnp.asarray, batch), self.size)
        of_piece = eqx.filter_checkpoint(self.loss_fn)

        def of(piece: PyTree) -> Array:
            return of_piece(params, piece)

        losses = eqx.filter_eval_shape(of, jax.tree.map(lambda x: x[0], rows.pieces))
        if losses.ndim:
            return rows.map(of)
        return rows.mean(of, jnp.zeros((), losses.dtype))
