"""Masks of single attention heads, for the restricted LLC of a head.

The heads of a layer share its arrays: a query projection of h heads of length k is one array in which h·k entries along
one axis are k of head 0, then k of head 1, and so on. A fused projection has the same for queries, keys and values, one
after the other. The output projection has the heads along its input axis, and a bias that all of them share.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, PyTree

from llc.posterior.arguments import require_integer
from llc.posterior.mask import matching_paths, path_name

_OUTPUT = {"o", "out", "output", "to_out", "c_proj", "proj", "dense", "linear", "wo", "w_o", "b_o"}
_OUTPUT |= {"o_proj", "out_proj", "output_proj"}
_INPUT = {"q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj", "query_proj", "key_proj", "value_proj"}
_FUSED = {"qkv": 3, "c_attn": 3, "in_proj": 3, "kv": 2}  # projections, all heads of one before the next
_UNCLEAR = "query_key_value"  # GPT-NeoX and BLOOM have q, k and v of a head together, others do not
_ENDS = {"weight", "bias", "kernel", "w", "b"}


class _Leaf(NamedTuple):
    """Where the heads lie in one array of the params."""

    axis: int
    fused: int


def head_mask(
    params: PyTree,
    pattern: str | Sequence[str] | Mapping[str, int],
    *,
    head: int | Sequence[int],
    num_heads: int,
    axis: int | None = None,
    fused: int | None = None,
) -> PyTree:
    """A mask for `LocalPosterior(mask=…)`: True for what belongs to the given attention heads, and False for the rest.

    Args:
        params: any pytree, as of `LocalPosterior`.
        pattern: path or paths of the arrays, as of `LocalPosterior(mask=…)`: `"blocks.*.attn"` stands for everything
            below it. A mapping from paths to axes, such as `{"attn.qkv": 0, "attn.out.weight": 1}`, names the axis of
            each by itself.
        head: number of the head, from 0, or of several.
        num_heads: heads of a layer, those of keys and values too. The axis has one entry per head, or a whole number.
        axis: where the heads lie in the query, key and value projections: 0 for a weight of shape (out, in) of PyTorch
            and equinox, -1 for (in, out) of flax's `Linear`, haiku and GPT-2, -2 for flax's (in, head, head_dim). It is
            that of the bias too. An output projection, known by its name (`out`, `output_proj`, `c_proj`, `o`, …), has
            them along its input axis, and its bias stays, since all heads share it.
        fused: projections that lie one after the other along the axis: 3 where all queries come before all keys and
            values (GPT-2, `in_proj_weight` of PyTorch), 1 where the three of a head lie together (GPT-NeoX). None takes
            3 of what is called `qkv`, `c_attn` or `in_proj`, 2 of `kv`, and 1 of the rest.

    Returns:
        A pytree of the structure of `params`, with a boolean array of the leaf's shape where heads are, else False.
        Masks add up by `jax.tree.map(np.logical_or, one, other)`.

    Raises:
        ValueError: if a path matches nothing, an axis is missing or not divisible into heads, or it is not clear where
            the heads of an array lie.

    Example:
        >>> import numpy as np
        >>> params = {"attn": {"qkv": np.zeros((12, 4)), "out": np.zeros((4, 4))}, "mlp": np.zeros((4, 4))}
        >>> mask = head_mask(params, "attn", head=1, num_heads=2, axis=0)
        >>> np.flatnonzero(mask["attn"]["qkv"][:, 0]).tolist(), np.flatnonzero(mask["attn"]["out"][0]).tolist()
        ([2, 3, 6, 7, 10, 11], [2, 3])
    """
    heads = _checked_heads(head, num_heads, fused)
    require_integer("axis", axis, least=-32, most=32, optional=True)
    names = [pattern] if isinstance(pattern, str) else list(pattern) if isinstance(pattern, Sequence | Mapping) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"pattern needs a path of an array, several, or a dict from paths to axes, got {pattern!r}.")
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    leaves = {name: leaf for name, leaf in leaves.items() if eqx.is_array(leaf)}
    if not leaves:
        raise ValueError(f"params need arrays with heads, got none in {type(params).__name__}.")
    places = _places(leaves, pattern, num_heads, axis, fused)
    _check_lengths(leaves, places, num_heads)

    def mask_of(path: tuple[Any, ...], leaf: Any) -> Bool[np.ndarray, "..."] | bool:
        place = places.get(path_name(path)) if eqx.is_array(leaf) else None
        return False if place is None else _entries(np.shape(leaf), place, heads, num_heads)

    return jax.tree_util.tree_map_with_path(mask_of, params)


def _checked_heads(head: int | Sequence[int], num_heads: int, fused: int | None) -> list[int]:
    require_integer("num_heads", num_heads, least=1)
    require_integer("fused", fused, least=1, optional=True)
    heads = list(head) if isinstance(head, Sequence | np.ndarray | range) else [head]
    whole = all(isinstance(h, int | np.integer) and not isinstance(h, bool) for h in heads)
    if not heads or not whole or not all(0 <= h < num_heads for h in heads):
        raise ValueError(f"head needs numbers from 0 to num_heads - 1 = {num_heads - 1}, got {head!r}.")
    return [int(h) for h in heads]


def _entries(shape: tuple[int, ...], place: _Leaf, heads: list[int], num_heads: int) -> Bool[np.ndarray, "..."]:
    """True along the axis where the heads are, in every projection."""
    owner = np.arange(shape[place.axis] // place.fused) // (shape[place.axis] // place.fused // num_heads)
    along = np.tile(np.isin(owner, heads), place.fused)
    others = [1] * len(shape)
    others[place.axis] = -1
    return np.broadcast_to(along.reshape(others), shape).copy()


def _places(
    leaves: dict[str, Any],
    pattern: str | Sequence[str] | Mapping[str, int],
    num_heads: int,
    axis: int | None,
    fused: int | None,
) -> dict[str, _Leaf]:
    """The arrays that have heads, and where."""
    if isinstance(pattern, Mapping) == (axis is not None):
        raise ValueError(
            "head_mask needs one axis for all paths, or pattern as a mapping from each path to its axis, got "
            f"pattern={pattern!r} and axis={axis!r}; give axis=0 for weights of shape (out, in), -1 for (in, out)."
        )
    places = {}
    for one in [pattern] if isinstance(pattern, str) else pattern:
        for name in matching_paths([one], leaves):
            if isinstance(pattern, Mapping):
                places[name] = _Leaf(_given_axis(name, leaves, pattern[one]), _num_fused(name, fused))
            elif not _is_output(name):
                _require_weight(name, leaves)
                places[name] = _Leaf(_given_axis(name, leaves, axis), _num_fused(name, fused))
            elif np.ndim(leaves[name]) > 1:  # the bias is shared by all heads
                places[name] = _Leaf(_output_axis(name, np.shape(leaves[name]), axis, num_heads), 1)
    if not places:
        raise ValueError(f"head_mask needs arrays with heads, got only biases of output projections at {pattern!r}.")
    return places


def _given_axis(name: str, leaves: dict[str, Any], axis: int | None) -> int:
    """The given axis, from 0."""
    shape = np.shape(leaves[name])
    if axis is None or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"head_mask needs axis {axis} in every array, but {name!r} has shape {shape}; leave it out of pattern by "
            "naming the other arrays, or count the axis from the end, as -1."
        )
    return axis % len(shape)


def _require_weight(name: str, leaves: dict[str, Any]) -> None:
    """Raises ValueError if an array of one axis is no bias beside a weight."""
    parent = _parts(name)[:-1]
    if np.ndim(leaves[name]) < 2 and not any(_parts(x)[:-1] == parent and np.ndim(leaves[x]) > 1 for x in leaves):
        raise ValueError(
            f"head_mask needs to know where the heads lie, but {name!r} of shape {np.shape(leaves[name])} is no bias "
            "beside a weight (a norm that all heads share?); give the paths of the projections alone as pattern, or "
            "a mapping from paths to axes."
        )


def _output_axis(name: str, shape: tuple[int, ...], axis: int | None, num_heads: int) -> int:
    """The input axis of the weight of an output projection."""
    if len(shape) == 2:
        return 1 - (axis or 0) % 2
    axes = [i for i, length in enumerate(shape) if length == num_heads]
    if len(axes) != 1:
        raise ValueError(
            f"head_mask needs one axis of {num_heads} heads in the output projection {name!r}, got shape {shape}; "
            "give pattern as a mapping from paths to axes."
        )
    return axes[0]


def _is_output(name: str) -> bool:
    before, last = _names(name)
    return last in _OUTPUT and before not in _INPUT


def _names(name: str) -> tuple[str, str]:
    """The last two names of a path in lower case, without `weight`, `kernel` and the like."""
    parts = _parts(name)
    while len(parts) > 1 and (parts[-1] in _ENDS or parts[-1].isdigit()):
        parts.pop()
    return (parts[-2] if len(parts) > 1 else ""), parts[-1].removesuffix("_weight").removesuffix("_bias")


def _parts(name: str) -> list[str]:
    """The names of a path in lower case; an `nnx.State` has a `value` below every array's name."""
    parts = name.lower().replace("/", ".").split(".")
    return parts[:-1] if len(parts) > 1 and parts[-1] == "value" and parts[-2] in _ENDS else parts


def _num_fused(name: str, fused: int | None) -> int:
    """Projections one after the other along the axis, in an array of this name."""
    if _is_output(name):
        return 1
    if fused is not None:
        return fused
    last = _names(name)[1]
    if last == _UNCLEAR:
        raise ValueError(
            f"head_mask needs fused for {name!r}: 3 where all queries come before all keys and values, 1 where the "
            "three of a head lie together (GPT-NeoX, BLOOM)."
        )
    return next((count for known, count in _FUSED.items() if known in last), 1)


def _check_lengths(leaves: dict[str, Any], places: dict[str, _Leaf], num_heads: int) -> None:
    """Raises ValueError if an axis can't be cut into heads, or if heads have different lengths (a fused projection)."""
    lengths = {name: np.shape(leaves[name])[place.axis] for name, place in places.items()}
    for name, length in lengths.items():
        count = num_heads * places[name].fused
        if length == 0 or length % count:
            raise ValueError(
                f"head_mask needs an axis that is a multiple of num_heads × fused = {num_heads} × {places[name].fused},"
                f" got {length} along axis {places[name].axis} of {name!r} of shape {np.shape(leaves[name])}; check "
                "num_heads, axis and fused. Keys and values of fewer heads (grouped queries) have a mask of their own."
            )
    of_heads = {name: length // (num_heads * places[name].fused) for name, length in lengths.items()}
    if len(set(of_heads.values())) > 1:
        raise ValueError(
            f"head_mask needs heads of one length, got {of_heads}; give fused=3 for an array that has queries, keys "
            "and values one after the other, and a mask of their own to arrays of other sizes (grouped queries, "
            "values longer than keys)."
        )
