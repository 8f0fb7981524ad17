"""The spectrum in a file, and beside it what is known about λ beyond the rank."""

import json
import math
from dataclasses import asdict
from typing import Any

import xarray as xr

from llc.bounds.assumptions import NO_DESCENT, Assumption
from llc.bounds.rank import Bound, Bounds, extend
from llc.bounds.spectral_measure import Spectrum


def to_dataset(spectrum: Spectrum, bounds: Bounds | None) -> xr.Dataset:
    """The spectrum for the `curvature` group of a file, with the part of the bounds that does not follow from it."""
    dataset = spectrum.to_dataset()
    if bounds is not None and bounds.records:
        records = [
            {name: None if value in (-math.inf, math.inf) else value for name, value in asdict(record).items()}
            for record in bounds.records
        ]
        assumptions = [asdict(assumption) for assumption in bounds.assumptions]
        beyond = {"records": records, "assumptions": assumptions, "is_saddle": bounds.is_saddle}
        dataset.attrs["beyond"] = json.dumps(beyond)
    return dataset


def add_beyond(bounds: Bounds, beyond: str) -> Bounds:
    """`bounds` of the rank, extended by what `to_dataset` wrote about others; the same if `beyond` is empty.

    Args:
        bounds: of the rank.
        beyond: the attribute of that name, of this release or of version 0.1.
    """
    if not beyond:
        return bounds
    known = json.loads(beyond)
    assumptions = tuple(Assumption(**assumption) for assumption in known["assumptions"])
    # Version 0.1 told a saddle by the name of the assumption alone.
    is_saddle = known.get("is_saddle", any(a.name == NO_DESCENT and not a.holds for a in assumptions))
    records = tuple(_record(record) for record in known["records"])
    return extend(bounds, records, assumptions, is_saddle=is_saddle)


def _record(fields: dict[str, Any]) -> Bound:
    """A bound from its fields: an infinite one is stored as null, and version 0.1 said "proven" for "established"."""
    known: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    known["status"] = _NEW_STATUS.get(known["status"], known["status"])
    return Bound(**known)


_NEW_STATUS = {"proven": "established"}
