"""The panels of influence: a matrix of covariances, and values with their errors."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from llc.plotting import canvas

if TYPE_CHECKING:
    from matplotlib.image import AxesImage

_NAMED = 25  # entries, up to which each has a tick
_ERRORS = 2  # standard errors drawn, and below which an entry of the matrix is told to be noise
_MOST = 60  # bars of a panel; of more entries the largest are drawn


def plot_influence(found: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Values of `llc.influence`, `llc.loss_kernel` or `llc.susceptibility`, with what can be told from zero.

    A matrix is drawn in colours, blue for positive and red for negative, with a dot on entries within two standard
    errors of zero (of a matrix of few entries). One set of values is drawn as points with two standard errors, of more
    than 60 the largest.

    Args:
        found: the Dataset; dimensions beyond two have to be selected first.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: if it has no `value` and `mcse`, or more than two dimensions.
    """
    complete = isinstance(found, xr.Dataset) and {"value", "mcse"} <= set(found.data_vars)
    if not complete or found["value"].ndim > 2:
        shape = dict(found["value"].sizes) if complete else type(found).__name__
        raise ValueError(
            "plot_influence needs a result of llc.influence with at most two dimensions, got "
            f"{shape}; select or average the others, found.isel(token=0)."
        )
    ax = canvas.axes(ax)
    return _matrix(found, ax) if found["value"].ndim == 2 else _points(found, ax)


def _matrix(found: xr.Dataset, ax: Axes) -> Axes:
    value, error = found["value"].to_numpy(), found["mcse"].to_numpy()
    finite = np.abs(value[np.isfinite(value)])
    limit = float(np.quantile(finite, 0.99)) if finite.size else 1.0
    image: AxesImage = ax.imshow(value, cmap="RdBu", vmin=-(limit or 1.0), vmax=limit or 1.0, aspect="auto")
    noise = np.abs(value) < _ERRORS * error
    share = f"{np.mean(noise):.0%} within {_ERRORS} standard errors of 0"
    if max(value.shape) <= _NAMED:
        rows, columns = np.nonzero(noise)
        if len(rows):
            ax.plot(columns, rows, ".", ms=3, color=canvas.GREY, label=share)
        ax.set(xticks=range(value.shape[1]), yticks=range(value.shape[0]))
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(_units(found), fontsize=9)
    first, second = (str(dim) for dim in found["value"].dims)
    title = "Values by pairs" if max(value.shape) <= _NAMED else f"Values by pairs, {share}"
    canvas.finish(ax, title, second, first)
    ax.yaxis.set_major_formatter("{x:.0f}")
    return ax


def _points(found: xr.Dataset, ax: Axes) -> Axes:
    value, error = np.atleast_1d(found["value"].to_numpy()), np.atleast_1d(found["mcse"].to_numpy())
    number, index = len(value), np.arange(len(value))
    if number > _MOST:
        index = np.sort(np.argsort(-np.abs(value))[:_MOST])
    told = np.abs(value[index]) >= _ERRORS * error[index]
    places: Any = np.arange(len(index))
    for mask, color, text in ((told, canvas.BLUE, "told from 0"), (~told, canvas.GREY, "within its error of 0")):
        if mask.any():
            style = {"fmt": "o", "ms": 4, "lw": 1, "color": color, "label": f"{text}, ± {_ERRORS} standard errors"}
            ax.errorbar(places[mask], value[index][mask], _ERRORS * error[index][mask], **style)
    ax.axhline(0, color=canvas.BLACK, lw=0.8)
    dim = str(found["value"].dims[0]) if found["value"].ndim else ""
    if dim and len(index) <= _NAMED:
        ax.set_xticks(places, [str(x) for x in (found[dim].to_numpy() if dim in found.coords else index)])
    elif number > _MOST:
        shown = places[:: max(1, len(places) // 10)]
        ax.set_xticks(shown, [str(index[i]) for i in shown])
    title = "Values" if number <= _MOST else f"Values, the {_MOST} largest of {number:,}"
    return canvas.finish(ax, title, dim, _units(found))


def _units(found: xr.Dataset) -> str:
    return str(found["value"].attrs.get("units", "nats²"))
