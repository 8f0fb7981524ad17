r"""What is known of the loss over all rows of a stream, beside the rows that are resident.

At w* the mean loss $L_S$ over the resident rows S has another slope than L. Everything that looks at these rows alone
takes $L_S(w) + (\nabla L(w^*) - \nabla L_S(w^*)) \cdot (w - w^*) + L(w^*) - L_S(w^*)$, which has the value and the
gradient of L at w*, and the curvature of $L_S$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


class Whole(NamedTuple):
    """L(w*) and ∇L(w*) over all rows, of which a posterior's data are a sample.

    Attributes:
        loss: L(w*).
        gradient: ∇L(w*) by the parameters that move.
        slope: ∇L(w*) − ∇L_S(w*); None where batches are rows of the whole stream.
        constant: L(w*) − L_S(w*) − slope · w*; 0 where there is no slope.
        share: of all rows that are resident.
    """

    loss: float | Array
    gradient: PyTree
    slope: PyTree = None
    constant: float | Array = 0.0
    share: float | Array = 1.0

    def added(self, position: PyTree) -> float | Array:
        """What a mean loss over resident rows lacks at `position`."""
        if self.slope is None:
            return 0.0
        parts = jax.tree.map(lambda g, z: jnp.vdot(jnp.asarray(g, z.dtype), z), self.slope, position)
        total = sum(jax.tree.leaves(parts))
        return total + jnp.asarray(self.constant, jnp.asarray(total).dtype)
