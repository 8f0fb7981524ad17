"""The figures: one function a panel, and the dashboard of a report.

`source` is draws or a report. Every function draws on `ax`, or on a figure of its own (`ax.figure`) that pyplot never
sees, so that none stays open. Chains with non-finite draws are drawn up to the last finite one and marked as dead;
pooled curves leave them out, as the estimates do.
"""

import json
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import xarray as xr
from arviz_stats.base.array import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.analysis.estimators import constant, effective_sample_size, finite_chains, monte_carlo_error, variable

if TYPE_CHECKING:
    from llc.analysis.report import Report
    from llc.geometry.bounds import Bounds
    from llc.geometry.spectrum import Spectrum
else:  # at run time any object with the same fields serves
    Bounds = Report = Spectrum = Any

_stats: Any = array_stats  # its types know neither chain_axis=None nor several axes

# Okabe & Ito 2008, for colour-blind readers too; black is for pooled values, their yellow is too pale on white.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
_CHAINS = (_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PURPLE)
_BLACK, _GREY, _PALE = "#000000", "#6E6E6E", "#E4E4E4"
_VERDICTS = {"CONSISTENT": "#00785A", "UNRESOLVED": "#9A6700", "BELOW": "#B34700", "ABOVE": "#B34700"}
_HAT, _QUAD, _CORR = r"$\hat\lambda$", r"$\lambda_\mathrm{quad}$", r"$\lambda_\mathrm{corr}$"
_LLC = r"$n\beta\,(L(w)-L(w^*))$"

_PAGE = 19.0, 13.0  # inches, of the dashboard
_LINE_POINTS = 2000  # points of a drawn line; more than a panel has pixels
_RUNNING_POINTS = 30  # of the pooled running mean, each with its standard error
_ESS_POINTS = 20
_LEAST_ESS = 400  # below it R-hat and ESS themselves are unreliable (Vehtari et al. 2021, §4)
_VISIBLE = 10  # the sampler sees an eigenvalue above 10 γ/nβ almost in full
_HUGE = 1e100  # beyond it a dying chain in float64 overflows the axis
_LEGEND_WIDTH = 88  # characters of 8 points across a panel
_BAND_LEVEL = 0.95  # of the rank plot's band, for all chains at once


def plot_report(report: Report) -> Figure:
    """Dashboard of a report: verdict, numbers and checks in words, and all panels."""
    figure = Figure(figsize=_PAGE, layout="constrained")
    grid = figure.add_gridspec(4, 3)
    _write_summary(report, figure.add_subplot(grid[:, 0]))
    by_draws = {(0, 1): plot_running, (0, 2): plot_trace, (1, 1): plot_rank, (1, 2): plot_distance}
    for place, plot in (by_draws | {(2, 1): plot_ess, (2, 2): plot_autocorrelation}).items():
        plot(report, ax=figure.add_subplot(grid[place]))
    plot_spectrum(report.spectrum, report.bounds, ax=figure.add_subplot(grid[3, 1]))
    plot_curve(report.spectrum, report.bounds, ax=figure.add_subplot(grid[3, 2]))
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
        ax.annotate(text, (0, 1), **place, va="baseline", fontsize=size, **style).set_in_layout(False)
        top += step * size

    write(report.verdict, size=22, color=_VERDICTS.get(report.verdict, _BLACK), fontweight="bold")
    for name, value, note in _numbers(report):
        write(name, step=0.0)
        write(value, left=112, step=0.0, fontweight="bold")
        write(note, left=232, color=_GREY)
    failed = [check for check in report.checks if not check.passed]
    top += 12
    write(f"{len(failed)} of {len(report.checks)} checks failed", size=12, fontweight="bold", step=1.7)
    for i, check in enumerate(sorted(report.checks, key=lambda check: check.passed)):
        lines = textwrap.wrap(check.message, 70)
        if top + 15 * (len(lines) + 2) > height:
            write(f"… and {len(report.checks) - i} more, {max(0, len(failed) - i)} failed: print(report) lists them.")
            break
        color, sign = (_GREY, "✓") if check.passed else (_VERDICTS["BELOW"], "✗")
        write(f"{sign} {check.name}", color=color, fontweight="normal" if check.passed else "bold", parse_math=False)
        for line in lines:
            write(line, left=16, color=_GREY if check.passed else _BLACK, parse_math=False)
        top += 4


def _numbers(report: Report) -> list[tuple[str, str, str]]:
    """Rows of the summary: name, value, note."""
    draws, llc, bounds, corrected = report.draws, report.llc, report.bounds, report.corrected
    rows = [(_HAT, _plus_minus(llc.value, llc.mcse), f"ESS {llc.ess:.0f}, R-hat {llc.rhat:.3f}")]
    if bounds is None:
        rows.append(("bounds", "none", "no spectrum of the Hessian was given"))
    else:
        if bounds.noise_scale:
            singular = _plus_minus(llc.value - bounds.quad, math.hypot(llc.mcse, bounds.quad_stderr))
            rows.append((_QUAD, _plus_minus(bounds.quad, bounds.quad_stderr), "Gaussian part, at the same γ/nβ"))
            rows.append((f"{_HAT} − {_QUAD}", singular, "singular contribution"))
        if corrected is not None:
            rows.append((_CORR, _plus_minus(corrected.value, corrected.mcse), "γ-corrected, for the bounds"))
        rows.append(("bounds", _interval(bounds), "of the asymptotic λ"))
        rows.append(("rank", _rank(bounds), f"of d = {bounds.dim}, above τ = {bounds.threshold:.2g}"))
    rows += [(estimate.method, _plus_minus(estimate.value, estimate.mcse), "") for estimate in report.estimates[1:]]
    num_data, num_params, nbeta, gamma = (constant(draws, k) for k in ("num_data", "num_params", "nbeta", "gamma"))
    sizes = draws["posterior"].sizes
    rows.append(("draws", f"{sizes['chain']} × {sizes['draw']}", f"chains × draws, {draws.attrs.get('sampler', '')}"))
    point = f"n = {num_data:.0f}, d = {num_params:.0f}, γ = {gamma:.3g}"
    return [*rows, ("posterior", f"γ/nβ = {gamma / nbeta:.3g}", point)]


def plot_running(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Running mean of nβ (L(w) − L(w*)): each chain (thin), all chains ± a standard error, λ_quad at the same γ/nβ.

    Bounds hold for the asymptotic λ, which λ_corr estimates, not for the raw λ̂: they stand in a strip of their own.
    """
    draws, ax = _draws(source), _axes(ax)
    bounds, corrected = getattr(source, "bounds", None), getattr(source, "corrected", None)
    llc = variable(draws, "posterior", "llc")
    num_draws, finite = llc.shape[1], finite_chains(llc)
    shown: list[Any] = []  # what the vertical axis must hold
    dead = []  # chain, last draw and mean there
    for i, row in enumerate(llc):
        x = np.arange(1, _alive(row) + 1)
        with np.errstate(over="ignore"):  # of a chain that is about to die
            mean = np.cumsum(row[: len(x)]) / x
        ax.plot(*_decimate(x, mean), color=_color(i, len(llc)), lw=0.8)
        if finite[i]:
            shown.append(mean[num_draws // 4 :])
        elif len(x):
            dead.append((i, x[-1], mean[-1]))
    if finite.any():
        live = llc[finite]
        counts = np.unique(np.linspace(1, num_draws, _RUNNING_POINTS + 1).astype(int)[1:])
        mean = np.array([live[:, :k].mean() for k in counts])
        error = np.array([monte_carlo_error(live[:, :k]) for k in counts])
        error[~np.isfinite(error)] = np.nan
        ax.fill_between(counts, mean - error, mean + error, color=_BLACK, alpha=0.2, lw=0)
        of = "" if finite.all() else f" of {len(live)} of {len(llc)} chains"
        ax.plot(counts, mean, color=_BLACK, lw=2, label=f"{_HAT}{of} ± standard error")
        shown += [(mean + sign * error)[counts >= num_draws / 4] for sign in (-1, 1)]
    else:
        _note(ax, "no chain is finite to its end")
    if bounds is not None and bounds.noise_scale and np.isfinite(bounds.quad):
        label = f"{_QUAD} = {_plus_minus(bounds.quad, bounds.quad_stderr)}, same γ/nβ"
        ax.axhline(bounds.quad, color=_PURPLE, ls="--", lw=1.8, label=label)
        shown.append([bounds.quad])
    shown += [[bounds.lower]] if bounds is not None else []
    shown += [corrected.value + corrected.mcse * np.array([-1, 0, 1])] if corrected is not None else []
    ax.set(xlim=(0, num_draws), ylim=_padded(*shown))
    for i, x, y in dead:
        ax.plot(x, _inside(ax, y), "x", color=_color(i, len(llc)), ms=8, mew=2.5)
    if dead:
        ax.plot([], [], "x", color=_BLACK, ms=7, mew=2, label="dead chain")
    if bounds is not None:
        _draw_bounds(ax, bounds, corrected)
    return _finish(ax, f"Running {_HAT}", _draw_label(draws), f"mean of {_LLC}")


def _draw_bounds(ax: Axes, bounds: Bounds, corrected: Any) -> None:
    """A strip at the right of the running means, on the same scale, with λ_corr and the bounds."""
    strip = ax.inset_axes((1.02, 0, 0.13, 1), sharey=ax)
    strip.axhspan(bounds.lower, bounds.upper, color=_GREEN, alpha=0.3, lw=0)
    ax.fill_between([], [], [], color=_GREEN, alpha=0.3, lw=0, label=f"bounds of {_CORR}: {_interval(bounds)}")
    if bounds.upper > ax.get_ylim()[1]:
        corner: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
        strip.annotate(f"↑ {bounds.upper:.4g}", (0.96, 0.98), fontsize=8, **corner)
    if corrected is not None and np.isfinite(corrected.value):
        error = corrected.mcse if np.isfinite(corrected.mcse) else 0.0
        strip.errorbar([0.25], [corrected.value], [error], fmt="D", color=_BLUE, capsize=4, ms=5)
        label = f"{_CORR} = {_plus_minus(corrected.value, corrected.mcse)}"
        ax.plot([], [], "D", color=_BLUE, ms=5, label=label)
    strip.set(xlim=(0, 1), xticks=[])
    strip.set_xlabel(_CORR, fontsize=9)
    strip.tick_params(left=False, labelleft=False)


def plot_trace(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Loss of every draw and chain, the warm-up shaded before draw 0, and L(w*)."""
    draws, ax = _draws(source), _axes(ax)
    init_loss = constant(draws, "init_loss")
    _draw_chains(ax, draws, "posterior", "loss", include=init_loss)
    ax.axhline(init_loss, color=_BLACK, ls="--", lw=1.5, label=f"$L(w^*)$ = {init_loss:.4g}")
    return _finish(ax, "Loss of the draws", _draw_label(draws), "loss (nats per example)")


def plot_distance(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Distance ‖w − w*‖ of every draw and chain, the warm-up shaded before draw 0."""
    draws, ax = _draws(source), _axes(ax)
    _draw_chains(ax, draws, "sample_stats", "distance", include=0.0)
    return _finish(ax, "Distance from w*", _draw_label(draws), "‖w − w*‖ (unit of parameters)")


def _draw_chains(ax: Axes, draws: xr.DataTree, group: str, name: str, *, include: float) -> None:
    """A line for each chain, warm-up and draws, on an axis that heavy tails can't stretch."""
    main, warmup = variable(draws, group, name), 0
    values, llc = main, variable(draws, "posterior", "llc")
    if f"warmup_{group}" in draws:
        values = np.concatenate([variable(draws, f"warmup_{group}", name), values], axis=1)
        llc = np.concatenate([variable(draws, "warmup_posterior", "llc"), llc], axis=1)
        warmup = values.shape[1] - main.shape[1]
        ax.axvspan(-warmup, 0, color=_PALE, lw=0, zorder=0, label="warm-up")
    x = np.arange(values.shape[1]) - warmup
    kept = values[finite_chains(values)]
    kept = kept if kept.size else values[np.isfinite(values)]
    low = high = include
    if kept.size:
        kept = np.clip(kept, -_HUGE, _HUGE)
        # No farther from the median than thrice the 1 % and 99 % quantiles: seven sigma of a normal law.
        q01, q50, q99 = np.quantile(kept[..., warmup:] if kept.ndim == 2 else kept, (0.01, 0.5, 0.99))
        low = min(include, max(kept.min(), q50 - 3 * (q50 - q01)))
        high = max(include, min(kept.max(), q50 + 3 * (q99 - q50)))
    low, high = _padded([low, high])
    ax.set(xlim=(-warmup, main.shape[1]), ylim=(low, high))
    dead, beyond = [], 0
    for i, row in enumerate(values):
        alive, color = min(_alive(row), _alive(llc[i])), _color(i, len(values))
        ax.plot(*_decimate(x[:alive], row[:alive]), color=color, lw=0.6, alpha=0.8, label=_chain_label(i, len(values)))
        outside = np.flatnonzero((row[:alive] < low) | (row[:alive] > high))
        if len(outside):
            beyond += len(outside)
            some = outside[:: math.ceil(len(outside) / 100)]
            ax.plot(x[some], _inside(ax, row[some]), "d", color=color, ms=4)
        if alive < len(row):
            dead.append(f"{i} (draw {x[alive]})")
            last = row[alive - 1] if alive else low
            ax.plot(x[max(alive - 1, 0)], _inside(ax, last), "x", color=color, ms=8, mew=2.5)
    if beyond:
        ax.plot([], [], "d", color=_BLACK, ms=4, label=f"{beyond} draws beyond the axis")
    if dead:
        label = "dead: chain " + ", ".join(dead[:2]) + (f" and {len(dead) - 2} more" if len(dead) > 2 else "")
        ax.plot([], [], "x", color=_BLACK, ms=7, mew=2, label=label)


def plot_rank(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Ranks of each chain's llc among all chains: deviation of their ECDF from uniform, with a 95 % band.

    Draws are thinned to about independent ones. Where all m chains have one law, √(n m / (m − 1)) sup |deviation| of a
    chain of n draws follows Kolmogorov's law (Smirnov's test of the chain against the others); the band's level is
    shared among the chains (Bonferroni).

    References:
        Säilynoja, Bürkner & Vehtari, Graphical test for discrete uniformity, Statistics and Computing 32, 2022.
    """
    draws, ax = _draws(source), _axes(ax)
    llc, title = variable(draws, "posterior", "llc"), "Ranks of the chains"
    finite = finite_chains(llc)
    if finite.sum() < 2 or llc.shape[1] < 4 or np.ptp(llc[finite]) == 0:
        _note(ax, "ranks need two finite chains that move")
    else:
        # Thinned by the ESS within chains: that of all falls when chains differ, and would hide just that.
        factor = int(_stats.thin_factor(llc[finite], chain_axis=None, draw_axis=1))
        ranks = _stats.compute_ranks(llc[finite, ::factor], axis=(0, 1), relative=True)
        num_chains, num_draws = ranks.shape
        grid = np.linspace(0, 1, num_draws + 1)
        quantile = math.sqrt(0.5 * math.log(2 * num_chains / (1 - _BAND_LEVEL)))  # P(K > x) = 2 exp(−2x²) − …
        band = quantile * math.sqrt((num_chains - 1) / (num_chains * num_draws))
        ax.axhspan(-band, band, color=_PALE, lw=0, zorder=0, label=f"{_BAND_LEVEL:.0%} band")
        deviations = [np.searchsorted(np.sort(row), grid, side="right") / num_draws - grid for row in ranks]
        for i, deviation in zip(np.flatnonzero(finite).tolist(), deviations, strict=True):
            ax.plot(grid, deviation, color=_color(i, len(llc)), lw=1.2, label=_chain_label(i, len(llc)))
        ax.set(xlim=(0, 1), ylim=_padded([-1.3 * band, 1.3 * band], *deviations))
        title += f" ({num_draws} of {llc.shape[1]} draws each)"
    return _finish(ax, title, f"rank of {_LLC} among all chains (fraction)", "ECDF − uniform")


def plot_ess(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Effective sample size of llc as draws come in, for its mean and its tails; 400 is the least to trust."""
    draws, ax = _draws(source), _axes(ax)
    llc = variable(draws, "posterior", "llc")
    live = llc[finite_chains(llc)]
    counts = np.unique(np.linspace(0, llc.shape[1], _ESS_POINTS + 1).astype(int))
    counts = counts[counts >= 4]
    if live.size and counts.size:
        of_mean, of_tails = ([f(live[:, :k]) for k in counts] for f in (effective_sample_size, _tail_size))
        ax.plot(counts * len(live), of_mean, "o-", ms=3.5, lw=1.3, color=_BLUE, label="of the mean")
        ax.plot(counts * len(live), of_tails, "s-", ms=3.5, lw=1.3, color=_ORANGE, label="of the tails (5 %, 95 %)")
        ax.set_xlim(0, 1.02 * live.size)
    else:
        _note(ax, "fewer than 4 draws" if live.size else "no chain is finite to its end")
    ax.axhline(_LEAST_ESS, color=_BLACK, ls="--", lw=1.2, label=f"{_LEAST_ESS}: the least to trust")
    ax.set_ylim(0, max(1.1 * _LEAST_ESS, ax.get_ylim()[1]))
    return _finish(ax, "Effective sample size", "draws of all finite chains", "effective draws")


def _tail_size(values: np.ndarray) -> float:
    """Effective sample size of the 5 % and 95 % quantiles; 0 for chains that do not move, as for the mean."""
    if np.any(np.ptp(values, axis=1) == 0):
        return 0.0
    return float(_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)))


def plot_autocorrelation(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Autocorrelation of llc in every chain, up to thrice the lag where it has died out."""
    draws, ax = _draws(source), _axes(ax)
    llc = variable(draws, "posterior", "llc")
    num_draws = llc.shape[1]
    moving = np.flatnonzero(finite_chains(llc) & (llc.max(axis=1) > llc.min(axis=1)))
    if moving.size and num_draws >= 4:
        values = _stats.autocorr(llc[moving], axis=-1)
        noise = 1.96 / math.sqrt(num_draws)
        faded = np.flatnonzero(np.all(np.abs(values) < max(0.05, noise), axis=0))
        last = min(num_draws - 1, max(20, 3 * int(faded[0]) if faded.size else num_draws // 2))
        ax.axhspan(-noise, noise, color=_PALE, lw=0, zorder=0, label="95 % of white noise")
        for i, row in zip(moving.tolist(), values[:, : last + 1], strict=True):
            lags, drawn = _decimate(np.arange(last + 1), row)
            ax.plot(lags, drawn, color=_color(i, len(llc)), lw=1.2, label=_chain_label(i, len(llc)))
        ax.set(xlim=(0, last), ylim=(min(-0.1, 1.1 * values[:, : last + 1].min()), 1.03))
    else:
        _note(ax, "no finite chain moves")
    return _finish(ax, f"Autocorrelation of {_LLC}", "lag (draws)", "autocorrelation")


def plot_spectrum(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """Eigenvalues of the Hessian, largest first, with the floor τ of round-off, the scale 10 γ/nβ and the rank."""
    ax, title, label = _axes(ax), "Spectrum of the Hessian", "|eigenvalue| (nats / parameter²)"
    if spectrum is None:
        _note(ax, "no spectrum")
        return _finish(ax, title, "index, largest first", label)
    nodes, weights = _measure(spectrum)
    index, size = np.cumsum(weights), np.abs(nodes)
    floor, scale = (0.0, 0.0) if bounds is None else (bounds.threshold, _VISIBLE * bounds.noise_scale)
    largest = max(size.max(), np.finfo(float).tiny)
    # A decade below τ all is round-off; without τ, the last decades of float64.
    bottom = 0.1 * floor if floor > 0 else max(size[size > 0].min(initial=largest) / 3, 1e-18 * largest)
    clipped = size <= bottom
    for mask, marker, color, text in (
        (~clipped & (nodes > 0), ".", _BLUE, "positive"),
        (~clipped & (nodes < 0), "x", _RED, "negative"),
        (clipped, "v", _GREY, f"below {bottom:.1g}"),
    ):
        if mask.any():
            ax.plot(index[mask], np.maximum(size[mask], bottom), marker, ms=5, color=color, label=text)
    if floor > 0:
        ax.axhline(floor, color=_BLACK, ls="--", lw=1.2, label=f"τ = {floor:.2g}, round-off")
    if scale > 0:
        ax.axhline(scale, color=_PURPLE, ls="-.", lw=1.2, label=f"{_VISIBLE} γ/nβ = {scale:.2g}, seen by sampler")
    if bounds is not None:
        ax.axvspan(*bounds.rank_interval, color=_ORANGE, alpha=0.3, lw=2, zorder=0, label=f"rank {_rank(bounds)}")
    ax.set_yscale("log")
    ax.set(xlim=(0, 1.02 * spectrum.dim), ylim=(bottom / 2, None))
    probes = "" if spectrum.method == "dense" else f" ({spectrum.method}, {len(spectrum.nodes)} probes)"
    return _finish(ax, title + probes, f"index, largest first (d = {spectrum.dim})", label)


def plot_curve(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """2 λ_quad, the number of directions that a sampler sees, against γ/nβ; plateaus are ranks."""
    ax, title = _axes(ax), f"Directions seen by the sampler: 2{_QUAD}"
    nodes, weights = (np.zeros(1), np.zeros(1)) if spectrum is None else _measure(spectrum)
    nodes, weights = nodes[nodes > 0], weights[nodes > 0]
    if not nodes.size:
        _note(ax, "no spectrum" if spectrum is None else "no positive eigenvalue")
        return _finish(ax, title, "γ/nβ", f"2{_QUAD}")
    floor, scale = (0.0, 0.0) if bounds is None else (bounds.threshold, bounds.noise_scale)
    least = floor if floor > 0 else max(nodes.min(), 1e-18 * nodes.max())
    grid = np.geomspace(min(least, scale or least) / 10, 100 * max(nodes.max(), scale), 400)
    seen = np.array([np.sum(weights * nodes / (nodes + s)) for s in grid])
    ax.plot(grid, seen, color=_BLUE, lw=2)
    shown: list[Any] = [seen]
    if floor > 0:
        ax.axvspan(grid[0], floor, color=_PALE, lw=0, zorder=0, label="below τ: round-off")
    if bounds is not None and scale > 0:
        label = f"the draws: γ/nβ = {scale:.2g}, 2{_QUAD} = {2 * bounds.quad:.4g}"
        ax.axvline(scale, color=_PURPLE, ls="-.", lw=1.2)
        ax.plot([scale], [2 * bounds.quad], "o", color=_PURPLE, ms=7, label=label)
    for level in [] if bounds is None else sorted(set(bounds.rank_interval)):
        if level <= 2 * seen.max():  # a trivial r_hi = d would flatten the curve
            ax.axhline(level, color=_ORANGE, ls="--", lw=1.5, label=f"rank {level:.0f}")
            shown.append([level])
    ax.set_xscale("log")
    ax.set(xlim=(grid[0], grid[-1]), ylim=(0, _padded(*shown)[1]))
    return _finish(ax, title, "γ/nβ (nats / parameter²)", f"2{_QUAD}")


def _draws(source: Any) -> xr.DataTree:
    return source if isinstance(source, xr.DataTree) else source.draws


def _axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(7, 4), layout="constrained").add_subplot() if ax is None else ax


def _note(ax: Axes, message: str) -> None:
    """Says in the middle of a panel why it is empty."""
    if not ax.has_data():
        ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", color=_GREY)


def _finish(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
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


def _draw_label(draws: xr.DataTree) -> str:
    thinning = json.loads(draws.attrs.get("settings", "{}")).get("thinning", 1)
    return "draw" if thinning == 1 else f"draw (one in {thinning} steps)"


def _alive(row: np.ndarray) -> int:
    """Number of draws before the first that is not finite."""
    bad = np.flatnonzero(~np.isfinite(row))
    return int(bad[0]) if bad.size else len(row)


def _decimate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_LINE_POINTS` points of a line: least and largest of every stretch, so that no spike is lost."""
    if len(x) <= _LINE_POINTS:
        return x, y
    length = math.ceil(2 * len(x) / _LINE_POINTS)
    rows = np.pad(y, (0, -len(y) % length), mode="edge").reshape(-1, length)
    ends = np.sort([rows.argmin(axis=1), rows.argmax(axis=1)], axis=0) + length * np.arange(len(rows))
    index = np.minimum(ends.T.ravel(), len(y) - 1)
    return x[index], y[index]


def _padded(*arrays: Any) -> tuple[float, float]:
    """Least and largest of the finite values, with a margin."""
    values = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.zeros(1)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _inside(ax: Axes, y: Any) -> Any:
    """`y` moved to within the axis, a little off its ends."""
    low, high = ax.get_ylim()
    return np.clip(y, low + 0.04 * (high - low), high - 0.04 * (high - low))


def _color(i: int, num_chains: int) -> Any:
    return _CHAINS[i] if num_chains <= len(_CHAINS) else matplotlib.colormaps["cividis"](0.9 * i / (num_chains - 1))


def _chain_label(i: int, num_chains: int) -> str | None:
    """A label for each chain while there are few; one for all otherwise."""
    if num_chains <= len(_CHAINS):
        return f"chain {i}"
    return f"chains 0 to {num_chains - 1}" if i == 0 else None


def _measure(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in descending order with their weights, averaged over the probes."""
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel() / len(spectrum.nodes)
    order = np.argsort(-nodes)
    order = order[weights[order] > 0]
    return nodes[order], weights[order]


def _interval(bounds: Bounds) -> str:
    return f"[{bounds.lower:.4g}, {bounds.upper:.4g}]" if np.isfinite(bounds.lower) else "do not hold"


def _rank(bounds: Bounds) -> str:
    low, high = bounds.rank_interval
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _plus_minus(value: float, error: float) -> str:
    """Value ± error, with two digits of the error."""
    if error == 0 or not math.isfinite(value):
        return f"{value:.4g}"
    if not math.isfinite(error):
        return f"{value:.4g} ± ∞"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
