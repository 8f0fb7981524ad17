"""The folder of a sweep: an item a file or a group, written whole or not at all, so that a killed sweep goes on.

    training/          sweep.json, step_100.nc, step_200.nc, …, and the table in summary.nc at the end
    training.zarr/     the same as groups of one zarr store, with the table at its root

`sweep.json` has the settings. A rerun with the same ones skips what is there; with others it is refused.
"""

import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from llc.analysis import files, validation, writing
from llc.analysis.paths import expand
from llc.analysis.text import printable
from llc.analysis.writing import read_whole, write_whole

_SETTINGS, _TABLE = "sweep.json", "summary"
RESERVED = (_TABLE,)  # names that no item may have


class Store:
    """A folder of finished items.

    Args:
        path: of the folder, which is made; one that ends in `.zarr` is a zarr store.

    Raises:
        ValueError: if it is a file, or a folder of something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expand(path)
        self.is_zarr = self.path.suffix == ".zarr"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out needs a folder, or a store that ends in .zarr, but {self.path} is a file.")
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            writing.check_writable(there / _SETTINGS)
        except ValueError as error:
            raise ValueError(f"out needs a folder that can be written to: {error}") from error
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _SETTINGS).exists():
            raise ValueError(f"out needs a new folder or that of a sweep, but {self.path} has other files in it.")

    def settings(self) -> dict[str, Any] | None:
        """What was written by `put_settings`; None in a new folder.

        Raises:
            ValueError: if it is damaged, or can't be read.
        """
        file = self.path / _SETTINGS
        if not file.exists():
            return None
        try:
            found = json.loads(read_whole(file))
            return {"settings": dict(found["settings"]), "plan": dict(found["plan"])}
        except OSError as error:
            raise ValueError(
                f"{file} needs to be what a sweep writes, but it can't be read: {error.strerror or error}; restore it, "
                f"or remove {self.path}."
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} needs to be what a sweep writes, but is damaged; remove {self.path}.") from error

    def put_settings(self, settings: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Writes the settings and the plan of a new sweep."""
        writing.make_folder(self.path)
        content = json.dumps({"settings": settings, "plan": plan}, indent=2, ensure_ascii=False, default=_plain)
        write_whole(self.path / _SETTINGS, content.encode())

    def get(self, name: str) -> xr.DataTree | None:
        """The draws of a finished item; None if it is not finished, or its file is damaged (it is run again)."""
        target = self._target(name)
        if not target.exists():
            return None
        if not (target.is_dir() if self.is_zarr else target.is_file()):
            kind = "a folder" if self.is_zarr else "a file"
            raise ValueError(f"{target} needs to be {kind} of this sweep, but it is something else; remove it.")
        try:
            if not self.is_zarr:
                return files.load(target)
            with _quiet(), xr.open_datatree(target, engine="zarr", consolidated=False) as opened:
                draws = opened.load()
            validation.require(draws)
            return draws
        except Exception as error:  # zarr and xarray raise whatever they stumble over in a damaged store
            warnings.warn(f"{target} is damaged and is made again: {printable(str(error))[:200]}", stacklevel=3)
            return None

    def put(self, name: str, draws: xr.DataTree) -> None:
        """Writes the draws of a finished item, whole or not at all.

        Raises:
            OSError: if they can't be written; the message says where they are instead.
        """
        try:
            self._put(name, draws)
        except OSError as error:
            try:
                there = f"the draws of {name} are in {files.save_elsewhere(draws, f'{name}.nc')}"
            except OSError as second:
                there = f"the draws of {name} are lost: {second.strerror or second}"
            text = (
                f"{self._target(name)} can't be written: {error.strerror or error}; {there}. The items before are "
                "whole: free space or rights there, and repeat the call to go on with the others."
            )
            raise OSError(error.errno or errno.EIO, text) from error

    def _put(self, name: str, draws: xr.DataTree) -> None:
        if not self.is_zarr:
            files.save(draws, self._target(name))
            return
        # A part lies outside of the store: who opens that meets whole items only.
        part = self.path.with_name(f".{self.path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with _quiet():
                draws.to_zarr(part, consolidated=False)
            if (target := self._target(name)).exists():
                shutil.rmtree(target)  # a damaged one
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def put_table(self, table: xr.Dataset) -> None:
        """Writes the table, in place of an older one."""
        if not self.is_zarr:
            files.save(xr.DataTree(table), self.path / f"{_TABLE}.nc")
            return
        with _quiet():
            for name in (*table.variables, "zarr.json"):  # another number of items has another shape
                old = self.path / str(name)
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            table.to_zarr(self.path, mode="a", consolidated=False)

    def _target(self, name: str) -> Path:
        return self.path / (name if self.is_zarr else f"{name}.nc")


def differing(written: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between a folder and a call, as (written, here).

    Args:
        written: as read from a file.
        here: of this call, as plain data.
    """
    here = json.loads(json.dumps(here, default=_plain))
    names = [*written, *(name for name in here if name not in written)]
    return {name: (written.get(name), here.get(name)) for name in names if written.get(name) != here.get(name)}


def _plain(value: Any) -> Any:
    """A NumPy number as one of Python's."""
    return value.item() if hasattr(value, "item") else str(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without zarr's warnings that its format for text and for groups without an index is young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="zarr")
        warnings.filterwarnings("ignore", module="xarray")
        yield
