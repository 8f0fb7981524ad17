"""Wall time on a machine that others use too: what they took meanwhile, and the quietest of several tries."""

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """One measurement: seconds, and the share of the machine that other processes took (nan where unknown)."""

    seconds: float
    others: float


def measure(run: Callable[[], object]) -> Timing:
    """Wall time of `run()` in this process."""
    before, start = busy_seconds(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return Timing(seconds, share_of_others(before, seconds))


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {name: version(name) for name in ("llc", "jax", "numpyro")}
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()} | versions


def busy_seconds() -> tuple[float, float]:
    """CPU seconds so far of the whole machine (nan where the system does not say) and of this process."""
    times = os.times()
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan, math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    machine = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return machine, times.user + times.system + times.children_user + times.children_system


def share_of_others(before: tuple[float, float], seconds: float) -> float:
    """Share of the machine that went to other processes in the `seconds` since `before`."""
    machine, own = (b - a for a, b in zip(before, busy_seconds(), strict=True))
    return max(0.0, machine - own) / (seconds * os.cpu_count())


def quietest(measurement: Callable[[], Timing], tries: int) -> Timing:
    """The one that others disturbed least; the first with less than a twentieth of the machine ends the tries."""
    timings = []
    while len(timings) < tries and not (timings and timings[-1].others < 0.05):
        if tries > 1:
            wait_for_quiet()
        timings.append(measurement())
    return min(timings, key=lambda timing: timing.others)


def wait_for_quiet(limit: float = 60.0) -> None:
    """Returns when others take less than a twentieth of the machine during a second, or after `limit` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit and measure(lambda: time.sleep(1)).others >= 0.05:
        pass


def progress(line: str) -> None:
    """A line on stderr; stdout is for the tables."""
    print(line, file=sys.stderr, flush=True)
