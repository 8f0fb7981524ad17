"""A uniform sample without replacement of rows that come in batches (Vitter 1985, algorithm R)."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.memory import require_memory
from llc.posterior.source import Form


class Reservoir:
    """A uniform sample of the rows so far: all of them up to `size`.

    Args:
        size: rows that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self.random = np.random.default_rng(0)
        self.places = np.zeros(0, np.int64)  # numbers of the rows that are kept
        self.columns: list[np.ndarray] = []
        self.structure: Any = None

    def add(self, batch: PyTree, form: Form) -> None:
        """Takes a batch into account."""
        leaves = jax.tree.leaves(batch)
        if self.structure is None:
            self.structure = form.structure
            cure = "fewer resident rows: llc.stream(source, resident=…)"
            require_memory(2 * self.size * form.row_bytes, f"up to {self.size:,} resident rows", cure)
        numbers = self.count + np.arange(len(leaves[0]))
        self.count += len(numbers)
        room = min(max(self.size - len(self.places), 0), len(numbers))
        if room:
            head = [leaf[:room] for leaf in leaves]
            self.columns = (
                [np.concatenate(x) for x in zip(self.columns, head, strict=True)]
                if self.columns
                else [np.array(x) for x in head]
            )
            self.places = np.concatenate([self.places, numbers[:room]])
        slots = self.random.integers(0, numbers[room:] + 1)
        hits = np.flatnonzero(slots < self.size)
        # Where a slot is hit twice, the later row stays, as if they came one by one.
        last = {int(slots[i]): int(i) for i in hits}
        where, which = np.fromiter(last, np.int64, len(last)), np.fromiter(last.values(), np.int64, len(last)) + room
        self.places[where] = numbers[which]
        for column, leaf in zip(self.columns, leaves, strict=True):
            column[where] = leaf[which]

    def rows(self) -> PyTree:
        """The sample, in the order in which its rows came."""
        order = np.argsort(self.places)
        return jax.tree.unflatten(self.structure, [column[order] for column in self.columns])
