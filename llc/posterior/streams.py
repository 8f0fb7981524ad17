"""Data that come in batches, read into arrays: of a PyTorch DataLoader, grain, tf.data, or a function that yields them.

A posterior needs the same n examples again and again, in batches of several sizes, so that its data are arrays. What
yields batches is read once, piece by piece into one block of memory, which is asked for before it is filled.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.mask import path_name
from llc.posterior.memory import require_memory


def read_batches(source: Iterable[PyTree] | Callable[[], Iterable[PyTree]], *, num_data: int | None = None) -> PyTree:
    """The examples of all batches of `source`, in their order, as NumPy arrays for `LocalPosterior`.

    Args:
        source: an iterable of batches, each a pytree of arrays or tensors with the examples along the leading axis: a
            PyTorch `DataLoader`, grain, `tf.data`, a list; or a function that returns one, such as a generator
            function. The last batch may be shorter. A DataLoader that shuffles gives another order each time: the
            minibatches of a run are then not the same at the same key; take `shuffle=False`.
        num_data: examples to read, and no more; None reads to the end. An endless source needs it.

    Raises:
        ValueError: if there are no batches, fewer examples than `num_data`, batches of different structure or row
            shapes, or not enough memory for `num_data` examples.

    Example:
        >>> import numpy as np
        >>> read_batches({"x": np.full((2, 3), i)} for i in range(4))["x"].shape
        (8, 3)
    """
    if num_data is not None and num_data < 1:
        raise ValueError(f"num_data needs a number of examples >= 1, got {num_data}.")
    batches = iter(source() if callable(source) and not hasattr(source, "__iter__") else _iterable(source))
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "source needs at least one batch, got none; an iterator that has been used up is empty: give the loader, "
            "or a function that returns a new iterator."
        )
    rows = _Reading(_as_arrays(first), num_data)
    while not rows.complete and (batch := next(batches, None)) is not None:
        rows.add(_as_arrays(batch))
    return rows.joined()


def _iterable(source: Any) -> Iterable[PyTree]:
    if isinstance(source, dict | str | bytes) or not hasattr(source, "__iter__"):
        raise ValueError(
            f"source needs to be an iterable of batches, or a function that returns one, got {type(source).__name__}; "
            "arrays need no reading: give them to LocalPosterior as they are."
        )
    return source


def _as_arrays(batch: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, batch)


class _Reading:
    """Batches so far, of one structure."""

    def __init__(self, first: PyTree, num_data: int | None):
        self.wanted, self.count, self.checked = num_data, 0, 0
        self.structure, self.shapes = jax.tree.structure(first), _shapes(first)
        self.columns: list[list[np.ndarray]] = [[] for _ in jax.tree.leaves(first)]
        if not self.columns or any(np.ndim(x) == 0 for x in jax.tree.leaves(first)):
            raise ValueError(
                f"source needs batches of arrays with the examples along the leading axis, got {self.shapes or first}."
            )
        if num_data is not None:
            self._require(num_data * _num_bytes(first) // len(jax.tree.leaves(first)[0]))
        self.add(first)

    @property
    def complete(self) -> bool:
        return self.wanted is not None and self.count >= self.wanted

    def add(self, batch: PyTree) -> None:
        lengths = {len(x) for x in jax.tree.leaves(batch) if np.ndim(x)}
        if jax.tree.structure(batch) != self.structure or _shapes(batch) != self.shapes or len(lengths) != 1:
            raise ValueError(
                f"source needs batches of one structure and row shape, got {self.shapes} first and {_shapes(batch)} "
                f"with {sorted(lengths)} examples after {self.count}; pad rows to one length and put a mask beside."
            )
        for column, array in zip(self.columns, jax.tree.leaves(batch), strict=True):
            column.append(array)
        self.count += lengths.pop()
        if self.wanted is None and self.count >= 2 * self.checked:
            self.checked = self.count
            self._require(sum(_num_bytes(column) for column in self.columns))

    def joined(self) -> PyTree:
        if self.wanted is not None and self.count < self.wanted:
            raise ValueError(
                f"source needs num_data = {self.wanted} examples, got {self.count}; give num_data={self.count}, or "
                "None to take what there is."
            )
        leaves = []
        for column in self.columns:  # one after the other, so that one is in memory twice
            leaves.append(np.concatenate(column)[: self.wanted])
            column.clear()
        return jax.tree.unflatten(self.structure, leaves)

    def _require(self, num_bytes: int) -> None:
        require_memory(num_bytes, "the data of source", "fewer examples: num_data=…, or a narrower dtype")


def _shapes(batch: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of a row of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {path_name(path): (np.shape(x)[1:], str(np.asarray(x).dtype)) for path, x in leaves}


def _num_bytes(batch: PyTree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(batch))
