"""Selected samples against Hessian eigenvalues: what a rank and an inverse Hessian cost, counted in evaluated losses.

Losses are quadratics of known rank in d parameters, L = ½ wᵀHw with eigenvalues from 1 down to `low` in a random frame,
plus noise of `noise` times the spread of L among the candidates. At equal cost stand

    winners       covariance of the best of 5 (llc.selected_covariance), the rank by its lower edge: comparisons of 5
    all samples   the Stein matrix of the same evaluations: comparisons of 5
    LSQ ranks     least squares of a quadratic to normal scores of the ranks of all N losses: comparisons of all
    LSQ losses    least squares of a quadratic to the losses; without noise, interpolation
    Lanczos, Hessian   llc.spectrum by stochastic Lanczos quadrature and dense; a Hessian-vector product counts as six
                       losses (a gradient as three, a product as two gradients), no noise, differentiable losses only

Monotone distortions of the loss change nothing in the first three, as they see no more than the order. All directions
are found where at least `share` of the repeats have a rank of r or more, here and at all larger N (each rule is too
large by chance in 5 %, counted apart). The error of the inverse is min_c ‖cM − H⁺‖ / ‖H⁺‖ with the true rank given,
and "to the inverse" the N from which on it is below 20 %; also for winners of the best of 500. Least squares starts at
its d²/2 unknowns; with noise it is not run at d = 500, where that is 125,251.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc
from llc.geometry.selection.laws import normal_scores, stein_edge

METHODS = ("winners", "all samples", "LSQ ranks", "LSQ losses", "Lanczos", "Hessian")
COLORS = dict(zip(METHODS, ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#CC79A7", "#000000"), strict=True))
MARKERS = dict(zip(METHODS, "os^vPD", strict=True))
PRODUCT = 6  # losses that a Hessian-vector product costs
SIGMA = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    cases: tuple[str, ...] = ("2 1 1", "10 3 0.5", "10 5 0.1", "30 5 0.5", "30 20 0.5", "100 5 0.5", "500 3 0.5")
    noises: tuple[float, ...] = (0.0, 1.0, 3.0)
    multiples: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # N / (d r)
    repeats: int = 5
    share: float = 0.8
    work: float = 6e9  # largest N d² of selection
    lsq_work: float = 2e8  # largest N d² of least squares, which takes some hundred passes


QUICK = Settings(cases=("10 3 0.5",), noises=(0.0, 1.0), multiples=(8, 64), repeats=2, share=0.5)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("selected_samples", __doc__, Settings(), QUICK)
    rows = study.rows(run, study.settings.cases)
    lines = [line for row in rows if "cells" in row for line in summarize(row, study.settings)]
    excess = {method: too_large(rows, method) for method in METHODS[:4]}
    found = (
        conclusion(lines) + "\nRanks too large, of all runs: " + ", ".join(f"{m} {e:.1%}" for m, e in excess.items())
    )
    summary = {"conclusion": found, "too large": excess, "lines": lines}
    text = "\n\n".join([found, table(lines, COLUMNS)])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows, study.settings))


# One case


def run(case: str, settings: Settings) -> Row:
    """All methods on one quadratic "d r low", at every noise and N."""
    dim, rank, low = int(case.split()[0]), int(case.split()[1]), float(case.split()[2])
    rng = np.random.default_rng([settings.seed, dim, rank])
    curvatures = np.geomspace(1, low, rank)
    frame = np.linalg.qr(rng.normal(size=(dim, rank)))[0].T
    root = np.sqrt(curvatures)[:, None] * frame
    inverse = (frame.T / curvatures) @ frame
    spread = 0.5 * SIGMA**2 * np.sqrt(2 * np.sum(curvatures**2))
    factor = root.tolist()  # a NumPy array would be kept in the precision of its first use

    def loss(params):
        return 0.5 * jnp.sum((jnp.asarray(factor) @ params["w"]) ** 2)

    def noisy(key, params):
        return loss(params) + params["noise"] * jax.random.normal(key)

    cells = []
    for noise in settings.noises:
        center = {"w": np.zeros(dim), "noise": np.asarray(noise * spread)}  # one program for all noises
        posterior = llc.LocalPosterior(lambda params, _: loss(params), center, np.zeros((10, 0)), mask="w")
        for multiple in settings.multiples:
            num_losses = multiple * dim * rank
            for repeat in range(settings.repeats):
                at = {"noise": noise, "N": num_losses, "repeat": repeat}
                key = jax.random.fold_in(jax.random.key(settings.seed), repeat)
                if num_losses * dim**2 <= settings.work:
                    cells += [at | cell for cell in selected(key, posterior, noisy, num_losses, rank, inverse)]
                if num_losses > dim * (dim + 1) / 2 + 1 and num_losses * dim**2 <= settings.lsq_work:
                    draws = np.random.default_rng([settings.seed, repeat, num_losses])
                    z = draws.normal(size=(num_losses, dim))
                    losses = 0.5 * np.sum((SIGMA * z @ root.T) ** 2, axis=1)
                    losses += noise * spread * draws.normal(size=num_losses)
                    scores = normal_scores(num_losses)[np.argsort(np.argsort(losses))]
                    cells.append(at | {"method": "LSQ ranks"} | judge(*least_squares(z, scores), rank, inverse))
                    if noise:
                        cells.append(at | {"method": "LSQ losses"} | judge(*least_squares(z, losses), rank, inverse))
        if not noise:
            cells += exact(posterior, root, rank, inverse)
    return {"d": dim, "r": rank, "low": low, "cells": cells}


def selected(key, posterior, noisy, num_losses, rank, inverse) -> list[Row]:
    """Winners of 5, their all-sample matrix, and winners of 500 for the inverse; nothing where it is refused."""
    cells = []
    for m in (5, 500):
        try:
            found = llc.selected_covariance(
                key,
                posterior,
                noisy_loss_fn=noisy,
                sigma=SIGMA,
                num_candidates=m,
                num_winners=max(1, num_losses // m),
                progress=False,
            )
        except ValueError as refusal:
            if "hopeless" not in str(refusal):
                raise
            continue
        error = shape_error(found.inverse_hessian(rank).matrix, inverse)
        if m == 500:
            cells.append({"method": "winners of 500", "error": error})
            continue
        cells.append({"method": "winners", "rank": found.rank, "error": error})
        values, vectors = leading(found.stein, rank)
        error = shape_error((vectors / np.maximum(values, 1e-3)) @ vectors.T, inverse)
        cells.append({"method": "all samples", "rank": found.stein_rank, "error": error})
    return cells


def least_squares(z: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric B of targets ≈ a + zᵀBz, and what its k-th largest eigenvalue has to exceed.

    Its error is a Gaussian orthogonal matrix of entries s/(2√ν), s² the residual variance, ν = N − d(d + 1)/2 − 1.
    """
    num_losses, dim = z.shape

    def centered(x):
        return x - x.mean()

    def products(flat):
        return centered(np.einsum("ni,ni->n", z @ flat.reshape(dim, dim), z))

    def adjoint(values):
        return (z.T @ (centered(values)[:, None] * z)).ravel()

    operator = scipy.sparse.linalg.LinearOperator((num_losses, dim**2), matvec=products, rmatvec=adjoint, dtype=float)
    solution = scipy.sparse.linalg.lsqr(operator, centered(targets), atol=1e-9, btol=1e-9, iter_lim=300)[0]
    free = num_losses - dim * (dim + 1) // 2 - 1
    residual = np.sqrt(np.sum((centered(targets) - products(solution)) ** 2) / free)
    return solution.reshape(dim, dim), 0.5 * residual * stein_edge(dim - np.arange(dim), free, np.array([-1.0, 1.0]))


def exact(posterior, root, rank, inverse) -> list[Row]:
    """Interpolation, the dense Hessian and Lanczos, each at its own cost, once."""
    dim = root.shape[1]
    ends = SIGMA * np.concatenate([root, np.zeros((1, dim))])
    single = 0.5 * np.sum(ends**2, axis=0)
    pairs = np.zeros((dim, dim))
    for i in range(dim):
        pairs[i] = 0.5 * np.sum((ends[:, [i]] + ends) ** 2, axis=0) - single[i] - single
    floors = np.full(dim, 1e-6 * np.abs(pairs).max())
    cells = [{"method": "LSQ losses", "N": dim * (dim + 1) // 2 + 1} | judge(pairs, floors, rank, inverse)]
    dense = llc.spectrum(posterior, method="dense")
    found = int(llc.rank_bounds(dense).rank)
    cells.append({"method": "Hessian", "N": PRODUCT * dim, "rank": found, "error": 0.0})
    steps = min(dim, 40)
    lanczos = llc.spectrum(posterior, method="lanczos", num_matvecs=steps)
    found = round(lanczos.count(1e-6 * lanczos.largest))
    cells.append({"method": "Lanczos", "N": PRODUCT * steps * len(lanczos.nodes), "rank": found})
    return [{"noise": 0.0, "repeat": 0} | cell for cell in cells]


def judge(matrix, edges, rank, inverse) -> Row:
    """Rank of an estimate of the Hessian up to scale, and the error of its inverse on the leading directions."""
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
    above = eigenvalues > np.maximum(edges, 1e-6 * eigenvalues[0])
    values, vectors = leading(matrix, rank)
    error = shape_error((vectors / np.maximum(values, 1e-3 * values[-1])) @ vectors.T, inverse)
    return {"rank": len(above) if above.all() else int(np.argmin(above)), "error": error}


def leading(matrix, rank):
    """Largest eigenvalues, rising, with their vectors."""
    values, vectors = np.linalg.eigh(matrix)
    return values[-rank:], vectors[:, -rank:]


def shape_error(matrix, inverse) -> float:
    """min_c ‖cM − H⁺‖ / ‖H⁺‖: the sine of the angle between the two."""
    cosine = np.sum(matrix * inverse) / (np.linalg.norm(matrix) * np.linalg.norm(inverse))
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


# All cases


def summarize(row: Row, settings: Settings) -> list[Row]:
    """A line for each noise: evaluations to all directions, and to an inverse within 20 %."""
    lines = []
    for noise in settings.noises:
        cells = [cell for cell in row["cells"] if cell["noise"] == noise]
        line = {name: row[name] for name in ("d", "r", "low")} | {"noise": noise}
        for method in (*METHODS, "winners of 500"):
            right = curve(cells, method, lambda cell: float(cell.get("rank", 0) >= row["r"]))
            close = curve(cells, method, lambda cell: float(cell.get("error", 1.0) < 0.2))
            line[method] = first(right, settings.share)
            line[f"inverse, {method}"] = first(close, settings.share)
        lines.append(line)
    return lines


def curve(cells: list[Row], method: str, value) -> dict[int, float]:
    """Mean of `value` over the repeats, by N."""
    groups: dict[int, list[float]] = {}
    for cell in cells:
        if cell["method"] == method:
            groups.setdefault(cell["N"], []).append(value(cell))
    return {num_losses: float(np.mean(values)) for num_losses, values in sorted(groups.items())}


def first(shares: dict[int, float], share: float) -> int | None:
    """Smallest N from which on all shares are reached."""
    found = None
    for num_losses, reached in reversed(shares.items()):
        if reached < share:
            break
        found = num_losses
    return found


def too_large(rows: list[Row], method: str) -> float:
    """Share of the runs of `method` with a rank above r."""
    cells = [(row["r"], cell) for row in rows for cell in row.get("cells", ())]
    return float(np.mean([cell["rank"] > rank for rank, cell in cells if cell["method"] == method]))


def conclusion(lines: list[Row]) -> str:
    """What the numbers show: who is cheapest, line by line."""
    selection = ("winners", "all samples")
    clean, noisy = ([x for x in lines if bool(x["noise"]) == kind] for kind in (False, True))

    def wins(group, ours, others):
        """Lines in which one of `ours` needs fewer losses than all of `others`, of those where any finds the rank."""
        pairs = [(cheapest(line, ours), cheapest(line, others)) for line in group]
        won = [f"{line['d']}/{line['r']}" for line, (a, b) in zip(group, pairs, strict=True) if a < b]
        where = f" (d/r = {', '.join(dict.fromkeys(won))})" if won else ""
        return f"{len(won)} of {sum(min(pair) < np.inf for pair in pairs)}{where}"

    return "\n".join(
        [
            "Selected samples find all directions of the rank from fewer evaluations",
            f"  than Hessian-vector products, without noise: {wins(clean, selection, ('Lanczos', 'Hessian'))}",
            f"  than interpolated losses, without noise:     {wins(clean, selection, ('LSQ losses',))}",
            f"  than least squares on noisy losses:          {wins(noisy, selection, ('LSQ losses',))}",
            f"  than least squares on ranks (comparisons):   {wins(lines, selection, ('LSQ ranks',))}",
            f"All-sample matrix before winners: {wins(lines, ('all samples',), ('winners',))}",
            f"Winners before all-sample matrix: {wins(lines, ('winners',), ('all samples',))}",
        ]
    )


def cheapest(line: Row, methods) -> float:
    """Fewest losses to all directions by any of `methods`."""
    return min((line[m] for m in methods if line[m] is not None), default=np.inf)


COLUMNS = [
    Column("d", "d"),
    Column("r", "r"),
    Column("h_min", "low", "{:g}"),
    Column("noise", "noise", "{:g}"),
    Column("N to all directions: winners", "winners", "{:,}"),
    *[Column(method, method, "{:,}") for method in METHODS[1:]],
    Column("N to the inverse: winners", "inverse, winners", "{:,}"),
    Column("of 500", "inverse, winners of 500", "{:,}"),
    *[Column(method, f"inverse, {method}", "{:,}") for method in METHODS[1:4]],
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Share of the rank that is found against N: a row of panels a noise, a column a case."""
    rows = [row for row in rows if "cells" in row]
    fig = Figure(figsize=(max(10, 2.5 * len(rows) + 0.6), 2.3 * len(settings.noises) + 0.9), layout="constrained")
    axes = fig.subplots(len(settings.noises), len(rows), sharey=True, sharex="col", squeeze=False)
    for (i, noise), (j, row) in itertools.product(enumerate(settings.noises), enumerate(rows)):
        ax = axes[i, j]
        cells = [cell for cell in row["cells"] if cell["noise"] == noise and "rank" in cell]
        for method in METHODS:
            points = curve(cells, method, lambda cell, row=row: cell["rank"] / row["r"])
            style = "-" if len(points) > 1 else ""
            ax.plot(list(points), list(points.values()), MARKERS[method] + style, ms=4, lw=1.2, color=COLORS[method])
        ax.axhline(1, color="#6E6E6E", lw=0.8, zorder=0)
        ax.axvline(row["d"] * (row["d"] + 1) / 2 + 1, color="#6E6E6E", lw=0.8, ls=":", zorder=0)
        ax.set_xscale("log")
        ax.set_ylim(-0.08, 1.45)
        ax.spines[["top", "right"]].set_visible(False)
        if not i:
            ax.set_title(f"d = {row['d']}, r = {row['r']}, h ≥ {row['low']:g}", fontsize=9)
        if i == len(settings.noises) - 1:
            ax.set_xlabel("N, evaluated losses", fontsize=8)
        if not j:
            ax.set_ylabel(f"noise {noise:g}\nrank found / r", fontsize=9)
    handles = [axes[0, 0].plot([], [], MARKERS[m], color=COLORS[m], label=m)[0] for m in METHODS]
    handles += axes[0, 0].plot([], [], ":", color="#6E6E6E", label="d²/2, unknowns of a quadratic")
    fig.legend(handles=handles, loc="outside upper center", ncols=7, fontsize=9, frameon=False)
    return fig


if __name__ == "__main__":
    main()
