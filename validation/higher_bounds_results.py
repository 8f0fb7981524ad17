"""Tables and the figure of higher_bounds.py."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from study import Column, Row

from llc.geometry.higher_order.probes import NAMES

GROUPS = STRATA, ZOO, TRAINED = "two-layer strata", "zoo", "trained"


def violated(row: Row) -> bool:
    """Whether a known λ lies outside of the bracket."""
    return row["known"] is not None and not row["lower"] - 1e-9 <= row["known"] <= row["upper"] + 1e-9


def of_group(rows: list[Row], group: str) -> list[Row]:
    """Rows of one group."""
    return [row for row in rows if row["case"].startswith(group)]


def summarize(rows: list[Row], tolerance: float) -> Row:
    """Targets against what was reached."""
    good = [row for row in rows if "error" not in row]
    agree = [row for row in good if row["pinned"] and row["corrected"] is not None]
    return {
        "points": len(good),
        # λ of a trained net is known by its certificate only, which nothing can violate.
        "violations": None if all(row["case"].startswith(TRAINED) for row in good) else sum(map(violated, good)),
        "width of the rank": _mean(row["rank_upper"] - row["rank_lower"] for row in good),
        "width": _mean(row["upper"] - row["lower"] for row in good),
        "pinned": _mean(row["pinned"] for row in good),
        "agree where pinned": _mean(
            abs(r["corrected"] - r["known"]) <= 4 * r["mcse"] + tolerance * r["known"] for r in agree
        ),
        "worst error where pinned": max((abs(row["corrected"] / row["known"] - 1) for row in agree), default=None),
        "seconds": sum(record[4] for row in good for record in row["bounds"].values()),
        "errors": len(rows) - len(good),
    }


def closing(rows: list[Row]) -> list[Row]:
    """How often each bound was established and is one of the tightest, the width that it alone leaves, and its cost."""
    result = []
    for name in NAMES:
        records = [(row, row["bounds"][name]) for row in rows if name in row["bounds"]]
        held = [(row, record) for row, record in records if record[0] == "established"]
        left = [min(row["rank_upper"], b[2]) - max(row["rank_lower"], b[1]) for row, b in held]
        before = [row["rank_upper"] - row["rank_lower"] for row, _ in held]
        result.append(
            {
                "bound": name,
                "established": len(held),
                "undecided": sum(record[0] == "undecided" for _, record in records),
                "tightest": sum(name in row["source"] for row in rows),
                "before": _mean(before),
                "left": _mean(left),
                "evaluations": float(np.median([record[3] for _, record in held])) if held else None,
                "seconds": float(np.median([record[4] for _, record in held])) if held else None,
            }
        )
    return result


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


SUMMARY = [
    Column("group", "group"),
    Column("points", "points"),
    Column("violations", "violations"),
    Column("mean width, rank", "width of the rank", "{:.2f}"),
    Column("mean width, all", "width", "{:.2f}"),
    Column("pinned", "pinned", "{:.0%}"),
    Column("λ_corr agrees where pinned", "agree where pinned", "{:.0%}"),
    Column("worst |λ_corr/λ − 1| where pinned", "worst error where pinned", "{:.1%}"),
    Column("seconds", "seconds", "{:.0f}"),
    Column("errors", "errors"),
]

CLOSING = [
    Column("group", "group"),
    Column("bound", "bound"),
    Column("established", "established"),
    Column("undecided", "undecided"),
    Column("tightest", "tightest"),
    Column("width of the rank there", "before", "{:.2f}"),
    Column("width with it alone", "left", "{:.2f}"),
    Column("evaluations, median", "evaluations", "{:,.0f}"),
    Column("seconds, median", "seconds", "{:.2f}"),
]

COLUMNS = [
    Column("point", lambda row: row["case"].split(" | ", 1)[1]),
    Column("d", "dim"),
    Column("rank", "rank", "{:.0f}"),
    Column("r/2", "rank_lower", "{:.4g}"),
    Column("lower", "lower", "{:.4g}"),
    Column("λ", "known", "{:.4g}"),
    Column("upper", "upper", "{:.4g}"),
    Column("r/2 + (d−r)/4", "rank_upper", "{:.4g}"),
    Column("λ_corr", "corrected", "{:.3f}"),
    Column("±", "mcse", "{:.3f}"),
    Column("verdict", "verdict"),
    Column("sources", "source"),
]


def figure(rows: list[Row]) -> Figure:
    """Width of the bracket with the rank alone against that with all bounds, a dot a point."""
    good = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(6, 5), layout="constrained")
    ax = fig.subplots()
    jitter = np.random.default_rng(0)
    for group, color in zip(GROUPS, ("#0072B2", "#009E73", "#D55E00"), strict=True):
        part = of_group(good, group)
        before, after = (
            np.array([row[f"{side}upper"] - row[f"{side}lower"] for row in part]) for side in ("rank_", "")
        )
        ax.plot(before, after + jitter.uniform(-0.04, 0.04, len(part)), ".", ms=5, alpha=0.6, color=color, label=group)
    limit = max((row["rank_upper"] - row["rank_lower"] for row in good), default=1.0)
    ax.plot([0, limit], [0, limit], color="0.6", lw=0.8)
    ax.set(xlabel="width of the bracket, rank alone", ylabel="width with all bounds (jittered)")
    ax.legend()
    return fig
