"""How much memory is free, and refusing what does not fit before it is tried."""

import os
from pathlib import Path

try:
    import resource
except ImportError:  # not on every system
    resource = None

_SHARE = 0.8  # of the free memory
_UNLIMITED = 2**60  # bytes; control groups of version 1 say "no limit" by a number above it
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")  # files of its limit and of what is used
_VERSION_2 = ("memory.max", "memory.current")


def require_memory(num_bytes: int, what: str, cure: str) -> None:
    """Raises ValueError if `num_bytes` are more than 80 % of the memory that is free (where the system tells)."""
    free = free_memory()
    if num_bytes > _SHARE * free:
        raise ValueError(
            f"{what} need {num_bytes / 2**30:.2g} GiB of memory, got {free / 2**30:.2g} free; take {cure}."
        )


def free_memory() -> float:
    """Bytes of free memory, the page cache counted as free; inf where the system does not tell.

    It is the least of what the machine has left, what the control group of this process (a container's limit) has left,
    and what the limits of the process itself (`ulimit`) leave.
    """
    return max(0.0, min(_of_machine(), _of_control_group(), _of_process()))


def _of_machine() -> float:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def _of_control_group(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """What the tightest group on the path of this process has left, the page cache counted as free."""
    try:
        paths = dict(line.split(":", 2)[1:] for line in membership.read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    free = float("inf")
    for controller, names in (("", _VERSION_2), ("memory", _VERSION_1)):
        if controller not in paths:
            continue
        base = root / controller
        group = base / paths[controller].lstrip("/")
        for folder in (group, *group.parents):
            if folder == base.parent:
                break
            free = min(free, _left(folder, *names))
    return free


def _left(folder: Path, limit_name: str, usage_name: str) -> float:
    try:
        limit, usage = int((folder / limit_name).read_text()), int((folder / usage_name).read_text())
        if limit > _UNLIMITED:
            return float("inf")
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float(limit - usage + int(fields.get("inactive_file", 0)))
    except (OSError, ValueError):  # the root group has no files, and "max" is no number
        return float("inf")


def _of_process() -> float:
    """What `ulimit -v` and `ulimit -d` leave."""
    if resource is None:
        return float("inf")
    try:
        pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
        used = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    except (OSError, ValueError, IndexError):
        return float("inf")
    limits = {kind: resource.getrlimit(kind)[0] for kind in used}
    size = os.sysconf("SC_PAGE_SIZE")
    left = [limit - size * used[kind] for kind, limit in limits.items() if limit != resource.RLIM_INFINITY]
    return float(min(left, default=float("inf")))
