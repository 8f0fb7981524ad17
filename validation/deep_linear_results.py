"""Tables and the figure of deep_linear.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nuts_reference import ReferenceLengths, kept
from study import Column, Row
from verdicts import VERDICTS, verdict_today

FAR, ERRORS = 0.05, 2  # λ_corr is wrong where it is off by more than 5 % and by more than two standard errors

COLUMNS = (
    Column("net", "case"),
    Column("layers", lambda row: len(row["ranks"])),
    Column("d", "dim"),
    Column("rank W₁⋯W_L", "product_rank"),
    Column("rank H", "hessian_rank"),
    Column("γ/nβ", lambda row: row["gamma"] / row["nbeta"], "{:.2g}"),
    Column("(i) finite temp.", lambda row: row.get("reference_value"), "{:.2f}"),
    Column("± %", lambda row: _relative(row, "reference_mcse", "reference_value"), "{:.2f}"),
    Column("virial", lambda row: row.get("reference_virial"), "{:.3f}"),
    Column("(ii) local", lambda row: "–".join(f"{x:g}" for x in sorted({row["local_lower"], row["local_upper"]}))),
    Column("(iii) published", "published", "{:g}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("±", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("λ_corr", "corrected", "{:.2f}"),
    Column("% of (i)", lambda row: _percent(row["llc"], row.get("reference_value")), "{:+.1f}"),
    Column("λ_corr % of (ii)", lambda row: 100 * _outside(row, "corrected"), "{:+.1f}"),
    Column("less λ_corr(3γ), %", lambda row: _relative(row, "gamma_sensitivity", "corrected"), "{:.1f}"),
    Column("γ converged", lambda row: {True: "yes", False: "no", None: ""}[row.get("gamma_converged")]),
    Column("% of (iii)", lambda row: _percent(row["llc"], row["published"]), "{:+.1f}"),
    Column("verdict", lambda row: verdict_of(row)),
    Column("when made", "verdict"),
    Column("failed", lambda row: " ".join(row["failed"])),
)


def verdict_of(row: Row) -> str:
    """The verdict by the rule of today. Rows from before it have no bounds, only the ranks that these come from."""
    bounds = row.get("bounds", ...)
    if bounds is ...:
        low, high = row["numerical_rank"]
        bounds = low / 2, high / 2 + (row["dim"] - high) / 4
    return verdict_today(
        row["verdict"],
        row["failed"],
        bounds=None if bounds is None else tuple(bounds),
        corrected=(row["corrected"], _error(row)) if np.isfinite(row["corrected"]) else None,
        gamma_converged=row.get("gamma_converged"),
    )


def wrong(row: Row) -> bool:
    """Whether λ_corr is off λ(w*) by more than 5 % and by more than two standard errors."""
    nearest = _nearest(row, row["corrected"])
    return not abs(row["corrected"] - nearest) <= max(FAR * nearest, ERRORS * _error(row))  # NaN is wrong


def _error(row: Row) -> float:
    """Standard error of λ_corr; older rows have that of λ̂ only, which is the same where λ_quad is exact."""
    return row.get("corrected_mcse", row["mcse"])


# Summary


def summarize(rows: list[Row], lengths: ReferenceLengths) -> dict[str, Any]:
    """Errors against each truth, order of pairs, the split of what remains, and what the verdicts say."""
    rows = [row for row in rows if "error" not in row]
    nets = [row for row in rows if row["case"] != "large"]
    good = [row for row in nets if kept(row, lengths)]
    known = [row for row in nets if row["local_lower"] == row["local_upper"]]
    local, published = [row["local_lower"] for row in known], [row["published"] for row in nets]
    return {
        "nets": len(nets),
        "references_kept": len(good),
        "dead": sum(not np.isfinite(row["llc"]) for row in nets),
        "local_known": len(known),
        "llc_against_finite_temperature": _errors(_all(good, "llc"), _all(good, "reference_value")),
        "corrected_against_local": _errors(_all(known, "corrected"), local),
        "llc_against_local": _errors(_all(known, "llc"), local),
        "corrected_outside_of_interval": _spread([_outside(row, "corrected") for row in nets]),
        "llc_against_published": _errors(_all(nets, "llc"), published),
        "corrected_against_published": _errors(_all(nets, "corrected"), published),
        "split": _split([row for row in known if kept(row, lengths)]),
        "verdicts": _by_verdict(nets, verdict_of),
        "verdicts_when_made": _by_verdict(nets, lambda row: row["verdict"]),
        "once_consistent_and_wrong": _by_verdict(
            [row for row in nets if row["verdict"] == "CONSISTENT" and abs(_outside(row, "corrected")) > FAR],
            verdict_of,
        ),
        "large": _large(rows),
        "seconds": float(sum(row["estimate_seconds"] + row.get("reference_seconds", 0.0) for row in rows)),
    }


def _all(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows]


def _split(rows: list[Row]) -> dict[str, dict[str, float]]:
    """What remains of λ̂ against λ(w*), in units of it."""
    return {
        "sampler": _spread([(row["llc"] - row["reference_value"]) / row["local_lower"] for row in rows]),
        "finite_temperature": _spread([row["reference_value"] / row["local_lower"] - 1 for row in rows]),
        "gaussian_part": _spread([(row["quad"] - row["hessian_rank"] / 2) / row["local_lower"] for row in rows]),
    }


def _by_verdict(nets: list[Row], verdict_fn: Callable[[Row], str]) -> dict[str, dict[str, int]]:
    """Networks of each verdict, those with λ_corr more than 5 % outside of λ(w*), and those wrong beyond errors too."""
    found = {verdict: [row for row in nets if verdict_fn(row) == verdict] for verdict in VERDICTS}
    return {
        verdict: {
            "nets": len(some),
            "outside": sum(abs(_outside(row, "corrected")) > FAR for row in some),
            "wrong": sum(map(wrong, some)),
        }
        for verdict, some in found.items()
        if some
    }


def _large(rows: list[Row]) -> dict[str, float] | None:
    row = next((row for row in rows if row["case"] == "large"), None)
    return row and {name: row[name] / row["local_lower"] - 1 for name in ("corrected", "llc")}


def ordered(estimates: list[float], truths: list[float]) -> float:
    """Share of the pairs with different truths that the estimates put in the right order."""
    first, second = np.triu_indices(len(truths), 1)
    sign = np.sign(np.subtract.outer(truths, truths))[first, second]
    right = np.sign(np.subtract.outer(estimates, estimates))[first, second] == sign
    return float(right[sign != 0].mean()) if sign.any() else np.nan


# Text

_ERRORS_OF = {
    "llc_against_finite_temperature": "λ̂ against (i) finite temperature",
    "corrected_against_local": "λ_corr against (ii) λ(w*)",
    "llc_against_local": "λ̂ against (ii) λ(w*)",
    "corrected_against_published": "λ_corr against (iii) the global minimum",
    "llc_against_published": "λ̂ against (iii) the global minimum",
}
_PARTS = {"sampler": "sampler", "finite_temperature": "finite temperature", "gaussian_part": "  its Gaussian part"}


def report(summary: dict[str, Any]) -> str:
    """The summary as text, beside the published figures."""
    lines = [
        f"{summary['nets']} networks, no estimate at {summary['dead']} (an infinite error below); "
        f"{summary['references_kept']} references kept, "
        f"λ(w*) known exactly at {summary['local_known']}, an interval elsewhere",
        "",
        *_verdict_lines(summary),
        "",
        *_error_lines(summary),
        "",
        "what remains of λ̂ against (ii), median (quartiles) in units of λ(w*)",
        *(f"  {title:22}{_quartiles(summary['split'][name])}" for name, title in _PARTS.items()),
    ]
    if summary["large"]:
        text = "large network: λ̂ {llc:+.1%}, λ_corr {corrected:+.1%} (published −21 %)"
        lines += ["", text.format(**summary["large"])]
    return "\n".join(lines)


def _verdict_lines(summary: dict[str, Any]) -> list[str]:
    cells = "{:44}{:>10}{:>20}{:>28}"
    lines = [cells.format("verdict, by the rule of today", "networks", "λ_corr > 5 % off", "and by > two errors")]
    for verdict, found in summary["verdicts"].items():
        lines.append(cells.format(f"  {verdict}", found["nets"], found["outside"], found["wrong"]))
    lines.append("verdict, when the row was made")
    for verdict, found in summary["verdicts_when_made"].items():
        lines.append(cells.format(f"  {verdict}", found["nets"], found["outside"], found["wrong"]))
    once = summary["once_consistent_and_wrong"]
    if once:
        now = ", ".join(f"{verdict} {found['nets']}" for verdict, found in once.items())
        lines.append(f"CONSISTENT when made and more than 5 % off, by the rule of today: {now}")
    return lines


def _error_lines(summary: dict[str, Any]) -> list[str]:
    columns = ("median_absolute", "within_5_percent", "median", "order")
    cells = "{:44}{:>16.1%}{:>12.0%}{:>+14.1%}{:>16.1%}"
    everywhere = summary["corrected_outside_of_interval"]
    return [
        f"{'':44}{'median |error|':>16}{'within 5 %':>12}{'median error':>14}{'order of pairs':>16}",
        *(cells.format(title, *(summary[key][name] for name in columns)) for key, title in _ERRORS_OF.items()),
        f"{'λ_corr outside of (ii), all networks':44}{'':>28}{everywhere['median']:>+14.1%}"
        f"  quartiles {everywhere['lower']:+.1%} … {everywhere['upper']:+.1%}",
        f"{'published, λ̂ against (iii)':44}{'22 %':>16}{'':>26}{'78 %':>16}",
    ]


def _quartiles(found: dict[str, float]) -> str:
    return f"{found['median']:+.1%} ({found['lower']:+.1%} … {found['upper']:+.1%})"


# Figure


def plot(rows: list[Row], lengths: ReferenceLengths) -> Figure:
    """The estimate against each truth, and the split."""
    rows = [row for row in rows if "error" not in row and row["case"] != "large"]
    good = [row for row in rows if kept(row, lengths)]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    values = np.array([0.8 * np.nanmin(_all(rows, "llc")), 1.25 * max(_all(rows, "local_upper"))])
    for axes in (left, middle):
        axes.fill_between(values, 0.95 * values, 1.05 * values, color="0.85", label="± 5 %")
        axes.loglog(values, values, color="0.4", lw=0.8)
    _plot_finite_temperature(left, good)
    _plot_local(middle, rows)
    _plot_split(right, [row for row in good if row["local_lower"] == row["local_upper"]])
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    return figure


def _plot_finite_temperature(axes: Axes, rows: list[Row]) -> None:
    errors = [2 * error for error in _all(rows, "mcse")]
    label = "λ̂ ± 2 standard errors"
    axes.errorbar(_all(rows, "reference_value"), _all(rows, "llc"), yerr=errors, fmt="o", ms=3, lw=0.8, label=label)
    axes.set(xlabel="(i) E[nβK] at the same nβ and γ, by NUTS", ylabel="estimate")


def _plot_local(axes: Axes, rows: list[Row]) -> None:
    bounds = np.array([[row["local_lower"], row["local_upper"]] for row in rows])
    axes.plot(_all(rows, "published"), _all(rows, "llc"), "x", ms=4, color="C1", label="λ̂, (iii)")
    style = {"fmt": "o", "ms": 3, "lw": 0.8, "color": "C0", "label": "λ_corr, (ii)"}
    axes.errorbar(bounds.mean(axis=1), _all(rows, "corrected"), xerr=np.ptp(bounds, axis=1) / 2, **style)
    axes.set(xlabel="(ii) λ(w*), bars where it is an interval; (iii) global minimum")


def _plot_split(axes: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: row["reference_value"] / row["local_lower"])
    series = {
        "finite temperature": [100 * (row["reference_value"] / row["local_lower"] - 1) for row in rows],
        "its Gaussian part": [100 * (row["quad"] - row["hessian_rank"] / 2) / row["local_lower"] for row in rows],
        "sampler": [100 * (row["llc"] - row["reference_value"]) / row["local_lower"] for row in rows],
    }
    for (label, shares), marker in zip(series.items(), ("_", ".", "."), strict=True):
        axes.plot(shares, marker, ms=4, label=label)
    axes.axhline(0, color="0.4", lw=0.8)
    axes.set(xlabel="networks with λ(w*) known, in order", ylabel="part of the error against (ii), % of λ(w*)")


# Numbers


def _errors(estimates: list[float], truths: list[float]) -> dict[str, float]:
    errors = np.asarray(estimates) / np.asarray(truths) - 1
    errors[~np.isfinite(errors)] = -np.inf
    return {
        "median_absolute": float(np.median(np.abs(errors))),
        "within_5_percent": float(np.mean(np.abs(errors) <= 0.05)),
        "median": float(np.median(errors)),
        "order": ordered(estimates, truths),
    }


def _spread(values: list[float]) -> dict[str, float]:
    values = [value if np.isfinite(value) else -np.inf for value in values]
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75], method="nearest") if values else [np.nan] * 3
    return {"median": float(median), "lower": float(lower), "upper": float(upper)}


def _outside(row: Row, name: str) -> float:
    """Relative distance from the interval of λ(w*), with sign; 0 inside."""
    return row[name] / _nearest(row, row[name]) - 1


def _nearest(row: Row, value: float) -> float:
    """The point of the interval of λ(w*) that is nearest to `value`."""
    return min(max(value, row["local_lower"]), row["local_upper"])


def _relative(row: Row, part: str, whole: str) -> float | None:
    return None if None in (row.get(part), row.get(whole)) else 100 * row[part] / row[whole]


def _percent(value: float, truth: float | None) -> float | None:
    return None if truth is None else 100 * (value / truth - 1)
