"""Where chains stand between two segments, and what is raised when they are interrupted."""

from collections.abc import Callable
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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while chains ran. They are whole, and can go on from the last segment that ended."""

    def __init__(self, draws_so_far: Callable[[], xr.DataTree | None], how_to_go_on: str = ""):
        super().__init__(f"sampling was interrupted{how_to_go_on}")
        self._draws_so_far = draws_so_far

    @property
    def partial(self) -> xr.DataTree | None:
        """The draws so far, as of `llc.sample`; None if all of them are of the warm-up."""
        return self._draws_so_far()
