r"""Curvature that is not that of a minimum: it would be another one after a Newton step.

Beside a degenerate minimum, that of b⁴ at b = 10⁻³ for instance, the gradient is negligible, but the curvature 12 b² is
not: it would count as rank. Newton's step in the directions v with curvature h > τ,

$$ \delta = -\sum_{h > \tau} \frac{g \cdot v}{h}\, v , $$

tells the two apart: where K ~ t^{2k} it goes 1 / (2k − 1) of the way, and h falls to (1 − 1 / (2k − 1))^{2k − 2} of
what it was, .44 … .37; the curvature of a minimum stays. Directions whose curvature changes by more than a third are
unsettled: they may be curved or not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llc.geometry.operators import CurvatureOperator, displaced

_CHANGE = 1 / 3  # of a curvature
_ROUNDOFF = 4 * np.finfo(np.float64).eps
_COLUMNS = 32  # products computed at a time


def unsettled(
    operator: CurvatureOperator,
    nodes: Float[np.ndarray, "node"],
    vectors: Float[np.ndarray, "kept dim"] | None,
    gradient: Float[np.ndarray, "dim"],
    threshold: float,
) -> Float[np.ndarray, "unsettled"]:
    """Eigenvalues above τ that are unsettled; as many products as there are above τ, none where g is round-off.

    Args:
        operator: the matrix at w*.
        nodes: its eigenvalues.
        vectors: eigenvectors of the largest of them, largest first; without, nothing is known and nothing found.
        gradient: ∇L(w*).
        threshold: τ.
    """
    if vectors is None:
        return np.zeros(0)
    nodes = np.sort(nodes)[::-1][: len(vectors)]
    nodes = nodes[nodes > threshold]
    vectors = vectors[: len(nodes)].astype(np.float64)
    flat = operator.flat
    slopes = vectors @ gradient
    rounding = _ROUNDOFF * nodes.max(initial=0.0) * max(float(jnp.linalg.norm(flat)), 1.0)
    if not (np.abs(slopes) > rounding).any():
        return np.zeros(0)
    step = -(slopes / nodes) @ vectors
    there = np.asarray(_curvatures(operator, flat + step, jnp.asarray(vectors)))
    return nodes[~(np.abs(there - nodes) <= _CHANGE * nodes)]


@eqx.filter_jit
def _curvatures(operator: CurvatureOperator, flat: Array, vectors: Float[Array, "kept dim"]) -> Float[Array, "kept"]:
    """vᵀ H v at another place."""
    there = displaced(operator, flat)
    return jax.lax.map(lambda v: v @ there.product(v), vectors, batch_size=_COLUMNS)
