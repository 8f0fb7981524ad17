"""What a failed check says to change: a value, and never one that contradicts what calibration chose.

Calibration takes the weakest γ that the loss or the length of the run allows. A stronger one can always be tried. Rows
of a stream are evaluated on, and batches of a calibrated run are taken, as far as they are resident.
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


def more_rows(draws: xr.DataTree, rows: int) -> str:
    """Settings that evaluate losses on at least so many rows, or on all where there are fewer."""
    rows = min(rows, int(constant(draws, schema.NUM_DATA)))
    return f"raise eval_size to at least {rows}{_resident(draws, rows)}"


def larger_batch(draws: xr.DataTree, factor: int = 4) -> str:
    """A minibatch of so many times the rows, or of all."""
    num_data = constant(draws, schema.NUM_DATA)
    rows = int(min(factor * schema.settings_of(draws).get("batch_size", num_data), num_data))
    return f"take batch_size = {rows}{_resident(draws, rows)}"


def _resident(draws: xr.DataTree, rows: int) -> str:
    """What a stream needs beside it to have so many rows at hand; empty where it has them, and of arrays."""
    stream = schema.settings_of(draws).get("stream")
    resident = stream.get("resident") if isinstance(stream, dict) else None
    return f" with llc.stream(source, resident={rows})" if isinstance(resident, int) and resident < rows else ""
