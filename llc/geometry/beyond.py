"""What is known of λ beyond the Hessian's rank, beside the spectrum in a file."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import xarray as xr

from llc.geometry.bounds import Assumption, Bound, Bounds, rank_bounds, tighten
from llc.geometry.measure import Spectrum


def to_dataset(spectrum: Spectrum, bounds: Bounds | None) -> xr.Dataset:
    """The spectrum for the `curvature` group of a file, and of the bounds what does not follow from it."""
    dataset = spectrum.to_dataset()
    if bounds is not None and bounds.records:
        records = [
            {name: None if value in (-math.inf, math.inf) else value for name, value in asdict(record).items()}
            for record in bounds.records
        ]
        dataset.attrs["beyond"] = json.dumps(
            {"records": records, "assumptions": [asdict(x) for x in _more(bounds, rank_bounds(spectrum))]}
        )
    return dataset


def add_beyond(bounds: Bounds, beyond: str) -> Bounds:
    """Bounds of the rank, with what `to_dataset` wrote of others; the same if that is empty."""
    if not beyond:
        return bounds
    known = json.loads(beyond)
    records = tuple(
        Bound(**{name: value for name, value in record.items() if value is not None}) for record in known["records"]
    )
    tightened = tighten(bounds, records)
    more = tuple(Assumption(**assumption) for assumption in known["assumptions"])
    if not all(assumption.holds for assumption in more):
        tightened = replace(tightened, lower=np.nan, upper=np.nan)
    return replace(tightened, assumptions=(*tightened.assumptions, *more))


def _more(bounds: Bounds, of_rank: Bounds) -> tuple[Assumption, ...]:
    names = {assumption.name for assumption in of_rank.assumptions}
    return tuple(assumption for assumption in bounds.assumptions if assumption.name not in names)
