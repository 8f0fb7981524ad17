"""The figure of λ̂ over nβ."""

from typing import Any

from matplotlib.axes import Axes

from llc.analysis.temperature import TemperatureCurve, temperature_curve
from llc.plotting import canvas


def plot_temperature(source: Any, *, ax: Axes | None = None) -> Axes:
    """λ̂ over nβ with its standard error, where it is trusted, and the run's own nβ.

    Args:
        source: a `TemperatureCurve`, or draws or a report to take one from.
        ax: where to draw; None makes a figure.
    """
    curve = source if isinstance(source, TemperatureCurve) else temperature_curve(canvas.draws_of(source))
    ax, inside = canvas.axes(ax), curve.trusted
    ax.set_xscale("log")
    if inside.any():
        error = 2 * curve.mcse[inside]
        ax.fill_between(
            curve.nbeta[inside],
            curve.value[inside] - error,
            curve.value[inside] + error,
            color=canvas.SKY,
            alpha=0.4,
            lw=0,
            label="± 2 standard errors",
        )
        ax.plot(curve.nbeta[inside], curve.value[inside], color=canvas.BLUE, label=f"{canvas.HAT}, reweighted")
    if (~inside).any():
        ax.plot(curve.nbeta[~inside], curve.value[~inside], ".", ms=3, color=canvas.GREY, label="not trusted")
    ax.axvline(curve.own, color=canvas.BLACK, ls="--", lw=1.2, label=r"$n\beta$ of the run")
    return canvas.finish(ax, f"Temperature, at γ = {curve.gamma:.4g}", r"$n\beta$", canvas.HAT)
