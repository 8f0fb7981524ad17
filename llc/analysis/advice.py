"""What a failed check says of γ: a value, and never one that contradicts what calibration chose.

Calibration takes the weakest γ that the loss or the length of the run allows. A stronger one can always be tried.
"""

import xarray as xr

from llc.analysis import schema
from llc.analysis.schema import constant

_FACTOR = 10.0  # from a γ to the one that is named, where nothing else says how far to go


def was_chosen(draws: xr.DataTree) -> bool:
    """Whether calibration chose γ."""
    return draws.attrs.get(schema.GAMMA_ORIGIN, "given") != "given"


def stronger_gamma(draws: xr.DataTree) -> str:
    """A setting that holds the chains closer to w*."""
    return f"gamma={_FACTOR * constant(draws, schema.GAMMA):.3g}" if constant(draws, schema.GAMMA) else "a gamma > 0"
