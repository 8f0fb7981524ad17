r"""The panel of a calibration: cost and bias over step size ε and γ, by the curvature at w*, and the pilots.

A direction of curvature h, stiff by a = nβh + γ, is too hot by 1 / (1 − εa/4) under Euler–Maruyama, so that λ̂ is by

$$ \frac{\sum s_i\, (1 / (1 - \epsilon a_i / 4) - 1)}{\sum s_i}, \qquad s = \frac{n\beta\, h}{n\beta\, h + \gamma}, $$

(Leimkuhler–Matthews has none of it on a quadratic), and unstable from εa = 4 on. A flat direction relaxes
at the rate εγ/2 a step: forty times take 80 / (εγ) steps.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from llc.plotting import canvas

if TYPE_CHECKING:
    from llc.calibration.record import Calibration
else:  # at run time any object with the same fields serves
    Calibration = Any

_DECADES = 1.5  # to each side of all that is shown
_POINTS = 40  # of each axis of the map
_BIAS = (1e-3, 1e-2, 1e-1, 1.0)
_RELAXATIONS = 40
_STABLE = 4.0
_TRUSTED = 2.0  # measured stiffness, in units of what was aimed at, up to which a pilot confirms its γ


def plot_calibration(calibration: Calibration, *, ax: Axes | None = None) -> Axes:
    """Predicted bias and cost over ε and γ, the settings that were chosen, and the pilots with what they measured.

    Args:
        calibration: of `llc.calibrate`.
        ax: where to draw; None makes a figure.
    """
    canvas.require("calibration", calibration, "of llc.calibrate", "sampler", "posterior", "pilots", "spectrum")
    ax = canvas.axes(ax)
    chosen = getattr(calibration.sampler, "step_size", None)
    if chosen is None:
        canvas.note(ax, f"{type(calibration.sampler).__name__} adapts its step size in the warm-up")
        return canvas.finish(ax, "Calibration", "step size ε", "localization γ")
    gamma, step_size = calibration.posterior.scale.gamma, float(np.asarray(chosen))
    pilots = calibration.pilots
    steps = _range([step_size, *(pilot.step_size for pilot in pilots)])
    gammas = _range([gamma, *(pilot.gamma for pilot in pilots if pilot.gamma > 0)] if gamma else [1.0])
    nbeta, spectrum = float(calibration.posterior.nbeta), calibration.spectrum
    bias = np.array([[bias_of(spectrum, nbeta, g, eps) for eps in steps] for g in gammas])
    shown = np.nan_to_num(np.maximum(bias, _BIAS[0] / 10), nan=10 * _BIAS[-1])
    filled = ax.contourf(steps, gammas, shown, levels=_BIAS, norm=LogNorm(), cmap="YlOrRd", alpha=0.5, extend="max")
    bar = ax.figure.colorbar(filled, ax=ax, format=lambda value, _: f"{value:.1%}")
    bar.set_label("Euler–Maruyama's bias of λ̂, predicted", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    edge = _STABLE / (nbeta * spectrum.largest + gammas)
    ax.fill_betweenx(gammas, edge, steps[-1], where=edge < steps[-1], color=canvas.PALE, lw=0)
    cost = 2 * _RELAXATIONS / np.outer(gammas, steps)
    decades = 10.0 ** np.arange(np.ceil(np.log10(cost.min())), np.floor(np.log10(cost.max())) + 1)
    lines = ax.contour(steps, gammas, cost, levels=decades, norm=LogNorm(), colors=canvas.BLUE, linewidths=0.8)
    ax.clabel(lines, fmt=lambda steps: f"$10^{{{np.log10(steps):.0f}}}$", fontsize=8)
    ax.plot([], [], color=canvas.BLUE, lw=0.8, label=f"steps for {_RELAXATIONS} flat relaxations")
    ax.plot([], [], "s", ms=8, color=canvas.PALE, label="unstable")
    for number, pilot in enumerate(pilots, start=1):
        color = canvas.GREEN if pilot.stiffness <= _TRUSTED else canvas.RED
        ax.plot(pilot.step_size, pilot.gamma, "o", ms=7, color=color)
        row = len({other.gamma for other in pilots}) == 1  # of one γ: side by side
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "zorder": 5}
        style["bbox"] = {"fc": "white", "alpha": 0.7, "lw": 0, "pad": 0.5}
        style |= {"xytext": (-3, 10), "rotation": 50} if row else {"xytext": (10, -3)}
        ax.annotate(f"{number}: ×{pilot.stiffness:.2g}", (pilot.step_size, pilot.gamma), **style)
    if pilots:
        ax.plot([], [], "o", color=canvas.GREEN, label="pilots, × the stiffness aimed at")
    ax.plot(step_size, gamma, "*", ms=13, color=canvas.BLACK, mfc="none", label="chosen")
    ax.set(xscale="log", yscale="log", xlim=(steps[0], steps[-1]), ylim=(gammas[0], gammas[-1]))
    return canvas.finish(ax, f"Calibration, at nβ = {nbeta:.4g}", "step size ε", "localization γ")


def bias_of(spectrum: Any, nbeta: float, gamma: float, step_size: float) -> float:
    """Relative bias of λ̂ under Euler–Maruyama on the quadratic part of the loss; nan where that is unstable."""
    if step_size * (nbeta * spectrum.largest + gamma) >= _STABLE:
        return float("nan")

    def share(h: np.ndarray) -> np.ndarray:
        return nbeta * np.maximum(h, 0.0) / (nbeta * np.maximum(h, 0.0) + gamma)

    def heat(h: np.ndarray) -> np.ndarray:
        return 1 / (1 - step_size * (nbeta * np.maximum(h, 0.0) + gamma) / _STABLE) - 1

    total = spectrum.sum(share)
    return float(spectrum.sum(lambda h: share(h) * heat(h)) / total) if total > 0 else 0.0


def _range(values: list[float]) -> np.ndarray:
    return np.geomspace(min(values) / 10**_DECADES, max(values) * 10**_DECADES, _POINTS)
