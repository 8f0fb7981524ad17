"""The figure of the scales: λ̂, λ_quad, prediction and bracket over γ/nβ, above the orders of all directions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.analysis import schema
from llc.analysis.estimators import mean_energy
from llc.bounds.order_spectrum import ORDERS, OrderSpectrum
from llc.bounds.scales import ScaleSpectrum
from llc.plotting import canvas
from llc.posterior.arguments import require_type

_SAME_NBETA = 0.01  # relative difference of nβ up to which draws belong to the same distances
_POINTS = 41  # of the predicted curve
_COLORS = (canvas.SKY, canvas.ORANGE, canvas.RED, canvas.PURPLE, canvas.PALE, canvas.BLACK)  # of `ORDERS`


def plot_scales(scales: Any, runs: Sequence[Any] = ()) -> Figure:
    """λ̂ over γ/nβ with what the geometry says at the same scales, and the order of every direction below it.

    Args:
        scales: of `llc.scale_spectrum`, or a tree of `llc.load` with those of `llc bounds --scales`.
        runs: reports or draws at the same nβ, each at a γ of its own.

    Returns:
        A figure with two panels, which share the scale γ/nβ = τ.

    Raises:
        ValueError: if the scales are of another type or a file has none, or a run has another nβ.
    """
    scales = _scales_of(scales)
    if not isinstance(runs, list | tuple) or not all(
        isinstance(getattr(run, "draws", run), xr.DataTree) for run in runs
    ):
        raise ValueError(f"runs needs a list of draws of llc.sample, or of reports, got {type(runs).__name__}.")
    orders = scales.order_spectrum(scales.default_scales(per_decade=6))
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _plot_coefficients(top, scales, orders, runs)
    _plot_orders(bottom, scales, orders)
    return figure


def _scales_of(source: Any) -> ScaleSpectrum:
    if isinstance(source, xr.DataTree) and schema.CURVATURE in source.children:
        return ScaleSpectrum.from_dataset(source[schema.CURVATURE])
    require_type("scales", source, ScaleSpectrum, "an llc.ScaleSpectrum, or a tree with one in it")
    assert isinstance(source, ScaleSpectrum)
    return source


def _plot_coefficients(ax: Axes, scales: ScaleSpectrum, orders: OrderSpectrum, runs: Sequence[Any]) -> None:
    bracket = "r(τ)/2 … r(τ)/2 + (d − D − r(τ))/4"
    ax.fill_between(orders.scales, orders.lower, orders.upper, color=canvas.PALE, lw=0, label=bracket)
    ax.plot(orders.scales, orders.effective_dimension / 2, color=canvas.BLUE, label=canvas.QUAD)
    least = max(scales.smallest_gamma / scales.nbeta, orders.scales.min())
    shown = [orders.effective_dimension / 2]
    if least < orders.scales.max():
        grid = np.geomspace(least * (1 + 1e-9), orders.scales.max(), _POINTS)
        found = [scales.predicted_llc(scale * scales.nbeta) for scale in grid]
        value, error = (np.array([getattr(one, name) for one in found]) for name in ("value", "stderr"))
        ax.plot(grid, value, color=canvas.RED, ls="--", label=f"{canvas.HAT} predicted by the orders")
        ax.fill_between(grid, value - 2 * error, value + 2 * error, color=canvas.RED, alpha=0.2, lw=0)
        shown.append(np.clip(value, 0, 2 * scales.spectrum.dim))
    for i, run in enumerate(runs):
        draws = canvas.draws_of(run)
        nbeta, estimate = schema.constant(draws, schema.NBETA), mean_energy(draws)
        if not math.isclose(nbeta, scales.nbeta, rel_tol=_SAME_NBETA):
            raise ValueError(
                f"runs need the nβ of the scales, {scales.nbeta:.5g}, at which distances were chosen, got {nbeta:.5g}; "
                "sample with nbeta= that, or compute the scales at the other one."
            )
        scale = schema.localization_scale(draws)
        label = f"{canvas.HAT} sampled, ± 2 standard errors" if i == 0 else None
        ax.errorbar(scale, estimate.value, yerr=2 * estimate.mcse, fmt="o", ms=5, color=canvas.BLACK, label=label)
        shown.append(np.array([estimate.value]))
    ax.set_ylim(0, 1.15 * canvas.padded(*shown)[1])
    canvas.finish(ax, "λ at each scale", "", "λ")


def _plot_orders(ax: Axes, scales: ScaleSpectrum, orders: OrderSpectrum) -> None:
    ax.set_xscale("log")
    known = np.isfinite(orders.counts).all(axis=1)
    below = np.zeros(len(orders.scales))
    parts = [("curved, h > τ", orders.rank, canvas.BLUE)]
    names = [f"order {order}" if order[0].isdigit() else order for order in ORDERS]
    if orders.orbit:
        parts.append(("symmetry", np.full(len(orders.scales), float(orders.orbit)), canvas.GREEN))
    parts += list(zip(names, np.where(known[:, None], orders.counts, 0.0).T, _COLORS, strict=True))
    for name, count, color in parts:
        if count.any():
            ax.fill_between(orders.scales, below, below + count, step="mid", color=color, lw=0, label=name)
            below = below + count
    if not known.all():
        edge = orders.scales[known].min(initial=orders.scales.max())
        ax.axvspan(orders.scales.min(), edge, color="white", alpha=0.6, lw=0)
        ax.text(0.01, 0.94, "farther than was probed", transform=ax.transAxes, fontsize=8, va="top", color=canvas.GREY)
    ax.set(ylim=(0, 1.02 * scales.spectrum.dim), xlim=(orders.scales.min(), orders.scales.max()))
    canvas.finish(ax, "Directions by the order of K", "γ/nβ = τ (nats / parameter²)", "directions")
