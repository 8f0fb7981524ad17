"""Where the items of a sweep run: here, one after the other, or wherever an executor of `concurrent.futures` has them.

An item that fails is tried once more. A second failure is its outcome, and the others go on.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass

import xarray as xr

from llc.sweeps.task import RETRIED, Task, run_task


@dataclass(frozen=True)
class Outcome:
    """What came of an item: its draws, or why there are none."""

    draws: xr.DataTree | None
    failed: str = ""
    retried: str = ""


def run_all(tasks: Sequence[Task], executor: Executor | None) -> Generator[tuple[str, Outcome]]:
    """Each item's outcome as it comes, with one more try for those that fail.

    Args:
        tasks: of the items that are to be run.
        executor: where; None runs one after the other in this process.
    """
    pool = Here() if executor is None else executor
    most = 1 if executor is None else len(tasks)  # here, one is finished and written before the next begins
    queue = [(task, "") for task in tasks]
    waiting: dict[Future[xr.DataTree], tuple[Task, str]] = {}
    try:
        while queue or waiting:
            while queue and len(waiting) < most:
                task, before = queue.pop(0)
                waiting[_submitted(pool, task)] = task, before
            future = next(as_completed(waiting))
            task, before = waiting.pop(future)
            error = future.exception()
            if error is None:
                draws = future.result()
                yield task.item.name, Outcome(draws, retried=before or str(draws.attrs[RETRIED]))
            elif before:
                yield task.item.name, Outcome(None, _said(error))
            else:
                queue.insert(0, (task, _said(error)))
    finally:
        for future in waiting:
            future.cancel()


class Here(Executor):
    """Runs a call where it is submitted; only its errors, and not Ctrl-C, are kept for later."""

    def submit[**P, R](self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """A future that is done."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # whatever an item raises, the others go on
            future.set_exception(error)
        return future


def _submitted(pool: Executor, task: Task) -> Future[xr.DataTree]:
    """The future of a task; one with the error where the pool takes none, as after a worker was killed."""
    try:
        return pool.submit(run_task, task)
    except RuntimeError as error:
        future: Future[xr.DataTree] = Future()
        future.set_exception(error)
        return future


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
