r"""Trained reduced rank regression 10-H-5 in its 14 cells of true rank: λ̂ and the bracket against the exact λ.

$f(x) = B A x$ with A (H×10) and B (5×H) is trained on the outputs of a linear map of rank r₀ ≤ H, without noise, for
H = 2 … 5 and r₀ = 1 … H. Where A ends with full rank, as it does from a generic start, its rows have to span those of
the map, which leaves 10H − (10 − H) r₀ dimensions for it, and B follows from it. The zero set is a manifold there of
codimension 5H + (10 − H) r₀, so that

$$ \lambda = \tfrac12 \left(5H + (10 - H)\, r_0\right), $$

half the rank of the Hessian. Where B outlasts A in the directions that map to zero, λ is that of the other component,
½ (10H + (5 − H) r₀): gradient flow keeps AAᵀ − BᵀB, so the start decides. λ of a row is that of the ranks that A and B
have at w* (theory.py, `two_layer`). The independent test of the dead-direction papers (arXiv 2606.21158, 2607.00603) is
on these cells, with SGLD: in the right order (Spearman's ρ = .999), and 5 to 9 % high.

Training is Adam with a rate that falls to zero, on all rows, from normal weights that are smaller in B than in A: by
ten, so that A keeps full rank, and by three, where B wins in two cells and is small there. What is left of the loss is
in the table, in units of 1/nβ. λ̂ is `llc.estimate(key, posterior)` without settings; the bracket
is that of the rank, and of `llc.higher_bounds`.

Target: each λ_corr within 1 % of λ, or λ pinned by the bracket.

    python validation/reduced_rank.py --processes 1
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from study import Column, Row, Study, constant, table
from theory import two_layer
from verdicts import COLORS, counts

import llc

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    inputs: int = 10
    outputs: int = 5
    hidden: tuple[int, ...] = (2, 3, 4, 5)
    num_data: int = 2_000
    num_steps: int = 20_000  # of Adam
    rate: float = 1e-2
    spread: float = 0.3  # standard deviation of the entries of A at the start
    spreads: tuple[float, ...] = (0.03, 0.1)  # those of B
    tolerance: float = 1e-3  # of singular values of A and B, relative to the largest, for their ranks
    num_draws: int | None = None


QUICK = Settings(spreads=(0.03,), hidden=(2,), num_data=200, num_steps=2_000, num_draws=100)
TARGET = 0.01


def main() -> None:
    """Runs, prints, writes."""
    study = Study("reduced_rank", __doc__, Settings(), QUICK)
    settings = study.settings
    cells = [(hidden, rank) for hidden in settings.hidden for rank in range(1, hidden + 1)]
    rows = study.rows(run, [f"{hidden} {rank} {spread}" for spread in settings.spreads for hidden, rank in cells])
    summary = {f"B starts at {spread}": summarize(rows, spread) for spread in settings.spreads}
    parts = ("\n".join([f"{name}:", *(f"  {key}: {x}" for key, x in part.items())]) for name, part in summary.items())
    text = "\n\n".join([table(rows, COLUMNS), *parts])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """The network of a cell, "H r₀ start", its estimate and its bracket."""
    hidden, rank, spread = (float(word) if "." in word else int(word) for word in case.split())
    data = examples(hidden, rank, settings)
    params = train(hidden, data, settings, spread)
    posterior = llc.LocalPosterior(loss, params, data)
    key, probes = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 100 * hidden + rank))
    start = time.perf_counter()
    found = llc.estimate(key, posterior, num_draws=settings.num_draws, progress=False)
    seconds = time.perf_counter() - start
    of_rank = found.bounds
    ranks = (rank_of(params["A"], settings), rank_of(params["B"], settings))
    truth = two_layer(settings.inputs, hidden, settings.outputs, *ranks, rank)
    higher = llc.higher_bounds(posterior, found.spectrum, key=probes, progress=False)
    corrected = found.corrected
    return {
        "start": spread,
        "hidden": hidden,
        "rank": rank,
        "dim": posterior.num_params,
        "ranks": ranks,
        "exact": float(truth.value),
        "of_cell": (settings.outputs * hidden + (settings.inputs - hidden) * rank) / 2,
        "left": float(posterior.nbeta) * posterior.init_loss(),
        "gamma": constant(found.draws, "gamma"),
        "llc": found.llc.value,
        "mcse": found.llc.mcse,
        "corrected": np.nan if corrected is None else corrected.value,
        "corrected_mcse": np.nan if corrected is None else corrected.mcse,
        "bounds": None if of_rank is None or not of_rank.valid else [of_rank.lower, of_rank.upper],
        "higher": [higher.lower, higher.upper] if higher.valid else None,
        "verdict": found.verdict,
        "failed": [check.name for check in found.failed],
        "seconds": seconds,
    }


def rank_of(matrix: Array, settings: Settings) -> int:
    """The rank of a trained matrix."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return int((values > settings.tolerance * values[0]).sum())


def examples(hidden: int, rank: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Normal inputs, and the outputs of a random map of that rank."""
    rng = np.random.default_rng([settings.seed, hidden, rank])
    inputs = rng.normal(size=(settings.num_data, settings.inputs))
    truth = rng.normal(size=(settings.inputs, rank)) @ rng.normal(size=(rank, settings.outputs))
    outputs = inputs @ truth / np.sqrt(settings.inputs * rank)
    return inputs.astype(np.float32), outputs.astype(np.float32)


def loss(params: Params, batch: tuple[Array, Array]) -> Float[Array, "batch"]:
    """½‖BAx − y‖²."""
    x, y = batch
    return 0.5 * jnp.sum((x @ params["A"].T @ params["B"].T - y) ** 2, axis=1)


def train(hidden: int, data: tuple[np.ndarray, np.ndarray], settings: Settings, spread: float) -> Params:
    """Adam on all rows, from normal weights, whose standard deviation is `spread` in B."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed + 1), hidden))
    shapes = {"A": (hidden, settings.inputs), "B": (settings.outputs, hidden)}
    start = {
        name: width * jax.random.normal(key, shape)
        for key, width, (name, shape) in zip(keys, (settings.spread, spread), shapes.items(), strict=True)
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.rate, settings.num_steps))

    def step(state: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
        params, moments = state
        slope = jax.grad(lambda p: jnp.mean(loss(p, data)))(params)
        updates, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    run_all = jax.jit(lambda state: jax.lax.scan(step, state, None, settings.num_steps)[0])
    return run_all((start, optimizer.init(start)))[0]


def summarize(rows: list[Row], spread: float) -> dict[str, Any]:
    """Errors of λ_corr, the order of the cells, and how many are pinned, of one start."""
    rows = [row for row in rows if "error" not in row and row["start"] == spread]
    exact_values = np.array([row["exact"] for row in rows])
    off = np.array([row["corrected"] for row in rows]) / exact_values - 1
    z = np.array([(row["corrected"] - row["exact"]) / row["corrected_mcse"] for row in rows])
    return {
        "cells": len(rows),
        "worst |λ_corr/λ − 1|": f"{abs(off).max():.2%}",
        "within 1 %": int((abs(off) <= TARGET).sum()),
        "worst |z|": f"{abs(z).max():.1f}",
        "Spearman's ρ of λ_corr and λ": f"{spearmanr([row['corrected'] for row in rows], exact_values).statistic:.4f}",
        "mean λ̂/λ − 1": f"{np.mean(np.array([row['llc'] for row in rows]) / exact_values - 1):.2%}",
        "pinned by the rank": sum(_pinned(row, "bounds") for row in rows),
        "pinned by higher_bounds": sum(_pinned(row, "higher") for row in rows),
        "brackets that miss λ": sum(_misses(row, name) for row in rows for name in ("bounds", "higher")),
        "verdicts": counts(row["verdict"] for row in rows),
    }


def _pinned(row: Row, name: str) -> bool:
    return row[name] is not None and row[name][0] == row[name][1] == row["exact"]


def _misses(row: Row, name: str) -> bool:
    return row[name] is not None and not row[name][0] <= row["exact"] <= row[name][1]


def figure(rows: list[Row]) -> Figure:
    """λ_corr/λ with its error and the brackets, cell by cell, for each start."""
    rows = [row for row in rows if "error" not in row]
    starts = sorted({row["start"] for row in rows})
    made = Figure(figsize=(7, 3 * max(len(starts), 1)), layout="constrained")
    for axes, start in zip(made.subplots(max(len(starts), 1), squeeze=False)[:, 0], starts, strict=False):
        _draw(axes, [row for row in rows if row["start"] == start])
        axes.set_title(f"Trained reduced rank regression 10-H-5; B starts at {start:g}")
    return made


def _draw(axes: Axes, rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        for name, width, color in (("bounds", 6, "0.85"), ("higher", 3, "0.6")):
            if row[name] is not None:
                ends = [bound / row["exact"] for bound in row[name]]
                axes.plot([i, i], ends, color=color, lw=width, solid_capstyle="butt")
        value, error = row["corrected"] / row["exact"], 2 * row["corrected_mcse"] / row["exact"]
        axes.errorbar(i, value, error, fmt="o", ms=4, color=COLORS[row["verdict"]])
    axes.axhline(1, color="k", lw=0.8)
    axes.axhspan(1 - TARGET, 1 + TARGET, color="0.93", zorder=0)
    axes.set_xticks(range(len(rows)), [f"{row['hidden']}, {row['rank']}" for row in rows])
    axes.set_xlabel("H, r₀ (light bars: bracket of the rank; dark: of higher_bounds, unless it is one number)")
    axes.set_ylabel("λ_corr / λ (± 2 se)")


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else "–".join(f"{x:g}" for x in sorted(set(bounds)))


COLUMNS = (
    Column("B's start", "start", "{:g}"),
    Column("H", "hidden"),
    Column("r₀", "rank"),
    Column("d", "dim"),
    Column("rk A, rk B", lambda row: ", ".join(map(str, row["ranks"]))),
    Column("λ", "exact", "{:g}"),
    Column("of the cell", "of_cell", "{:g}"),
    Column("nβ L(w*)", "left", "{:.1e}"),
    Column("γ", "gamma", "{:.3g}"),
    Column("rank's bracket", lambda row: _interval(row["bounds"])),
    Column("higher_bounds", lambda row: _interval(row["higher"])),
    Column("λ̂", "llc", "{:.3f}"),
    Column("λ_corr", "corrected", "{:.3f}"),
    Column("±", "corrected_mcse", "{:.3f}"),
    Column("% off", lambda row: 100 * (row["corrected"] / row["exact"] - 1), "{:+.2f}"),
    Column("verdict", "verdict"),
    Column("seconds", "seconds", "{:.0f}"),
    Column("failed", lambda row: " ".join(row["failed"])),
)


if __name__ == "__main__":
    main()
