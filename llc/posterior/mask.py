"""Which parameters move: paths or booleans, as one leaf for each leaf of the params."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

Moves = bool | np.ndarray | Array  # of one leaf: all of it, nothing of it, or the flat indices that move


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path, such as `layers.0.weight`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def normalize_mask(mask: PyTree, center: PyTree) -> PyTree:
    """One leaf for each leaf of `center`: True (moves), False (stays) or the flat indices that move."""
    if mask is None:
        return None
    if isinstance(mask, str) or (isinstance(mask, Sequence) and mask and all(isinstance(m, str) for m in mask)):
        mask = _mask_from_paths([mask] if isinstance(mask, str) else mask, center)
    try:
        mask = jax.tree.broadcast(mask, center)
    except ValueError as error:
        raise ValueError(
            "mask needs to be paths or a pytree prefix of params with booleans (or boolean arrays of the leaf's shape) "
            f"as leaves, got {jax.tree.structure(mask)} for params {jax.tree.structure(center)}."
        ) from error
    mask = jax.tree_util.tree_map_with_path(_normalize_leaf, mask, center)
    moving = jax.tree.map(
        lambda m, leaf: (np.size(leaf) > 0 if m else False) if isinstance(m, bool) else m.size > 0, mask, center
    )
    if not any(jax.tree.leaves(moving)):
        raise ValueError(
            "mask needs to let at least one parameter move, got all False, or True for empty arrays only; see "
            "posterior.center's paths."
        )
    return mask


def matching_paths(patterns: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Those of `paths` that a pattern matches, each standing for everything below it.

    Raises:
        ValueError: if a pattern matches none.
    """
    paths = list(paths)
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            raise ValueError(f"mask needs paths that match a parameter, got {pattern!r}; the paths are {paths}.")
    return [path for path in paths if any(_matches(path, pattern) for pattern in patterns)]


def _matches(path: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern + below) for below in ("", ".*", "/*"))  # haiku's names have slashes


def _mask_from_paths(patterns: Sequence[str], center: PyTree) -> PyTree:
    paths = [path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(center) if eqx.is_array(leaf)]
    moving = set(matching_paths(patterns, paths))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: eqx.is_array(leaf) and path_name(path) in moving, center)


def _normalize_leaf(path: tuple[Any, ...], moves: Any, leaf: Any) -> Moves:
    if not eqx.is_array(leaf):
        return False
    moves = np.asarray(moves)
    if moves.dtype != np.bool_ or moves.shape not in ((), leaf.shape):
        raise ValueError(
            f"mask at {path_name(path)!r} needs a boolean or a boolean array of shape {leaf.shape}, "
            f"got {moves.dtype} of shape {moves.shape}."
        )
    if moves.all() or not moves.any():
        return bool(moves.all()) if moves.size else False
    return np.flatnonzero(moves)


def moving(mask: PyTree, params: PyTree) -> PyTree:
    """The parameters of `params` that move, and nothing else; `mask` is as of `normalize_mask`."""
    if mask is None:
        return eqx.filter(params, eqx.is_inexact_array)

    def take(moves: Moves, leaf: Any) -> Any:
        if moves is True:
            return leaf
        return None if moves is False else jnp.ravel(leaf)[moves]

    return jax.tree.map(take, mask, params)


def with_moved(mask: PyTree, params: PyTree, position: PyTree) -> PyTree:
    """`params` with `position`, as of `moving`, in place of the parameters that move."""
    if mask is None:
        _, rest = eqx.partition(params, eqx.is_inexact_array)
        return eqx.combine(position, rest)

    def put(moves: Moves, stays: Any, moved: Any) -> Any:
        if moves is True:
            return moved
        if moves is False:
            return stays
        return jnp.ravel(stays).astype(moved.dtype).at[moves].set(moved).reshape(jnp.shape(stays))

    return jax.tree.map(put, mask, params, position)
