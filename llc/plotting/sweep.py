"""The figure of a sweep: λ̂ with bounds along a training run, its singular part, differences, and the loss."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llc.plotting import canvas
from llc.posterior.arguments import require_type

_SIZE = 12.0, 7.0  # inches
_ERRORS = 2  # standard errors that bars show
_MARKS = {  # of verdicts: marker, whether it is filled, and its name
    "CONSISTENT": ("o", True, "consistent"),
    "SCALE_DEPENDENT": ("o", False, "scale-dependent"),
    "UNRESOLVED": ("X", True, "unresolved"),
    "BELOW": ("v", True, "below its bounds"),
    "ABOVE": ("^", True, "above its bounds"),
}
_WIDE = 30.0  # ratio of largest and smallest step from which their axis is logarithmic
_DECADE = 10.0  # the same of losses
_MOST_NAMES = 12  # of items under an axis
_NAME = 14  # characters of one
_FAR = 1.5  # upper bounds beyond so many times the largest λ̂ do not stretch the axis
_SLOPE = 0.02  # of λ̂, from which what the slope takes is drawn


class _Line(NamedTuple):
    """The items of one mask and setting: where they lie on the axis, their columns, and how they are drawn."""

    x: np.ndarray
    table: xr.Dataset
    label: str
    color: str


def plot_sweep(source: xr.DataTree | xr.Dataset) -> Figure:
    """λ̂ of all items with ± 2 standard errors, bounds, λ_quad and verdicts; λ̂ − λ_quad; differences; and the loss.

    The axis is the number in the items' names (the training step), or the names themselves where there is none. Several
    masks or settings are a line each. Items that failed are crosses on the axis.

    Args:
        source: of `llc.sweep`, or its table.
    """
    require_type("source", source, (xr.DataTree, xr.Dataset), "what llc.sweep gives, or its table")
    table = source.to_dataset() if isinstance(source, xr.DataTree) else source
    if missing := [name for name in ("checkpoint", "llc", "mcse", "verdict") if name not in table.variables]:
        raise ValueError(f"source needs to be what llc.sweep gives, or its table, but it lacks {missing}.")
    figure = Figure(figsize=_SIZE, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    lines = list(_lines(table))
    _plot_values(panels[0, 0], lines)
    _plot_singular(panels[0, 1], lines)
    _plot_loss(panels[1, 0], lines)
    _plot_differences(panels[1, 1], lines)
    for ax in panels.ravel():
        _name_items(ax, table)
        ax.set_xlabel("step" if _has_steps(table) else "", fontsize=9)
    return figure


def _has_steps(table: xr.Dataset) -> bool:
    steps = table["step"].to_numpy()
    per_line = [line.x for line in _lines(table, by_step=True)]
    return bool(np.isfinite(steps).all()) and all(len(set(x.tolist())) == len(x) > 1 for x in per_line)


def _lines(table: xr.Dataset, *, by_step: bool | None = None) -> Iterator[_Line]:
    """A line for each mask and setting."""
    size = table.sizes["checkpoint"]
    kinds = [table[name].to_numpy().tolist() if name in table.coords else [""] * size for name in ("mask", "setting")]
    labels = [", ".join(filter(None, pair)) for pair in zip(*kinds, strict=True)]
    names = list(dict.fromkeys(labels))
    points = table["point"].to_numpy().tolist() if "point" in table.coords else table["checkpoint"].to_numpy().tolist()
    order = list(dict.fromkeys(points))
    by_step = _has_steps(table) if by_step is None else by_step
    by_kind = len(names) > 1 and len(order) == 1  # masks or settings of one point: an axis of them
    for i, name in enumerate([""] if by_kind else names):
        rows = [j for j, label in enumerate(labels) if by_kind or label == name]
        part = table.isel(checkpoint=rows)
        index = np.arange(len(rows)) if by_kind else np.array([order.index(points[j]) for j in rows])
        x = part["step"].to_numpy() if by_step and not by_kind else index.astype(float)
        yield _Line(x, part, name, canvas.chain_color(i, len(names)))


def _name_items(ax: Axes, table: xr.Dataset) -> None:
    """Steps, or names where there are none."""
    if _has_steps(table):
        steps = table["step"].to_numpy()
        positive = steps[steps > 0]
        if positive.size and positive.max() > _WIDE * positive.min():
            least = float(positive.min())
            zero = {"linthresh": least, "linscale": 0.4} if steps.min() <= 0 else {}
            ax.set_xscale("symlog" if zero else "log", **zero)
            ax.set_xlim(-0.4 * least if zero else 0.7 * least, 1.5 * float(positive.max()))
            ax.xaxis.set_minor_locator(NullLocator())
        return
    names = list(dict.fromkeys(table["point"].to_numpy().tolist() if "point" in table.coords else []))
    if len(names) < 2:
        names = table["checkpoint"].to_numpy().tolist()
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_NAMES)).astype(int))
    words = [names[i] if len(names[i]) <= _NAME else f"{names[i][: _NAME - 1]}…" for i in shown]
    ax.set_xticks(shown, words, rotation=30, ha="right")


def _plot_values(ax: Axes, lines: list[_Line]) -> None:
    seen: list[Any] = []
    for line in lines:
        value, error = line.table["llc"].to_numpy(), _ERRORS * line.table["mcse"].to_numpy()
        alone = len(lines) == 1
        if alone:
            _plot_geometry(ax, line)
            seen += [line.table["quad"], line.table["corrected"], line.table["lower"], _polished(line)]
        label = f"{canvas.HAT} ± {_ERRORS} standard errors" if alone else line.label
        ax.errorbar(line.x, value, np.where(np.isfinite(error), error, 0), color=line.color, lw=1.4, capsize=2.5)
        ax.plot([], [], color=line.color, lw=1.6, label=label)
        _mark(ax, line, value)
        seen += [value - error, value + error]
        upper, most = line.table["upper"].to_numpy(), _FAR * float(value[np.isfinite(value)].max(initial=0.0))
        seen += [np.where(upper < most, upper, np.nan)] * alone
    ax.set_ylim(*canvas.padded(*seen))
    _cross_failed(ax, lines)
    for verdict in dict.fromkeys(v for line in lines for v in line.table["verdict"].to_numpy().tolist()):
        if verdict in _MARKS:
            marker, filled, name = _MARKS[verdict]
            face = canvas.BLACK if filled else "white"
            ax.plot([], [], marker, color=canvas.BLACK, mfc=face, ms=6, label=name)
    canvas.finish(ax, "Local learning coefficient", "", canvas.HAT)


def _plot_geometry(ax: Axes, line: _Line) -> None:
    """Bounds, λ_quad, λ_corr and what λ̂ would be without the slope."""
    lower, upper = line.table["lower"].to_numpy(), line.table["upper"].to_numpy()
    if np.isfinite(lower).any():
        meet = upper - lower < 1e-9
        ax.vlines(line.x[~meet], lower[~meet], upper[~meet], color=canvas.PALE, lw=9, zorder=0)
        ax.plot(line.x[meet], lower[meet], "_", color=canvas.GREY, ms=16, mew=2, zorder=0)
        ax.plot(
            [], [], color=canvas.PALE if (~meet[np.isfinite(lower)]).any() else canvas.GREY, lw=6, label="bounds of λ"
        )
    others: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
        (canvas.QUAD, line.table["quad"].to_numpy(), {"color": canvas.ORANGE, "ls": "--"}),
        (canvas.CORR, line.table["corrected"].to_numpy(), {"color": canvas.GREEN, "ls": "-."}),
        ("without the slope", _polished(line), {"color": canvas.SKY, "ls": ":", "marker": ".", "ms": 5}),
    )
    for name, values, style in others:
        same = np.allclose(values, line.table["llc"].to_numpy(), rtol=1e-3, atol=0, equal_nan=True)
        if np.isfinite(values).any() and not same:
            ax.plot(line.x, values, lw=1.3, zorder=1, label=name, **style)


def _polished(line: _Line) -> np.ndarray:
    """λ̂ less the share of the slope, where that is worth a line; nan else."""
    value, polished = line.table["llc"].to_numpy(), line.table["polished"].to_numpy()
    large = np.abs(polished - value) > _SLOPE * np.maximum(np.abs(polished), 0.5)
    return polished if large.any() else np.full_like(polished, np.nan)


def _mark(ax: Axes, line: _Line, y: np.ndarray) -> None:
    """A mark for the verdict of every item."""
    verdicts = line.table["verdict"].to_numpy()
    for verdict, (marker, filled, _) in _MARKS.items():
        here = (verdicts == verdict) & np.isfinite(y)
        face = line.color if filled else "white"
        ax.plot(line.x[here], y[here], marker, color=line.color, mfc=face, ms=6, mew=1.4, zorder=3)


def _cross_failed(ax: Axes, lines: list[_Line]) -> None:
    """Items without draws, as crosses on the axis."""
    x = np.concatenate([line.x[~np.isfinite(line.table["llc"].to_numpy())] for line in lines])
    if x.size:
        y = np.full(x.size, ax.get_ylim()[0])
        ax.plot(x, y, "x", color=canvas.RED, ms=8, mew=2, clip_on=False, label="failed")


def _plot_singular(ax: Axes, lines: list[_Line]) -> None:
    _plot_with_errors(ax, lines, "singular", "singular_mcse", "no spectrum")
    canvas.finish(ax, f"Singular contribution: {canvas.HAT} − {canvas.QUAD}", "", f"{canvas.HAT} − {canvas.QUAD}")


def _plot_differences(ax: Axes, lines: list[_Line]) -> None:
    _plot_with_errors(ax, lines, "difference", "difference_mcse", "one item: no differences")
    canvas.finish(
        ax, f"Difference to the item before, ± {_ERRORS} of its own errors", "", f"difference of {canvas.HAT}"
    )


def _plot_with_errors(ax: Axes, lines: list[_Line], name: str, error_name: str, empty: str) -> None:
    shown = [line for line in lines if np.isfinite(line.table[name].to_numpy()).any()]
    for line in shown:
        value, error = line.table[name].to_numpy(), _ERRORS * line.table[error_name].to_numpy()
        error = np.where(np.isfinite(error), error, 0)
        ax.errorbar(line.x, value, error, color=line.color, marker=".", ms=6, lw=1.3, capsize=2.5)
    if not shown:
        canvas.note(ax, empty)
        return
    ax.axhline(0, color=canvas.GREY, lw=1, zorder=0)


def _plot_loss(ax: Axes, lines: list[_Line]) -> None:
    values = [line.table["loss"].to_numpy() for line in lines]
    for line, loss in zip(lines, values, strict=True):
        ax.plot(line.x, loss, color=line.color, marker=".", ms=6, lw=1.3, label=line.label or "L(w*)")
        gradient = line.table["grad_norm"].to_numpy()
        if len(lines) == 1 and np.isfinite(gradient).any() and np.nanmin(gradient) > 0:
            ax.plot(line.x, gradient, color=canvas.PURPLE, ls="--", lw=1.2, label="‖∇L(w*)‖")
            values = [*values, gradient]
    seen = np.concatenate(values)
    seen = seen[np.isfinite(seen)]
    if seen.size and seen.min() > 0 and seen.max() > _DECADE * seen.min():
        ax.set_yscale("log")
    canvas.finish(ax, "Loss and slope at w*" if len(lines) == 1 else "Loss at w*", "", "nats per example")
