"""A run on the disk that outlives its process: segments of draws, the last states, and a manifest renamed into place.

    run.zarr/
      zarr.json              a Zarr group, so that zarr and xarray open everything below it
      lock                   host and process of the writer
      run/                   one run of chains; `run-2`, `run-3` with a smaller step, `localized` at 3γ
        manifest.json        settings, and what is whole: names and checksums
        notes/000002.nc      what a report adds: the spectrum, and how settings were chosen
        draws/000003/        the draws of a segment, in the groups of `llc.sample`
        state/000003/        what the chains need to go on from its end
        head/000003.nc       what is one for all draws up to there: constants, moments

A part is written under another name, flushed to the disk and renamed; it belongs to the run once the manifest names
it, which is renamed into place last. A process that is killed at any moment leaves a manifest that names whole parts.
The states and heads of the last two segments are kept, so that a last segment which was damaged afterwards is found by
its checksum and made again.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from llc.analysis.folders import checksum, make_group, read_file, read_folder, remove_others, write_file, write_folder
from llc.analysis.manifest import Checkpoint, DamagedStore, Manifest, Part, Segment
from llc.analysis.segments import join, split

_KEPT = 2  # checkpoints of which state and head stay


class StoredRun:
    """One run's folder, read and appended to. `manifest` says what of it is whole.

    Args:
        folder: of the run, within a store.
        store: the path that the user gave, for messages.
        seconds: least time between two checkpoints.
    """

    def __init__(self, folder: Path, store: str, seconds: float = 0.0) -> None:
        self.folder, self.store, self.seconds = folder, store, seconds
        self.manifest: Manifest | None = None

    def open(self, settings: dict[str, Any]) -> Manifest:
        """Where the run can go on, damaged parts at its end left out; a new one where there is none.

        Raises:
            ValueError: if it is a run with other settings, naming those that differ, or is damaged farther back.
        """
        found = Manifest.read(self.folder)
        if found is None:
            self.manifest = Manifest(settings)
            return self.manifest
        if different := _different(found.settings, settings):
            raise ValueError(
                f"store {self.store} is of another run, with {different}; repeat the call with the settings of that "
                "run to go on with it, or give another store."
            )
        self.manifest = self._whole(found)
        return self.manifest

    def _whole(self, manifest: Manifest) -> Manifest:
        """As much of a run as is whole."""
        bad = [segment for segment in manifest.segments if not self._is_whole("draws", segment.draws)]
        limit = min((segment.stop for segment in bad), default=manifest.done + 1)
        points = [
            point
            for point in manifest.checkpoints
            if point.done < limit and self._is_whole("state", point.state) and self._is_whole("head", point.head)
        ]
        if points:
            return replace(manifest.up_to(points[-1].done), checkpoints=points)
        if len(manifest.checkpoints) < _KEPT:  # nothing was before, so that the run begins anew
            return manifest.up_to(0)
        names = sorted({segment.draws.name for segment in bad} | {point.state.name for point in manifest.checkpoints})
        raise DamagedStore(
            f"store {self.store} needs the segments that its manifest names, but those of {names} in {self.folder} are "
            "damaged and no state from before them is kept; restore them, or give another store."
        )

    def ask(self, num_draws: int, squares: Sequence[float], measured: int) -> None:
        """Notes that the run is to have `num_draws` draws after the warm-up, and what was measured of rounding."""
        manifest = replace(self._now(), asked=num_draws, squares=list(squares), measured=measured)
        if manifest != self._now():
            self._commit(manifest)

    def append(self, done: int, tree: xr.DataTree, state: xr.DataTree, numbers: dict[str, Any]) -> None:
        """Adds the draws since the last checkpoint, and what the chains need to go on from here.

        Args:
            done: draws of the run, of the warm-up too.
            tree: the draws since then, and everything that is one for all draws.
            state: arrays of the samplers' states.
            numbers: of the recorder.

        Raises:
            OSError: if it can't be written; the store is then as before.
        """
        manifest = self._now()
        draws, head = split(tree)
        with self._told():
            segments = manifest.segments
            if draws.children:
                segments = [*segments, Segment(done, self._write("draws", draws))]
            point = Checkpoint(done, self._write("state", state), self._write("head", head), numbers)
        points = [*(point for point in manifest.checkpoints if point.done < done), point]
        self._commit(replace(manifest, segments=segments, checkpoints=points[-_KEPT:]))

    def replace_head(self, tree: xr.DataTree, squares: Sequence[float], measured: int) -> None:
        """Replaces what is one for all draws, once all that were asked for are there."""
        manifest = self._now()
        *before, last = manifest.checkpoints
        with self._told():
            last = replace(last, head=self._write("head", split(tree)[1]))
        self._commit(replace(manifest, squares=list(squares), measured=measured, checkpoints=[*before, last]))

    def note(self, tree: xr.DataTree) -> None:
        """Keeps what a report adds to the draws, in place of what an earlier one added."""
        with self._told():
            notes = self._write("notes", tree)
        self._commit(replace(self._now(), notes=notes))

    def state(self) -> xr.DataTree:
        """The arrays of the last checkpoint."""
        return read_folder(self.folder / "state" / self._now().checkpoints[-1].state.name)

    def first_draws(self, num_draws: int) -> xr.DataTree:
        """The first draws of every chain, of the warm-up too, up to the end of a segment."""
        segments = self._now().up_to(num_draws).segments
        return join([read_folder(self.folder / "draws" / segment.draws.name) for segment in segments])

    def draws(self) -> xr.DataTree:
        """All draws up to the last checkpoint, as of `llc.sample`, with the notes of a report on them."""
        manifest = self._now()
        parts = [self.first_draws(manifest.done)]
        if manifest.notes is not None and self._is_whole("notes", manifest.notes):
            parts.append(read_file(self.folder / "notes" / manifest.notes.name))
        return join([*parts, read_file(self.folder / "head" / manifest.checkpoints[-1].head.name)])

    def read(self) -> xr.DataTree | None:
        """All draws that are whole, for a reader; None if there are none after the warm-up."""
        found = Manifest.read(self.folder)
        if found is None or not found.checkpoints:
            return None
        self.manifest = self._whole(found)
        if self.manifest.done < found.done:
            warnings.warn(
                f"store {self.store}: the end of the run is damaged, {self.manifest.done} of {found.done} draws of "
                "each chain are read; the call that made it makes the rest again.",
                stacklevel=3,
            )
        tree = self.draws() if self.manifest.checkpoints else xr.DataTree()
        return tree if "posterior" in tree.children else None

    def _now(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest

    def _commit(self, manifest: Manifest) -> None:
        """Makes `manifest` the run's; what it does not name is removed."""
        written, before = Manifest.read(self.folder), self._now().count
        if written is not None and written.count != before:
            raise ValueError(
                f"store {self.store} has been written by another process since this one opened it; nothing of it was "
                "replaced. Let one process write to a store."
            )
        manifest = replace(manifest, count=before + 1)
        with self._told():
            make_group(self.folder)
            manifest.write(self.folder)
        self.manifest = manifest
        kept = {
            "draws": {segment.draws.name for segment in manifest.segments},
            "state": {point.state.name for point in manifest.checkpoints},
            "head": {point.head.name for point in manifest.checkpoints},
            "notes": set() if manifest.notes is None else {manifest.notes.name},
        }
        for kind, names in kept.items():
            remove_others(self.folder / kind, names)

    def _write(self, kind: str, tree: xr.DataTree) -> Part:
        """A part that the next commit may name."""
        folder = self.folder / kind
        for path in (self.folder, folder):
            make_group(path)
        name = f"{self._now().count:06d}"
        if kind in ("head", "notes"):  # small, of many variables
            return Part(f"{name}.nc", write_file(folder / f"{name}.nc", tree))
        # States are noise, which no compression makes smaller.
        return Part(name, write_folder(folder / name, tree, compress=kind == "draws"))

    def _is_whole(self, kind: str, part: Part) -> bool:
        try:
            return checksum(self.folder / kind / part.name) == part.checksum
        except OSError as error:  # what can't be read now may be whole, and is not made again
            raise DamagedStore(
                f"store {self.store} needs its file {error.filename}, but that can't be read: "
                f"{error.strerror or error}; give yourself the right to read it, or give another store."
            ) from error

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = (
                f"store {self.store} can't be written: {error.strerror or error}. What was written before is whole: "
                "free space or rights there, and repeat the call to go on from it."
            )
            raise OSError(error.errno, text) if error.errno is not None else OSError(text) from error


def _different(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The settings that differ, with both values."""
    here = json.loads(json.dumps(here))
    names = [name for name in [*there, *(set(here) - set(there))] if there.get(name) != here.get(name)]
    return ", ".join(f"{name} = {there.get(name)} where this one has {here.get(name)}" for name in sorted(names))
