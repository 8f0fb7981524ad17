"""The panels of selected samples: eigenvalues of the winners' covariance, and the ladder of σ."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from llc.plotting import canvas

if TYPE_CHECKING:
    from llc.geometry.selection.ladder import SigmaLadder
    from llc.geometry.selection.winners import SelectedSamples
else:  # at run time any object with the same fields serves
    SelectedSamples = SigmaLadder = Any


def plot_selected(selected: SelectedSamples, *, ax: Axes | None = None) -> Axes:
    """Eigenvalues of C in σ², least first, with the edge that each has to be below, the rank and σ²."""
    canvas.require("selected", selected, "of llc.selected_covariance", "eigenvalues", "edges", "rank")
    ax, index = canvas.axes(ax), np.arange(1, selected.dim + 1)
    counted = index <= selected.rank
    for mask, color, text in ((counted, canvas.BLUE, "selected"), (~counted, canvas.GREY, "as by chance")):
        if mask.any():
            ax.plot(index[mask], selected.eigenvalues[mask], ".", ms=6, color=color, label=text)
    ax.plot(index, selected.edges, color=canvas.ORANGE, lw=1.5, label="edge (Marchenko–Pastur, 95 %)")
    ax.axhline(1, color=canvas.BLACK, ls="--", lw=1.2, label="σ², unselected")
    ranks = f"rank ≥ {selected.rank}, certificate {selected.certified_rank}, all samples {selected.stein_rank}"
    ax.axvspan(0.5, selected.rank + 0.5, color=canvas.SKY, alpha=0.2, lw=0, zorder=0, label=ranks)
    ax.set(xlim=(0.5, selected.dim + 0.5), ylim=(0, None))
    title = f"Covariance of {selected.num_winners:,} winners, best of {selected.num_candidates}"
    return canvas.finish(ax, title, f"index, least first (d = {selected.dim})", "eigenvalue of C / σ²")


def plot_sigma_ladder(ladder: SigmaLadder, *, ax: Axes | None = None) -> Axes:
    """Ranks at each σ, with the winners' variance in the kernel of the first and the σ that is accepted."""
    canvas.require("ladder", ladder, "of llc.sigma_ladder", "rungs", "agree")
    ax, sigmas = canvas.axes(ax), [rung.sigma for rung in ladder.rungs]
    highest = 1
    for name, text, color, size in (
        ("rank", "rank ≥, winners", canvas.BLUE, 12),  # the smaller ones on top
        ("certified_rank", "χ² certificate", canvas.GREEN, 8),
        ("stein_rank", "all samples", canvas.ORANGE, 4),
    ):
        ranks = [getattr(rung, name) for rung in ladder.rungs]
        ax.plot(sigmas, ranks, "o-", ms=size, lw=1, color=color, label=text)
        highest = max(highest, *ranks)
    if ladder.accepted is not None:
        label = f"plateau up to σ = {ladder.accepted.sigma:.2g}"
        ax.axvline(ladder.accepted.sigma, color=canvas.BLACK, ls="--", lw=1.2, label=label)
    ax.set_xscale("log")
    ax.set(ylim=(0, 1.35 * highest))
    for sigma, variance in zip(sigmas, ladder.kernel_variances, strict=True):
        style = {"color": canvas.PURPLE, "ha": "center", "va": "top", "fontsize": 9, "backgroundcolor": "white"}
        ax.text(sigma, 1.32 * highest, f"{variance:.3f}", **style)
    ax.plot([], [], color=canvas.PURPLE, label=f"variance in the kernel, ± {ladder.kernel_error:.3f} σ²")
    return canvas.finish(ax, "Ladder of σ", "σ", f"rank (d = {ladder.rungs[0].dim})")
