"""Files of draws: netCDF, written whole or not at all, and looked through before anything uses them.

Arrays carry HDF5's checksums, and what those can't cover (single numbers, attributes that numbers rest on) one of ours:
a file that was damaged is refused and not read as another one.
"""

import io
import json
import math
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import xarray as xr

from llc.analysis import schema, validation
from llc.analysis.paths import expand
from llc.analysis.store import is_store, read_store
from llc.analysis.text import printable
from llc.analysis.values import check_values
from llc.analysis.writing import check_writable as check_writable
from llc.analysis.writing import locked, write_whole
from llc.posterior.arguments import require_type

_CHECKSUM = "checksum"  # attribute of each group
_LATER = (schema.LOSS_ROUNDING, schema.PARAMS_ROUNDING)  # constants that older checksums leave out
_EXPANSION, _ALWAYS = 1000, 2**30  # a file may hold so many times its own bytes, or so many


def save(draws: xr.DataTree, path: str | Path) -> None:
    """Writes draws to a netCDF file, whole or not at all. The bytes are made in memory first.

    Args:
        draws: a DataTree, as of `llc.sample`.
        path: the file; an existing one is replaced. A link stays, and what it points to is replaced.

    Raises:
        OSError: if the file can't be written; the message names the path, and an existing file is as before.
    """
    require_type("draws", draws, xr.DataTree, "a DataTree, as of llc.sample")
    require_type("path", path, (str, Path), "the path of a file")
    write_whole(path, to_bytes(draws))


def save_elsewhere(draws: xr.DataTree, name: str) -> Path:
    """Writes draws that could not be written where they were to go to a new folder in the system's temporary one.

    Args:
        draws: as of `save`.
        name: of the file.

    Raises:
        OSError: if it can't be written there either; no folder is left.
    """
    folder = Path(tempfile.mkdtemp(prefix="llc-"))
    try:
        save(draws, folder / name)
    except OSError:
        folder.rmdir()
        raise
    return folder / name


def load(path: str | Path) -> xr.DataTree:
    """Draws from a netCDF file, or from a run's store, read into memory (the file is closed again).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no netCDF file, or a damaged one, or has something else where `llc` has numbers; the
            message names file, group and variable.
    """
    require_type("path", path, (str, Path), "the path of a file")
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; llc sample --out {path} writes one.")
    if is_store(path):
        draws = read_store(path)
        validation.validate(draws, str(path))
        check_values(draws, str(path))
        draws.encoding["source"] = str(path)
        return draws
    if path.is_dir():
        raise ValueError(f"{path} needs to be a netCDF file of llc sample, but it is another folder.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{path} can't be read: {error.strerror or error}") from error
    return from_bytes(content, str(path))


def update(path: str | Path, change: Callable[[xr.DataTree], xr.DataTree]) -> None:
    """Replaces a file by what `change` makes of it (of an empty tree where there is none, or an empty one).

    It is read and written under a lock, so that what another process put there in the meantime stays.
    """
    with locked(path):
        there = expand(path).is_file() and expand(path).stat().st_size > 0
        save(change(load(path) if there else xr.DataTree()), path)


def same(written: float | int, here: float | int) -> bool:
    """Whether two numbers are equal but for rounding, which differs between devices; nan is nothing written."""
    return math.isnan(written) or math.isclose(written, here, rel_tol=1e-6, abs_tol=1e-12)


def to_bytes(draws: xr.DataTree) -> bytes:
    """The netCDF file of draws."""
    tree = xr.DataTree.from_dict({path: _with_checksum(path, node) for path, node in _nodes(draws).items()})
    encoding = {
        path: {
            str(name): {"fletcher32": True} for name, x in node.variables.items() if x.size and x.ndim and _is_plain(x)
        }
        for path, node in _nodes(tree).items()
    }
    return bytes(tree.to_netcdf(engine="h5netcdf", encoding=encoding))


def from_bytes(content: bytes, source: str) -> xr.DataTree:
    """Draws of a netCDF file.

    Args:
        content: of the file.
        source: the file's name, for messages.

    Raises:
        ValueError: as of `load`.
    """
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            dict(file.attrs)  # where this fails in h5netcdf, its half-made file prints a second error at its end
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as opened:
            size = sum(node.nbytes for node in _nodes(opened).values())
            if size > max(_ALWAYS, _EXPANSION * len(content)):
                raise ValueError(f"its {len(content)} bytes claim to hold {size}")
            draws = opened.load()
        draws = xr.DataTree.from_dict({path: _checked(path, node) for path, node in _nodes(draws).items()})
    except Exception as error:  # h5py and xarray raise whatever they stumble over in a damaged file
        reason = printable(str(error).partition("\n")[0])[:200]
        raise ValueError(
            f"{source} needs to be a netCDF file of llc sample, but it is another one, a damaged one or a part of one "
            f"({type(error).__name__}: {reason})."
        ) from error
    if "tethered" in draws.children:  # the name of the run at 3γ in files of 0.1
        draws[schema.LOCALIZED] = draws["tethered"]
        del draws["tethered"]
    validation.validate(draws, source)
    check_values(draws, source)
    draws.encoding["source"] = source
    return draws


def _nodes(draws: xr.DataTree) -> dict[str, xr.Dataset]:
    return {node.path: node.to_dataset(inherit=False) for node in draws.subtree}


def _is_plain(variable: xr.Variable) -> bool:
    """Whether its values are stored as they are, and not as text of any length."""
    return variable.dtype.kind in "biufc"


def _with_checksum(path: str, node: xr.Dataset) -> xr.Dataset:
    node = node.copy()
    node.attrs.pop(_CHECKSUM, None)
    if (checksum := _checksum(path, node)) is not None:
        node.attrs[_CHECKSUM] = checksum
    return node


def _checked(path: str, node: xr.Dataset) -> xr.Dataset:
    """A group without its checksum.

    Raises:
        ValueError: if it is that of another one.
    """
    written = node.attrs.pop(_CHECKSUM, None)
    if written is not None and written not in (_checksum(path, node), _checksum(path, node, _LATER)):
        raise ValueError(
            f"group {path} is not as llc.save wrote it: it was damaged, or changed by another program; if you changed "
            "it, open it with xarray, delete the attribute checksum of that group, and llc.save it"
        )
    return node


def _checksum(path: str, node: xr.Dataset, without: tuple[str, ...] = ()) -> str | None:
    """Of what the numbers of a report rest on and HDF5's own checksums do not cover; None where there is nothing."""
    group = path.rpartition("/")[2]
    attributes: dict[str, object] = {}
    if group in ("", schema.LOCALIZED) and schema.SETTINGS in node.attrs:
        attributes = {schema.SETTINGS: node.attrs[schema.SETTINGS]}
    elif group == schema.CURVATURE:
        attributes = dict(node.attrs)
    names = schema.CONSTANT_NAMES if group == schema.CONSTANTS else ()
    scalars = {name: node[name].item() for name in names if name in node and node[name].ndim == 0}
    scalars = {name: value for name, value in scalars.items() if name not in without}
    if not attributes and not scalars:
        return None
    text = json.dumps([_canonical(attributes), _canonical(scalars)], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _canonical(value: object) -> object:
    """The same for what was given and for what netCDF gives back."""
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _canonical(value.tolist())
    if isinstance(value, (list, tuple)):
        return _canonical(value[0]) if len(value) == 1 else [_canonical(item) for item in value]
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return repr(float(value))
    return str(value)
