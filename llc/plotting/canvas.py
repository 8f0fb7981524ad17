"""What all figures share: palette, labels and axes.

Every panel draws on `ax`, or on a figure of its own (`ax.figure`) that pyplot never sees, so that none stays open.
"""

import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.analysis import validation
from llc.posterior.arguments import require_type

if TYPE_CHECKING:
    from llc.bounds.rank import Bounds
else:  # at run time any object with the same fields serves
    Bounds = Any

# Okabe & Ito 2008, for colour-blind readers too; black is for pooled values, their yellow is too pale on white.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
BLACK, GREY, PALE = "#000000", "#6E6E6E", "#E4E4E4"
_CHAINS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE)

HAT, QUAD, CORR = r"$\hat\lambda$", r"$\lambda_\mathrm{quad}$", r"$\lambda_\mathrm{corr}$"
LLC = r"$n\beta\,(L(w)-L(w^*))$"

_LINE_POINTS = 2000  # points of a drawn line; more than a panel has pixels
_LEGEND_WIDTH = 88  # characters of 8 points across a panel


def panel_figure() -> Figure:
    """An empty figure of the size of one panel."""
    return Figure(figsize=(7, 4), layout="constrained")


def axes(ax: Axes | None) -> Axes:
    """`ax`, or the axes of a new figure."""
    require_type("ax", ax, Axes, "matplotlib's Axes", optional=True)
    return panel_figure().add_subplot() if ax is None else ax


def require(name: str, value: object, what: str, *fields: str, optional: bool = False) -> None:
    """Raises ValueError if `value` lacks the fields that a figure is drawn from."""
    if not (optional and value is None) and not all(hasattr(value, field) for field in fields):
        raise ValueError(f"{name} needs to be {what}{' or None' if optional else ''}, got {type(value).__name__}.")


def draws_of(source: Any) -> xr.DataTree:
    """The draws themselves, or those of a report."""
    draws = source if isinstance(source, xr.DataTree) else getattr(source, "draws", None)
    require_type("source", draws if source is not None else None, xr.DataTree, "draws of llc.sample, or a report")
    assert isinstance(draws, xr.DataTree)
    validation.require(draws)
    return draws


def symbol(source: Any) -> str:
    """What a report compares with the bounds: λ_corr, or λ̂ where nothing was added to it."""
    findings = getattr(source, "findings", None)
    return CORR if findings is None or findings.symbol == "λ_corr" else HAT


def note(ax: Axes, message: str) -> None:
    """Says in the middle of a panel why it is empty."""
    if not ax.has_data():
        ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", color=GREY)


def finish(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """Labels, and a legend between title and axes, where it covers no data."""
    labels, rows = ax.get_legend_handles_labels()[1], 0
    if labels:
        # As many columns as fit: widths in characters, 6 for the handle, without the marks of mathtext.
        widths = [6 + len(re.sub(r"\\\w+|[{}$^_]", "", label)) for label in labels]
        fits = [k for k in range(1, len(labels) + 1) if sum(map(max, np.array_split(widths, k))) <= _LEGEND_WIDTH]
        columns = max(fits, default=1)
        rows = math.ceil(len(labels) / columns)
        spacing: dict[str, Any] = {"borderpad": 0.1, "borderaxespad": 0.2, "handlelength": 1.6, "columnspacing": 1.2}
        legend = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8, frameon=False, **spacing)
        for line in legend.get_lines():
            line.set(linewidth=max(1.5, line.get_linewidth()), alpha=1)
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=5 + 13 * rows)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    if ax.get_yscale() == "linear":
        ax.yaxis.set_major_formatter("{x:.10g}")  # no common factor above the axis, where the legend stands
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def decimate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line of at most `_LINE_POINTS` points: least and largest of every stretch, so that no spike is lost."""
    if len(x) <= _LINE_POINTS:
        return x, y
    length = math.ceil(2 * len(x) / _LINE_POINTS)
    rows = np.pad(y, (0, -len(y) % length), mode="edge").reshape(-1, length)
    ends = np.sort([rows.argmin(axis=1), rows.argmax(axis=1)], axis=0) + length * np.arange(len(rows))
    index = np.minimum(ends.T.ravel(), len(y) - 1)
    return x[index], y[index]


def padded(*arrays: Any) -> tuple[float, float]:
    """Least and largest of the finite values, with a margin."""
    values = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.zeros(1)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def inside(ax: Axes, y: Any) -> Any:
    """`y` moved to within the axis, a little off its ends."""
    low, high = ax.get_ylim()
    return np.clip(y, low + 0.04 * (high - low), high - 0.04 * (high - low))


def chain_color(i: int, num_chains: int) -> Any:
    """The colour of chain `i`: of the palette while there are few chains, of a map otherwise."""
    return _CHAINS[i] if num_chains <= len(_CHAINS) else matplotlib.colormaps["cividis"](0.9 * i / (num_chains - 1))


def chain_label(i: int, num_chains: int) -> str | None:
    """A label for each chain while there are few; one for all otherwise."""
    if num_chains <= len(_CHAINS):
        return f"chain {i}"
    return f"chains 0 to {num_chains - 1}" if i == 0 else None


def bounds_text(bounds: Bounds) -> str:
    """The bounds as text."""
    return f"[{bounds.lower:.4g}, {bounds.upper:.4g}]" if np.isfinite(bounds.lower) else "do not hold"


def rank_text(bounds: Bounds) -> str:
    """The rank as text: a number, or the ends of its interval."""
    low, high = bounds.rank_interval
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
