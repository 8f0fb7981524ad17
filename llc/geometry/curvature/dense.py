r"""All eigenvalues of the curvature at w* from a dense matrix: its own, or the Gram matrix of the outputs.

Dense: `eigh` of the d × d matrix. Gram: $J^\top A J / n$ and $A^{1/2} J J^\top A^{1/2} / n$, the latter of order n·k
for n examples with k outputs, have the same non-zero eigenvalues.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from llc.geometry.curvature.lanczos import require_finite
from llc.geometry.curvature.operators import CurvatureOperator, GaussNewtonOperator, JacobianOperator
from llc.geometry.curvature.symmetric import require_symmetry
from llc.posterior.memory import require_memory

MAX_ORDER = 5_000  # of a dense matrix that `auto` takes: 200 MB and about a minute of eigh on two cores
COLUMNS = 32  # products computed at a time
_CHUNK = 1024  # the same between two looks at the progress bar
_TINY = float(np.finfo(np.float64).tiny)
_CURVED = 1e-9  # times h_max, above which eigenvectors are kept


class Eigenvalues(NamedTuple):
    """Eigenvalues, their multiplicities, the round-off in them, and eigenvectors of the largest, in rows."""

    nodes: Float[np.ndarray, "node"]
    weights: Float[np.ndarray, "node"]
    noise: float
    vectors: Float[np.ndarray, "kept dim"] | None = None


def dense(
    operator: CurvatureOperator, *, progress: bool | None = False
) -> tuple[Eigenvalues, Float[np.ndarray, "node"], np.ndarray, np.ndarray]:
    """Eigenvalues; the gradient's squared components in the eigenvectors; the matrix; the gradient.

    Takes d products and 3 d² float64.
    """
    require_memory(3 * 8 * operator.dim**2, "the dense matrix and its eigenvectors", "method='lanczos'")
    if operator.dim <= _CHUNK:
        matrix, gradient = (np.array(x) for x in jax.device_get(materialize(operator)))
    else:
        starts = tqdm(range(0, operator.dim, _CHUNK), desc="dense", disable=None if progress is None else not progress)
        matrix = np.concatenate([jax.device_get(_columns(operator, np.int32(start))) for start in starts])
        matrix, gradient = matrix[: operator.dim], np.array(jax.device_get(_gradient(operator)))
    require_finite(matrix)
    asymmetry = 0.5 * (matrix - matrix.T)
    require_symmetry(2 * float(np.linalg.norm(asymmetry)) / max(float(np.linalg.norm(matrix)), _TINY))
    # Spectral norm of a matrix of independent round-off: twice its Frobenius norm over √d (semicircle edge).
    noise = 2 * float(np.linalg.norm(asymmetry)) / math.sqrt(operator.dim)
    nodes, vectors = scipy.linalg.eigh(matrix - asymmetry, driver="evd")
    found = Eigenvalues(nodes, np.ones(operator.dim), noise, leading_vectors(nodes, vectors))
    return found, (vectors.T @ gradient) ** 2, matrix, gradient


def leading_vectors(nodes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Eigenvectors of what is well above round-off, largest first, in rows of float32."""
    kept = int(np.sum(nodes > _CURVED * nodes.max(initial=0.0)))
    return np.ascontiguousarray(vectors[:, ::-1][:, :kept].T, dtype=np.float32)


@eqx.filter_jit
def materialize(operator: CurvatureOperator) -> tuple[Float[Array, "dim dim"], Float[Array, "dim"]]:
    """The d × d matrix and the gradient."""
    rows = -(-operator.dim // COLUMNS) * COLUMNS  # whole batches: a rest would be compiled apart
    columns = jax.lax.map(operator.product, jnp.eye(rows, operator.dim), batch_size=COLUMNS)
    return columns[: operator.dim], operator.gradient()


@eqx.filter_jit
def _columns(operator: CurvatureOperator, start: Array | np.integer) -> Float[Array, "chunk dim"]:
    """`_CHUNK` columns of the matrix from number `start` on, as rows."""
    basis = jax.nn.one_hot(start + jnp.arange(_CHUNK), operator.dim, dtype=jnp.float64)
    return jax.lax.map(operator.product, basis, batch_size=COLUMNS)


@eqx.filter_jit
def _gradient(operator: CurvatureOperator) -> Float[Array, "dim"]:
    return operator.gradient()


def gram(curvature: GaussNewtonOperator, jacobian: JacobianOperator, *, progress: bool | None) -> Eigenvalues:
    """Eigenvalues of the Gauss–Newton matrix, from n·k products with J Jᵀ and 3 (n·k)² float64.

    Raises:
        ValueError: if the output loss is not convex, so that A has no root.
    """
    order = jacobian.num_outputs
    require_memory(3 * 8 * order**2, "the Gram matrix of the outputs and its eigenvectors", "method='lanczos'")
    kernel = np.concatenate(
        [
            jax.device_get(_gram_columns(jacobian, jnp.arange(start, start + COLUMNS) % order))
            for start in tqdm(range(0, order, COLUMNS), desc="gram", disable=None if progress is None else not progress)
        ]
    )[:order]
    require_finite(kernel)
    values, vectors = np.linalg.eigh(jax.device_get(_output_curvature(curvature)))  # of every example
    if values.min() < -1e-9 * np.abs(values).max():
        raise ValueError("method 'gram' needs an output loss that is convex in the outputs; take method='lanczos'.")
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :] @ vectors.mT
    num_inputs, width = root.shape[:2]
    for _ in range(2):  # A^½ from both sides
        kernel = np.einsum("iab,ibj->iaj", root, kernel.reshape(num_inputs, width, order)).reshape(order, order).T
    kernel /= num_inputs
    asymmetry = 0.5 * (kernel - kernel.T)
    noise = 2 * float(np.linalg.norm(asymmetry)) / math.sqrt(order)
    nodes = np.linalg.eigvalsh(kernel - asymmetry)
    return with_null_space(nodes, curvature.dim, noise)


@eqx.filter_jit
def _gram_columns(jacobian: JacobianOperator, indices: Int[Array, "column"]) -> Float[Array, "column output"]:
    basis = jax.nn.one_hot(indices, jacobian.num_outputs, dtype=jnp.float64)
    return jax.vmap(lambda u: jacobian.product(jacobian.transpose_product(u)))(basis)


@eqx.filter_jit
def _output_curvature(curvature: GaussNewtonOperator) -> Float[Array, "input output output"]:
    return curvature.output_curvature()


def with_null_space(nodes: np.ndarray, dim: int, noise: float) -> Eigenvalues:
    """The `dim` largest in size, and zero as often as is missing."""
    nodes = nodes[np.sort(np.argsort(-np.abs(nodes))[:dim])]
    if len(nodes) == dim:
        return Eigenvalues(nodes, np.ones(dim), noise)
    return Eigenvalues(np.append(nodes, 0.0), np.append(np.ones(len(nodes)), dim - len(nodes)), noise)
