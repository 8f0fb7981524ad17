"""The same compiled program for several chains at once, from threads.

XLA's loops leave cores idle between their matrix products, and a program that runs releases Python's lock, so that
threads of one process can fill them. Every chain computes what it would alone: the same bits. Whether it is faster has
to be measured where it runs: where other work takes the cores, programs at once wait for each other's parts.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from llc.posterior.precision import lenient


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
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise ValueError(f"run_at_once needs num_threads >= 1, got {num_threads}.")
    num_threads = min(num_threads, len(items))
    alone = len(items) if num_threads <= 1 else int(first_alone)
    results = [jax.block_until_ready(run(item)) for item in items[:alone]]
    if alone == len(items):
        return results
    # These settings of JAX belong to a thread; another value would make another program.
    precision, wide = jax.config.jax_default_matmul_precision, jax.config.jax_enable_x64
    device = jax.config.jax_default_device

    def work(item: Item) -> Result:
        with jax.default_matmul_precision(precision), jax.enable_x64(wide), jax.default_device(device), lenient():
            return jax.block_until_ready(run(item))

    with ThreadPoolExecutor(num_threads, thread_name_prefix="chain") as pool:
        futures = [pool.submit(work, item) for item in items[alone:]]
        try:
            return results + [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
