"""Rows of a stream for the steps of chains: read ahead by a thread, and put on the device a window at a time.

A window holds the minibatches of some whole draws of all chains, each row in one of them. Its rows are consecutive
rows of the endless row of passes over the source, in an order that the run's key shuffles; which rows they are follows
from the number of the window alone, so that a run that is resumed meets the same ones, whatever segments it is cut
into, where the source gives the same order again.
"""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import require_memory
from llc.posterior.precision import lenient
from llc.posterior.row_reader import RowReader
from llc.posterior.stream import Stream
from llc.sampling.kernel import Sampler
from llc.sampling.minibatch import Window
from llc.sampling.placement import CHAIN, DATA
from llc.sampling.run_lengths import RunLengths

_ROWS = 2**15  # of a window: enough to shuffle, and a fraction of a second of most sources
_STEPS = 16  # of a window, at least
_BYTES = 2**28  # of a window, above which it has fewer rows
_IN_FLIGHT = 4  # windows in memory: two on the device, one that is read, and its shuffled copy


def check_stream(posterior: LocalPosterior, sampler: Sampler, lengths: RunLengths, mesh: Mesh | None) -> RunLengths:
    """Lengths of a run, on a stream with the rows of a batch of the source where none are given.

    Raises:
        ValueError: if the run needs all rows at once, more resident rows than there are, or rows spread over devices.
    """
    stream = posterior.stream
    if stream is None:
        return lengths
    num_resident = posterior.resident().num_data
    check_steps_of_stream(sampler, step_energies=lengths.step_energies)
    if lengths.eval_size is not None and lengths.eval_size > num_resident:
        raise ValueError(
            f"eval_size needs to be at most the {num_resident} resident rows, got {lengths.eval_size}; give "
            f"llc.stream(source, resident={lengths.eval_size})."
        )
    if mesh is not None and mesh.shape.get(DATA, 1) > 1:
        raise ValueError(
            f"mesh needs one device along {DATA!r} where data are a stream, got {mesh.shape[DATA]}; give them to "
            f"{CHAIN!r}."
        )
    if jax.process_count() > 1:
        raise ValueError(f"a stream needs a run of one process, got {jax.process_count()}; give arrays.")
    rows = lengths.batch_size or min(stream.batch_rows, posterior.num_data)
    return replace(lengths, batch_size=int(rows))


def check_steps_of_stream(sampler: Sampler | None, *, step_energies: bool | None) -> None:
    """Raises ValueError where steps on a stream can't be what is asked for.

    Args:
        sampler: None leaves it to calibration.
        step_energies: as of `sample`; None leaves it to calibration.
    """
    if sampler is not None and sampler.needs_full_batch:
        raise ValueError(
            f"{type(sampler).__name__} needs the full data in every step, got a stream; take SGLD, or read the data "
            "into arrays by llc.read_batches."
        )
    if step_energies:
        raise ValueError(
            "step_energies needs minibatches that are drawn independently of each other, got a stream, whose rows come "
            "in passes; leave it False: draws are evaluated on the resident rows as before."
        )


class Windows:
    """The windows of a run, in their order.

    Args:
        key: of the run; it chooses the order of passes and how windows are shuffled.
        stream: the source.
        lengths: of the run.
        like: the resident rows where chains run, whose dtypes minibatches have.
        mesh: over which chains are spread.
        apart: whether each chain is a program of its own.

    Raises:
        ValueError: if the minibatches between two draws do not fit in memory.
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        stream: Stream,
        lengths: RunLengths,
        like: PyTree,
        *,
        mesh: Mesh | None = None,
        apart: bool = False,
    ) -> None:
        self.stream, self.mesh, self.apart = stream, mesh, apart
        self.dtypes = jax.tree.map(lambda x: np.dtype(x.dtype), like)
        self.seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
        self.num_chains, self.batch_size, self.thinning = lengths.num_chains, lengths.batch_size or 0, lengths.thinning
        a_step = self.num_chains * self.batch_size
        a_draw = a_step * self.thinning
        a_row = sum(x.nbytes for x in jax.tree.leaves(like)) / max(len(jax.tree.leaves(like)[0]), 1)
        wanted = max(_ROWS, _STEPS * a_step) / a_draw
        self.num_draws = max(1, min(math.ceil(wanted), int(_BYTES / (a_draw * a_row))))
        require_memory(
            int(_IN_FLIGHT * self.num_draws * a_draw * a_row),
            f"the {self.num_draws * a_draw:,} rows of thinning · num_chains · batch_size, {_IN_FLIGHT} times,",
            "a smaller thinning, batch_size or num_chains",
        )
        self._reader = RowReader(stream, self._number_of_pass)
        self._next: tuple[int, Future[list[Window] | None]] | None = None
        self._here: tuple[int, list[Window]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        # Settings of JAX that belong to a thread.
        self._wide, self._device = jax.config.jax_enable_x64, jax.config.jax_default_device

    def left(self, draw: int) -> int:
        """Draws from number `draw` to the end of its window."""
        return self.num_draws - draw % self.num_draws

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context in which a thread reads ahead; when it ends, so has the thread."""
        self._stop.clear()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stream")
        try:
            yield
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            if self._next is not None and not _came(self._next[1]):
                self._next = None

    def holding(self, draw: int) -> list[Window]:
        """The window of a draw, for each compiled program; within `reading`.

        Raises:
            RuntimeError: if the source raises, or this is not within `reading`.
            ValueError: if the source has fewer rows than n, or batches of another form.
        """
        number = draw // self.num_draws
        if self._here is None or self._here[0] != number:
            self._here = number, self._read(number)
        return self._here[1]

    def _read(self, number: int) -> list[Window]:
        if self._pool is None:
            raise RuntimeError("holding is called within reading")
        self._here = None  # its memory is free before the one after the next is read
        if self._next is None or self._next[0] != number:
            self._next = number, self._pool.submit(self._window, number)
        windows = self._next[1].result()
        self._next = number + 1, self._pool.submit(self._window, number + 1)
        if windows is None:
            raise RuntimeError("a window was asked for while reading stopped")
        return windows

    def _window(self, number: int) -> list[Window] | None:
        """Window `number`, on the device; None if reading stops before it is there. Runs in the thread."""
        num_steps = self.num_draws * self.thinning
        shape = self.num_chains, num_steps, self.batch_size
        count = math.prod(shape)
        rows = self._reader.take(number * count, count, self._stop.is_set)
        if rows is None:
            return None
        order = np.random.default_rng([*self.seed, 1, number]).permutation(count).reshape(shape)
        batches = jax.tree.map(lambda x, dtype: np.asarray(x, dtype)[order], rows, self.dtypes)
        first = np.asarray(number * num_steps, np.int32)
        with jax.enable_x64(self._wide), jax.default_device(self._device), lenient():
            if self.apart:
                chains = [jax.tree.map(lambda x: x[i], batches) for i in range(self.num_chains)]  # noqa: B023
                return [Window(jax.device_put(chain), first) for chain in chains]
            place = None if self.mesh is None else NamedSharding(self.mesh, P(CHAIN))
            return [Window(jax.device_put(batches, place), first)]

    def _number_of_pass(self, number: int) -> int:
        """What a source that takes a number gets for a pass: 31 bits of the run's key and the pass."""
        return int(np.random.default_rng([*self.seed, 0, number]).integers(2**31))

    def settings(self, num_resident: int) -> dict[str, object]:
        """What a reader has to know of the rows, as plain data."""
        return {
            "resident": num_resident,
            "order": self.stream.order,
            "window": self.num_draws * self.thinning * self.num_chains * self.batch_size,
        }


def _came(future: Future[list[Window] | None]) -> bool:
    return not future.cancelled() and future.exception() is None and future.result() is not None
