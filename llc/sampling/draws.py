"""What the sampling loop records, and its form on the host: a DataTree in ArviZ's schema."""

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from arviz_base import from_dict
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.comoments import Comoments, block_variables, merged
from llc.sampling.kernel import Info
from llc.sampling.observables import Recorded

_NUM_BLOCKS = 5  # blocks a chain in which per-example moments are kept at first, for jackknife errors
_MOST_BLOCKS = 10  # after top-ups; from here on two become one


class Draw(NamedTuple):
    """What is recorded of one draw; with leading axes (chain, draw) outside of the loop."""

    delta: Float[Array, ""]  # L(w) − L(w*)
    distance: Float[Array, ""]
    info: Info
    stein: Float[Array, "2"] | None  # x·A∇U − tr A along the curved directions and along the rest
    params: PyTree
    observables: dict[str, Array]  # φ(w) − φ(w*) of those whose draws are kept
    step_delta: Float[Array, ""] | None = None  # L(w) − L(w*) of the steps since the draw before, on their batches


class Moments(NamedTuple):
    """Sums over a block's draws so far of d = loss(w) − loss(w*), d², exp(−d) and the slopes of Stein, for every unit.

    On a subset also of d less its slope at w*, and of its square; the slopes of Stein are then without those at w*.
    """

    first: Float[Array, "unit"]
    second: Float[Array, "unit"]
    exponential: Float[Array, "unit"]
    slope_curved: Float[Array, "unit"] | None = None
    slope_flat: Float[Array, "unit"] | None = None
    paired: Float[Array, "unit"] | None = None
    paired_second: Float[Array, "unit"] | None = None


class Sums(NamedTuple):
    """What is added up over a block: moments of every unit's loss and of observables, None where none are kept."""

    units: Moments | None
    observables: Comoments | None


class Segment(NamedTuple):
    """What a segment brings to the host: its draws, and its block's sums."""

    draws: Draw
    moments: Sums


class Recorder:
    """Collects segments on the host and turns them into a DataTree.

    Draws lie in one array a leaf, which is made once for as many as are asked for and grows only with `reserve`. `add`
    returns another recorder and writes only beyond what this one holds, so that an interruption leaves it whole.

    Args:
        warmup: draws of the warm-up, which come first.
        num_draws: how many draws are asked for at first; a block of moments takes a fifth of them.
    """

    def __init__(self, warmup: int, num_draws: int) -> None:
        self.warmup = warmup
        self.end, self.capacity = 0, warmup + num_draws
        self.buffers: list[np.ndarray] = []  # the leaves of `Draw`, with leading axes (chain, draw)
        self.structure: Any = None
        self.num_draws, self.num_blocks = num_draws, min(_NUM_BLOCKS, num_draws)
        self.moments: dict[int, Sums] = {}
        self.counts: dict[int, int] = {}
        self.offset = 0  # draws before those in the buffers, which are kept elsewhere
        self.before: np.ndarray | None = None  # L(w) − L(w*) of the last of them

    def reserve(self, num_draws: int) -> None:
        """Makes room for `num_draws` draws of a chain in all, those of the warm-up too."""
        if num_draws <= self.capacity:
            return
        self.capacity = num_draws
        for i, buffer in enumerate(self.buffers):
            self.buffers[i] = np.empty((len(buffer), num_draws - self.offset, *buffer.shape[2:]), buffer.dtype)
            self.buffers[i][:, : self.end - self.offset] = buffer[:, : self.end - self.offset]

    def block_end(self, draw: int) -> int:
        """The draw at which the block of `draw` ends, by its number; the warm-up is a block too."""
        if draw < self.warmup:
            return self.warmup
        return self.warmup - (-(self._block(draw) + 1) * self.num_draws // self.num_blocks)

    def starts_block(self, draw: int) -> bool:
        """Whether sums start anew with this draw."""
        return draw <= self.warmup or self._block(draw) != self._block(draw - 1)

    def _block(self, draw: int) -> int:
        return (draw - self.warmup) * self.num_blocks // self.num_draws

    def add(self, start: int, count: int, parts: Sequence[Segment]) -> "Recorder":
        """With one segment more of every program, of one block, each with leading axes (chain, draw)."""
        self.reserve(start + count)
        leaves = [jax.tree.leaves(part.draws) for part in parts]
        if not self.buffers:
            self.structure = jax.tree.structure(parts[0].draws)
            num_chains = sum(len(part[0]) for part in leaves)
            room = self.capacity - self.offset
            self.buffers = [np.empty((num_chains, room, *x.shape[2:]), x.dtype) for x in leaves[0]]
        first, place = 0, start - self.offset
        for part in leaves:
            last = first + len(part[0])
            for buffer, leaf in zip(self.buffers, part, strict=True):
                buffer[first:last, place : place + count] = leaf[:, :count]
            first = last
        more = copy.copy(self)
        more.end = start + count
        if start >= self.warmup and parts[0].moments != (None, None):
            sums = jax.tree.map(lambda *x: np.concatenate(x), *[part.moments for part in parts])
            more._keep(start, count, sums)
        return more

    def _keep(self, start: int, count: int, sums: Sums) -> None:
        """Takes the sums of the block under way, which began with its first draw; two blocks become one if many are."""
        self.moments, self.counts = dict(self.moments), dict(self.counts)
        while self._block(start) >= _MOST_BLOCKS:
            pairs = sorted({number // 2 for number in self.moments})
            halves = {pair: [n for n in (2 * pair, 2 * pair + 1) if n in self.moments] for pair in pairs}
            self.counts = {pair: sum(self.counts[n] for n in half) for pair, half in halves.items()}
            self.moments = {pair: _sum_of([self.moments[n] for n in half]) for pair, half in halves.items()}
            self.num_draws *= 2
        block = self._block(start)
        self.moments[block], self.counts[block] = sums, self.counts.get(block, 0) + count

    @property
    def last_deltas(self) -> Float[np.ndarray, "chain"]:
        """L(w) − L(w*) of the last draw of every chain."""
        if self.end == self.offset and self.before is not None:
            return self.before
        return np.asarray(self._recorded().delta[:, -1])

    def since(self, draw: int) -> "Recorder":
        """The same with the draws from number `draw` on only, as views."""
        later = copy.copy(self)
        later.buffers = [buffer[:, draw - self.offset :] for buffer in self.buffers]
        later.offset, later.before = draw, None
        return later

    def _recorded(self) -> Draw:
        """All draws so far, as views of the arrays that they lie in."""
        return jax.tree.unflatten(self.structure, [buffer[:, : self.end - self.offset] for buffer in self.buffers])

    def tree(
        self,
        constants: dict[str, float],
        attributes: dict[str, str],
        posterior: LocalPosterior,
        weights: Float[np.ndarray, "unit"],
        observables: Mapping[str, Recorded],
    ) -> xr.DataTree:
        """Everything recorded, with the warm-up apart; `weights` are those of the units that losses come in."""
        groups, warmup = {}, max(self.warmup - self.offset, 0)
        if self.end > self.offset:
            draws = self._recorded()
            groups = {"posterior": _values(draws, constants), "sample_stats": _statistics(draws, constants["nbeta"])}
        split: dict[str, dict[str, Any]] = {}
        if self.end - self.offset > warmup:
            split |= {name: {k: v[:, warmup:] for k, v in group.items()} for name, group in groups.items()}
        if warmup:
            for name, group in groups.items():
                split[f"warmup_{name}"] = {k: v[:, :warmup] for k, v in group.items()}
        split["constant_data"] = dict(constants)
        with warnings.catch_warnings():
            # A short run of many chains is no mistake in the order of the axes.
            warnings.filterwarnings("ignore", message="Found chain dimension to be longer than draw dimension")
            tree = from_dict(split, attrs={"/": attributes}, save_warmup=True)
        tree.attrs.update(attributes)
        if observables:
            self._put_observables(tree, observables)
        if any(sums.units is not None for sums in self.moments.values()):
            tree["pointwise"] = xr.DataTree(self._pointwise("example" if posterior.per_example else "piece", weights))
        return tree

    def _put_observables(self, tree: xr.DataTree, observables: Mapping[str, Recorded]) -> None:
        """The groups of observables, and their values at w* among the constants."""
        dims = {name: one.dims for name, one in observables.items()}
        draws = self._recorded().observables if self.end > self.offset else {}
        warmup = max(self.warmup - self.offset, 0)
        parts = {"warmup_observables": slice(warmup), "observables": slice(warmup, None)}
        for group, part in parts.items():
            found = {name: xr.Variable(("chain", "draw", *dims[name]), x[:, part]) for name, x in draws.items()}
            if group == "observables":
                sums = [self.moments[block].observables for block in sorted(self.moments)]
                found |= block_variables([block for block in sums if block is not None], dims)
            if found and not (group == "warmup_observables" and not warmup):
                sizes = xr.Dataset(found).sizes
                tree[group] = xr.DataTree(
                    xr.Dataset(found, {dim: np.arange(sizes[dim]) for dim in ("chain", "draw") if dim in sizes})
                )
        at_center = {f"init_{name}": (dims[name], np.asarray(one.center)) for name, one in observables.items()}
        tree["constant_data"] = xr.DataTree(tree["constant_data"].to_dataset().assign(at_center))

    def _pointwise(self, unit: str, weights: Float[np.ndarray, "unit"]) -> xr.Dataset:
        """Means over every block of draws, of every unit."""
        blocks = [(self.moments[block].units, self.counts[block]) for block in sorted(self.moments)]
        dims = ("block", "chain", unit)
        means: dict[str, Any] = {}
        for name in Moments._fields:
            if (first := getattr(blocks[0][0], name)) is None:
                continue
            values = np.empty((len(blocks), *first.shape), np.float32)
            for i, (total, count) in enumerate(blocks):
                values[i] = getattr(total, name) / count
            means[name] = (dims, values)
        means["weight"] = (dims[-1:], weights.astype(np.float64))
        means["num_draws"] = (("block",), np.array([float(count) for _, count in blocks]))
        return xr.Dataset(means)


def _sum_of(parts: Sequence[Sums]) -> Sums:
    """Sums over the draws of all; exp(−d) may overflow, which a check of the report names."""
    with np.errstate(over="ignore", invalid="ignore"):
        units = jax.tree.map(lambda *x: np.sum(x, axis=0), *[part.units for part in parts])
        observables = [part.observables for part in parts if part.observables is not None]
        return Sums(units, merged(observables) if observables else None)


def _values(draws: Draw, constants: dict[str, float]) -> dict[str, np.ndarray]:
    """Losses in float64, and the parameters where they were kept."""
    delta = np.asarray(draws.delta).astype(np.float64)
    values = {"loss": constants["init_loss"] + delta, "llc": constants["nbeta"] * delta}
    for path, leaf in jax.tree_util.tree_leaves_with_path(draws.params):
        values[parameter_name(path)] = leaf if leaf.dtype in (np.float32, np.float64) else leaf.astype(np.float32)
    return values


def _statistics(draws: Draw, nbeta: float) -> dict[str, np.ndarray]:
    """What the sampler says of its steps, the distance to w*, and the residuals of the control variates."""
    stats: dict[str, Any] = draws.info._asdict()
    del stats["loss"]  # of the steps' batches: see step_delta
    stats["distance"] = draws.distance
    if draws.step_delta is not None:
        stats["step_energy"] = nbeta * draws.step_delta.astype(np.float64)
    if draws.stein is not None:
        stats |= {"stein_curved": draws.stein[..., 0], "stein_flat": draws.stein[..., 1]}
    if not (stats["acceptance_rate"] >= 0).any():  # no accept step
        del stats["acceptance_rate"]
    return {name: x if x.dtype == bool else x.astype(np.float64) for name, x in stats.items()}


def parameter_name(path: tuple) -> str:
    """Name of a parameter's variable."""
    # xarray takes a slash, as in haiku's names, for a path of groups.
    return f"params.{jax.tree_util.keystr(path, simple=True, separator='.').replace('/', '.') or 'w'}"


def describe(module: Any) -> Any:
    """Settings of a sampler as plain data."""
    if isinstance(module, eqx.Module):
        fields = {field.name: describe(getattr(module, field.name)) for field in dataclasses.fields(module)}
        return {"name": type(module).__name__, **fields}
    if isinstance(module, (str, int, float, bool, type(None))):
        return module
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(module)]
    if len(shapes) != 1 or shapes[0]:
        return f"arrays of shapes {shapes}"
    return np.asarray(module).tolist()
