"""The panels of draws: trace, running mean, distance, ranks, effective sample size and autocorrelation.

`source` is draws or a report; every function draws on `ax`, or on a figure of its own (`ax.figure`), and returns it.
Chains with non-finite draws are drawn up to the last finite one and marked as dead; pooled curves leave them out, as
the estimates do.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from arviz_stats.base.array import array_stats
from matplotlib.axes import Axes

from llc.analysis import schema
from llc.analysis.chain_checks import MIN_ESS
from llc.analysis.schema import constant, variable
from llc.analysis.series import effective_sample_size, finite_chains, monte_carlo_error, plus_minus
from llc.plotting import canvas

if TYPE_CHECKING:
    from llc.analysis.report import Report
    from llc.bounds.rank import Bounds
else:  # at run time any object with the same fields serves
    Bounds = Report = Any

_stats: Any = array_stats  # its types know neither chain_axis=None nor several axes

_RUNNING_POINTS = 30  # of the pooled running mean, each with its standard error
_ESS_POINTS = 20
_FAR = 4.0  # times the draws' own axis, up to which a line may stretch it
_HUGE = 1e100  # beyond it a dying chain in float64 overflows the axis
_BAND_LEVEL = 0.95  # of the rank plot's band, for all chains at once


def plot_running(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Running mean of nβ (L(w) − L(w*)): each chain (thin), all chains ± a standard error, λ_quad at the same γ/nβ.

    Bounds hold for the asymptotic λ, which λ_corr estimates, not for the raw λ̂: they stand in a strip of their own.
    """
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    bounds, corrected, quad = (getattr(source, name, None) for name in ("bounds", "corrected", "quad"))
    symbol = canvas.symbol(source)
    llc = variable(draws, schema.POSTERIOR, schema.ENERGY)
    num_draws = llc.shape[1]
    shown, dead = _plot_chain_means(ax, llc)  # what the vertical axis must hold; chains that left
    shown += _plot_mean_of_all(ax, llc)
    if bounds is not None and quad is not None and np.isfinite(quad):
        label = f"{canvas.QUAD} = {plus_minus(quad, bounds.quad_stderr)}, same γ/nβ"
        ax.axhline(quad, color=canvas.PURPLE, ls="--", lw=1.8, label=label)
        shown.append([quad])
    shown += [[bounds.lower]] if bounds is not None else []
    if corrected is not None:
        shown.append([corrected.value, corrected.value - corrected.mcse, corrected.value + corrected.mcse])
    ax.set(xlim=(0, num_draws), ylim=canvas.padded(*shown))
    for i, x, y in dead:
        ax.plot(x, canvas.inside(ax, y), "x", color=canvas.chain_color(i, len(llc)), ms=8, mew=2.5)
    if dead:
        ax.plot([], [], "x", color=canvas.BLACK, ms=7, mew=2, label="dead chain")
    if bounds is not None:
        _draw_bounds(ax, bounds, corrected, symbol)
    return canvas.finish(ax, f"Running {canvas.HAT}", _draw_label(draws), f"mean of {canvas.LLC}")


def _plot_chain_means(ax: Axes, llc: np.ndarray) -> tuple[list[Any], list[tuple[int, int, float]]]:
    """The running mean of each chain: values that have to be seen, and (chain, last draw, mean there) of dead ones."""
    shown: list[Any] = []
    dead: list[tuple[int, int, float]] = []
    finite = finite_chains(llc)
    for i, row in enumerate(llc):
        x = np.arange(1, _alive(row) + 1)
        with np.errstate(over="ignore"):  # of a chain that is about to die
            mean = np.cumsum(row[: len(x)]) / x
        ax.plot(*canvas.decimate(x, mean), color=canvas.chain_color(i, len(llc)), lw=0.8)
        if finite[i]:
            shown.append(mean[llc.shape[1] // 4 :])
        elif len(x):
            dead.append((i, int(x[-1]), float(mean[-1])))
    return shown, dead


def _plot_mean_of_all(ax: Axes, llc: np.ndarray) -> list[np.ndarray]:
    """The running mean of all finite chains with its standard error; the values that have to be seen."""
    finite, num_draws = finite_chains(llc), llc.shape[1]
    if not finite.any():
        canvas.note(ax, "no chain is finite to its end")
        return []
    live = llc[finite]
    counts = np.unique(np.linspace(1, num_draws, _RUNNING_POINTS + 1).astype(int)[1:])
    mean = np.array([live[:, :k].mean() for k in counts])
    error = np.array([monte_carlo_error(live[:, :k]) for k in counts])
    error[~np.isfinite(error)] = np.nan
    ax.fill_between(counts, mean - error, mean + error, color=canvas.BLACK, alpha=0.2, lw=0)
    of = "" if finite.all() else f" of {len(live)} of {len(llc)} chains"
    ax.plot(counts, mean, color=canvas.BLACK, lw=2, label=f"{canvas.HAT}{of} ± standard error")
    return [(mean + sign * error)[counts >= num_draws / 4] for sign in (-1, 1)]


def _draw_bounds(ax: Axes, bounds: Bounds, corrected: Any, symbol: str) -> None:
    """A strip at the right of the running means, on the same scale, with what is compared and the bounds."""
    strip = ax.inset_axes((1.02, 0, 0.13, 1), sharey=ax)
    strip.axhspan(bounds.lower, bounds.upper, color=canvas.GREEN, alpha=0.3, lw=0)
    label = f"bounds of λ: {canvas.bounds_text(bounds)}"
    ax.fill_between([], [], [], color=canvas.GREEN, alpha=0.3, lw=0, label=label)
    if bounds.upper > ax.get_ylim()[1]:
        corner: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
        strip.annotate(f"↑ {bounds.upper:.4g}", (0.96, 0.98), fontsize=8, **corner)
    if corrected is not None and np.isfinite(corrected.value):
        error = corrected.mcse if np.isfinite(corrected.mcse) else 0.0
        strip.errorbar([0.25], [corrected.value], [error], fmt="D", color=canvas.BLUE, capsize=4, ms=5)
        label = f"{symbol} = {plus_minus(corrected.value, corrected.mcse)}"
        ax.plot([], [], "D", color=canvas.BLUE, ms=5, label=label)
    strip.set(xlim=(0, 1), xticks=[])
    strip.set_xlabel(r"$\lambda$" if corrected is None else symbol, fontsize=9)
    strip.tick_params(left=False, labelleft=False)


def plot_trace(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Loss of every draw and chain, the warm-up shaded before draw 0, and L(w*)."""
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    init_loss = constant(draws, schema.INIT_LOSS)
    _draw_chains(ax, draws, schema.POSTERIOR, schema.LOSS, include=init_loss)
    ax.axhline(init_loss, color=canvas.BLACK, ls="--", lw=1.5, label=f"$L(w^*)$ = {init_loss:.4g}")
    return canvas.finish(ax, "Loss of the draws", _draw_label(draws), "loss (nats per example)")


def plot_distance(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Distance ‖w − w*‖ of every draw and chain, the warm-up shaded before draw 0.

    √(d/γ) is where localization alone would hold the draws: near it the loss says little of them, and λ̂ is about the
    prior. ‖w*‖, where it was recorded, is the distance of w* from zero.
    """
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    levels = {}
    if (gamma := constant(draws, schema.GAMMA)) > 0:
        levels["√(d/γ), localization alone"] = (math.sqrt(constant(draws, schema.NUM_PARAMS) / gamma), canvas.PURPLE)
    if schema.has(draws, schema.CONSTANTS, schema.CENTER_NORM):
        levels["‖w*‖"] = (constant(draws, schema.CENTER_NORM), canvas.BLACK)
    _draw_chains(ax, draws, schema.SAMPLE_STATS, schema.DISTANCE, include=0.0)
    _draw_levels(ax, levels)
    return canvas.finish(ax, "Distance from w*", _draw_label(draws), "‖w − w*‖ (unit of parameters)")


def _draw_levels(ax: Axes, levels: dict[str, tuple[float, str]]) -> None:
    """Horizontal lines with their values; those far above the draws leave the axis to them and stand in the legend."""
    low, top = ax.get_ylim()
    near = [value for value, _ in levels.values() if value <= _FAR * top]
    ax.set_ylim(low, max([top, *(1.06 * value for value in near)]))
    for name, (value, color) in levels.items():
        place = "" if value in near else ", above the axis"
        ax.axhline(value, color=color, ls="--", lw=1.5, label=f"{name} = {value:.3g}{place}")


def _draw_chains(ax: Axes, draws: xr.DataTree, group: str, name: str, *, include: float) -> None:
    """A line for each chain, warm-up and draws, on an axis that heavy tails can't stretch."""
    main, warmup = variable(draws, group, name), 0
    values, llc = main, variable(draws, schema.POSTERIOR, schema.ENERGY)
    if f"warmup_{group}" in draws:
        values = np.concatenate([variable(draws, f"warmup_{group}", name), values], axis=1)
        llc = np.concatenate([variable(draws, f"warmup_{schema.POSTERIOR}", schema.ENERGY), llc], axis=1)
        warmup = values.shape[1] - main.shape[1]
        ax.axvspan(-warmup, 0, color=canvas.PALE, lw=0, zorder=0, label="warm-up")
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
    low, high = canvas.padded([low, high])
    ax.set(xlim=(-warmup, main.shape[1]), ylim=(low, high))
    dead, beyond = [], 0
    for i, row in enumerate(values):
        alive = min(_alive(row), _alive(llc[i]))
        color, label = canvas.chain_color(i, len(values)), canvas.chain_label(i, len(values))
        ax.plot(*canvas.decimate(x[:alive], row[:alive]), color=color, lw=0.6, alpha=0.8, label=label)
        outside = np.flatnonzero((row[:alive] < low) | (row[:alive] > high))
        if len(outside):
            beyond += len(outside)
            some = outside[:: math.ceil(len(outside) / 100)]
            ax.plot(x[some], canvas.inside(ax, row[some]), "d", color=color, ms=4)
        if alive < len(row):
            dead.append(f"{i} (draw {x[alive]})")
            last = row[alive - 1] if alive else low
            ax.plot(x[max(alive - 1, 0)], canvas.inside(ax, last), "x", color=color, ms=8, mew=2.5)
    if beyond:
        ax.plot([], [], "d", color=canvas.BLACK, ms=4, label=f"{beyond} draws beyond the axis")
    if dead:
        label = "dead: chain " + ", ".join(dead[:2]) + (f" and {len(dead) - 2} more" if len(dead) > 2 else "")
        ax.plot([], [], "x", color=canvas.BLACK, ms=7, mew=2, label=label)


def _draw_label(draws: xr.DataTree) -> str:
    thinning = schema.settings_of(draws).get("thinning", 1) if schema.SETTINGS in draws.attrs else 1
    return "draw" if thinning == 1 else f"draw (one in {thinning} steps)"


def _alive(row: np.ndarray) -> int:
    """Number of draws before the first that is not finite."""
    bad = np.flatnonzero(~np.isfinite(row))
    return int(bad[0]) if bad.size else len(row)


def plot_rank(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Ranks of each chain's llc among all chains: deviation of their ECDF from uniform, with a 95 % band.

    Draws are thinned to about independent ones. Where all m chains have one law, √(n m / (m − 1)) sup |deviation| of a
    chain of n draws follows Kolmogorov's law (Smirnov's test of the chain against the others); the band's level is
    shared among the chains (Bonferroni).

    References:
        Säilynoja, Bürkner & Vehtari, Graphical test for discrete uniformity, Statistics and Computing 32, 2022.
    """
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    llc, title = variable(draws, schema.POSTERIOR, schema.ENERGY), "Ranks of the chains"
    finite = finite_chains(llc)
    if finite.sum() < 2 or llc.shape[1] < 4 or np.ptp(llc[finite]) == 0:
        canvas.note(ax, "ranks need two finite chains that move")
    else:
        # Thinned by the ESS within chains: that of all falls when chains differ, and would hide just that.
        factor = int(_stats.thin_factor(llc[finite], chain_axis=None, draw_axis=1))
        ranks = _stats.compute_ranks(llc[finite, ::factor], axis=(0, 1), relative=True)
        num_chains, num_draws = ranks.shape
        grid = np.linspace(0, 1, num_draws + 1)
        quantile = math.sqrt(0.5 * math.log(2 * num_chains / (1 - _BAND_LEVEL)))  # P(K > x) = 2 exp(−2x²) − …
        band = quantile * math.sqrt((num_chains - 1) / (num_chains * num_draws))
        ax.axhspan(-band, band, color=canvas.PALE, lw=0, zorder=0, label=f"{_BAND_LEVEL:.0%} band")
        deviations = [np.searchsorted(np.sort(row), grid, side="right") / num_draws - grid for row in ranks]
        for i, deviation in zip(np.flatnonzero(finite).tolist(), deviations, strict=True):
            color, label = canvas.chain_color(i, len(llc)), canvas.chain_label(i, len(llc))
            ax.plot(grid, deviation, color=color, lw=1.2, label=label)
        ax.set(xlim=(0, 1), ylim=canvas.padded([-1.3 * band, 1.3 * band], *deviations))
        title += f" ({num_draws} of {llc.shape[1]} draws each)"
    return canvas.finish(ax, title, f"rank of {canvas.LLC} among all chains (fraction)", "ECDF − uniform")


def plot_ess(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Effective sample size of llc as draws come in, for its mean and its tails, with the least to trust."""
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    llc = variable(draws, schema.POSTERIOR, schema.ENERGY)
    live = llc[finite_chains(llc)]
    counts = np.unique(np.linspace(0, llc.shape[1], _ESS_POINTS + 1).astype(int))
    counts = counts[counts >= 4]
    if live.size and counts.size:
        of_mean, of_tails = ([f(live[:, :k]) for k in counts] for f in (effective_sample_size, _tail_size))
        style: dict[str, Any] = {"ms": 3.5, "lw": 1.3}
        ax.plot(counts * len(live), of_mean, "o-", color=canvas.BLUE, label="of the mean", **style)
        ax.plot(counts * len(live), of_tails, "s-", color=canvas.ORANGE, label="of the tails (5 %, 95 %)", **style)
        ax.set_xlim(0, 1.02 * live.size)
    else:
        canvas.note(ax, "fewer than 4 draws" if live.size else "no chain is finite to its end")
    ax.axhline(MIN_ESS, color=canvas.BLACK, ls="--", lw=1.2, label=f"{MIN_ESS:.0f}: the least to trust")
    ax.set_ylim(0, max(1.1 * MIN_ESS, ax.get_ylim()[1]))
    return canvas.finish(ax, "Effective sample size", "draws of all finite chains", "effective draws")


def _tail_size(values: np.ndarray) -> float:
    """Effective sample size of the 5 % and 95 % quantiles; 0 for chains that do not move, as for the mean."""
    if np.any(np.ptp(values, axis=1) == 0):
        return 0.0
    return float(_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)))


def plot_autocorrelation(source: xr.DataTree | Report, *, ax: Axes | None = None) -> Axes:
    """Autocorrelation of llc in every chain, up to thrice the lag where it has died out."""
    draws, ax = canvas.draws_of(source), canvas.axes(ax)
    llc = variable(draws, schema.POSTERIOR, schema.ENERGY)
    num_draws = llc.shape[1]
    moving = np.flatnonzero(finite_chains(llc) & (llc.max(axis=1) > llc.min(axis=1)))
    if moving.size and num_draws >= 4:
        values = _stats.autocorr(llc[moving], axis=-1)
        noise = 1.96 / math.sqrt(num_draws)
        faded = np.flatnonzero(np.all(np.abs(values) < max(0.05, noise), axis=0))
        last = min(num_draws - 1, max(20, 3 * int(faded[0]) if faded.size else num_draws // 2))
        ax.axhspan(-noise, noise, color=canvas.PALE, lw=0, zorder=0, label="95 % of white noise")
        for i, row in zip(moving.tolist(), values[:, : last + 1], strict=True):
            lags, drawn = canvas.decimate(np.arange(last + 1), row)
            color, label = canvas.chain_color(i, len(llc)), canvas.chain_label(i, len(llc))
            ax.plot(lags, drawn, color=color, lw=1.2, label=label)
        ax.set(xlim=(0, last), ylim=(min(-0.1, 1.1 * values[:, : last + 1].min()), 1.03))
    else:
        canvas.note(ax, "no finite chain moves")
    return canvas.finish(ax, f"Autocorrelation of {canvas.LLC}", "lag (draws)", "autocorrelation")
