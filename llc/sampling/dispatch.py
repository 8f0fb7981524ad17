"""The same compiled program for several chains at once, from threads.

XLA's loops leave cores idle between their matrix products, and a program that runs releases Python's lock, so that
threads of one process can fill them. Every chain computes what it would alone: the same bits. On two idle cores two
chains at once took .4 to .65 of the time of one after the other (six networks: dense, convolutional, recurrent,
attention). Where other work takes the cores, programs at once wait for each other's parts (an MLP took 1.3 times as
long), so that `Workers` measures which is faster, and looks again from time to time.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import jax

from llc.posterior.precision import lenient

_RETRIED = 16  # segments after which the slower way is tried again; at first after half as many
_STARTING = 3  # segments with the most programs: the first one compiles, and the second is the first of each thread
# Settings of JAX that belong to a thread; another value would make another program, with other bits.
_OF_A_THREAD = (
    "enable_x64",
    "default_matmul_precision",
    "default_device",
    "default_prng_impl",
    "threefry_partitionable",
    "softmax_custom_jvp",
    "debug_nans",
    "debug_infs",
    "disable_jit",
)


@dataclass
class Workers:
    """How many programs run at once: as many as can, or one after the other, whichever is faster here and now.

    Attributes:
        most: programs that can run at once.
        seconds: of a draw by each number of programs at once, as last seen.
        count: segments so far.
    """

    most: int
    seconds: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def at_once(self) -> int:
        """Programs of the next segment: the most in the first ones, then 1, then whichever was faster.

        Example:
            >>> workers = Workers(2)
            >>> for number, seconds in ((2, 9.0), (2, 2.0), (2, 1.0), (1, 1.5)):
            ...     assert workers.at_once() == number
            ...     workers.saw(number, seconds)
            >>> workers.at_once()
            2
        """
        if self.count < _STARTING or self.most == 1:
            return self.most
        if 1 not in self.seconds:
            return 1
        best = min(self.seconds, key=lambda number: self.seconds[number])
        other = 1 if best == self.most else self.most
        return other if self.count % _RETRIED == _RETRIED // 2 else best

    def saw(self, number: int, seconds: float) -> None:
        """Takes in what a draw took in a segment with `number` of programs at once; the first one compiled."""
        self.count += 1
        if self.count > 1:
            self.seconds[number] = seconds


def run_at_once[Item, Result](
    run: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_threads: int | None = None,
    first_alone: bool = False,
) -> list[Result]:
    """`[run(item) for item in items]`, as many at once as there are threads; each result is waited for.

    Args:
        run: calls a compiled function. It must not change what another call reads.
        items: its arguments, one a chain.
        num_threads: how many run at once; default the cores that this process may use. 1 runs one after the other in
            the calling thread.
        first_alone: whether the first item runs before all others, because `run` still has to be compiled: threads
            that start together would each compile it.

    Raises:
        ValueError: if num_threads is below 1.
        Exception: the first one, in the order of the items, that `run` raises; those that wait are then not started.
    """
    if num_threads is None:
        num_threads = num_cores()
    if num_threads < 1:
        raise ValueError(f"run_at_once needs num_threads >= 1, got {num_threads}.")
    num_threads = min(num_threads, len(items))
    alone = len(items) if num_threads <= 1 else int(first_alone)
    results = [jax.block_until_ready(run(item)) for item in items[:alone]]
    if alone == len(items):
        return results
    settings = {name: getattr(jax.config, f"jax_{name}") for name in _OF_A_THREAD}

    def work(item: Item) -> Result:
        with contextlib.ExitStack() as stack:
            for name, value in settings.items():
                stack.enter_context(getattr(jax, name)(value))
            stack.enter_context(lenient())
            return jax.block_until_ready(run(item))

    with ThreadPoolExecutor(num_threads, thread_name_prefix="chain") as pool:
        futures = [pool.submit(work, item) for item in items[alone:]]
        try:
            return results + [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
