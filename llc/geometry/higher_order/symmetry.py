r"""Continuous symmetries of the loss, and the dimension of their orbit at w*.

Along a vector field X with X·∇K = 0 the loss does not change. D fields that are independent at w* can be straightened
one after the other. K is then a function of d − D variables, and with r of them quadratic

$$ \lambda \le \tfrac r2 + \tfrac{d - D - r}{4} . $$

The shapes of the parameters propose fields. A field is accepted only if X·∇K = 0 at random points, two of them close
to w* and two at the distance of the size of its parameters:

- exchange: P ↦ P E, Q ↦ −Q Eᵀ for single entries E of the axis that two arrays share, biases included. Accepted are
  all entries (GL(h)) between consecutive linear layers and in the products QKᵀ and VO of attention (with several heads,
  those within a head), the diagonal ones at a ReLU (rescaling), and rotations where P and Q are the same array;
- transport: a hidden bias of a linear layer moves into the next bias;
- shift: a constant is added along an axis, as to all logits; or a single parameter on which the loss does not depend.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.geometry.higher_order.excess import Excess, distance_left, typical_size
from llc.posterior.local_posterior import LocalPosterior

Generator = Callable[[PyTree], PyTree]

_DISTANCES = (0.01, 0.01, 0.3, 0.3)  # in units of the parameters, the last at least in 1: the same far and near
_INVARIANT = 1e-8  # X·∇K against the sum of its terms' sizes, which round-off makes 1e-14
_DEAD = 1e-12  # a derivative against the largest one
_INDEPENDENT = 1e-6  # singular values of the fields at w*, against the largest: w* itself is known to 1e-7 (float32)
_BEYOND = 10.0  # times the distance from w* to its minimum, for the same


class Symmetry(NamedTuple):
    """The orbit at w*.

    Attributes:
        dimension: D, the rank of all accepted fields at w*.
        kinds: number of accepted fields of each kind.
        rejected: number of given generators along which the loss changes.
        evaluations: gradients that it took.
        tangents: an orthonormal basis of the orbit's tangent space at w*.
    """

    dimension: int
    kinds: dict[str, int]
    rejected: int
    evaluations: int
    tangents: Float[np.ndarray, "dimension dim"]


class _View(NamedTuple):
    """An array as a matrix whose columns are a set of its axes."""

    leaf: int
    axes: tuple[int, ...]  # of the columns
    shape: tuple[int, ...]  # of the columns


class _Field(NamedTuple):
    kind: str
    tangents: Float[np.ndarray, "field dim"]


def symmetry_dimension(
    excess: Excess, key: PRNGKeyArray, generators: Sequence[Generator] = (), *, by_shape: bool = True
) -> Symmetry:
    """Dimension of the symmetry orbit at w*; four gradients, and the singular values of the fields, D · d numbers.

    Args:
        excess: K around w*.
        key: of the points at which fields are verified.
        generators: further fields, `generator(params) -> tangent`, a pytree like the params.
        by_shape: whether fields that the shapes of the parameters propose are tried; their matrix may be large.
    """
    posterior = excess.operator.posterior
    flat, unravel = ravel_pytree(posterior.position)
    flat = np.asarray(flat)
    noise = np.asarray(jax.random.normal(key, (len(_DISTANCES), excess.dim)))
    lengths = np.array([typical_size(excess)] * len(_DISTANCES))
    lengths[-1] = max(lengths[-1], 1.0)  # where parameters are small, a high power of one looks like none
    offsets = (lengths * _DISTANCES)[:, None] * noise
    gradients = np.asarray(_gradients(excess, jnp.asarray(offsets)))
    arrays = _Arrays(posterior, flat, flat + offsets, gradients)
    kinds: dict[str, int] = {}
    basis = np.zeros((0, excess.dim))
    least = max(_INDEPENDENT, _BEYOND * distance_left(excess, key))
    proposed = itertools.chain(_exchanges(arrays), _transports(arrays), _shifts(arrays)) if by_shape else ()
    for kind, tangents in proposed:
        kinds[kind] = kinds.get(kind, 0) + len(tangents)
        basis = _compressed(np.concatenate([basis, tangents]), least)
    rejected = 0
    for generator in generators:
        at_center, *at_points = (
            _tangent(generator, posterior, posterior.params_at(unravel(jnp.asarray(point))))
            for point in (flat, *(flat + offsets))
        )
        if all(_is_invariant(g @ x, np.abs(g) @ np.abs(x)) for g, x in zip(gradients, at_points, strict=True)):
            kinds["given"] = kinds.get("given", 0) + 1
            basis = _compressed(np.concatenate([basis, at_center[None]]), least)
        else:
            rejected += 1
    kinds = {kind: count for kind, count in kinds.items() if count}
    return Symmetry(len(basis), kinds, rejected, len(offsets), basis)


@eqx.filter_jit
def _gradients(excess: Excess, offsets: Float[Array, "point dim"]) -> Float[Array, "point dim"]:
    return jax.lax.map(excess.gradient, offsets)


def _is_invariant(change: np.ndarray | np.floating, size: np.ndarray | np.floating) -> np.ndarray | np.bool:
    return np.abs(change) <= _INVARIANT * size


def _tangent(generator: Generator, posterior: LocalPosterior, params: PyTree) -> np.ndarray:
    """The field at `params`, flat; it has to be zero for parameters that do not move."""
    try:
        tangent = generator(params)
    except Exception as error:  # the user's function may raise anything
        raise ValueError(
            "generators need to be functions of params that return their tangent, but one raises "
            f"{type(error).__name__}: {error}."
        ) from error
    there = eqx.tree_at(lambda p: p.center, posterior, tangent)
    flat, unravel = ravel_pytree(there.position)
    stays = eqx.tree_at(lambda p: p.center, posterior, jax.tree.map(jnp.zeros_like, eqx.filter(tangent, eqx.is_array)))
    rest = eqx.filter(stays.params_at(unravel(flat)), eqx.is_array)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), rest, eqx.filter(tangent, eqx.is_array))
    if not all(jax.tree.leaves(same)):
        raise ValueError(
            "generators need a zero tangent for parameters that the mask keeps at w*, got another one; leave that "
            "generator out, or let those parameters move (mask)."
        )
    return np.asarray(flat)


def _compressed(tangents: np.ndarray, least: float) -> np.ndarray:
    """An orthonormal basis of the span, of singular values above `least` times the largest."""
    if not len(tangents):
        return tangents
    _, values, basis = np.linalg.svd(tangents, full_matrices=False)
    return basis[values > least * max(values[0], np.finfo(np.float64).tiny)]


class _Arrays:
    """The parameters that move, array by array: at w*, at the points of verification, and the gradients there."""

    def __init__(
        self, posterior: LocalPosterior, center: np.ndarray, points: np.ndarray, gradients: np.ndarray
    ) -> None:
        moving = jax.tree.leaves(posterior.position)
        mask = [True] * len(moving)
        if posterior.mask is not None:
            mask = [leaf is True for leaf in jax.tree.leaves(posterior.mask) if leaf is not False]
        self.shapes = [leaf.shape for leaf in moving]
        self.ends = np.cumsum([leaf.size for leaf in moving])
        self.whole = [i for i, moves in enumerate(mask) if moves and moving[i].size]  # a part of an array has no axes
        self.center, self.points, self.gradients = center, points, gradients

    def array(self, vector: np.ndarray, leaf: int) -> np.ndarray:
        """The part of a vector, or of a stack of them, that belongs to array number `leaf`."""
        end = self.ends[leaf]
        size = int(np.prod(self.shapes[leaf], dtype=int))
        return vector[..., end - size : end].reshape(*vector.shape[:-1], *self.shapes[leaf])

    def matrix(self, vector: np.ndarray, view: _View) -> np.ndarray:
        """`view` of a vector, or of a stack of them; writes go through for single vectors only if it is a view."""
        lead = vector.ndim - 1
        array = self.array(vector, view.leaf)
        rest = [i for i in range(array.ndim - lead) if i not in view.axes]
        array = array.transpose(*range(lead), *(lead + i for i in (*rest, *view.axes)))
        return array.reshape(*array.shape[:lead], -1, int(np.prod(view.shape)))

    def indices(self, view: _View) -> np.ndarray:
        """Places of the matrix's entries in the flat vector."""
        return self.matrix(np.arange(int(self.ends[-1])), view)

    def views(self) -> Iterator[_View]:
        """Every array as a matrix, for each choice of the axes of its columns."""
        for leaf in self.whole:
            shape = self.shapes[leaf]
            for count in range(1, max(len(shape), 2)):
                for axes in itertools.combinations(range(len(shape)), count):
                    yield _View(leaf, axes, tuple(shape[i] for i in axes))


def _exchanges(arrays: _Arrays) -> Iterator[_Field]:
    views = sorted(arrays.views(), key=lambda view: view.shape)
    for _, group in itertools.groupby(views, key=lambda view: view.shape):
        same = list(group)
        biases = [view for view in same if len(arrays.shapes[view.leaf]) == len(view.axes)]
        matrices = [view for view in same if view not in biases]
        for view in same:
            yield _exchange(arrays, [view], [view], "rotation")
        for left, right in itertools.combinations(matrices, 2):
            if left.leaf != right.leaf:
                for below, above in itertools.product([None, *biases], repeat=2):
                    if below is None or below != above:
                        yield _exchange(
                            arrays,
                            [left] if below is None else [left, below],
                            [right] if above is None else [right, above],
                            "exchange",
                        )


def _exchange(arrays: _Arrays, left: Sequence[_View], right: Sequence[_View], kind: str) -> _Field:
    """P ↦ P E, Q ↦ −Q Eᵀ for all single entries E along which the loss does not change."""

    def rates(views: Sequence[_View], *, transpose: bool) -> tuple[np.ndarray, np.ndarray]:
        total, size = np.zeros(()), np.zeros(())
        for view in views:
            values, slopes = arrays.matrix(arrays.points, view), arrays.matrix(arrays.gradients, view)
            first, second = (slopes, values) if transpose else (values, slopes)
            total = total + np.swapaxes(first, 1, 2) @ second
            size = size + np.swapaxes(np.abs(first), 1, 2) @ np.abs(second)
        return total, size

    (gained, gained_size), (lost, lost_size) = rates(left, transpose=False), rates(right, transpose=True)
    accepted = _is_invariant(gained - lost, gained_size + lost_size).all(axis=0)
    if kind == "rotation":
        accepted = np.triu(accepted, 1)
    entries = np.argwhere(accepted)
    tangents = np.zeros((len(entries), len(arrays.center)))
    for views, sign in ((left, 1.0), (right, -1.0)):
        for view in views:
            values, places = arrays.matrix(arrays.center, view), arrays.indices(view)
            for row, (i, j) in enumerate(entries):
                source, target = (i, j) if sign > 0 else (j, i)
                tangents[row, places[:, target]] += sign * values[:, source]
    return _Field(kind, tangents)


def _transports(arrays: _Arrays) -> Iterator[_Field]:
    """A hidden bias against the next one, b ↦ b + e and b' ↦ b' − W e."""
    vectors = [leaf for leaf in arrays.whole if len(arrays.shapes[leaf]) == 1]
    for view, hidden, after in itertools.product(arrays.views(), vectors, vectors):
        shape = arrays.shapes[view.leaf]
        rest = tuple(size for i, size in enumerate(shape) if i not in view.axes)
        if hidden == after or view.shape != arrays.shapes[hidden] or rest != arrays.shapes[after]:
            continue
        values = arrays.matrix(arrays.points, view)
        before, behind = arrays.array(arrays.gradients, hidden), arrays.array(arrays.gradients, after)
        change = before - np.einsum("sij,si->sj", values, behind)
        size = np.abs(before) + np.einsum("sij,si->sj", np.abs(values), np.abs(behind))
        accepted = np.flatnonzero(_is_invariant(change, size).all(axis=0))
        tangents = np.zeros((len(accepted), len(arrays.center)))
        starts = {leaf: int(arrays.ends[leaf]) - arrays.shapes[leaf][0] for leaf in (hidden, after)}
        tangents[np.arange(len(accepted)), starts[hidden] + accepted] = 1.0
        columns = slice(starts[after], starts[after] + arrays.shapes[after][0])
        tangents[:, columns] = -arrays.matrix(arrays.center, view)[:, accepted].T
        yield _Field("transport", tangents)


def _shifts(arrays: _Arrays) -> Iterator[_Field]:
    """Constants along an axis, and single parameters."""
    size = len(arrays.center)
    largest = np.abs(arrays.gradients).max(axis=1, keepdims=True)
    dead = np.flatnonzero((np.abs(arrays.gradients) <= _DEAD * largest).all(axis=0))
    yield _Field("unused parameter", np.eye(size)[dead])
    for view in arrays.views():
        slopes, places = arrays.matrix(arrays.gradients, view), arrays.indices(view)
        accepted = np.flatnonzero(_is_invariant(slopes.sum(axis=2), np.abs(slopes).sum(axis=2)).all(axis=0))
        tangents = np.zeros((len(accepted), size))
        for row, index in enumerate(accepted):
            tangents[row, places[index]] = 1.0
        yield _Field("shift", tangents)
