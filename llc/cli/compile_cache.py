"""Compiled programs are kept between commands, so that the second `llc sample` of a model starts at once."""

import os
import warnings
from collections.abc import MutableMapping

import platformdirs

OFF = "LLC_NO_CACHE"  # any value of it turns the cache off
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",  # what compiles faster is not worth a file
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),  # bytes; the programs that were used least recently go first
}


def keep_compiled(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tells JAX, which must not be imported yet, to keep what it compiles in the user's cache folder.

    Nothing is changed where the user chose a folder (`JAX_COMPILATION_CACHE_DIR`) or wants none (`LLC_NO_CACHE`).

    Args:
        environment: of the process.
    """
    if OFF in environment or _FOLDER in environment:
        return
    folder = platformdirs.user_cache_path("llc", appauthor=False) / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # no home, or one that can't be written to: programs are compiled again
        return
    environment[_FOLDER] = str(folder)
    for name, value in _SETTINGS.items():
        environment.setdefault(name, value)
    # A full disk or a damaged entry costs a compilation and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
