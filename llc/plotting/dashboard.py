"""All figures of a report: the dashboard, with verdict, numbers and checks in words, and the files of the panels."""

import io
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.analysis.paths import expand
from llc.analysis.schema import constant
from llc.analysis.series import plus_minus
from llc.analysis.text import printable
from llc.analysis.writing import make_folder, write_whole
from llc.plotting import canvas
from llc.plotting.chains import plot_autocorrelation, plot_distance, plot_ess, plot_rank, plot_running, plot_trace
from llc.plotting.spectrum import plot_effective_dimension, plot_spectrum

if TYPE_CHECKING:
    from llc.analysis.report import Report
else:  # at run time any object with the same fields serves
    Report = Any

_OF_DRAWS = {
    "trace": plot_trace,
    "running": plot_running,
    "rank": plot_rank,
    "ess": plot_ess,
    "autocorrelation": plot_autocorrelation,
    "distance": plot_distance,
}
_OF_SPECTRUM = {"spectrum": plot_spectrum, "effective_dimension": plot_effective_dimension}
_PAGE = 19.0, 13.0  # inches, of the dashboard
_DPI = 150  # of the files
_VERDICTS = {
    "CONSISTENT": "#00785A",
    "SCALE_DEPENDENT": "#0060A0",
    "UNRESOLVED": "#9A6700",
    "BELOW": "#B34700",
    "ABOVE": "#B34700",
}
_NAME, _VALUE, _NOTE = 19, 22, 36  # characters of the columns of numbers; longer notes go on a line of their own
_CHARACTER = 5.6  # points of one in a size of 10
_WIDE = 78  # characters across the summary


def plot_report(report: Report) -> Figure:
    """Dashboard of a report: verdict, numbers and checks in words, and all panels."""
    canvas.require("report", report, "an llc.Report", "verdict", "checks", "draws", "spectrum", "bounds")
    figure = Figure(figsize=_PAGE, layout="constrained")
    grid = figure.add_gridspec(4, 3, width_ratios=(1.12, 1, 1))
    _write_summary(report, figure.add_subplot(grid[:, 0]))
    by_draws = {(0, 1): plot_running, (0, 2): plot_trace, (1, 1): plot_rank, (1, 2): plot_distance}
    for place, plot in (by_draws | {(2, 1): plot_ess, (2, 2): plot_autocorrelation}).items():
        plot(report, ax=figure.add_subplot(grid[place]))
    plot_spectrum(report.spectrum, report.bounds, ax=figure.add_subplot(grid[3, 1]))
    plot_effective_dimension(report.spectrum, report.bounds, ax=figure.add_subplot(grid[3, 2]))
    return figure


def _write_summary(report: Report, ax: Axes) -> None:
    """The report in words. Lines are placed in points from the top, so that none covers another."""
    ax.set_axis_off()
    top, height = 0.0, 72 * _PAGE[1] - 40

    def write(text: str, *, left: int = 0, size: int = 10, step: float = 1.5, **style: Any) -> None:
        nonlocal top
        place: dict[str, Any] = {
            "xytext": (left, -top - size),
            "xycoords": "axes fraction",
            "textcoords": "offset points",
        }
        ax.annotate(printable(text), (0, 1), **place, va="baseline", fontsize=size, **style).set_in_layout(False)
        top += step * size

    write(report.verdict, size=22, color=_VERDICTS.get(report.verdict, canvas.BLACK), fontweight="bold")
    for line in textwrap.wrap(report.reason, _WIDE):
        write(line, parse_math=False)
    top += 8
    for name, value, note in _numbers(report):
        write(name, step=0.0)
        fits = len(value) <= _VALUE and len(note) <= _NOTE
        write(value, left=_column(_NAME), step=0.0 if fits else 1.5, fontweight="bold", parse_math=False)
        for line in textwrap.wrap(note, _NOTE if fits else _NOTE + _VALUE) or [""] * fits:
            write(line, left=_column(_NAME + _VALUE if fits else _NAME), color=canvas.GREY, parse_math=False)
    failed = [check for check in report.checks if not check.passed]
    top += 12
    write(f"{len(failed)} of {len(report.checks)} checks failed", size=12, fontweight="bold", step=1.7)
    for i, check in enumerate(sorted(report.checks, key=lambda check: check.passed)):
        lines = textwrap.wrap(check.message, 50)
        if top + 15 * (len(lines) + 1) > height:
            write(f"… and {len(report.checks) - i} more, {max(0, len(failed) - i)} failed: print(report) lists them.")
            break
        color, sign = (canvas.GREY, "✓") if check.passed else (_VERDICTS["BELOW"], "✗")
        weight = "normal" if check.passed else "bold"
        write(f"{sign} {check.name}", step=0.0, color=color, fontweight=weight, parse_math=False)
        for line in lines:
            write(line, left=140, color=canvas.GREY if check.passed else canvas.BLACK, parse_math=False)
        top += 4


def _column(characters: int) -> int:
    """Points from the left of a column that so many characters precede."""
    return round(_CHARACTER * characters)


def _numbers(report: Report) -> list[tuple[str, str, str]]:
    """Rows of the summary: name, value, note."""
    draws, llc, bounds, corrected = report.draws, report.llc, report.bounds, report.corrected
    rows = [(canvas.HAT, plus_minus(llc.value, llc.mcse), f"{llc.method}, ESS {llc.ess:.0f}, R-hat {llc.rhat:.3f}")]
    if bounds is None:
        rows.append(("bounds", "none", "no spectrum of the Hessian was given"))
    else:
        if report.quad is not None:
            singular = plus_minus(llc.value - report.quad, math.hypot(llc.mcse, bounds.quad_stderr))
            rows.append((canvas.QUAD, plus_minus(report.quad, bounds.quad_stderr), "Gaussian part, at the same γ/nβ"))
            rows.append((f"{canvas.HAT} − {canvas.QUAD}", singular, "singular contribution"))
        symbol = canvas.symbol(report)
        if corrected is not None and symbol == canvas.CORR:
            rows.append((symbol, plus_minus(corrected.value, corrected.mcse), "γ-corrected, for the bounds"))
        if report.gamma_sensitivity is not None:
            moved = plus_minus(report.gamma_sensitivity.value, report.gamma_sensitivity.mcse)
            told = {True: "accepted as λ", False: "changes with γ", None: "undecided"}[report.gamma_converged]
            rows.append((f"change of {symbol}", moved, f"from a larger γ: {told}"))
        rows.append(("bounds", canvas.bounds_text(bounds), "of the asymptotic λ"))
        rows.append(("rank", canvas.rank_text(bounds), f"of d = {bounds.dim}, above τ = {bounds.threshold:.2g}"))
    rows += [(estimate.method, plus_minus(estimate.value, estimate.mcse), "") for estimate in report.estimates[1:]]
    num_data, num_params, nbeta, gamma = (constant(draws, k) for k in ("num_data", "num_params", "nbeta", "gamma"))
    sizes = draws["posterior"].sizes
    rows.append(("draws", f"{sizes['chain']} × {sizes['draw']}", f"chains × draws, {draws.attrs.get('sampler', '')}"))
    point = f"n = {num_data:.0f}, d = {num_params:.0f}, γ = {gamma:.3g}"
    return [*rows, ("posterior", f"γ/nβ = {gamma / nbeta:.3g}", point)]


def save_figures(report: Report, folder: str | Path) -> list[Path]:
    """Paths of the PNG files written: the dashboard as report.png, and each panel that the report has data for.

    Args:
        report: of `llc.estimate` or `llc.report`.
        folder: made with its parents if it does not exist. Figures there are replaced, each whole or not at all.
    """
    canvas.require("report", report, "an llc.Report", "verdict", "checks", "draws", "spectrum", "bounds")
    folder = expand(folder, "folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder needs to be one, but {folder} is a file; give another path.")
    make_folder(folder)
    figures = {"report": plot_report(report)}
    for name, plot in _OF_DRAWS.items():
        figures[name] = canvas.panel_figure()
        plot(report, ax=figures[name].add_subplot())
    for name, plot in _OF_SPECTRUM.items() if report.spectrum is not None else ():
        figures[name] = canvas.panel_figure()
        plot(report.spectrum, report.bounds, ax=figures[name].add_subplot())
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as a PNG file, whole or not at all, and returns its path."""
    canvas.require("figure", figure, "a figure of matplotlib", "savefig")
    expand(path)  # refuses what is no path
    write_whole(path, to_png(figure))
    return expand(path)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 150 dots per inch."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()
