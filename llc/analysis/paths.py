"""Paths that people give, looked at before anything opens them. Needs nothing but Python, so that parsers are quick."""

import errno
import os
from pathlib import Path

_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # of a look at it: no file can be there


def expand(path: str | Path, name: str = "path") -> Path:
    """The path with `~` as the user's home.

    Raises:
        ValueError: if it is no path, or one that no file can have; the message names the argument `name`.
    """
    if not isinstance(path, (str, os.PathLike)):
        shown = repr(path) if len(repr(path)) <= 60 else type(path).__name__
        raise ValueError(f"{name} needs to be a path, got {shown}.")
    text = os.fsdecode(path)
    if not text:
        raise ValueError(f"{name} needs the name of a file or folder, got an empty text; write . for this folder.")
    if "\0" in text:
        raise ValueError(f"{name} needs a path without NUL characters, got {_shown(text)}; no file can have one.")
    try:
        expanded = Path(text).expanduser()
    except RuntimeError:  # Python's own words do not tell whose home it is
        raise ValueError(
            f"{name} needs the home folder of a user of this system, got {_shown(text)}; write the folder out."
        ) from None
    try:
        os.lstat(expanded)
    except OSError as error:
        if error.errno in _NO_PATH:
            raise ValueError(f"{name} needs a path that a file can have: {error.strerror}: {_shown(text)}.") from error
    return expanded


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:80]!r} … {text[-20:]!r} ({len(text)} characters)"
