"""Refusing what does not fit in memory, before it is tried."""

import os
from pathlib import Path

_SHARE = 0.8  # of the free memory


def require_memory(num_bytes: int, what: str, cure: str) -> None:
    """Raises ValueError if `num_bytes` are more than 80 % of the memory that is free (where the system tells)."""
    free = free_memory()
    if num_bytes > _SHARE * free:
        raise ValueError(
            f"{what} need {num_bytes / 2**30:.2g} GiB of memory, got {free / 2**30:.2g} free; take {cure}."
        )


def free_memory() -> float:
    """Bytes of free memory, the page cache counted as free; inf where the system does not tell."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
