"""Files that are written whole or not at all: to a temporary name beside the target, then renamed.

The bytes are made before the file is opened, so that a full disk is an error of the writing alone. A temporary name
holds the host and the process that writes; what a killed one left is removed by the next that writes in the folder.
"""

import contextlib
import errno
import os
import platform
import secrets
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from llc.analysis.paths import expand

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_PREFIX, _SUFFIX = ".llc-", ".part"


def check_writable(*paths: str | Path | None) -> None:
    """Refuses paths that can't be written, before hours of work and not after.

    Raises:
        ValueError: if a path is a folder, its folder can't be written to, or two of the paths are one file.
    """
    given = [path for path in paths if path is not None]
    targets = [_target(path) for path in given]
    for path, target in zip(given, targets, strict=True):
        if targets.count(target) > 1:
            raise ValueError(f"{path} is given for two outputs, of which one would replace the other; give two paths.")
        if reason := _obstacle(target):
            raise ValueError(f"{path} can't be written: {reason}; give another path.")


def check_folder(path: str | Path | None) -> None:
    """Refuses a folder that can't be made or written to.

    Raises:
        ValueError: naming the path.
    """
    if path is None:
        return
    folder = expand(path)
    # What is there may be a file, which is told as one by whoever reads it.
    there = next(x for x in (folder, *folder.absolute().parents) if os.path.lexists(x))
    if there.exists() and not there.is_dir() and there == folder:
        return
    if reason := _obstacle(there / "llc"):
        raise ValueError(f"{path} can't be written: {reason}; give another path.")


def same_file(first: str | Path, second: str | Path) -> bool:
    """Whether two paths, links followed, are of one file."""
    return _target(first) == _target(second)


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file, whole or not at all. A link stays, and what it points to is replaced.

    Raises:
        OSError: if it can't be written; the message names the path. A file that was there is as before.
    """
    target = _target(path)
    try:
        if _is_special(target):
            target.write_bytes(content)
            return
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"{target.parent} is no folder")
        _remove_leftovers(target.parent)
        _replace(target, content)
    except OSError as error:
        text = f"{path} can't be written: {error.strerror or error}; free space or rights there, or give another path."
        raise OSError(error.errno, text) if error.errno is not None else OSError(text) from error


def read_whole(path: Path) -> bytes:
    """The bytes of a file that is one of ours; a pipe in its place, which may never end, is not opened.

    Raises:
        OSError: if there is none, it can't be read, or it is something else than a file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device and no file", str(path))
    return path.read_bytes()


def make_folder(path: str | Path) -> Path:
    """Makes a folder and its parents, where they are not there, and returns its path.

    Raises:
        OSError: if it can't be made; the message names the path.
    """
    folder = expand(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"the folder {folder} can't be made: {error.strerror or error}; give another path."
        raise OSError(error.errno or errno.EIO, text) from error
    return folder


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keeps other processes that take this lock from the folder of `path`, where the system has such locks."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                folder = os.open(_target(path).parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _target(path: str | Path) -> Path:
    """The file itself, at the end of all links; a device or a pipe as it was given."""
    path = expand(path)
    return path if _is_special(path) else Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """Whether it is a device, a pipe or a socket, which is written to and never replaced."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _obstacle(target: Path) -> str:
    """Why a file can't be written there; empty if it can. Tried with an empty file, as rights alone do not tell."""
    if target.is_dir():
        return "it is a folder"
    if _is_special(target):
        return "" if os.access(target, os.W_OK) else "it is a device that can't be written to"
    if not target.parent.is_dir():
        return f"{target.parent} is no folder"
    try:
        if target.exists() and not os.access(target, os.W_OK):
            return "it is read-only"
        part, handle = _open_part(target, 0o600)
        os.close(handle)
        part.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _replace(target: Path, content: bytes | memoryview) -> None:
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    part, handle = _open_part(target, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see _remove_leftovers
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)  # the umask took some of it
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name is on the disk when the folder is
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _open_part(target: Path, mode: int) -> tuple[Path, int]:
    """A new file of a short name beside the target, and its descriptor."""
    part = target.with_name(f"{_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
    return part, os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode)


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes of this host that are gone, and that nobody holds."""
    if fcntl is None:
        return
    for part in folder.glob(f"{_PREFIX}{_host()}-*-*{_SUFFIX}"):
        owner = part.name.removeprefix(_PREFIX).split("-")[1]
        if not owner.isdecimal() or _is_alive(int(owner)):
            continue
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails for a writer in another container of that name
            part.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's
        return True
    return True
