"""The spectrum in a file, and beside it what is known about λ beyond the rank."""

import json
import math
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import xarray as xr

from llc.bounds.assumptions import NO_DESCENT, Assumption
from llc.bounds.bound import Bound
from llc.bounds.rank import Bounds, extend
from llc.bounds.scales import ScaleSpectrum
from llc.bounds.spectral_measure import Spectrum


def to_dataset(spectrum: Spectrum, bounds: Bounds | None, scales: ScaleSpectrum | None = None) -> xr.Dataset:
    """The spectrum for the `curvature` group of a file, with the part of the bounds that does not follow from it."""
    dataset = spectrum.to_dataset()
    if scales is not None:
        dataset = dataset.merge(scales.to_dataset(), combine_attrs="no_conflicts")
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
    known = read_beyond(beyond)
    return extend(bounds, known.records, known.assumptions, is_saddle=known.is_saddle)


class Beyond(NamedTuple):
    """What is known of λ beyond the rank."""

    records: tuple[Bound, ...]
    assumptions: tuple[Assumption, ...]
    is_saddle: bool


def read_beyond(text: str) -> Beyond:
    """What `to_dataset` wrote into the attribute `beyond`; nothing if it is empty.

    Raises:
        ValueError: if it is another text.
    """
    if not text:
        return Beyond((), (), is_saddle=False)
    try:
        known = json.loads(text)
        assumptions = tuple(_typed(Assumption(**each)) for each in known["assumptions"])
        records = tuple(_typed(_record(each)) for each in known["records"])
        # Version 0.1 told a saddle by the name of the assumption alone.
        is_saddle = known.get("is_saddle", any(a.name == NO_DESCENT and not a.holds for a in assumptions))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the attribute beyond is not what llc bounds writes ({error})") from error
    return Beyond(records, assumptions, bool(is_saddle))


def _typed[Record: (Assumption, Bound)](record: Record) -> Record:
    """The record, if all of its fields have the type of their defaults or are text.

    Raises:
        TypeError: if one has not.
    """
    numbers, flags = ("lower", "upper", "evaluations", "seconds"), ("holds",)
    for field in fields(record):
        value = getattr(record, field.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if field.name in numbers:
            good = number
        elif field.name in flags:
            good = isinstance(value, bool)
        elif field.name == "number":
            good = value is None or number
        else:
            good = isinstance(value, str)
        if not good:
            raise TypeError(f"{field.name} is {value!r}")
    return record


def _record(written: dict[str, Any]) -> Bound:
    """A bound from its fields: an infinite one is stored as null, and version 0.1 said "proven" for "established"."""
    known: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    known["status"] = _NEW_STATUS.get(known["status"], known["status"])
    return Bound(**known)


_NEW_STATUS = {"proven": "established"}
