"""The panels of the geometry: the spectrum of the Hessian, and the directions that a sampler sees of it."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from llc.plotting import canvas

if TYPE_CHECKING:
    from llc.bounds.rank import Bounds
    from llc.bounds.spectral_measure import Spectrum
else:  # at run time any object with the same fields serves
    Bounds = Spectrum = Any

_VISIBLE = 10  # the sampler sees an eigenvalue above 10 γ/nβ almost in full
_LARGE = 200  # parameters from which the index axis is logarithmic: the few large eigenvalues would share a pixel


def plot_spectrum(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """Eigenvalues of the Hessian, largest first, with the threshold τ and its cause, the scale 10 γ/nβ and the rank."""
    _require(spectrum, bounds)
    ax, title, label = canvas.axes(ax), "Spectrum of the Hessian", "|eigenvalue| (nats / parameter²)"
    if spectrum is None:
        canvas.note(ax, "no spectrum")
        return canvas.finish(ax, title, "index, largest first", label)
    nodes, weights = _measure(spectrum)
    index, size = np.cumsum(weights), np.abs(nodes)
    floor, scale = (0.0, 0.0) if bounds is None else (bounds.threshold, _VISIBLE * bounds.localization_scale)
    largest = max(size.max(), np.finfo(float).tiny)
    # A decade below τ all is round-off; without τ, the last decades of float64.
    bottom = 0.1 * floor if floor > 0 else max(size[size > 0].min(initial=largest) / 3, 1e-18 * largest)
    clipped = size <= bottom
    for mask, marker, color, text in (
        (~clipped & (nodes > 0), ".", canvas.BLUE, "positive"),
        (~clipped & (nodes < 0), "x", canvas.RED, "negative"),
        (clipped, "v", canvas.GREY, f"below {bottom:.1g}"),
    ):
        if mask.any():
            ax.plot(index[mask], np.maximum(size[mask], bottom), marker, ms=5, color=color, label=text)
    if floor > 0:
        ax.axhline(floor, color=canvas.BLACK, ls="--", lw=1.2, label=f"τ = {floor:.2g}, {_cause(spectrum)}")
    if scale > 0:
        visible = f"{_VISIBLE} γ/nβ = {scale:.2g}: seen above it"
        ax.axhline(scale, color=canvas.PURPLE, ls="-.", lw=1.2, label=visible)
    if bounds is not None:
        rank = f"rank {canvas.rank_text(bounds)}"
        low, high = bounds.rank_interval
        left = max(low, 0.5) if low < high else low  # a logarithmic axis has no 0
        ax.axvspan(left, high, color=canvas.ORANGE, alpha=0.3, lw=2, zorder=0, label=rank)
    ax.set_yscale("log")
    large = spectrum.dim > _LARGE
    if large:
        ax.set_xscale("log")
    ax.set(xlim=(0.8, 1.2 * spectrum.dim) if large else (0, 1.02 * spectrum.dim), ylim=(bottom / 2, None))
    matrix = "Gauss–Newton matrix" if spectrum.matrix == "ggn" else "Hessian"
    how = "" if spectrum.method == "dense" else f" ({spectrum.method})"
    if not spectrum.exact:
        how = f" ({spectrum.method}, {len(spectrum.nodes)} probes)"
    return canvas.finish(ax, f"Spectrum of the {matrix}{how}", f"index, largest first (d = {spectrum.dim})", label)


def plot_effective_dimension(
    spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None
) -> Axes:
    """2 λ_quad, the number of directions that a sampler sees, against γ/nβ; plateaus are ranks."""
    _require(spectrum, bounds)
    ax, title = canvas.axes(ax), f"Directions seen by the sampler: 2{canvas.QUAD}"
    nodes, weights = (np.zeros(1), np.zeros(1)) if spectrum is None else _measure(spectrum)
    nodes, weights = nodes[nodes > 0], weights[nodes > 0]
    if not nodes.size:
        canvas.note(ax, "no spectrum" if spectrum is None else "no positive eigenvalue")
        return canvas.finish(ax, title, "γ/nβ", f"2{canvas.QUAD}")
    floor, scale = (0.0, 0.0) if bounds is None else (bounds.threshold, bounds.localization_scale)
    least = floor if floor > 0 else max(nodes.min(), 1e-18 * nodes.max())
    grid = np.geomspace(min(least, scale or least) / 10, 100 * max(nodes.max(), scale), 400)
    seen = np.array([np.sum(weights * nodes / (nodes + s)) for s in grid])
    ax.plot(grid, seen, color=canvas.BLUE, lw=2)
    shown: list[Any] = [seen]
    if floor > 0:
        ax.axvspan(grid[0], floor, color=canvas.PALE, lw=0, zorder=0, label=f"below τ: {_cause(spectrum)}")
    if bounds is not None and scale > 0:
        label = f"the draws: γ/nβ = {scale:.2g}, 2{canvas.QUAD} = {2 * bounds.quad:.4g}"
        ax.axvline(scale, color=canvas.PURPLE, ls="-.", lw=1.2)
        ax.plot([scale], [2 * bounds.quad], "o", color=canvas.PURPLE, ms=7, label=label)
    for level in [] if bounds is None else sorted(set(bounds.rank_interval)):
        if level <= 2 * seen.max():  # a trivial r_hi = d would flatten the curve
            ax.axhline(level, color=canvas.ORANGE, ls="--", lw=1.5, label=f"rank {level:.0f}")
            shown.append([level])
    ax.set_xscale("log")
    ax.set(xlim=(grid[0], grid[-1]), ylim=(0, canvas.padded(*shown)[1]))
    return canvas.finish(ax, title, "γ/nβ (nats / parameter²)", f"2{canvas.QUAD}")


def plot_curve(spectrum: Spectrum | None, bounds: Bounds | None = None, *, ax: Axes | None = None) -> Axes:
    """Deprecated: use `plot_effective_dimension`."""
    message = "llc.plot_curve will go in the next release; use llc.plot_effective_dimension."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return plot_effective_dimension(spectrum, bounds, ax=ax)


def _require(spectrum: object, bounds: object) -> None:
    canvas.require("spectrum", spectrum, "an llc.Spectrum", "nodes", "weights", optional=True)
    canvas.require("bounds", bounds, "llc.Bounds", "threshold", "rank_interval", optional=True)


def _cause(spectrum: Spectrum | None) -> str:
    """What sets τ."""
    return str(getattr(spectrum, "threshold_cause", "round-off"))


def _measure(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in descending order with their weights, averaged over the probes."""
    nodes, weights = spectrum.nodes.ravel(), spectrum.weights.ravel() / len(spectrum.nodes)
    order = np.argsort(-nodes)
    order = order[weights[order] > 0]
    return nodes[order], weights[order]
