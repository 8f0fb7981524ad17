"""What a spectrum is made from: a symmetric matrix that multiplies vectors, and the check that it is symmetric."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

ASYMMETRY = 1e-3  # ‖A − Aᵀ‖ / ‖A‖; round-off stays below it up to d = 10⁷ even where the loss computes in float32


class NotSymmetricError(ValueError):
    """Products are not those of a symmetric matrix."""


@runtime_checkable
class SymmetricOperator(Protocol):
    """What a spectrum is made from: a symmetric matrix of order `dim` that multiplies vectors."""

    @property
    def dim(self) -> int:
        """Order of the matrix."""
        ...

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """The matrix times `vector`."""
        ...


def check_symmetric(operator: SymmetricOperator, *, num_probes: int = 4, seed: int = 0) -> float:
    """‖A − Aᵀ‖ / ‖A‖ in the Frobenius norm, estimated from 2 · `num_probes` products.

    E (uᵀAv − vᵀAu)² = ‖A − Aᵀ‖² and E ‖Au‖² = ‖A‖² for independent Gaussian u and v.

    Raises:
        NotSymmetricError: if it is above 1e-3, which no round-off explains.
    """
    difference, size = _symmetry(operator, jax.random.split(jax.random.key(seed), num_probes))
    defect = 0.0 if float(size) == 0 else float(np.sqrt(float(difference) / float(size)))
    require_symmetry(defect)
    return defect


def require_symmetry(defect: float, *, allowed: float = ASYMMETRY) -> None:
    """Raises NotSymmetricError if ‖A − Aᵀ‖ / ‖A‖ is above `allowed`: by default 1e-3, which no round-off explains."""
    if not defect <= allowed:
        raise NotSymmetricError(
            f"the operator needs to be symmetric, got ‖A − Aᵀ‖ / ‖A‖ ≈ {defect:.2g}; check the custom "
            "derivatives of the loss, which are not those of any function."
        )


@eqx.filter_jit
def _symmetry(operator: SymmetricOperator, keys: Key[Array, "probe"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    def probe(key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
        u, v = jax.random.normal(key, (2, operator.dim))
        a_u, a_v = operator.product(u), operator.product(v)
        return (u @ a_v - v @ a_u) ** 2, 0.5 * (a_u @ a_u + a_v @ a_v)

    differences, sizes = jax.lax.map(probe, keys)
    return jnp.sum(differences), jnp.sum(sizes)
