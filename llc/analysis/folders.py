"""Trees in folders that Zarr reads, and in files: written whole, under another name first, then renamed."""

import contextlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import xarray as xr

from llc.analysis.writing import read_whole, write_whole

GROUP = "zarr.json"


def make_group(folder: Path, attributes: dict[str, str] | None = None) -> None:
    """A folder that is a Zarr group."""
    folder.mkdir(exist_ok=True)
    if not (folder / GROUP).exists():
        content = {"attributes": attributes or {}, "zarr_format": 3, "node_type": "group"}
        write_whole(folder / GROUP, json.dumps(content, indent=1).encode())


def write_folder(target: Path, tree: xr.DataTree, *, compress: bool) -> str:
    """Writes a tree to a folder, whole or not at all; one that is there is replaced. Returns its checksum.

    Raises:
        OSError: if it can't be written.
    """
    part = target.with_name(f"{target.name}.part")
    for path in (part, target):
        shutil.rmtree(path, ignore_errors=True)
    plain = {node.path: {str(name): {"compressors": None} for name in node.variables} for node in tree.subtree}
    try:
        tree.to_zarr(part, mode="w", zarr_format=3, consolidated=False, encoding=None if compress else plain)
        _flush(part)
        part.replace(target)
        _flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return checksum(target)


def read_folder(folder: Path) -> xr.DataTree:
    """A tree that `write_folder` wrote."""
    with xr.open_datatree(folder, engine="zarr", consolidated=False) as opened:
        return opened.load()


def write_file(target: Path, tree: xr.DataTree) -> str:
    """Writes a tree to one file, whole or not at all. Returns its checksum.

    Raises:
        OSError: if it can't be written.
    """
    write_whole(target, bytes(tree.to_netcdf(engine="h5netcdf")))
    return checksum(target)


def read_file(path: Path) -> xr.DataTree:
    """A tree that `write_file` wrote."""
    with xr.open_datatree(io.BytesIO(read_whole(path)), engine="h5netcdf") as opened:
        return opened.load()


def checksum(path: Path) -> str:
    """Of the content of a file, or of the names and contents of all files in a folder; empty if there is none.

    Raises:
        OSError: if one of them can't be read.
    """
    if not (path.is_dir() or path.is_file()):
        return ""
    total, top = 0, path
    for path in _files(top):
        total = zlib.crc32(path.relative_to(top).as_posix().encode(), total)
        with path.open("rb") as file:
            while block := file.read(2**22):
                total = zlib.crc32(block, total)
    return f"{total:08x}"


def remove_others(folder: Path, names: Iterable[str]) -> None:
    """Removes what is in `folder` and not among `names`, but for the group's own file."""
    kept = {GROUP, *names}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in kept:
                path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]


def _flush(folder: Path) -> None:
    """Waits until the files of a folder are on the disk."""
    for path in _files(folder):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
