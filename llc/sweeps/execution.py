"""Where the items of a sweep run: here, one after the other, or wherever an executor of `concurrent.futures` has them.

An item that fails is tried once more. A second failure is its outcome, and the others go on.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tqdm.auto import tqdm

from llc.calibration.telling import about, say
from llc.sweeps.items import Item

_SILENT = 10.0  # seconds after which each item is told of


@runtime_checkable
class HasItem(Protocol):
    """Work on one item of a sweep."""

    @property
    def item(self) -> Item:
        """The item."""
        ...


@dataclass(frozen=True)
class Outcome[T]:
    """What came of an item, or why nothing did.

    Attributes:
        value: what its work returned; None if it failed.
        failed: why it failed twice.
        retried: why it failed at first.
    """

    value: T | None
    failed: str = ""
    retried: str = ""


def run_told[W: HasItem, T](
    work: Callable[[W], T],
    tasks: Sequence[W],
    executor: Executor | None,
    *,
    name: str,
    found: Callable[[T], str],
    progress: bool | None,
    silent: float = _SILENT,
) -> Generator[tuple[str, Outcome[T]]]:
    """The same as `run_all`, with a bar, and a line for each item once all take more than ten seconds.

    Args:
        work: as of `run_all`.
        tasks: as of `run_all`.
        executor: as of `run_all`.
        name: of the bar.
        found: what came of an item, in words.
        progress: as of `llc.sweep`.
        silent: seconds before the first line.
    """
    start = time.perf_counter()
    with (
        tqdm(total=len(tasks), disable=None if progress is None else not progress, desc=name, unit="item") as bar,
        closing(run_all(work, tasks, executor)) as finished,
    ):
        for done, (item, outcome) in enumerate(finished, 1):
            yield item, outcome
            bar.update()
            seconds = time.perf_counter() - start
            if seconds > silent:
                left = len(tasks) - done
                rest = f", {about(seconds / done * left)} to go" if left else ""
                said = outcome.failed if outcome.value is None else found(outcome.value)
                say(f"{name} of {item}: {said} ({done} of {len(tasks)} items{rest})", progress=progress)


def run_all[W: HasItem, T](
    work: Callable[[W], T], tasks: Sequence[W], executor: Executor | None
) -> Generator[tuple[str, Outcome[T]]]:
    """Each item's outcome as it comes, with one more try for those that fail.

    Args:
        work: what is done for each; a function of a module, which every executor can send.
        tasks: of the items that are to be run.
        executor: where; None runs one after the other in this process.
    """
    pool = Here() if executor is None else executor
    most = 1 if executor is None else len(tasks)  # here, one is finished and written before the next begins
    queue = [(task, "") for task in tasks]
    waiting: dict[Future[T], tuple[W, str]] = {}
    try:
        while queue or waiting:
            while queue and len(waiting) < most:
                task, before = queue.pop(0)
                waiting[_submitted(pool, work, task)] = task, before
            future = next(as_completed(waiting))
            task, before = waiting.pop(future)
            error = future.exception()
            if error is None:
                yield task.item.name, Outcome(future.result(), retried=before)
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


def _submitted[W, T](pool: Executor, work: Callable[[W], T], task: W) -> Future[T]:
    """The future of a task; one with the error where the pool takes none, as after a worker was killed."""
    try:
        return pool.submit(work, task)
    except RuntimeError as error:
        future: Future[T] = Future()
        future.set_exception(error)
        return future


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
