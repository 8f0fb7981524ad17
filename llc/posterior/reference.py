"""The loss of a model that has learnt nothing, as a measure of how far the draws of a posterior have come.

With all its parameters at zero a network's outputs are the same for every example, and its loss is that of a constant:
log k of a classifier of k classes, the mean square of the targets in a regression.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from llc.posterior.local_posterior import LocalPosterior

_ROWS = 8192  # of the data, at most: as many as L(w*) is evaluated on at once, so that both are one program


def reference_loss(posterior: LocalPosterior) -> float | None:
    """Mean loss at zero, in nats per example, in float64; None where it is not finite.

    All floating-point parameters are zero, also those that a mask keeps at w*. It costs one evaluation of the loss.

    Args:
        posterior: loss, data and w*.

    Example:
        >>> import jax.numpy as jnp
        >>> data = jnp.linspace(-1.0, 1.0, 100)
        >>> posterior = LocalPosterior(lambda w, x: 0.5 * (w["a"] * x - x) ** 2, {"a": jnp.ones(())}, data)
        >>> round(reference_loss(posterior), 3)
        0.17
    """
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else leaf, posterior.center)
    rows = None
    if posterior.num_data > _ROWS:
        rows = np.sort(np.random.default_rng(0).permutation(posterior.num_data)[:_ROWS])  # data may be in order
    with jax.debug_nans(False):  # noqa: FBT003
        loss = eqx.tree_at(lambda p: p.center, posterior, zero).init_loss(rows)
    return loss if np.isfinite(loss) else None
