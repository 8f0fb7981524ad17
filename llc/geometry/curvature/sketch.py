r"""All non-zero eigenvalues of the curvature from two small matrices: no basis of the range is kept.

With random signs Ω (d × k, made again whenever they are needed) and H of rank r < k, H = U Λ Uᵀ and G = UᵀΩ,

$$ S_1 = \Omega^\top H\, \Omega = G^\top \Lambda\, G, \qquad S_2 = \Omega^\top H^2\, \Omega = G^\top \Lambda^2 G : $$

S₁ has the rank of H (and as many negative eigenvalues), and the pencil S₂ x = h S₁ x has the eigenvalues of H on the
range of S₁, exactly. With S₁ = V D Vᵀ they are those of D⁻¹ VᵀS₂V. A column takes two products, the range finder
(range_finder.py) one and a vector of d that it keeps.

What S₁ has beyond its r leading eigenvalues bounds what was missed: another direction of curvature h adds about
h (k − r) to it, the part of its row of G that the others do not reach.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from llc.geometry.curvature.dense import Eigenvalues, with_null_space
from llc.geometry.curvature.lanczos import require_finite
from llc.geometry.curvature.operators import CurvatureOperator
from llc.geometry.curvature.range_finder import RESIDUAL, ROUNDING
from llc.posterior.memory import require_memory

_WIDTH = 32  # columns at a time, a bit each of a random word
_BYTES = 2 * 2**30  # of the columns and their two images
_FILLED = 0.8  # r / k of a sketch that is large enough: the least singular value of G is then at least 0.1 √k
_SPARE = 64  # columns beyond r
_GROWTH = 1.15  # of k between two looks at the rank


def sketch_size(rank: int) -> int:
    """Columns that a sketch of a matrix of this rank needs."""
    return math.ceil(max(rank / _FILLED, rank + _SPARE))


def sketched(
    operator: CurvatureOperator, max_rank: int, seed: int, *, precision: float, progress: bool | None
) -> Eigenvalues | None:
    """The non-zero eigenvalues, if there are at most `max_rank`, from 2.5 … 3 r + 150 products; None if there are more.

    Eigenvalues count whose part of S₁ is above 16 times `precision`, the relative error with which w* is known. Keeps
    two k × k matrices, k ≤ 1.5 r + 75, and 96 vectors of d float64 (fewer where they would take more than 2 GiB).
    """
    dim = operator.dim
    width = max(1, min(_WIDTH, _BYTES // (3 * 8 * dim)))
    most = -(-math.ceil(_GROWTH * sketch_size(max_rank)) // width)
    keys = jax.random.split(jax.random.key(seed), most)
    require_memory(3 * 8 * width * dim, f"{3 * width} vectors of d = {dim:,}", "method='lanczos'")
    once, twice = np.zeros((2, 0, 0))
    look = sketch_size(0)
    bar = tqdm(keys, desc="sketch", unit="range_finder", disable=None if progress is None else not progress)
    for i, key in enumerate(bar):
        images = _images(operator, key, width)
        columns = [np.stack(jax.device_get(_signs_times(key, *images, width))) for key in keys[: i + 1]]
        new = np.concatenate(columns, axis=1)  # (2, columns so far, width)
        require_finite(new)
        once, twice = (_bordered(matrix, border) for matrix, border in zip((once, twice), new, strict=True))
        if (size := len(once)) < look:
            continue
        require_memory(6 * 8 * size**2, f"matrices of order {size:,}", "method='lanczos'")
        sizes = np.abs(np.linalg.eigvalsh(once))
        rank = int(np.sum(sizes > max(RESIDUAL, ROUNDING * precision) * sizes.max()))
        bar.set_postfix_str(f"rank {rank} of {size} columns")
        if size >= sketch_size(rank):
            bar.close()
            return _eigenvalues(once, twice, rank, dim)
        look = math.ceil(_GROWTH * size)
    return None


def _bordered(matrix: np.ndarray, border: np.ndarray) -> np.ndarray:
    """The symmetric matrix that ends with the columns `border`."""
    size, width = matrix.shape[0], border.shape[1]
    corner = 0.5 * (border[size:] + border[size:].T)
    return np.block([[matrix, border[:size]], [border[:size].T, corner]]) if size else corner.reshape(width, width)


def _eigenvalues(once: np.ndarray, twice: np.ndarray, rank: int, dim: int) -> Eigenvalues:
    """Eigenvalues of the pencil on the leading part of S₁."""
    nodes, vectors = np.linalg.eigh(once)
    order = np.argsort(-np.abs(nodes))
    kept, rest = order[:rank], order[rank:]
    if not rank:
        return with_null_space(np.zeros(0), dim, float(np.abs(nodes).max() / len(once)))
    root = np.sqrt(np.abs(nodes[kept]))
    inner = vectors[:, kept].T @ twice @ vectors[:, kept] / np.outer(root, root)
    found, mix = np.linalg.eigh(inner)
    signs = np.sign(nodes[kept])
    if (signs < 0).any():  # D⁻¹ VᵀS₂V is similar to the root of `inner`, its signs, the root
        half = mix * np.sqrt(np.maximum(found, 0))
        found = np.linalg.eigvalsh(half.T @ (signs[:, None] * half))
    missed = np.abs(nodes[rest]).max(initial=0.0) / (len(once) - rank)
    rounding = np.finfo(np.float64).eps * np.linalg.norm(twice, 2) / root.min() ** 2
    return with_null_space(found, dim, float(max(missed, rounding)))


def _signs(key: Array, dim: int, width: int) -> Float[Array, "width dim"]:
    bits = jax.random.bits(key, (dim,), jnp.uint32)
    return 2.0 * ((bits >> jnp.arange(width, dtype=jnp.uint32)[:, None]) & 1) - 1.0


@eqx.filter_jit
def _images(operator: CurvatureOperator, key: Array, width: int) -> tuple[Array, Array]:
    """H Ω and H² Ω of a block, in rows."""
    once = jax.lax.map(operator.product, _signs(key, operator.dim, width), batch_size=width)
    return once, jax.lax.map(operator.product, once, batch_size=width)


@eqx.filter_jit
def _signs_times(key: Array, once: Array, twice: Array, width: int) -> tuple[Array, Array]:
    signs = _signs(key, once.shape[1], width)
    return signs @ once.T, signs @ twice.T
