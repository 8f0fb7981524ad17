"""Tables and the figure of no_knobs.py."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import Column, Row
from verdicts import VERDICTS, counts, listed

SWEPT = ("SGLD", "RMSProp")
WIDTH = 1.959964  # standard errors of a 95 % interval
COLORS = {"exact": "#0072B2", "linear": "#E69F00", "digits": "#009E73"}


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by group, and all of them."""
    good = [row for row in rows if "error" not in row]
    return {"all": good} | {name: [row for row in good if row["group"] == name] for name in COLORS}


def errors(row: Row) -> np.ndarray:
    """Relative errors of the repeats."""
    return np.asarray(row["values"]) / row["truth"] - 1


def unrefused(row: Row) -> float:
    """Largest error over the range of steps, where nothing refuses it; infinite if that is nan."""
    found = [abs(point["error"]) for point in row["range"] if not point["refused"]]
    return max((error if math.isfinite(error) else math.inf for error in found), default=0.0)


def best_of_sweep(row: Row) -> float:
    """Median error of the better swept sampler at its best step, over other keys; infinite where all diverge."""
    medians = [np.median(np.abs(row[name]["again"])) for name in SWEPT if row[name]["again"]]
    return float(min((m if math.isfinite(m) else math.inf for m in medians), default=math.inf))


def summarize(rows: list[Row], truth_error: float) -> Row:
    """Targets against what was reached."""
    if not rows:
        return {}
    known = [row for row in rows if row["truth_error"] <= truth_error * row["truth"]]
    counted = {"cases": len(rows), "without truth": len(rows) - len(known)}
    return counted | (_reached(known) if known else {})


def _reached(rows: list[Row]) -> Row:
    """Errors, coverage and refusals where the truth is known."""
    found = np.concatenate([errors(row) for row in rows])
    found[~np.isfinite(found)] = np.inf
    covered = np.concatenate([row["covered"] for row in rows])
    best = [best_of_sweep(row) for row in rows]
    ratios = [np.median(np.abs(errors(row))) / b for row, b in zip(rows, best, strict=True) if b < math.inf]
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    return {
        "runs": len(found),
        "within 2 %": float(np.mean(np.abs(found) <= 0.02)),
        "median error": float(np.median(np.abs(found))),
        "worst error": float(np.max(np.abs(found))),
        "covered": float(np.mean(covered)),
        "of the best sweep, median": float(np.median(ratios)) if ratios else math.nan,
        "truth's error of mcse": float(np.median([row["truth_error"] / np.mean(row["errors"]) for row in rows])),
        "range below 5 %": float(np.mean([unrefused(row) < 0.05 for row in rows])),
        "steps refused": float(np.mean([bool(point["refused"]) for row in rows for point in row["range"]])),
        **{verdict: number / len(verdicts) for verdict, number in counts(verdicts).items()},
    }


def text(summary: Row) -> str:
    """A summary in one line."""
    shares = ("within 2 %", "median error", "worst error", "covered", "range below 5 %", "steps refused", *VERDICTS)
    return ", ".join(
        f"{name} {value:.1%}" if name in shares else f"{name} {value:.3g}" for name, value in summary.items()
    )


def _median(values: list[float]) -> float | None:
    return 100 * float(np.median(np.abs(values))) if values else None


COLUMNS = [
    Column("case", "case"),
    Column("d", "dim"),
    Column("truth", "truth", "{:.4f}"),
    Column("± %", lambda row: 100 * row["truth_error"] / row["truth"], "{:.2f}"),
    Column("λ̂ median error %", lambda row: 100 * float(np.median(np.abs(errors(row)))), "{:.2f}"),
    Column("worst %", lambda row: 100 * float(np.max(np.abs(errors(row)))), "{:.2f}"),
    Column("claimed ± %", lambda row: 100 * float(np.median(row["errors"])) / row["truth"], "{:.2f}"),
    Column("covered", lambda row: f"{sum(row['covered'])} of {len(row['covered'])}"),
    Column("SGLD swept %", lambda row: 100 * row["SGLD"]["error"], "{:+.2f}"),
    Column("again %", lambda row: _median(row["SGLD"]["again"]), "{:.2f}"),
    Column("RMSProp swept %", lambda row: 100 * row["RMSProp"]["error"], "{:+.2f}"),
    Column("again %", lambda row: _median(row["RMSProp"]["again"]), "{:.2f}"),
    Column("range %", lambda row: 100 * unrefused(row), "{:.2f}"),
    Column(
        "its ± %", lambda row: 100 * max((p["mcse"] for p in row["range"] if not p["refused"]), default=0.0), "{:.2f}"
    ),
    Column("refused", lambda row: f"{sum(bool(p['refused']) for p in row['range'])} of {len(row['range'])}"),
    Column("verdicts", lambda row: listed(counts(row["verdicts"]))),
    Column("failed", lambda row: " ".join(row["failed"])),
]


def figure(rows: list[Row]) -> Figure:
    """Errors of the estimate against its claimed error, and against those of the sweeps."""
    fig = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    for group, members in grouped(rows).items():
        if group != "all" and members:
            _plot_group(left, right, group, members)
    line = np.array([1e-5, 1e2])
    left.loglog(line, WIDTH * line, color="0.4", lw=0.8, label="95 % interval")
    left.axhline(2, color="0.4", ls="--", lw=0.8, label="2 %")
    right.loglog(line, line, color="0.4", lw=0.8, label="equal")
    right.loglog(line, line / 3, color="0.4", ls="--", lw=0.8, label="a third")
    left.set(xlabel="claimed standard error, %", ylabel="error of λ̂, %")
    right.set(xlabel="error of the best sweep, knowing the truth, %", ylabel="median error of λ̂, %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return fig


def _plot_group(left: Axes, right: Axes, group: str, rows: list[Row]) -> None:
    claimed = np.concatenate([np.asarray(row["errors"]) / row["truth"] for row in rows])
    found = np.concatenate([np.abs(errors(row)) for row in rows])
    left.loglog(100 * claimed, 100 * np.maximum(found, 1e-7), ".", color=COLORS[group], label=group)
    best = [best_of_sweep(row) for row in rows]
    ours = [np.median(np.abs(errors(row))) for row in rows]
    right.loglog(100 * np.maximum(best, 1e-7), 100 * np.maximum(ours, 1e-7), ".", color=COLORS[group], label=group)
