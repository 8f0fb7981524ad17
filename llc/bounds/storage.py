"""What is known of λ beyond the Hessian's rank, beside the spectrum in a file."""

import json
import math
from dataclasses import asdict

import xarray as xr

from llc.bounds.assumptions import Assumption
from llc.bounds.rank import Bound, Bounds, extend
from llc.bounds.spectral_measure import Spectrum


def to_dataset(spectrum: Spectrum, bounds: Bounds | None) -> xr.Dataset:
    """The spectrum for the `curvature` group of a file, and of the bounds what does not follow from it."""
    dataset = spectrum.to_dataset()
    if bounds is not None and bounds.records:
        records = [
            {name: None if value in (-math.inf, math.inf) else value for name, value in asdict(record).items()}
            for record in bounds.records
        ]
        assumptions = [asdict(assumption) for assumption in bounds.assumptions]
        dataset.attrs["beyond"] = json.dumps({"records": records, "assumptions": assumptions})
    return dataset


def add_beyond(bounds: Bounds, beyond: str) -> Bounds:
    """Bounds of the rank, with what `to_dataset` wrote of others; the same if that is empty."""
    if not beyond:
        return bounds
    known = json.loads(beyond)
    records = tuple(
        Bound(**{name: value for name, value in record.items() if value is not None}) for record in known["records"]
    )
    return extend(bounds, records, tuple(Assumption(**assumption) for assumption in known["assumptions"]))
