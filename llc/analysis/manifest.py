"""The manifest of a stored run: its settings, and the parts of it that are whole, with their checksums and its own."""

import json
import os
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llc.analysis.contents import short
from llc.analysis.writing import read_whole, write_whole

_NAME, _CHECKSUM = "manifest.json", "checksum"


class DamagedStore(ValueError):
    """A part of a store that its manifest names is gone or has changed, and nothing is kept from before it."""


@dataclass(frozen=True)
class Part:
    """A folder that the manifest names, with the checksum of its files."""

    name: str
    checksum: str


@dataclass(frozen=True)
class Segment:
    """Draws up to number `stop`, of the warm-up too."""

    stop: int
    draws: Part


@dataclass(frozen=True)
class Checkpoint:
    """What chains need to go on after `done` draws, and what is one for all draws up to there."""

    done: int
    state: Part
    head: Part
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What of a run is whole.

    Attributes:
        settings: that decide the bits of a run; another run is refused.
        asked: draws after the warm-up that were asked for.
        squares: squared errors by rounding that were measured so far.
        measured: after how many draws the last of them were.
        segments: in their order.
        checkpoints: the last ones, oldest first.
        notes: of the reports on the run.
        count: of commits, by which another writer would be seen.
    """

    settings: dict[str, Any]
    asked: int = 0
    squares: list[float] = field(default_factory=list)
    measured: int = 0
    segments: list[Segment] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    notes: Part | None = None
    count: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest of a run's folder; None where there is none.

        Raises:
            ValueError: if it is damaged, or can't be read.
        """
        path = folder / _NAME
        try:
            fields = json.loads(read_whole(path))
            if fields.pop(_CHECKSUM, None) not in (None, _checksum(fields)):  # none of older versions
                raise ValueError("its checksum is that of another one")
            segments = [Segment(x["stop"], Part(**x["draws"])) for x in fields.pop("segments")]
            checkpoints = [
                Checkpoint(x["done"], Part(**x["state"]), Part(**x["head"]), x["numbers"])
                for x in fields.pop("checkpoints")
            ]
            notes = fields.pop("notes")
            return cls(
                **fields,
                segments=segments,
                checkpoints=checkpoints,
                notes=None if notes is None else Part(**notes),
            )
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
                return None
            raise DamagedStore(
                f"{path} needs to be the manifest of a run, but it can't be read: {error.strerror or error}; restore "
                "it, or give another store."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedStore(
                f"{path} needs to be the manifest of a run, but it is damaged ({short(error)}); "
                "restore it, or give another store."
            ) from error

    @property
    def done(self) -> int:
        """Draws that are kept, of the warm-up too."""
        return self.checkpoints[-1].done if self.checkpoints else 0

    def up_to(self, done: int) -> "Manifest":
        """The same run as it was after `done` draws."""
        return replace(
            self,
            segments=[segment for segment in self.segments if segment.stop <= done],
            checkpoints=[point for point in self.checkpoints if point.done <= done],
        )

    def write(self, folder: Path) -> None:
        """Renames the manifest into its place in a run's folder.

        Raises:
            OSError: if it can't be written.
        """
        fields = json.loads(json.dumps(asdict(self)))  # as they are read
        write_whole(folder / _NAME, json.dumps({_CHECKSUM: _checksum(fields), **fields}, indent=1).encode())


def _checksum(fields: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
