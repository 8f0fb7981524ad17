"""Files that are written whole or not at all: to a temporary name beside the target, then renamed."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from llc.analysis import schema
from llc.posterior.arguments import require_type


def save(draws: xr.DataTree, path: str | Path) -> None:
    """Writes draws to a netCDF file, whole or not at all.

    Args:
        draws: a DataTree, as of `llc.sample`.
        path: the file; an existing one is replaced.
    """
    schema.require(draws)
    require_type("path", path, (str, Path), "the path of a file")
    write_whole(path, lambda part: draws.to_netcdf(part, engine="h5netcdf"))


def load(path: str | Path) -> xr.DataTree:
    """Draws from a netCDF file, read into memory (the file is closed again).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no netCDF file, or only a part of one.
    """
    require_type("path", path, (str, Path), "the path of a file")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; llc sample --out {path} writes one.")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as draws:
            draws = draws.load()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} needs to be a netCDF file of llc sample, but it is another one or a part of one "
            f"({str(error).partition(chr(10))[0]})."
        ) from error
    if "tethered" in draws:  # the name of the run at 3γ in files of 0.1
        draws["localized"] = draws["tethered"]
        del draws["tethered"]
    return draws


def same(written: float | int, here: float | int) -> bool:
    """Whether two numbers are equal but for rounding, which differs between devices; nan is nothing written."""
    return math.isnan(written) or math.isclose(written, here, rel_tol=1e-6, abs_tol=1e-12)


def check_writable(*paths: str | Path | None) -> None:
    """Raises ValueError if a file can't be written there: before hours of work, not after."""
    for path in (Path(path) for path in paths if path is not None):
        folder = path.resolve().parent
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
            raise ValueError(f"{path} can't be written: {reason}; make it, or give another path.")


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path` and renames it; removes it on failure."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())  # mkstemp's files are private
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
