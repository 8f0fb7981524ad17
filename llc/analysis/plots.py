"""The figures: one function a panel, and the dashboard of a report.

Every function draws on `ax`, or on a figure of its own that pyplot never sees, so none stays open. Non-finite
chains are drawn up to their last finite draw and marked as dead; pooled curves leave them out, as the estimates do.
"""

import json
import math
import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.analysis.estimators import constant, effective_sample_size, finite_chains, monte_carlo_error

if TYPE_CHECKING:
    from llc.analysis.report import Report
    from llc.geometry.bounds import Bounds
    from llc.geometry.spectrum import Spectrum
else:  # any object with the same fields serves
    Bounds = Report = Spectrum = Any

# Okabe & Ito 2008, told apart by colour-blind readers; black is for pooled values, yellow is too pale on white.
_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
_CHAINS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED)
_VERDICTS = {"CONSISTENT": _GREEN, "UNRESOLVED": "#A66F00", "BELOW": _RED, "ABOVE": _RED}
_BLACK, _GREY, _PALE = "#000000", "#767676", "#E4E4E4"

_LINE_POINTS = 2000  # points of a drawn line; more than a panel has pixels
_RUNNING_POINTS = 30
_ESS_POINTS = 20
_LEAST_ESS = 400  # below it R-hat and ESS themselves are unreliable (Vehtari et al. 2021, §4)
_VISIBLE = 10  # the sampler sees an eigenvalue above 10 γ/nβ almost in full
_BAND_LEVEL = 0.95  # of the rank plot, for all chains together

_HAT, _QUAD, _CORR = r"$\hat\lambda$", r"$\lambda_\mathrm{quad}$", r"$\lambda_\mathrm{corr}$"


def plot_report(report: Report) -> Figure:
    """Dashboard of a report: verdict, numbers and failed checks in words, and all panels."""
    figure = Figure(figsize=(18, 13), layout="constrained")
    grid = figure.add_gridspec(4, 3, width_ratios=(0.9, 1, 1))
    _write_summary(report, figure.add_subplot(grid[:, 0]))
    plot_running(report, ax=figure.add_subplot(grid[0, 1]))
    plot_trace(report, ax=figure.add_subplot(grid[0, 2]))
    plot_spectrum(report.spectrum, report.bounds, ax=figure.add_subplot(grid[1, 1]))
    plot_curve(report.spectrum, report.bounds, ax=figure.add_subplot(grid[1, 2]))
    plot_rank(report, ax=figure.add_subplot(grid[2, 1]))
    plot_distance(report, ax=figure.add_subplot(grid[2, 2]))
    plot_ess(report, ax=figure.add_subplot(grid[3, 1]))
    plot_autocorrelation(report, ax=figure.add_subplot(grid[3, 2]))
    return figure


def _write_summary(report: Report, ax: Axes) -> None:
    """The report in words. Positions are in points from the top, so that no line covers another."""
    ax.set_axis_off()
    draws, bounds, corrected, quad = report.draws, report.bounds, report.corrected, report.quad
    nbeta, gamma, num_data, num_params = (constant(draws, k) for k in ("nbeta", "gamma", "num_data", "num_params"))
    top, height = 0.0, 72 * ax.figure.get_figheight() - 60

    def write(text: str, *, left: float = 0, size: float = 10.5, step: float = 1.5, **style) -> None:
        nonlocal top
        offset = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "fontsize": size}
        ax.annotate(text, (0, 1), (left, -top), **offset, **style).set_in_layout(False)
        top += step * size * (text.count("\n") + 1)

    write(report.verdict, size=22, color=_VERDICTS.get(report.verdict, _BLACK), fontweight="bold", step=1.7)
    rows = [
        (_HAT, _plus_minus(report.llc.value, report.llc.mcse), f"ESS {report.llc.ess:.0f}, R-hat {report.llc.rhat:.3f}")
    ]
    if quad is not None and bounds is not None and bounds.noise_scale:
        rows.append((_QUAD, f"{quad:.4g}", "Gaussian part, at the same γ/nβ"))
        rows.append(
            (f"{_HAT} − {_QUAD}", _plus_minus(report.llc.value - quad, report.llc.mcse), "singular contribution")
        )
    if corrected is not None:
        rows.append((_CORR, _plus_minus(corrected.value, corrected.mcse), "γ-corrected: compare with the bounds"))
    if bounds is not None:
        rows.append(("bounds", f"[{bounds.lower:.4g}, {bounds.upper:.4g}]", "of the asymptotic λ"))
        rows.append(
            (
                "rank",
                _rank_label(bounds).removeprefix("rank "),
                f"of d = {bounds.dim}, above τ = {bounds.threshold:.2g}",
            )
        )
    rows += [(estimate.method, _plus_minus(estimate.value, estimate.mcse), "") for estimate in report.estimates[1:]]
    sizes = draws["posterior"].sizes
    rows.append(("run", f"{sizes['chain']} chains × {sizes['draw']} draws", ""))
    rows.append(("posterior", f"n = {num_data:.0f}, d = {num_params:.0f}, nβ = {nbeta:.4g}, γ = {gamma:.4g}", ""))
    for name, value, note in rows:
        write(name, step=0)
        write(value, left=115, step=0, fontweight="bold")
        write(note, left=235, color=_GREY)
    failed = [check for check in report.checks if not check.passed]
    top += 12
    write(f"{len(report.checks) - len(failed)} of {len(report.checks)} checks passed", size=12, fontweight="bold")
    for i, check in enumerate(failed):
        message = textwrap.fill(check.message, 66)
        if top + 16 * (message.count("\n") + 3) > height:
            write(f"… and {len(failed) - i} more failed: print(report) lists them.", color=_RED)
            break
        write(f"✗ {check.name}", color=_RED, fontweight="bold", parse_math=False)
        write(message, left=14, step=1.4, parse_math=False)
        top += 5


def plot_running(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Running mean of nβ (L(w) − L(w*)): every chain, all chains ± a standard error, and λ_quad at the same γ/nβ.

    The bounds hold for the asymptotic λ, which λ_corr estimates, and not for the raw λ̂; both stand in a strip of
    their own at the right, on the same scale.

    Args:
        source: draws, or a report (which adds λ_quad, λ_corr and the bounds).
        ax: where to draw; None makes a figure.
    """
    draws, ax = _draws(source), _axes(ax)
    llc = draws["posterior"]["llc"].values
    num_draws = llc.shape[1]
    shown = []  # what the vertical axis must contain
    for i, row in enumerate(llc):
        row = row[: _alive(row)]
        mean = np.cumsum(row) / np.arange(1, len(row) + 1)
        ax.plot(*_decimate(np.arange(1, len(row) + 1), mean), color=_color(i, len(llc)), lw=0.8, alpha=0.8)
        if len(row) == num_draws:
            shown.append(mean[num_draws // 4 :])
        elif len(row):
            ax.plot(len(row), mean[-1], "x", color=_color(i, len(llc)), ms=7, mew=2)
    live = llc[finite_chains(llc)]
    if live.size:
        counts = np.unique(np.linspace(max(4, num_draws // _RUNNING_POINTS), num_draws, _RUNNING_POINTS).astype(int))
        counts = counts[counts <= num_draws] if num_draws >= 4 else np.array([num_draws])
        mean = np.array([live[:, :k].mean() for k in counts])
        error = np.array([monte_carlo_error(live[:, :k]) for k in counts])
        error = np.where(np.isfinite(error), error, np.nan)
        ax.fill_between(counts, mean - error, mean + error, color=_BLACK, alpha=0.2, lw=0)
        chains = "all chains" if len(live) == len(llc) else f"{len(live)} of {len(llc)} chains"
        ax.plot(counts, mean, color=_BLACK, lw=2, label=f"{_HAT} of {chains} ± standard error")
        late = counts >= num_draws / 4
        shown += [(mean + error)[late], (mean - error)[late]]
    else:
        _note(ax, "no chain is finite to its end")
    bounds, corrected = getattr(source, "bounds", None), getattr(source, "corrected", None)
    if bounds is not None and bounds.noise_scale and np.isfinite(bounds.quad):
        ax.axhline(bounds.quad, color=_PURPLE, ls="--", lw=1.8, label=f"{_QUAD} = {bounds.quad:.4g}, same γ/nβ")
        shown.append([bounds.quad])
    if corrected is not None and np.isfinite(corrected.value):
        shown.append([corrected.value])
    if bounds is not None and np.isfinite(bounds.lower):
        shown.append([bounds.lower])
    if shown:
        ax.set_ylim(*_padded(np.concatenate(shown)))
    ax.set_xlim(0, num_draws)
    if bounds is not None:
        _draw_bounds(ax, bounds, corrected)
    return _finish(ax, f"Running {_HAT}", _draw_label(draws), r"mean of $n\beta\,(L(w)-L(w^*))$", columns=2)


def _draw_bounds(ax: Axes, bounds: Bounds, corrected: Any) -> None:
    """A strip at the right with λ_corr and the bounds, which do not hold for the running means beside it."""
    strip = ax.inset_axes((1.02, 0, 0.16, 1), sharey=ax)
    if np.isfinite(bounds.lower) and np.isfinite(bounds.upper):
        text = f"bounds of {_CORR}: [{bounds.lower:.4g}, {bounds.upper:.4g}]"
        strip.axhspan(bounds.lower, bounds.upper, color=_GREEN, alpha=0.3, lw=1.5)
        ax.fill_between([], [], [], color=_GREEN, alpha=0.3, label=text)
    else:
        strip.text(
            0.5, 0.5, "no valid\nbounds", transform=strip.transAxes, ha="center", va="center", fontsize=8, color=_GREY
        )
    if corrected is not None and np.isfinite(corrected.value):
        error = corrected.mcse if np.isfinite(corrected.mcse) else 0.0
        text = f"{_CORR} = {_plus_minus(corrected.value, corrected.mcse)}"
        strip.errorbar([0.5], [corrected.value], [error], fmt="D", color=_BLUE, capsize=4, ms=5)
        ax.plot([], [], "D", color=_BLUE, ms=5, label=text)
    strip.set(xlim=(0, 1), xticks=[0.5], xticklabels=[_CORR])
    strip.tick_params(labelleft=False, left=False, labelsize=9)


def plot_trace(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Loss of every draw and chain, the warm-up shaded before draw 0, and L(w*).

    Args:
        source: draws, or a report.
        ax: where to draw; None makes a figure.
    """
    draws, ax = _draws(source), _axes(ax)
    init_loss = constant(draws, "init_loss")
    _draw_chains(ax, draws, "posterior", "loss", include=init_loss)
    ax.axhline(init_loss, color=_BLACK, ls="--", lw=1.5, label=f"$L(w^*)$ = {init_loss:.4g}")
    return _finish(ax, "Loss of the draws", _draw_label(draws), "loss L(w) (nats per example)")


def plot_distance(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Distance ‖w − w*‖ of every draw and chain, the warm-up shaded before draw 0.

    Args:
        source: draws, or a report.
        ax: where to draw; None makes a figure.
    """
    draws, ax = _draws(source), _axes(ax)
    _draw_chains(ax, draws, "sample_stats", "distance", include=0.0)
    return _finish(ax, "Distance from w*", _draw_label(draws), "‖w − w*‖ (unit of the parameters)")


def _draw_chains(ax: Axes, draws: xr.DataTree, group: str, name: str, *, include: float) -> None:
    """A line for each chain, warm-up and draws, on an axis that heavy tails can't stretch."""
    main = draws[group][name].values
    parts, llc = [main], [draws["posterior"]["llc"].values]
    if f"warmup_{group}" in draws:
        parts.insert(0, draws[f"warmup_{group}"][name].values)
        llc.insert(0, draws["warmup_posterior"]["llc"].values)
    values, llc = np.concatenate(parts, axis=1), np.concatenate(llc, axis=1)
    warmup = values.shape[1] - main.shape[1]
    x = np.arange(values.shape[1]) - warmup
    live = main[np.isfinite(main).all(axis=1)]
    core = live.ravel() if live.size else values[np.isfinite(values)]
    low = high = include
    if core.size:
        # No farther from the median than thrice the 1 % and 99 % quantiles: seven sigma of a normal law.
        q01, q50, q99 = np.quantile(core, (0.01, 0.5, 0.99))
        low = min(include, max(core.min(), q50 - 3 * (q50 - q01)))
        high = max(include, min(core.max(), q50 + 3 * (q99 - q50)))
    low, high = _padded(np.array([low, high]))
    ax.set(xlim=(-warmup, main.shape[1]), ylim=(low, high))
    if warmup:
        ax.axvspan(-warmup, 0, color=_PALE, zorder=0, label="warm-up")
    dead, beyond = [], 0
    for i, row in enumerate(values):
        alive = _alive(row + llc[i])
        color, label = _color(i, len(values)), _chain_label(i, len(values))
        ax.plot(*_decimate(x[:alive], row[:alive]), color=color, lw=0.6, alpha=0.85, label=label)
        if alive < len(row):
            dead.append(f"{i} (draw {x[alive]})")
            last = np.clip(row[alive - 1] if alive else low, low, high)
            ax.plot(x[max(alive - 1, 0)], last, "x", color=color, ms=8, mew=2.5, clip_on=False)
        outside = x[:alive][(row[:alive] < low) | (row[:alive] > high)]
        if len(outside):
            beyond += len(outside)
            shown = outside[:: math.ceil(len(outside) / 100)]
            ax.plot(shown, np.full(len(shown), high), "^", color=color, ms=4, clip_on=False)
    if dead:
        label = "dead: chain " + ", ".join(dead[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
        ax.plot([], [], "x", color=_BLACK, ms=7, mew=2, label=label)
    if beyond:
        ax.plot([], [], "^", color=_BLACK, ms=4, label=f"{beyond} draws beyond the axis")


def plot_rank(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Ranks of each chain's llc among all chains, as the ECDF's deviation from uniform, with a 95 % band.

    Draws are thinned to about independent ones. The band covers all chains at once where they have the same law: of
    m chains with n draws each, √(n m / (m − 1)) sup|ECDF − uniform| follows Kolmogorov's law (Smirnov's two-sample
    test of a chain against the others).

    Args:
        source: draws, or a report.
        ax: where to draw; None makes a figure.

    References:
        Säilynoja, Bürkner & Vehtari, Graphical test for discrete uniformity, Statistics and Computing 32, 2022.
    """
    draws, ax = _draws(source), _axes(ax)
    llc = draws["posterior"]["llc"].values
    finite = finite_chains(llc)
    title = "Ranks of the chains"
    if finite.sum() < 2 or llc.shape[1] < 4 or np.ptp(llc[finite]) == 0:
        _note(ax, "ranks need two finite chains that move")
    else:
        factor = int(array_stats.thin_factor(llc[finite], chain_axis=0, draw_axis=1))
        thinned = llc[:, ::factor]
        num_chains, num_draws = int(finite.sum()), thinned.shape[1]
        ranks = array_stats.compute_ranks(thinned[finite], axis=(0, 1), relative=True)
        grid = np.linspace(0, 1, num_draws + 1)
        for i, row in zip(np.flatnonzero(finite), ranks, strict=True):
            deviation = np.searchsorted(np.sort(row), grid, side="right") / num_draws - grid
            ax.step(grid, deviation, where="post", color=_color(i, len(llc)), lw=1.3, label=_chain_label(i, len(llc)))
        # P(K > x) ≈ 2 exp(−2x²), shared among the chains (Bonferroni)
        quantile = math.sqrt(0.5 * math.log(2 * num_chains / (1 - _BAND_LEVEL)))
        band = quantile * math.sqrt((num_chains - 1) / (num_chains * num_draws))
        ax.axhspan(-band, band, color=_PALE, zorder=0, label=f"{_BAND_LEVEL:.0%} band")
        ax.set(xlim=(0, 1), ylim=_padded(np.array([-1.4 * band, 1.4 * band, *ax.get_ylim()])))
        title += f" ({num_draws} draws each, 1 of {factor})"
    return _finish(ax, title, r"rank of $n\beta\,(L(w)-L(w^*))$ among all chains (fraction)", "ECDF − uniform")


def plot_ess(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Effective sample size of llc, of its mean and of its tails, as draws come in; 400 is the least to trust.

    Args:
        source: draws, or a report.
        ax: where to draw; None makes a figure.
    """
    draws, ax = _draws(source), _axes(ax)
    llc = draws["posterior"]["llc"].values
    live = llc[finite_chains(llc)]
    counts = np.unique(np.linspace(0, llc.shape[1], _ESS_POINTS + 1).astype(int))
    counts = counts[counts >= 4]
    if live.size and counts.size:
        for name, size, color, marker in (
            ("mean", effective_sample_size, _BLUE, "o"),
            ("tails (5 %, 95 %)", _tail_size, _ORANGE, "s"),
        ):
            values = [size(live[:, :k]) for k in counts]
            ax.plot(counts * len(live), values, marker=marker, ms=3.5, lw=1.3, color=color, label=name)
        ax.set_xlim(0, None)
    else:
        _note(ax, "no chain is finite to its end" if not live.size else "fewer than 4 draws")
    ax.axhline(_LEAST_ESS, color=_BLACK, ls="--", lw=1.2, label=f"{_LEAST_ESS}, the least to trust")
    ax.set_ylim(0, 1.08 * max(_LEAST_ESS, ax.get_ylim()[1]))
    return _finish(ax, "Effective sample size", "draws of all finite chains", "effective draws")


def _tail_size(values: np.ndarray) -> float:
    """Effective sample size of the 5 % and 95 % quantiles; 0 for chains that do not move, as for the mean."""
    if np.any(np.ptp(values, axis=1) == 0):
        return 0.0
    return float(array_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)))


def plot_autocorrelation(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Autocorrelation of llc in every chain, up to thrice the lag where it has died out.

    Args:
        source: draws, or a report.
        ax: where to draw; None makes a figure.
    """
    draws, ax = _draws(source), _axes(ax)
    llc = draws["posterior"]["llc"].values
    num_draws = llc.shape[1]
    moving = np.flatnonzero(finite_chains(llc) & (llc.max(axis=1) > llc.min(axis=1)))
    if moving.size and num_draws >= 4:
        values = array_stats.autocorr(llc[moving], axis=-1)
        noise = 1.96 / math.sqrt(num_draws)
        faded = np.flatnonzero(np.all(np.abs(values) < max(0.05, noise), axis=0))
        last = min(num_draws - 1, max(20, 3 * int(faded[0]) if faded.size else num_draws // 2))
        ax.axhspan(-noise, noise, color=_PALE, zorder=0, label="95 % of independent draws")
        for i, row in zip(moving, values, strict=True):
            lags = _decimate(np.arange(last + 1), row[: last + 1])
            ax.plot(*lags, color=_color(i, len(llc)), lw=1.3, label=_chain_label(i, len(llc)))
        ax.axhline(0, color=_GREY, lw=0.8)
        ax.set(xlim=(0, last), ylim=(min(-0.1, 1.1 * values[:, : last + 1].min()), 1.03))
    else:
        _note(ax, "no finite chain moves")
    return _finish(ax, r"Autocorrelation of $n\beta\,(L(w)-L(w^*))$", "lag (draws)", "autocorrelation")


def plot_spectrum(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """Eigenvalues of the Hessian in descending order, with the thresholds that decide the rank.

    Args:
        spectrum: of the Hessian at w*; None leaves a panel that says so.
        bounds: adds the floor τ of round-off, the scale 10 γ/nβ that the sampler sees, and the rank.
        ax: where to draw; None makes a figure.
    """
    ax = _axes(ax)
    title, label = "Spectrum of the Hessian", "|eigenvalue| (nats per example / parameter²)"
    if spectrum is None:
        _note(ax, "no spectrum")
        return _finish(ax, title, "index", label)
    nodes, weights = _measure(spectrum)
    index = np.cumsum(weights)
    size = np.abs(nodes)
    floor = 0.0 if bounds is None else bounds.threshold
    largest = size.max() if size.max() > 0 else 1.0
    bottom = max(0.1 * floor, 1e-20 * largest)  # a decade below τ all is round-off
    if bounds is None:
        bottom = max(bottom, 0.3 * size[size > 0].min(initial=largest))
    clipped = size <= bottom
    for mask, marker, color, text in (
        (~clipped & (nodes > 0), ".", _BLUE, "positive"),
        (~clipped & (nodes < 0), "x", _RED, "negative"),
        (clipped, "v", _GREY, f"zero (below {bottom:.1g})"),
    ):
        if mask.any():
            ax.plot(index[mask], np.maximum(size[mask], bottom), marker, ms=5, color=color, label=text)
    if bounds is not None:
        if floor > 0:
            ax.axhline(floor, color=_BLACK, ls="--", lw=1.2, label=f"τ = {floor:.2g} (round-off)")
        if bounds.noise_scale > 0:
            scale = _VISIBLE * bounds.noise_scale
            ax.axhline(
                scale, color=_PURPLE, ls="-.", lw=1.2, label=f"{_VISIBLE} γ/nβ = {scale:.2g} (seen by the sampler)"
            )
        low, high = bounds.rank_interval
        ax.axvspan(low, high, color=_ORANGE, alpha=0.25, lw=1.5, zorder=0, label=_rank_label(bounds))
    ax.set_yscale("log")
    ax.set(xlim=(0, 1.02 * spectrum.dim), ylim=(bottom / 2, None))
    estimated = "" if spectrum.method == "dense" else f", {spectrum.method} with {len(spectrum.nodes)} probes"
    return _finish(ax, title + estimated, f"number of eigenvalues above (of d = {spectrum.dim})", label)


def plot_curve(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """2 λ_quad, the number of directions that a sampler sees, against γ/nβ; plateaus are ranks.

    Args:
        spectrum: of the Hessian at w*; None leaves a panel that says so.
        bounds: adds the γ/nβ of the draws, and the rank.
        ax: where to draw; None makes a figure.
    """
    ax = _axes(ax)
    title, label = f"Directions seen at a scale: 2{_QUAD}", f"2{_QUAD}"
    nodes, weights = _measure(spectrum) if spectrum is not None else (np.zeros(1), np.zeros(1))
    if not np.any(nodes > 0):
        _note(ax, "no spectrum" if spectrum is None else "no positive eigenvalue")
        return _finish(ax, title, "γ/nβ", label)
    weights, nodes = weights[nodes > 0], nodes[nodes > 0]
    scale = 0.0 if bounds is None else bounds.noise_scale
    floor = nodes.min() / 10 if bounds is None else bounds.threshold
    floor = max(floor, 1e-20 * nodes.max())
    grid = np.geomspace(min(floor / 10, scale / 10 if scale > 0 else np.inf), 100 * max(nodes.max(), scale), 400)
    seen = np.array([np.sum(weights * nodes / (nodes + s)) for s in grid])
    ax.plot(grid, seen, color=_BLUE, lw=2)
    top = seen.max()
    if bounds is not None:
        if floor > 0:
            ax.axvspan(grid[0], floor, color=_PALE, zorder=0, label="below τ (round-off)")
        if scale > 0:
            ax.axvline(scale, color=_PURPLE, ls="-.", lw=1.2)
            label_ = f"γ/nβ = {scale:.2g} of the draws: {2 * bounds.quad:.4g}"
            ax.plot([scale], [2 * bounds.quad], "o", color=_PURPLE, ms=7, label=label_)
        low, high = bounds.rank_interval
        near = [level for level in (low, high) if level <= 2 * top]
        for level in near:
            ax.axhline(level, color=_ORANGE, ls="--", lw=1.5, label=_rank_label(bounds) if level == near[0] else None)
        top = max([top, *near])
    ax.set_xscale("log")
    ax.set(xlim=(grid[0], grid[-1]), ylim=(0, 1.08 * top))
    return _finish(ax, title, "γ/nβ (nats per example / parameter²)", label)


def _draws(source: Any) -> xr.DataTree:
    return source if isinstance(source, xr.DataTree) else source.draws


def _axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(6.8, 4.0), layout="constrained").add_subplot() if ax is None else ax


def _finish(ax: Axes, title: str, xlabel: str, ylabel: str, columns: int = 3) -> Axes:
    """Labels, and the legend between title and axes, where it covers no data."""
    handles, _ = ax.get_legend_handles_labels()
    rows = math.ceil(len(handles) / columns)
    if handles:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            fontsize=8,
            frameon=False,
            borderaxespad=0.2,
            handlelength=1.6,
            columnspacing=1.2,
        )
    ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=5 + 13 * rows)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _note(ax: Axes, message: str) -> None:
    """Says in the middle of a panel why it is empty."""
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", color=_GREY, fontsize=10)


def _draw_label(draws: xr.DataTree) -> str:
    thinning = json.loads(draws.attrs.get("settings", "{}")).get("thinning", 1)
    return "draw" if thinning == 1 else f"draw (one in {thinning} steps)"


def _alive(row: np.ndarray) -> int:
    """Number of draws before the first that is not finite."""
    bad = np.flatnonzero(~np.isfinite(row))
    return int(bad[0]) if bad.size else len(row)


def _decimate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_LINE_POINTS` points of a line: the least and the largest of every stretch, so that no spike is lost."""
    if len(x) <= _LINE_POINTS:
        return x, y
    length = math.ceil(len(x) / (_LINE_POINTS // 2))
    rows = np.pad(y, (0, -len(y) % length), mode="edge").reshape(-1, length)
    both = np.sort(np.stack([rows.argmin(axis=1), rows.argmax(axis=1)], axis=1), axis=1)
    index = np.minimum((both + length * np.arange(len(rows))[:, None]).ravel(), len(y) - 1)
    return x[index], y[index]


def _padded(values: np.ndarray) -> tuple[float, float]:
    """Least and largest of the finite values, with a margin."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)


def _color(i: int, num_chains: int) -> Any:
    if num_chains <= len(_CHAINS):
        return _CHAINS[i]
    return matplotlib.colormaps["cividis"](0.9 * i / (num_chains - 1))


def _chain_label(i: int, num_chains: int) -> str | None:
    """A label for each chain while there are few; one for all otherwise."""
    if num_chains <= len(_CHAINS):
        return f"chain {i}"
    return f"chains 0 to {num_chains - 1}" if i == 0 else None


def _measure(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in descending order and their weights, averaged over the probes."""
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel() / len(spectrum.nodes)
    kept = weights > 0
    nodes, weights = nodes[kept], weights[kept]
    order = np.argsort(-nodes)
    return nodes[order], weights[order]


def _rank_label(bounds: Bounds) -> str:
    low, high = bounds.rank_interval
    return f"rank {low:.0f}" if low == high else f"rank {low:.0f} to {high:.0f}"


def _plus_minus(value: float | None, error: float) -> str:
    """Value ± error, with two digits of the error."""
    if value is None or not math.isfinite(value):
        return "nan"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}" if error == 0 else f"{value:.4g} ± ∞"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
