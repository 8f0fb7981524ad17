r"""Curvature that is not that of a minimum: it would be another one after a Newton step.

Beside a degenerate minimum, that of b⁴ at b = 10⁻³ for instance, the gradient is negligible, but the curvature 12 b² is
not: it would count as rank. Newton's step tells the two apart. For the direction v_i it is taken in all directions that
are as stiff, or nearly so (softer ones may lead far away at any minimum):

$$ \delta_i = -\sum_{h_j \ge h_i / 3} \frac{g \cdot v_j}{h_j}\, v_j . $$

Where K ~ t^{2k} it goes 1 / (2k − 1) of the way, and h falls to (1 − 1 / (2k − 1))^{2k − 2} of what it was, .44 … .37;
the curvature of a minimum stays. Directions whose curvature changes by more than a third are unstable: they may be
curved or not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llc.geometry.curvature.operators import CurvatureOperator, displaced

_CHANGE = 1 / 3  # of a curvature
_SOFTER = 1 / 3  # curvature of the softest direction of a step, in units of that which is judged
_ROUNDOFF = 4 * np.finfo(np.float64).eps
_CHUNK = 32  # directions at a time: one program for all ranks, and few vectors on the device


def unstable_eigenvalues(
    operator: CurvatureOperator,
    nodes: Float[np.ndarray, "node"],
    vectors: Float[np.ndarray, "kept dim"] | None,
    gradient: Float[np.ndarray, "dim"],
    threshold: float,
) -> Float[np.ndarray, "unstable"]:
    """Eigenvalues above τ that are unstable; as many products as there are above τ, none where g is round-off.

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
    vectors = vectors[: len(nodes)]
    slopes = vectors @ gradient
    rounding = _ROUNDOFF * nodes.max(initial=0.0) * max(float(jnp.linalg.norm(operator.flat)), 1.0)
    if not (np.abs(slopes) > rounding).any():
        return np.zeros(0)
    there = np.concatenate([_chunk(operator, nodes, vectors, slopes, start) for start in range(0, len(nodes), _CHUNK)])
    return nodes[~(np.abs(there - nodes) <= _CHANGE * nodes)]


def _chunk(
    operator: CurvatureOperator, nodes: np.ndarray, vectors: np.ndarray, slopes: np.ndarray, start: int
) -> np.ndarray:
    """v_iᵀ H(w* + δ_i) v_i of some directions."""
    stop = min(start + _CHUNK, len(nodes))
    taken = nodes >= _SOFTER * nodes[start:stop, None]  # (direction of the chunk, direction of the step)
    steps = (taken * (-slopes / nodes)) @ vectors
    missing = ((0, _CHUNK - (stop - start)), (0, 0))
    pairs = (jnp.asarray(np.pad(x, missing), jnp.float64) for x in (vectors[start:stop], steps))
    return np.asarray(_curvatures(operator, *pairs))[: stop - start]


@eqx.filter_jit
def _curvatures(
    operator: CurvatureOperator, vectors: Float[Array, "chunk dim"], steps: Float[Array, "chunk dim"]
) -> Float[Array, "chunk"]:
    def curvature(pair: tuple[Array, Array]) -> Array:
        vector, step = pair
        return vector @ displaced(operator, operator.flat + step).product(vector)

    return jax.lax.map(curvature, (vectors, steps))
