"""A folder of stored runs (`stored_run`), which one process writes to at a time."""

import contextlib
import errno
import json
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from llc.analysis.folders import GROUP, make_group
from llc.analysis.paths import expand
from llc.analysis.stored_run import StoredRun
from llc.analysis.writing import read_whole
from llc.posterior.arguments import require_number, require_type

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

MAIN, LOCALIZED = "run", "localized"
_FORMAT, _LOCK = "llc store 1", "lock"


class Store:
    """A folder of runs. As a context it makes the folder, and keeps other processes from writing to it.

    Args:
        path: of the folder; `run.zarr`, for instance.
        seconds: least time between two checkpoints, which is what a process that is killed loses. Where writing takes
            long, or the run has taken long already, more lies between them: writing takes a twentieth of the time at
            most, and a kill loses a fiftieth of the run at most.

    Example:
        >>> store = Store("run.zarr", seconds=60)  # as `llc.sample(…, store=store)`
    """

    def __init__(self, path: str | Path, *, seconds: float | int = 10.0) -> None:
        require_type("store", path, (str, Path), "the path of a folder, such as run.zarr")
        require_number("seconds", seconds, strict=False)
        self.path, self.seconds = expand(path), seconds
        self._lock: int | None = None

    def __enter__(self) -> "Store":
        """Takes the lock.

        Raises:
            ValueError: if the path is something else, or another process writes to it.
            OSError: if the folder can't be made or written to.
        """
        if not (is_store(self.path) or not os.path.lexists(self.path) or _is_empty(self.path)):
            raise ValueError(
                f"store {self.path} needs to be a folder that llc made, or none, but it is something else."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path)
            make_group(self.path, {"llc": _FORMAT})
        except OSError as error:
            self.close()
            where = f" ({error.filename})" if error.filename not in (None, str(self.path)) else ""
            text = f"store {self.path} can't be written: {error.strerror or error}{where}; give a folder that can."
            raise OSError(error.errno or errno.EIO, text) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lock back."""
        self.close()

    def run(self, name: str = MAIN) -> StoredRun:
        """The run of that name."""
        return StoredRun(self.path / name, str(self.path), self.seconds)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextlib.contextmanager
def opened(store: str | Path | Store | None) -> Iterator[Store | None]:
    """A store under lock, given as itself or by its path; None for None."""
    if store is None:
        yield None
        return
    with store if isinstance(store, Store) else Store(store) as folder:
        yield folder


def is_store(path: Path) -> bool:
    """Whether a path is a folder that `Store` made."""
    try:
        return json.loads(read_whole(path / GROUP))["attributes"]["llc"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_store(path: Path) -> xr.DataTree:
    """The draws of a store's last run, with the run at 3γ and the spectrum where there are any.

    Raises:
        ValueError: if it is damaged, or has no draws after the warm-up.
    """
    runs = sorted(folder for folder in path.iterdir() if folder.name.partition("-")[0] == MAIN)
    if not runs or (tree := StoredRun(runs[-1], str(path)).read()) is None:
        raise ValueError(f"store {path} has no draws after the warm-up yet; repeat the call that made it to go on.")
    if (localized := StoredRun(path / LOCALIZED, str(path)).read()) is not None:
        tree[LOCALIZED] = localized
    return tree


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a start that was interrupted leaves."""
    return path.is_dir() and all(entry.name == _LOCK or entry.name.endswith(".part") for entry in path.iterdir())


def _take_lock(folder: Path) -> int:
    """The descriptor of the lock: the system's where it has one, which ends with its process.

    Raises:
        ValueError: if another process has it.
    """
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, f"{folder / _LOCK} is a pipe or a device and no file")
        owner = os.read(handle, 200).decode(errors="replace").strip()
        if not _is_free(handle, owner):
            raise ValueError(_held(folder, owner))
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{platform.node()} {os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _is_free(handle: int, owner: str) -> bool:
    if fcntl is None:
        return not _lives(owner)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return not _lives(owner)
    return True


def _held(path: Path, owner: str) -> str:
    who = " on ".join(reversed(owner.split())) or "unknown"
    return (
        f"store {path} is being written by another process ({who}); wait for its end, or give another store. If that "
        f"process is gone, remove {path / _LOCK}."
    )


def _lives(owner: str) -> bool:
    """Whether the process of a lock may still run."""
    host, _, process = owner.partition(" ")
    if not process.isdecimal() or int(process) == 0:
        return False
    if host != platform.node():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
