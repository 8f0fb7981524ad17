r"""All non-zero eigenvalues of the curvature at w* from its range, where that is small.

A matrix of rank r is seen whole from a few more than r random vectors Ω (Halko, Martinsson & Tropp 2011, §5.5), without
another product:

$$ Q = \mathrm{orth}(H \Omega), \qquad Q^\top H Q = (Q^\top H \Omega)\, (Q^\top \Omega)^+ . $$
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from llc.geometry.curvature.dense import COLUMNS, Eigenvalues, leading_vectors, with_null_space
from llc.geometry.curvature.lanczos import require_finite
from llc.geometry.curvature.symmetric import SymmetricOperator
from llc.posterior.memory import require_memory

OVERSAMPLING = 64  # vectors beyond the rank, of which the last block consists
_SMALL = 1e-3  # ‖(1 − QQᵀ)Hω‖ / ‖Hω‖ below which its direction is orthogonal to Q by less than 1e-13
RESIDUAL = 1e-11  # ‖(1 − QQᵀ)H‖ / ‖H‖ of a range that is found; float64 products leave 1e-14
ROUNDING = 16.0  # times the precision of w*
_COORDINATES = 4096  # of all vectors that are mixed at a time


def range_finder(
    operator: SymmetricOperator,
    max_rank: int,
    seed: int,
    *,
    precision: float,
    progress: bool | None,
    dtype: DTypeLike = np.float32,
) -> Eigenvalues | None:
    """The non-zero eigenvalues, if there are at most `max_rank`, from about r + 64 products; None if there are more.

    The range is found when what it lacks is below 16 times `precision`, the relative error with which w* is known: an
    exact fit that is rounded to float32 has residuals, which fill the null space with eigenvalues of 1e-7 h_max.

    Keeps r + 64 vectors of d float64. What H has beyond the range that is found is estimated from the last block,
    ‖(1 − QQᵀ)HΩ‖² / 64, and bounds the error of every eigenvalue (`noise`). The eigenvectors are those of curvatures
    well above round-off, largest first; in float64 they are all, smallest first, and take the place of the basis.
    """
    tolerance = max(RESIDUAL, ROUNDING * precision)
    keys = jax.random.split(jax.random.key(seed), -(-max_rank // OVERSAMPLING) + 1)
    basis: list[np.ndarray] = []  # Q, in blocks
    image = np.zeros((0, 0))  # Qᵀ H Ω
    total = 0.0
    bar = tqdm(keys, desc="range", unit="range_finder", disable=None if progress is None else not progress)
    for i, key in enumerate(bar):
        require_memory(8 * 4 * OVERSAMPLING * operator.dim, f"{4 * OVERSAMPLING} vectors more", "method='lanczos'")
        block_image = np.array(jax.device_get(_images(operator, key)))
        require_finite(block_image)
        total = max(total, np.linalg.norm(block_image) / math.sqrt(OVERSAMPLING))
        inside = _project(basis, block_image)
        residual = np.linalg.norm(block_image) / math.sqrt(OVERSAMPLING)
        bar.set_postfix_str(f"residual {residual / total if total else 0:.1e}")
        if residual <= tolerance * total:
            bar.close()
            return _from_range(operator, keys[: i + 1], basis, np.hstack([image, inside]), residual, dtype)
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


def _from_range(
    operator: SymmetricOperator,
    keys: Array,
    basis: list[np.ndarray],
    image: np.ndarray,
    residual: float,
    dtype: DTypeLike,
) -> Eigenvalues:
    """Eigenvalues of H from Q and QᵀHΩ."""
    if not basis:
        return with_null_space(np.zeros(0), operator.dim, 0.0)._replace(vectors=np.zeros((0, operator.dim), dtype))
    probes = (np.asarray(jax.device_get(_probes(operator, key))).T for key in keys)
    seen = np.hstack([np.vstack([block @ probe for block in basis]) for probe in probes])
    matrix = np.linalg.lstsq(seen.T, image.T)[0].T
    lost = max(residual, np.finfo(np.float64).eps * np.linalg.norm(image, 2))
    noise = lost * max(1.0, 1 / np.linalg.svd(seen, compute_uv=False)[-1])
    nodes, mix = np.linalg.eigh(0.5 * (matrix + matrix.T))
    found = with_null_space(nodes, operator.dim, float(noise))
    if dtype == np.float64:
        return found._replace(vectors=_mixed(basis, mix.T))
    kept, start = leading_vectors(nodes, mix), 0
    vectors = np.zeros((len(kept), operator.dim), np.float32)
    for block in basis:
        vectors += kept[:, start : start + len(block)] @ block.astype(np.float32)
        start += len(block)
    return found._replace(vectors=vectors)


def _mixed(basis: list[np.ndarray], mix: Float[np.ndarray, "vector basis"]) -> Float[np.ndarray, "vector dim"]:
    """`mix` times the basis, which is overwritten and given up block by block."""
    dim = basis[0].shape[1]
    for start in range(0, dim, _COORDINATES):
        columns = slice(start, start + _COORDINATES)
        mixed = mix @ np.concatenate([block[:, columns] for block in basis])
        ends = np.cumsum([len(block) for block in basis])
        for block, part in zip(basis, np.split(mixed, ends[:-1]), strict=True):
            block[:, columns] = part
    vectors, start = np.empty((len(mix), dim)), 0
    while basis:
        block = basis.pop(0)
        vectors[start : start + len(block)] = block
        start += len(block)
    return vectors


def _probes(operator: SymmetricOperator, key: Array) -> Float[Array, "block dim"]:
    return jax.random.normal(key, (OVERSAMPLING, operator.dim), jnp.float64)


@eqx.filter_jit
def _images(operator: SymmetricOperator, key: Array) -> Float[Array, "block dim"]:
    return jax.lax.map(operator.product, _probes(operator, key), batch_size=COLUMNS)
