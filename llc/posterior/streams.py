"""Data that come in batches, read into arrays: of a PyTorch DataLoader, grain, tf.data, or a function that yields them.

A posterior needs the same n examples again and again, in batches of several sizes, so that arrays are the fastest data.
What yields batches is read once, piece by piece into one block of memory, which is asked for before it is filled. Data
that do not fit are a stream (stream.py).
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.arguments import require_integer
from llc.posterior.memory import require_memory
from llc.posterior.source import Form, check_ends, check_source, open_pass


def read_batches(source: Iterable[PyTree] | Callable[..., Iterable[PyTree]], *, num_data: int | None = None) -> PyTree:
    """The examples of all batches of `source`, in their order, as NumPy arrays for `LocalPosterior`.

    Args:
        source: an iterable of batches, each a pytree of arrays or tensors with the examples along the leading axis: a
            PyTorch `DataLoader`, grain, `tf.data`, a list; or a function that returns one, such as a generator
            function. The last batch may be shorter. A DataLoader that shuffles gives another order each time: the
            minibatches of a run are then not the same at the same key; take `shuffle=False`.
        num_data: examples to read, and no more; None reads to the end. An endless source needs it.

    Raises:
        ValueError: if there are no batches, fewer examples than `num_data`, batches of different structure or row
            shapes, no end that is known, or not enough memory for `num_data` examples.

    Example:
        >>> import numpy as np
        >>> read_batches({"x": np.full((2, 3), i)} for i in range(4))["x"].shape
        (8, 3)
    """
    require_integer("num_data", num_data, least=1, optional=True)
    check_source(source)
    if num_data is None:
        check_ends(source, "num_data")
    batches = open_pass(source, 0)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            "source needs at least one batch, got none; an iterator that has been used up is empty: give the loader, "
            "or a function that returns a new iterator."
        )
    rows = _Reading(first, num_data)
    while not rows.complete and (batch := next(batches, None)) is not None:
        rows.add(batch)
    return rows.joined()


class _Reading:
    """Batches so far, of one structure."""

    def __init__(self, first: PyTree, num_data: int | None) -> None:
        self.wanted, self.count, self.checked = num_data, 0, 0
        self.form = Form(first)
        self.columns: list[list[np.ndarray]] = [[] for _ in jax.tree.leaves(first)]
        if num_data is not None:
            self._require(num_data * self.form.row_bytes)
        self.add(first)

    @property
    def complete(self) -> bool:
        return self.wanted is not None and self.count >= self.wanted

    def add(self, batch: PyTree) -> None:
        num_rows = self.form.num_rows(batch, self.count)
        for column, array in zip(self.columns, jax.tree.leaves(batch), strict=True):
            column.append(array)
        self.count += num_rows
        if self.wanted is None and self.count >= 2 * self.checked:
            self.checked = self.count
            self._require(self.count * self.form.row_bytes)

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
        return jax.tree.unflatten(self.form.structure, leaves)

    def _require(self, num_bytes: int) -> None:
        cure = "fewer examples: num_data=…, a narrower dtype, or llc.stream(source), which keeps some of them in memory"
        require_memory(num_bytes, "the data of source", cure)
