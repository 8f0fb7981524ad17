"""Tables and the figure of selected_samples.py."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import Column, Row

METHODS = ("winners", "all samples", "LSQ ranks", "LSQ losses", "Lanczos", "Hessian")
COLORS = dict(zip(METHODS, ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#CC79A7", "#000000"), strict=True))
MARKERS = dict(zip(METHODS, "os^vPD", strict=True))


def summarize(row: Row, noises: Sequence[float], share: float) -> list[Row]:
    """A line for each noise: evaluations to all directions, and to an inverse within 20 %."""
    lines = []
    for noise in noises:
        cells = [cell for cell in row["cells"] if cell["noise"] == noise]
        line = {name: row[name] for name in ("d", "r", "low")} | {"noise": noise}
        for method in (*METHODS, "winners of 500"):
            right = curve(cells, method, lambda cell: float(cell.get("rank", 0) >= row["r"]))
            close = curve(cells, method, lambda cell: float(cell.get("error", 1.0) < 0.2))
            line[method] = first(right, share)
            line[f"inverse, {method}"] = first(close, share)
        lines.append(line)
    return lines


def curve(cells: list[Row], method: str, value: Callable[[Row], float]) -> dict[int, float]:
    """Mean of `value` over the repeats, by N."""
    groups: dict[int, list[float]] = {}
    for cell in cells:
        if cell["method"] == method:
            groups.setdefault(cell["N"], []).append(value(cell))
    return {num_losses: float(np.mean(values)) for num_losses, values in sorted(groups.items())}


def first(shares: dict[int, float], share: float) -> int | None:
    """Smallest N from which on all shares are reached."""
    found = None
    for num_losses, reached in reversed(shares.items()):
        if reached < share:
            break
        found = num_losses
    return found


def too_large(rows: list[Row], method: str) -> float:
    """Share of the runs of `method` with a rank above r."""
    cells = [(row["r"], cell) for row in rows for cell in row.get("cells", ())]
    return float(np.mean([cell["rank"] > rank for rank, cell in cells if cell["method"] == method]))


def conclusion(lines: list[Row]) -> str:
    """What the numbers show: who is cheapest, line by line."""
    selection = ("winners", "all samples")
    clean, noisy = ([x for x in lines if bool(x["noise"]) == kind] for kind in (False, True))
    return "\n".join(
        [
            "Selected samples find all directions of the rank from fewer evaluations",
            f"  than Hessian-vector products, without noise: {wins(clean, selection, ('Lanczos', 'Hessian'))}",
            f"  than interpolated losses, without noise:     {wins(clean, selection, ('LSQ losses',))}",
            f"  than least squares on noisy losses:          {wins(noisy, selection, ('LSQ losses',))}",
            f"  than least squares on ranks (comparisons):   {wins(lines, selection, ('LSQ ranks',))}",
            f"All-sample matrix before winners: {wins(lines, ('all samples',), ('winners',))}",
            f"Winners before all-sample matrix: {wins(lines, ('winners',), ('all samples',))}",
        ]
    )


def wins(lines: list[Row], ours: Sequence[str], others: Sequence[str]) -> str:
    """Lines in which one of `ours` needs fewer losses than all of `others`, of those where any finds the rank."""
    pairs = [(cheapest(line, ours), cheapest(line, others)) for line in lines]
    won = [f"{line['d']}/{line['r']}" for line, (a, b) in zip(lines, pairs, strict=True) if a < b]
    where = f" (d/r = {', '.join(dict.fromkeys(won))})" if won else ""
    return f"{len(won)} of {sum(min(pair) < np.inf for pair in pairs)}{where}"


def cheapest(line: Row, methods: Sequence[str]) -> float:
    """Fewest losses to all directions by any of `methods`."""
    return min((line[m] for m in methods if line[m] is not None), default=np.inf)


COLUMNS = [
    Column("d", "d"),
    Column("r", "r"),
    Column("h_min", "low", "{:g}"),
    Column("noise", "noise", "{:g}"),
    Column("N to all directions: winners", "winners", "{:,}"),
    *[Column(method, method, "{:,}") for method in METHODS[1:]],
    Column("N to the inverse: winners", "inverse, winners", "{:,}"),
    Column("of 500", "inverse, winners of 500", "{:,}"),
    *[Column(method, f"inverse, {method}", "{:,}") for method in METHODS[1:4]],
]


def figure(rows: list[Row], noises: Sequence[float]) -> Figure:
    """Share of the rank that is found against N: a row of panels a noise, a column a case."""
    rows = [row for row in rows if "cells" in row]
    fig = Figure(figsize=(max(10, 2.5 * len(rows) + 0.6), 2.3 * len(noises) + 0.9), layout="constrained")
    axes = fig.subplots(len(noises), len(rows), sharey=True, sharex="col", squeeze=False)
    for (i, noise), (j, row) in itertools.product(enumerate(noises), enumerate(rows)):
        _panel(axes[i, j], [cell for cell in row["cells"] if cell["noise"] == noise and "rank" in cell], row)
    for ax, row in zip(axes[0], rows, strict=True):
        ax.set_title(f"d = {row['d']}, r = {row['r']}, h ≥ {row['low']:g}", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("N, evaluated losses", fontsize=8)
    for ax, noise in zip(axes[:, 0], noises, strict=True):
        ax.set_ylabel(f"noise {noise:g}\nrank found / r", fontsize=9)
    handles = [axes[0, 0].plot([], [], MARKERS[m], color=COLORS[m], label=m)[0] for m in METHODS]
    handles += axes[0, 0].plot([], [], ":", color="#6E6E6E", label="d²/2, unknowns of a quadratic")
    fig.legend(handles=handles, loc="outside upper center", ncols=7, fontsize=9, frameon=False)
    return fig


def _panel(ax: Axes, cells: list[Row], row: Row) -> None:
    for method in METHODS:
        points = curve(cells, method, lambda cell: cell["rank"] / row["r"])
        style = "-" if len(points) > 1 else ""
        ax.plot(list(points), list(points.values()), MARKERS[method] + style, ms=4, lw=1.2, color=COLORS[method])
    ax.axhline(1, color="#6E6E6E", lw=0.8, zorder=0)
    ax.axvline(row["d"] * (row["d"] + 1) / 2 + 1, color="#6E6E6E", lw=0.8, ls=":", zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(-0.08, 1.45)
    ax.spines[["top", "right"]].set_visible(False)
