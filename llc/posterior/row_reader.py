"""Rows of a stream by their number, read in order from pass after pass over its source."""

import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.stream import Stream


class RowReader:
    """Rows of the endless row of passes over a stream, by their number: pass p has those from p·n to (p + 1)·n.

    Args:
        stream: the source.
        number_of: the number that chooses the order of a pass.
    """

    def __init__(self, stream: Stream, number_of: Callable[[int], int] = lambda number: number) -> None:
        self.stream, self.number_of = stream, number_of
        self.position, self._batches, self._rest = -1, iter(()), None  # of no rows yet

    def take(self, start: int, count: int, stopped: Callable[[], bool] = lambda: False) -> PyTree:
        """Rows `start` to `start + count`, as new arrays; None if `stopped` becomes true before they are read.

        Raises:
            RuntimeError: if the source raises, with what it raised as its cause.
            ValueError: if it has fewer rows than n, or batches of different form.
        """
        if start != self.position:
            self._seek(start)
        columns = [np.empty((count, *x.shape[1:]), x.dtype) for x in jax.tree.leaves(self.stream.resident)]
        done = 0
        while done < count:
            if stopped():
                self.position = -1
                return None
            batch, self._rest = (self._next() if self._rest is None else self._rest), None
            leaves = jax.tree.leaves(batch)
            taken = min(len(leaves[0]), count - done)
            for column, leaf in zip(columns, leaves, strict=True):
                column[done : done + taken] = leaf[:taken]
            if taken < len(leaves[0]):
                self._rest = jax.tree.map(lambda x: x[taken:], batch)  # noqa: B023
            done += taken
        self.position = start + count
        return jax.tree.unflatten(jax.tree.structure(self.stream.resident), columns)

    def _seek(self, start: int) -> None:
        """Goes to row `start`, over the rows before it in its pass."""
        number, skip = divmod(start, self.stream.num_data)
        self._batches, self._rest = self._passes(number), None
        while skip:
            batch = self._next()
            rows = len(jax.tree.leaves(batch)[0])
            if rows > skip:
                self._rest = jax.tree.map(lambda x: x[skip:], batch)  # noqa: B023
            skip -= min(rows, skip)

    def _passes(self, first: int) -> Iterator[PyTree]:
        for number in itertools.count(first):
            yield from self.stream.rows_of_pass(self.number_of(number), self.stream.num_data)

    def _next(self) -> PyTree:
        self.position = -1  # until what was asked for is there
        try:
            return next(self._batches)
        except ValueError as error:
            if str(error).startswith("source needs"):
                raise
            raise _of_source(error) from error
        except Exception as error:  # the user's source may raise anything
            raise _of_source(error) from error


def _of_source(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"the source of the stream raised {type(error).__name__} while rows were read ahead: "
        f"{str(error).partition(chr(10))[0]}; mend the source. A run with a store goes on from its last checkpoint."
    )
