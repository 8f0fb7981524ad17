"""The panels of features: energy by frequency, the tangent kernel, and the units that features live in."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from llc.plotting import canvas

if TYPE_CHECKING:
    from llc.geometry.features.feature_basis import FeatureBasis
    from llc.geometry.features.frequency_content import FrequencyContent
    from llc.geometry.features.tangent_kernel import TangentKernel
else:  # at run time any object with the same fields serves
    FeatureBasis = FrequencyContent = TangentKernel = Any

_DECADES = 12.0  # of energies and eigenvalues that are shown


def plot_frequency_content(content: FrequencyContent, *, ax: Axes | None = None) -> Axes:
    """Energy by |κ| with two standard errors, the mean frequency and what is left unexplained."""
    canvas.require("content", content, "of llc.frequency_content", "energy", "magnitudes", "residual")
    ax = canvas.axes(ax)
    order = np.argsort(content.magnitudes, kind="stable")
    x, energy, error = content.magnitudes[order], content.energy[order], content.error[order]
    floor = max(float(energy.max(initial=0.0)) * 10.0**-_DECADES, float(np.finfo(np.float64).tiny))
    low, high = np.maximum(energy - 2 * error, floor), np.maximum(energy + 2 * error, floor)
    if len(np.unique(x)) == len(x):
        ax.fill_between(x, low, high, color=canvas.SKY, alpha=0.4, lw=0, label="± 2 standard errors")
    else:  # several wave vectors of one length
        ax.vlines(x, low, high, color=canvas.SKY, lw=2, label="± 2 standard errors")
    style = {"ms": 5, "lw": 1 if len(np.unique(x)) == len(x) else 0, "color": canvas.BLUE}
    ax.plot(x, np.maximum(energy, floor), "o-", label="energy", **style)
    ax.axvline(content.mean_frequency, color=canvas.BLACK, ls="--", lw=1.2, label=f"mean {content.mean_frequency:.3g}")
    if content.residual > floor:
        ax.axhline(content.residual, color=canvas.GREY, ls=":", lw=1.2, label="left unexplained, in all")
    ax.set_yscale("log")
    ax.set_ylim(bottom=max(floor, float(energy.min(initial=np.inf))) / 3)  # of a band down to 0 the upper end says all
    return canvas.finish(ax, "Frequency content", "|κ|", "energy (mean square)")


def plot_tangent_kernel(kernel: TangentKernel, *, ax: Axes | None = None) -> Axes:
    """Eigenvalues of the tangent kernel, and the share of the labels' norm in the first of them."""
    canvas.require("kernel", kernel, "of llc.tangent_kernel", "eigenvalues", "label_shares", "effective_rank")
    ax, index = canvas.axes(ax), np.arange(1, len(kernel.eigenvalues) + 1)
    relative = kernel.eigenvalues / max(float(kernel.eigenvalues[0]), float(np.finfo(np.float64).tiny))
    kept = relative > 10.0**-_DECADES
    ax.plot(index[kept], relative[kept], ".", ms=6, color=canvas.BLUE, label="eigenvalue / largest")
    effective = f"effective rank {kernel.effective_rank:.3g}"
    ax.axvline(kernel.effective_rank, color=canvas.BLACK, ls="--", lw=1.2, label=effective)
    if kernel.label_shares is not None:
        left = np.maximum(1 - kernel.label_shares, 10.0**-_DECADES)
        label = f"share of the labels left out (alignment {kernel.alignment:.2f})"
        ax.plot(index, left, color=canvas.ORANGE, lw=1.5, drawstyle="steps-post", label=label)
    ax.set_yscale("log")
    ax.set_xscale("log")
    return canvas.finish(ax, "Tangent kernel", "index, largest first", "relative to the first, or to ‖y‖²")


def plot_feature_basis(basis: FeatureBasis, *, ax: Axes | None = None) -> Axes:
    """Share of each unit in each feature, largest feature first, with lines between the layers."""
    canvas.require("basis", basis, "of llc.feature_basis", "unit_shares", "layers", "participation")
    ax = canvas.axes(ax)
    image = ax.imshow(basis.unit_shares.T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="share of the unit in the feature")
    names = np.array(basis.layers)
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", lw=1.2)
    title = f"{basis.rank} features, participation {basis.participation:.3g}, modularity {basis.modularity:.2f}"
    canvas.finish(ax, title, "feature, largest first", "unit, by layer")
    ax.set_yticks(starts, [str(names[start]) for start in starts])
    return ax
