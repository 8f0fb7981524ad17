r"""All eigenvalues of the curvature at w*: dense, from the Gram matrix of the outputs, or from its range.

Dense: `eigh` of the d × d matrix. Gram: $J^\top A J / n$ and $A^{1/2} J J^\top A^{1/2} / n$, the latter of order n·k
for n examples with k outputs, have the same non-zero eigenvalues. Block: a matrix of rank r is seen whole from a few
more than r random vectors Ω (Halko, Martinsson & Tropp 2011, §5.5), without another product:

$$ Q = \mathrm{orth}(H \Omega), \qquad Q^\top H Q = (Q^\top H \Omega)\, (Q^\top \Omega)^+ . $$
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from llc.geometry.lanczos import require_finite
from llc.geometry.memory import require_memory
from llc.geometry.operators import CurvatureOperator, GaussNewtonOperator, JacobianOperator, require_symmetry

MAX_ORDER = 5_000  # of a dense matrix that `auto` takes: 200 MB and about a minute of eigh on two cores
_COLUMNS = 32  # products computed at a time
_CHUNK = 1024  # the same between two looks at the progress bar
_OVERSAMPLING = 64  # vectors beyond the rank, of which the last block consists
_SMALL = 1e-3  # ‖(1 − QQᵀ)Hω‖ / ‖Hω‖ below which its direction is orthogonal to Q by less than 1e-13
RESIDUAL = 1e-11  # ‖(1 − QQᵀ)H‖ / ‖H‖ of a range that is found; float64 products leave 1e-14
_TINY = float(np.finfo(np.float64).tiny)
ROUNDING = 16.0  # times the precision of w*
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
    found = Eigenvalues(nodes, np.ones(operator.dim), noise, _leading(nodes, vectors))
    return found, (vectors.T @ gradient) ** 2, matrix, gradient


def _leading(nodes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Eigenvectors of what is well above round-off, largest first, in rows of float32."""
    kept = int(np.sum(nodes > _CURVED * nodes.max(initial=0.0)))
    return np.ascontiguousarray(vectors[:, ::-1][:, :kept].T, dtype=np.float32)


@eqx.filter_jit
def materialize(operator: CurvatureOperator):
    """The d × d matrix and the gradient."""
    rows = -(-operator.dim // _COLUMNS) * _COLUMNS  # whole batches: a rest would be compiled apart
    columns = jax.lax.map(operator.product, jnp.eye(rows, operator.dim), batch_size=_COLUMNS)
    return columns[: operator.dim], operator.gradient()


@eqx.filter_jit
def _columns(operator: CurvatureOperator, start: Array | np.integer):
    """`_CHUNK` columns of the matrix from number `start` on, as rows."""
    basis = jax.nn.one_hot(start + jnp.arange(_CHUNK), operator.dim, dtype=jnp.float64)
    return jax.lax.map(operator.product, basis, batch_size=_COLUMNS)


@eqx.filter_jit
def _gradient(operator: CurvatureOperator):
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
            jax.device_get(_gram_columns(jacobian, jnp.arange(start, start + _COLUMNS) % order))
            for start in tqdm(
                range(0, order, _COLUMNS), desc="gram", disable=None if progress is None else not progress
            )
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
def _gram_columns(jacobian: JacobianOperator, indices: Array):
    basis = jax.nn.one_hot(indices, jacobian.num_outputs, dtype=jnp.float64)
    return jax.vmap(lambda u: jacobian.product(jacobian.transpose_product(u)))(basis)


@eqx.filter_jit
def _output_curvature(curvature: GaussNewtonOperator) -> Float[Array, "input output output"]:
    return curvature.output_curvature()


def block(
    operator: CurvatureOperator, max_rank: int, seed: int, *, precision: float, progress: bool | None
) -> Eigenvalues | None:
    """The non-zero eigenvalues, if there are at most `max_rank`, from about r + 64 products; None if there are more.

    The range is found when what it lacks is below 16 times `precision`, the relative error with which w* is known: an
    exact fit that is rounded to float32 has residuals, which fill the null space with eigenvalues of 1e-7 h_max.

    Keeps r + 64 vectors of d float64. What H has beyond the range that is found is estimated from the last block,
    ‖(1 − QQᵀ)HΩ‖² / 64, and bounds the error of every eigenvalue (`noise`).
    """
    tolerance = max(RESIDUAL, ROUNDING * precision)
    keys = jax.random.split(jax.random.key(seed), -(-max_rank // _OVERSAMPLING) + 1)
    basis: list[np.ndarray] = []  # Q, in blocks
    image = np.zeros((0, 0))  # Qᵀ H Ω
    total = 0.0
    bar = tqdm(keys, desc="range", unit="block", disable=None if progress is None else not progress)
    for i, key in enumerate(bar):
        require_memory(8 * 4 * _OVERSAMPLING * operator.dim, f"{4 * _OVERSAMPLING} vectors more", "method='lanczos'")
        block_image = np.array(jax.device_get(_images(operator, key)))
        require_finite(block_image)
        total = max(total, np.linalg.norm(block_image) / math.sqrt(_OVERSAMPLING))
        inside = _project(basis, block_image)
        residual = np.linalg.norm(block_image) / math.sqrt(_OVERSAMPLING)
        bar.set_postfix_str(f"residual {residual / total if total else 0:.1e}")
        if residual <= tolerance * total:
            bar.close()
            return _from_range(operator, keys[: i + 1], basis, np.hstack([image, inside]), residual)
        fresh, sizes, mix = np.linalg.svd(block_image.T, full_matrices=False)
        kept = sizes > RESIDUAL * total
        fresh = fresh[:, kept].T
        if sizes[kept][-1:].min(initial=np.inf) < _SMALL * total:
            _project(basis, fresh)  # what was small holds more round-off, in the directions of the basis
            fresh /= np.linalg.norm(fresh, axis=1, keepdims=True)
        basis.append(fresh)
        beyond = sizes[kept, None] * mix[kept]
        image = np.block([[image, inside], [np.zeros((len(beyond), image.shape[1])), beyond]])
    return None


def _project(basis: list[np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Takes away from `vectors`, in place, what lies in the span of `basis`; returns its coordinates."""
    inside = [np.zeros((len(block), len(vectors))) for block in basis]
    for _ in range(2):  # twice, for orthogonality to round-off
        for block, total in zip(basis, inside, strict=True):
            part = block @ vectors.T
            vectors -= part.T @ block
            total += part
    return np.concatenate(inside) if inside else np.zeros((0, len(vectors)))


def _from_range(operator, keys, basis, image, residual):
    """Eigenvalues of H from Q and QᵀHΩ."""
    if not basis:
        return with_null_space(np.zeros(0), operator.dim, 0.0)._replace(vectors=np.zeros((0, operator.dim), np.float32))
    probes = (np.asarray(jax.device_get(_probes(operator, key))).T for key in keys)
    seen = np.hstack([np.vstack([block @ probe for block in basis]) for probe in probes])
    matrix = np.linalg.lstsq(seen.T, image.T)[0].T
    lost = max(residual, np.finfo(np.float64).eps * np.linalg.norm(image, 2))
    noise = lost * max(1.0, 1 / np.linalg.svd(seen, compute_uv=False)[-1])
    nodes, mix = np.linalg.eigh(0.5 * (matrix + matrix.T))
    found = with_null_space(nodes, operator.dim, float(noise))
    kept, start = _leading(nodes, mix), 0
    vectors = np.zeros((len(kept), operator.dim), np.float32)
    for block in basis:
        vectors += kept[:, start : start + len(block)] @ block.astype(np.float32)
        start += len(block)
    return found._replace(vectors=vectors)


def _probes(operator: CurvatureOperator, key: Array) -> Float[Array, "block dim"]:
    return jax.random.normal(key, (_OVERSAMPLING, operator.dim), jnp.float64)


@eqx.filter_jit
def _images(operator: CurvatureOperator, key: Array):
    return jax.lax.map(operator.product, _probes(operator, key), batch_size=_COLUMNS)


def with_null_space(nodes: np.ndarray, dim: int, noise: float) -> Eigenvalues:
    """The `dim` largest in size, and zero as often as is missing."""
    nodes = nodes[np.sort(np.argsort(-np.abs(nodes))[:dim])]
    if len(nodes) == dim:
        return Eigenvalues(nodes, np.ones(dim), noise)
    return Eigenvalues(np.append(nodes, 0.0), np.append(np.ones(len(nodes)), dim - len(nodes)), noise)
