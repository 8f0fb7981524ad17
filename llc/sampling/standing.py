"""Where chains stand between two segments, and what is raised when they are interrupted."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import xarray as xr

from llc.sampling.draws import Recorder, Sums


class Standing(NamedTuple):
    """Where chains stand: replaced as a whole, so that an interruption finds either the old or the new one.

    Attributes:
        states: of every compiled program's chains.
        moments: the sums of the block under way, in the same order.
        recorder: with all draws so far.
        done: how many those are, of the warm-up too.
    """

    states: list[Any]
    moments: list[Sums]
    recorder: Recorder
    done: int


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of it: states that are moved on in their own memory are not left half."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    came: list[tuple[int, FrameType | None]] = []
    with contextlib.ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                restored.callback(signal.signal, number, handler)  # before the next line, which a signal may cut short
                signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    for number, frame in came[:1]:
        handlers[number](number, frame)


class NotStored(OSError):
    """The store could not be written to. What it held before is whole, and `partial` has the draws so far."""

    def __init__(self, error: OSError, draws_so_far: Callable[[], xr.DataTree | None]) -> None:
        super().__init__(*error.args[:2])
        self._draws_so_far = draws_so_far

    @classmethod
    @contextlib.contextmanager
    def told(cls, draws_so_far: Callable[[], xr.DataTree | None]) -> Iterator[None]:
        """Errors of writing to the store come with the draws so far."""
        try:
            yield
        except OSError as error:
            raise cls(error, draws_so_far) from error

    @property
    def partial(self) -> xr.DataTree | None:
        """The draws so far, as of `llc.sample`; None if all of them are of the warm-up."""
        return self._draws_so_far()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while chains ran. They are whole, and can go on from the last segment that ended."""

    def __init__(self, draws_so_far: Callable[[], xr.DataTree | None], how_to_go_on: str = "") -> None:
        super().__init__(f"sampling was interrupted{how_to_go_on}")
        self._draws_so_far = draws_so_far

    @property
    def partial(self) -> xr.DataTree | None:
        """The draws so far, as of `llc.sample`; None if all of them are of the warm-up."""
        return self._draws_so_far()
