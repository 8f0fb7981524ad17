r"""Where a model loses information: ranks of its layers, and the units of a layer that do not affect the outputs.

For a unit j that a layer computes with params $w_j$ and the next one reads with params $v_j$, the behavioral gradients
of $f = \ldots v_j\, \phi(w_j \cdot x)$ are $\partial f / \partial v_j \propto \phi(w_j \cdot x)$, the activation, and
$\partial f / \partial w_j \propto v_j\, \phi'(w_j \cdot x)\, x$, its effect on the outputs. Linear dependence among
them is lost information. Both are zero for a dead unit, the second is zero for an unread one, and the first are
multiples of each other for duplicates. Each case lowers rank G (`llc.geometry.features.behavioral_gradients`).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

from llc.geometry.curvature.operators import JacobianOperator
from llc.geometry.features.behavioral_gradients import BehavioralGradients
from llc.posterior.arguments import require_number, require_type


class LayerRank(NamedTuple):
    """Behavioral gradients of one layer: the params below one path.

    Attributes:
        path: of the layer, or of the leaf where no layer is above it.
        rank: rank of the layer's rows of G.
        num_params: number of its params that move.
        largest: its largest feature, an eigenvalue of its block of the feature Gram matrix.
    """

    path: str
    rank: int
    num_params: int
    largest: float


@dataclasses.dataclass(frozen=True)
class UnitStates:
    """Which units of one layer affect the outputs.

    Attributes:
        dead: units whose incoming and outgoing params change no output: they are zero on all inputs.
        unread: units whose outgoing params change the outputs and whose incoming ones do not: their outgoing weights
            are zero, or they are saturated.
        duplicates: groups of units that are multiples of each other on all inputs.
        num_distinct: number of units without the dead ones, the unread ones and all but one of each group.
        incoming: root mean square over the inputs of the gradient of each unit's incoming params.
        outgoing: the same for its outgoing params.
    """

    dead: tuple[int, ...]
    unread: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]
    num_distinct: int
    incoming: Float[np.ndarray, "unit"]
    outgoing: Float[np.ndarray, "unit"]


def layer_ranks(gradients: BehavioralGradients) -> tuple[LayerRank, ...]:
    """Rank of each layer's rows of G at the threshold of the whole, in the order of the params.

    A layer is what lies below one path: the leaves `layers.0.weight` and `layers.0.bias` make `layers.0`.
    """
    require_type("gradients", gradients, BehavioralGradients, "llc.behavioral_gradients(…)")
    layers: dict[str, list[np.ndarray]] = {}
    for leaf in moving_leaves(gradients.operator):
        layers.setdefault(leaf.layer, []).append(gradients.matrix[leaf.rows])
    ranks = []
    for path, blocks in layers.items():
        block = np.concatenate(blocks)
        values = np.linalg.svdvals(block)
        rank, largest = int(np.sum(values > gradients.threshold)), float(values[0]) ** 2 / gradients.num_inputs
        ranks.append(LayerRank(path, rank, len(block), largest))
    return tuple(ranks)


def unit_states(
    gradients: BehavioralGradients, incoming: Mapping[str, int], outgoing: Mapping[str, int], *, tolerance: float = 1e-6
) -> UnitStates:
    """Dead, unread and duplicate units of one layer.

    Args:
        gradients: of the whole model, or with a mask that lets this layer and the next one move.
        incoming: path of each leaf that computes the units (weights, biases), and its axis that counts the units.
        outgoing: the same for the leaves that read them.
        tolerance: a gradient counts as zero below it, relative to that of the largest unit, and so does an angle in
            radians. Trained units are dead or equal only up to convergence; take about 1e-2 for them.

    Raises:
        ValueError: if a path is no leaf that moves as a whole, the numbers of units differ, or the tolerance is not
            between 1e-7 (round-off of an angle) and 1.
    """
    require_type("gradients", gradients, BehavioralGradients, "llc.behavioral_gradients(…)")
    require_number("tolerance", tolerance)
    if not 1e-7 <= tolerance < 1:
        raise ValueError(f"tolerance needs a number from 1e-7 (round-off of an angle) to 1, got {tolerance}.")
    computing, reading = (_by_unit(gradients, *x) for x in (("incoming", incoming), ("outgoing", outgoing)))
    if len(computing) != len(reading):
        raise ValueError(
            f"incoming and outgoing need the same number of units, got {len(computing)} and {len(reading)}; check the "
            "axes."
        )
    inward, outward = (np.linalg.norm(vectors, axis=1) for vectors in (computing, reading))
    still, silent = inward <= tolerance * inward.max(), outward <= tolerance * outward.max()
    directions = reading / np.where(silent, 1.0, outward)[:, None]
    same = 1 - np.abs(directions @ directions.T) <= 0.5 * tolerance**2
    same &= ~silent[:, None] & ~silent[None]
    _, group = connected_components(same, directed=False)
    members = [tuple(map(int, np.flatnonzero(group == i))) for i in np.unique(group)]
    return UnitStates(
        dead=tuple(map(int, np.flatnonzero(still & silent))),
        unread=tuple(map(int, np.flatnonzero(still & ~silent))),
        duplicates=tuple(units for units in members if len(units) > 1),
        num_distinct=sum(not still[list(units)].all() for units in members),
        incoming=inward / np.sqrt(gradients.num_inputs),
        outgoing=outward / np.sqrt(gradients.num_inputs),
    )


def _by_unit(gradients: BehavioralGradients, name: str, axes: Mapping[str, int]) -> np.ndarray:
    """One row a unit: the gradients of all its params in `axes`, which is the argument `name`."""
    if not isinstance(axes, Mapping):
        raise ValueError(f"{name} needs to be a dict of paths with their axes, got {type(axes).__name__}.")
    shapes = {leaf.path: leaf.shape for leaf in moving_leaves(gradients.operator) if leaf.shape is not None}
    rows = {leaf.path: leaf.rows for leaf in moving_leaves(gradients.operator)}
    blocks = []
    for path, axis in axes.items():
        shape = shapes.get(path, ())
        if not (isinstance(axis, int) and -len(shape) <= axis < len(shape)):
            raise ValueError(
                f"{name} needs the path and axis of params that all move, got {path!r} and {axis}; "
                f"paths and shapes are {shapes}."
            )
        block = gradients.matrix[rows[path]].reshape(*shape, -1)
        blocks.append(np.moveaxis(block, axis, 0).reshape(shape[axis], -1))
    if len({len(block) for block in blocks}) != 1:
        raise ValueError(f"{name} needs one and the same number of units, got {list(map(len, blocks))} for {axes}.")
    return np.concatenate(blocks, axis=1)


class MovingLeaf(NamedTuple):
    """A leaf of the params that move.

    Attributes:
        path: of the leaf.
        layer: path of what it lies in, or its own where nothing is above it.
        shape: of the leaf; None where only some of it moves.
        rows: of G.
    """

    path: str
    layer: str
    shape: tuple[int, ...] | None
    rows: slice


def moving_leaves(operator: JacobianOperator) -> list[MovingLeaf]:
    """Leaves of the params that move, in the order of the rows of G."""
    posterior = operator.posterior
    centers = dict(jax.tree_util.tree_leaves_with_path(posterior.center))
    leaves, start = [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(posterior.position):
        name, layer = (jax.tree_util.keystr(part, simple=True, separator=".") for part in (path, path[:-1] or path))
        shape = leaf.shape if leaf.shape == centers[path].shape else None
        leaves.append(MovingLeaf(name, layer, shape, slice(start, start + leaf.size)))
        start += leaf.size
    return leaves
