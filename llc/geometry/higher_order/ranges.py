r"""Range and kernel of the Hessian of K at a point: from a dense matrix, or without one where that is large.

With r orthonormal rows U that span the range, and H = Uᵀ Λ U there,

$$ P_{\ker} v = v - U^\top U v, \qquad H^+ v = U^\top \Lambda^{-1} U v, \qquad
   H^{+\frac12} y = U^\top \Lambda^{-\frac12} y $$

are all that a probe needs. The kernel is a complement, and no basis of it is kept. U takes one of two forms:

- rows in memory: the eigenvectors of the dense matrix, or those of the range finder (r · d numbers);
- for K = ½ |F|² with m residuals, U = Λ^{-½} Vᵀ J from J Jᵀ = V Λ Vᵀ: m² numbers, and a product with J or Jᵀ each time
  that U is applied.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from llc.geometry.curvature.range_finder import OVERSAMPLING, range_finder
from llc.geometry.higher_order.excess import Excess, Offset, dense_metric
from llc.posterior.memory import free_memory

MAX_ORDER = 5_000  # of a matrix whose eigenvectors are computed: minutes of eigh on two cores
_MATRICES = 10  # of d × d, or m × m, float64 numbers at a time
_COPIES = 4  # of the basis of a range, at most, while it is made
_COLUMNS = 32  # products at a time
_VECTORS = 4 * _COLUMNS  # of d numbers that are alive beside the splitting
_TOLERANCE = 1e-14  # precision of products, relative to H
_GIBIBYTE = 2.0**30


class Splitting(eqx.Module):
    """Range and kernel of a positive semidefinite H.

    Attributes:
        curvatures: Λ, its positive eigenvalues; zero where one is not counted.
    """

    curvatures: Float[Array, "known"]

    @abstractmethod
    def components(self, vector: Offset) -> Float[Array, "known"]:
        """U v, also of rows that are not counted."""

    @abstractmethod
    def combination(self, coordinates: Float[Array, "known"]) -> Offset:
        """Uᵀ y, for y that is zero where a row is not counted."""

    @property
    def pass_bytes(self) -> int:
        """Bytes that are read each time that U is applied, which several vectors at a time share; 0 of products."""
        return 0

    @property
    def rank(self) -> int:
        """The number of eigenvalues that are counted, r."""
        return int(np.sum(np.asarray(self.curvatures) > 0))

    def above(self, threshold: float) -> "Splitting":
        """The same, with eigenvalues up to `threshold` counted as zero."""
        counted = jnp.where(self.curvatures > threshold, self.curvatures, 0.0)
        return eqx.tree_at(lambda splitting: splitting.curvatures, self, counted)

    def on_kernel(self, vector: Offset) -> Offset:
        """P v, the part of v in the kernel."""
        for _ in range(2):  # once more, for what round-off leaves
            vector = vector - self.combination(jnp.where(self.curvatures > 0, self.components(vector), 0.0))
        return vector

    def root(self, coordinates: Float[Array, "known"]) -> Offset:
        """H^{+½} y: in y, H is the identity."""
        return self.combination(self._inverse_roots * coordinates)

    def pull(self, vector: Offset) -> Float[Array, "known"]:
        """The transpose of `root`."""
        return self._inverse_roots * self.components(vector)

    def solve(self, vector: Offset) -> Offset:
        """H⁺ v."""
        return self.root(self.pull(vector))

    @property
    def _inverse_roots(self) -> Float[Array, "known"]:
        counted = self.curvatures > 0
        return jnp.where(counted, 1 / jnp.sqrt(jnp.where(counted, self.curvatures, 1.0)), 0.0)


class Eigenvectors(Splitting):
    """U as rows in memory."""

    vectors: Float[Array, "known dim"]

    @property
    def pass_bytes(self) -> int:
        """Those of the rows."""
        return self.vectors.nbytes

    def components(self, vector: Offset) -> Float[Array, "known"]:
        """U v; r · d multiplications."""
        return self.vectors @ vector

    def combination(self, coordinates: Float[Array, "known"]) -> Offset:
        """Uᵀ y."""
        return coordinates @ self.vectors


class Residuals(Splitting):
    """U = Λ^{-½} Vᵀ J, with J the derivative of the residuals at `base`."""

    excess: Excess
    base: Offset
    mix: Float[Array, "output known"]  # V

    def components(self, vector: Offset) -> Float[Array, "known"]:
        """U v; a derivative of the residuals along v."""
        tangent = jax.jvp(self.excess.residuals, (self.base,), (vector,))[1]
        return self._inverse_roots * (tangent @ self.mix)

    def combination(self, coordinates: Float[Array, "known"]) -> Offset:
        """Uᵀ y; the gradient of one combination of the residuals."""
        pull = jax.vjp(self.excess.residuals, self.base)[1]
        return pull(self.mix @ (self._inverse_roots * coordinates))[0]


class Storage(NamedTuple):
    """How the range is kept.

    Attributes:
        form: `"dense"`, `"residuals"` or `"vectors"`.
        most: largest order of a dense matrix, number of residuals, or rank.
    """

    form: str
    most: int


def storage_for(excess: Excess, *, dense: bool | None, memory: float | None) -> Storage:
    """The form that fits in the memory: dense up to d = 5,000, then by the residuals where these are few, then vectors.

    Args:
        excess: K around w*.
        dense: whether a d × d matrix is made; None: where d ≤ 5,000.
        memory: GiB that may be taken; None takes 8, and no more than 80 % of what is free.

    Raises:
        ValueError: if no form fits.
    """
    dim, outputs = excess.dim, count_residuals(excess)
    given = memory is not None
    room = min(8 * _GIBIBYTE if memory is None else memory * _GIBIBYTE, 0.8 * free_memory())
    beside = 8.0 * _VECTORS * dim
    if dense or (dense is None and dim <= MAX_ORDER):
        needed, found = 8.0 * _MATRICES * dim**2, Storage("dense", dim)
    elif outputs is not None and outputs <= MAX_ORDER:
        needed, found = 8.0 * _MATRICES * outputs**2 + beside, Storage("residuals", outputs)
    else:
        needed = 8.0 * _COPIES * OVERSAMPLING * dim + beside
        most = min(int((room - beside) / (8 * _COPIES * dim)) - OVERSAMPLING, MAX_ORDER)
        found = Storage("vectors", most)
    if needed > room:
        setting = f"memory={memory:g}" if given else "memory=8 by default, and 80 % of what is free"
        cure = "take method='matrix_free'" if found.form == "dense" else "restrict the posterior by mask="
        raise ValueError(
            f"higher_bounds needs {needed / _GIBIBYTE:.2g} GiB for d = {dim:,} (method {found.form!r}), got "
            f"{room / _GIBIBYTE:.2g} GiB ({setting}); raise memory=, or {cure}."
        )
    return found


def count_residuals(excess: Excess) -> int | None:
    """m, the number of residuals; None where there are none."""
    if not excess.exact_fit:
        return None
    return math.prod(jax.eval_shape(excess.residuals, jnp.zeros(excess.dim)).shape)


class RangeError(ValueError):
    """The matrix has more eigenvalues that are not zero than fit."""


def require_fit(storage: Storage, rank: int) -> None:
    """Raises RangeError, before the work, if a range of this rank does not fit."""
    if storage.form == "vectors" and rank > storage.most:
        raise RangeError(
            f"{rank:,} eigenvectors do not fit, {storage.most:,} would; raise memory=, or move fewer parameters (mask=)"
        )


def decompose(excess: Excess, offset: Offset, storage: Storage, *, progress: bool | None = False) -> Splitting:
    """All eigenvalues of the Hessian of K at `offset` that are not zero, rising, with round-off: cut it by `above`.

    At an exact fit the Hessian is taken for its Gauss–Newton part, which is the same wherever K = 0.

    Args:
        excess: K around w*.
        offset: of the point from w*.
        storage: of `storage_for`.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        RangeError: if there are more eigenvalues than fit.
    """
    if storage.form == "dense":
        return of_matrix(np.asarray(dense_metric(excess, offset)))
    if storage.form == "residuals":
        eigenvalues, mix = scipy.linalg.eigh(_gram(excess, offset), driver="evd", overwrite_a=True)
        return Residuals(jnp.asarray(eigenvalues), excess, offset, jnp.asarray(mix))
    operator = Metric(excess, offset)
    found = range_finder(operator, storage.most, 0, precision=_TOLERANCE, progress=progress, dtype=np.float64)
    if found is None or found.vectors is None:
        raise RangeError(f"the Hessian has more than {storage.most:,} eigenvalues that are not zero")
    nodes = found.nodes[: len(found.vectors)]  # without the zero that stands for the kernel
    return Eigenvectors(jnp.asarray(nodes), jnp.asarray(found.vectors))


def of_matrix(matrix: Float[np.ndarray, "dim dim"]) -> Splitting:
    """All eigenvalues and eigenvectors of a dense matrix."""
    eigenvalues, vectors = scipy.linalg.eigh(0.5 * (matrix + matrix.T), driver="evd")
    return Eigenvectors(jnp.asarray(eigenvalues), jnp.asarray(vectors.T))


class Metric(eqx.Module):
    """The Hessian of K at a point, as an operator."""

    excess: Excess
    offset: Offset

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self.excess.dim

    def product(self, vector: Offset) -> Offset:
        """H v."""
        return self.excess.metric_product(self.offset, vector)


def _gram(excess: Excess, offset: Offset) -> Float[np.ndarray, "output output"]:
    """J Jᵀ, some columns at a time; m derivatives of the residuals, ahead and back."""
    order = count_residuals(excess)
    if order is None:
        raise TypeError("K has no residuals.")
    starts = range(0, order, _COLUMNS)
    columns = [np.asarray(_gram_columns(excess, offset, jnp.arange(s, s + _COLUMNS) % order)) for s in starts]
    matrix = np.concatenate(columns)[:order]
    return 0.5 * (matrix + matrix.T)


@eqx.filter_jit
def _gram_columns(excess: Excess, offset: Offset, rows: Array) -> Float[Array, "column output"]:
    outputs, pull = jax.vjp(excess.residuals, offset)
    units = jax.nn.one_hot(rows, outputs.size, dtype=outputs.dtype)
    tangents = jax.vmap(lambda unit: pull(unit)[0])(units)
    return jax.vmap(lambda tangent: jax.jvp(excess.residuals, (offset,), (tangent,))[1])(tangents)


@eqx.filter_jit
def project(splitting: Splitting, vectors: Float[Array, "vector dim"]) -> Float[Array, "vector dim"]:
    """`splitting.on_kernel` of several vectors, one after the other."""
    return jax.lax.map(splitting.on_kernel, vectors)


@eqx.filter_jit
def beyond_image(
    excess: Excess, splitting: Splitting, weights: Float[Array, "combination output"]
) -> Float[Array, "combination output"]:
    """Combinations of the residuals at w*, without their part in the image of J: y − J H⁺ Jᵀ y."""
    zero = jnp.zeros(excess.dim)
    _, pull = jax.vjp(excess.residuals, zero)

    def beyond(combination: Float[Array, "output"]) -> Float[Array, "output"]:
        for _ in range(2):  # once more, for what round-off leaves
            image = splitting.solve(pull(combination)[0])
            combination = combination - jax.jvp(excess.residuals, (zero,), (image,))[1]
        return combination

    return jax.lax.map(beyond, weights)
