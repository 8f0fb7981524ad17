"""Tables and the figure of peer_accuracy.py."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import Column, Row

TOOLS = {"llc": "#0072B2", "devinterp, defaults": "#D55E00", "devinterp, best": "#E69F00"}


def summarize(rows: list[Row], tool: str) -> Row:
    """How far one tool is off, over all models."""
    results = [row["tools"][tool] for row in rows if tool in row.get("tools", {})]
    finite = [result for result in results if result["value"] is not None]
    errors = [math.inf if result["value"] is None else abs(result["relative"]) for result in results]  # all of them
    if not finite:
        return {"models": len(results), "failures": len(results)}
    return {
        "models": len(results),
        "failures": len(results) - len(finite),
        "median error": statistics.median(errors),
        "worst error": max(abs(result["relative"]) for result in finite),
        "beyond 2": sum(abs(result["z"]) > 2 for result in finite),
        "beyond 4": sum(abs(result["z"]) > 4 for result in finite),
        "seconds": statistics.median(result["seconds"] for result in finite),
        "cpu": statistics.median(result["cpu"] for result in finite),
        "gradients": _median(_count(result) for result in finite),
    }


def _column(tool: str, key: str) -> Callable[[Row], Any]:
    return lambda row: row["tools"].get(tool, {}).get(key)


def _estimate(tool: str) -> Callable[[Row], str | None]:
    def cell(row: Row) -> str | None:
        result = row["tools"].get(tool)
        if result is None:
            return None
        return "diverged" if result["value"] is None else f"{result['value']:.4g} ± {result['error']:.2g}"

    return cell


def _gradients(tool: str) -> Callable[[Row], float | None]:
    def cell(row: Row) -> float | None:
        result = row["tools"].get(tool, {})
        return _count(result) if result else None

    return cell


def _count(result: Row) -> float | None:
    """Gradients of a run, on a minibatch or on all data; None of the peer's defaults, which it does not tell."""
    if "num_draws" not in result:
        return result.get("gradients")
    return result["num_chains"] * (result["num_burnin_steps"] + result["num_draws"])


def _share(value: float | None) -> str | None:
    if value is None:
        return None
    return "diverged" if value == math.inf else f"{value:.1%}"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


COLUMNS = [
    Column("model", "case"),
    Column("d", "num_params", "{:,}"),
    Column("truth", lambda row: f"{row['truth']:.4f}" + (f" ± {row['truth_error']:.4f}" if row["truth_error"] else "")),
    Column("llc", _estimate("llc")),
    Column("error", _column("llc", "relative"), "{:+.1%}"),
    Column("z", _column("llc", "z"), "{:+.1f}"),
    Column("gradients", _column("llc", "gradients"), "{:,.0f}"),
    Column("s", _column("llc", "seconds"), "{:.1f}"),
    Column("CPU", _column("llc", "cpu"), "{:.1f}"),
    Column("s compiled", _column("llc", "compiled"), "{:.1f}"),
    Column("CPU", _column("llc", "cpu_compiled"), "{:.1f}"),
    Column("devinterp, defaults", _estimate("devinterp, defaults")),
    Column("error", _column("devinterp, defaults", "relative"), "{:+.1%}"),
    Column("z", _column("devinterp, defaults", "z"), "{:+.1f}"),
    Column("s", _column("devinterp, defaults", "seconds"), "{:.1f}"),
    Column("CPU", _column("devinterp, defaults", "cpu"), "{:.1f}"),
    Column("devinterp, best", _estimate("devinterp, best")),
    Column("error", _column("devinterp, best", "relative"), "{:+.1%}"),
    Column("z", _column("devinterp, best", "z"), "{:+.1f}"),
    Column("gradients", _gradients("devinterp, best"), "{:,.0f}"),
    Column("s", _column("devinterp, best", "seconds"), "{:.1f}"),
    Column("CPU", _column("devinterp, best", "cpu"), "{:.1f}"),
    Column("its step size", _column("devinterp, best", "step_size"), "{:.0e}"),
    Column("llc: failed checks", _column("llc", "failed")),
]

SUMMARY = [
    Column("tool", "tool"),
    Column("models", "models"),
    Column("diverged", "failures"),
    Column("median |error|", lambda row: _share(row.get("median error"))),
    Column("worst |error|", "worst error", "{:.0%}"),
    Column("off by > 2 reported errors", "beyond 2"),
    Column("> 4", "beyond 4"),
    Column("median s", "seconds", "{:.1f}"),
    Column("median CPU s", "cpu", "{:.1f}"),
    Column("median gradients", "gradients", "{:,.0f}"),
]


def figure(rows: list[Row]) -> Figure:
    """Relative error with the reported error; the error in units of the reported one; seconds."""
    rows = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(13, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = left, middle, right = fig.subplots(1, 3, sharey=True, width_ratios=(2.2, 1, 1))
    heights = np.arange(len(rows))[::-1]
    for offset, (tool, color) in zip((0.22, 0.0, -0.22), TOOLS.items(), strict=True):
        for height, row in zip(heights + offset, rows, strict=True):
            if tool in row["tools"]:
                _plot_result(axes, row["tools"][tool], row["truth"], height, color)
        left.errorbar([], [], xerr=[], fmt="o", color=color, label=tool)
    left.axvspan(-3, 3, color="0.9", zorder=0)
    left.axvline(0, color="0.5", lw=0.8)
    left.set_xscale("symlog", linthresh=10, linscale=2)
    left.set_xticks([-100, -30, -10, -3, 0, 3, 10, 30, 100, 300], [-100, -30, -10, -3, 0, 3, 10, 30, 100, 300])
    left.set(yticks=heights, yticklabels=[row["case"] for row in rows], xlim=_limits(rows))
    left.set_xlabel("error of λ̂ and reported error, % of the truth\n(grey: ±3 %; linear up to 10 %)")
    middle.set_xscale("log")
    middle.axvspan(0.04, 2, color="0.9", zorder=0)
    middle.set_xlabel("|error| / reported error\n(grey: up to 2)")
    right.set_xscale("log")
    right.set_xlabel("CPU seconds of one call\n(hollow: compiled before)")
    fig.legend(loc="outside upper center", ncols=len(TOOLS), frameon=False)
    return fig


def _plot_result(axes: tuple[Axes, Axes, Axes], result: Row, truth: float, height: float, color: str) -> None:
    """One tool on one model: error, error in units of the reported one, CPU seconds."""
    left, middle, right = axes
    right.plot(result["cpu"], height, "o", color=color, ms=5)
    if "cpu_compiled" in result:
        right.plot(result["cpu_compiled"], height, "o", color=color, ms=5, mfc="none")
    if result["value"] is None:
        place = {"transform": left.get_yaxis_transform(), "ha": "right", "va": "center"}
        right_of = 0.99 - 0.1 * list(TOOLS.values())[::-1].index(color)  # a column for each tool
        left.text(right_of, height, "diverged", color=color, fontsize=8, **place)
        return
    error = 100 * result["error"] / truth
    left.errorbar(100 * result["relative"], height, xerr=error, fmt="o", color=color, ms=5, capsize=2)
    middle.plot(max(abs(result["z"]), 0.05), height, "o", color=color, ms=5)


def _limits(rows: list[Row]) -> tuple[float, float]:
    """Of the errors in %, error bars left out, at least ±30."""
    errors = [
        100 * result["relative"] for row in rows for result in row["tools"].values() if result["value"] is not None
    ]
    return 1.5 * min([-30, *errors]), 1.5 * max([30, *errors])
