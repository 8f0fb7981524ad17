r"""Curvature: rank and λ_quad by every method on networks with a rank by design, their error, time and memory.

A deep linear network whose matrices have rank r between d₀ inputs and d_L outputs has a Hessian of rank
$r (d_0 + d_L - r)$ at its own targets, whatever its hidden widths. Its non-zero eigenvalues are known without any d × d
matrix: with singular values 1 in all matrices and inputs X, $H = J^\top J / n$ has those of

$$ \tfrac1n J J^\top = \sum_{l=1}^{L} \big(\tfrac1n X P_{l} X^\top\big) \otimes Q_{l}, $$

where $P_l$ and $Q_l$ are what the matrices before and behind layer l make of inputs and outputs; they give the exact
λ_quad (in bases in which only the pairs of dimensions that the rank reaches are left). Every method runs in a process
of its own, so that its peak memory is its own.

    python validation/curvature.py
"""

import dataclasses
import functools
import itertools
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc

METHODS = {
    "dense": "#0072B2",
    "gram": "#E69F00",
    "range_finder": "#009E73",
    "sketch": "#56B4E9",
    "lanczos": "#CC79A7",
    "auto": "#000000",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    # widths, rank of the matrices, number of inputs
    networks: tuple[tuple[tuple[int, ...], int, int], ...] = (
        ((10, 20, 10), 3, 40),
        ((30, 35, 35, 30), 5, 100),
        ((100, 225, 225, 100), 4, 200),
        ((150, 860, 860, 150), 1, 200),
        ((100, 3100, 3100, 100), 1, 150),
    )
    relative_scale: float = 1e-3  # γ/nβ in units of h_max
    matvecs: int = 40  # Lanczos steps a probe: they resolve 1.5e-3 h_max
    dense_up_to: int = 5_000
    gram_up_to: int = 6_000  # outputs
    block_bytes: float = 5 * 2**30
    sketch_up_to: int = 1_000_000  # parameters; beyond, `auto` takes it


QUICK = Settings(networks=((((6, 8, 6), 2, 20)), ((8, 10, 10, 8), 2, 30)))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("curvature", __doc__, Settings(), QUICK)
    settings = study.settings
    study.processes = 1  # memory and time are measured
    cases = [f"{i} | {m}" for i, network in enumerate(settings.networks) for m in METHODS if fits(m, network, settings)]
    rows = study.rows(run, cases)
    text = table(rows, COLUMNS)
    print(text)
    study.save(rows, summary=summarize(rows), text=text, figure=figure(rows))


def fits(method: str, network: tuple[tuple[int, ...], int, int], settings: Settings) -> bool:
    """Whether a method is one for this size."""
    widths, rank, num_inputs = network
    dim = sum(a * b for a, b in itertools.pairwise(widths))
    vectors = rank * (widths[0] + widths[-1] - rank) + 256
    return {
        "dense": dim <= settings.dense_up_to,
        "gram": num_inputs * widths[-1] <= settings.gram_up_to,
        "range_finder": 8 * vectors * dim <= settings.block_bytes,
        "sketch": dim <= settings.sketch_up_to,
    }.get(method, True)


def run(case: str, settings: Settings) -> Row:
    """One method on one network, in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case, settings).result()


def measure(case: str, settings: Settings) -> Row:
    """Rank, λ_quad, time and memory of one method."""
    index, method = case.split(" | ")
    widths, rank, num_inputs = settings.networks[int(index)]
    posterior, exact = network(widths, rank, num_inputs, settings)
    nbeta, gamma = posterior.scale
    start = time.perf_counter()
    spectrum = llc.spectrum(
        posterior,
        matrix="ggn" if method == "gram" else "hessian",
        method=method,
        num_matvecs=settings.matvecs,
        progress=False,
    )
    seconds = time.perf_counter() - start
    bounds = llc.rank_bounds(spectrum, nbeta=nbeta, gamma=gamma)
    scale = posterior.scale.localization
    threshold = 10 * scale
    return {
        "dim": posterior.num_params,
        "true_rank": len(exact),
        "method": method,
        "took": spectrum.method,
        "rank": bounds.rank,
        "rank_stderr": spectrum.count_stderr(threshold),
        "interval": list(bounds.rank_interval),
        "quad": bounds.quad,
        "quad_stderr": bounds.quad_stderr,
        "exact_quad": float(0.5 * np.sum(exact / (exact + scale))),
        "resolved": spectrum.resolves(threshold),
        "seconds": seconds,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def network(
    widths: tuple[int, ...], rank: int, num_inputs: int, settings: Settings
) -> tuple[llc.LocalPosterior, np.ndarray]:
    """The posterior at w*, and the non-zero eigenvalues of its Hessian."""
    rng = np.random.default_rng([settings.seed, *widths, rank])
    factors = [np.linalg.qr(rng.normal(size=(width, rank)))[0] for width in widths]
    weights = [(left @ right.T).astype(np.float32) for left, right in itertools.pairwise(factors)]
    inputs = rng.normal(size=(num_inputs, widths[0])).astype(np.float32)
    exact = eigenvalues([w.astype(np.float64) for w in weights], inputs.astype(np.float64))
    targets = functools.reduce(np.matmul, [w.astype(np.float64) for w in weights], inputs.astype(np.float64))
    posterior = llc.LocalPosterior(loss, weights, (inputs, targets.astype(np.float32)), predict_fn=predict)
    gamma = settings.relative_scale * exact.max() * float(posterior.nbeta)
    return posterior.with_scale(gamma=gamma), exact


def predict(weights: list[Array], batch: tuple[Array, Array]) -> Array:
    """f(x), the inputs times one matrix after the other."""
    return functools.reduce(jnp.matmul, weights, batch[0])


def loss(weights: list[Array], batch: tuple[Array, Array]) -> Array:
    """½‖f(x) − y‖²."""
    return 0.5 * jnp.sum((predict(weights, batch) - batch[1]) ** 2, axis=1)


def eigenvalues(weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Non-zero eigenvalues of JJᵀ/n = Σ (Aₗ Aₗᵀ / n) ⊗ (Bₗᵀ Bₗ), Aₗ = X W₁⋯W_{l−1} and Bₗ = W_{l+1}⋯W_L.

    The n inputs span d₀ dimensions: R takes the place of X, with RᵀR = XᵀX/n.
    """
    d0, d1 = weights[0].shape[0], weights[-1].shape[1]
    root = np.linalg.cholesky(inputs.T @ inputs / len(inputs)).T
    before = [np.eye(d0)]
    for weight in weights[:-1]:
        before.append(before[-1] @ weight)
    behind = [np.eye(d1)]
    for weight in reversed(weights[1:]):
        behind.append(weight @ behind[-1])
    # All Aₗ but the first have the range of R W₁, all Bₗᵀ but the last that of W_Lᵀ: bases that begin with these.
    rank = np.linalg.matrix_rank(weights[0], tol=1e-3)
    left = complete(np.linalg.svd(root @ before[1], full_matrices=False)[0][:, :rank])
    right = complete(np.linalg.svd(behind[1].T, full_matrices=False)[0][:, :rank])
    parts = [(gram(left.T @ root @ a), gram(right.T @ b.T)) for a, b in zip(before, reversed(behind), strict=True)]
    # In these bases the pairs (i, j) with i, j both beyond the rank are never reached.
    keep = [(i, j) for i in range(d0) for j in range(d1) if i < rank or j < rank]
    rows, columns = np.array(keep).T
    matrix = sum(m[np.ix_(rows, rows)] * b[np.ix_(columns, columns)] for m, b in parts)
    return np.linalg.eigvalsh(matrix)


def gram(matrix: np.ndarray) -> np.ndarray:
    """M Mᵀ."""
    return matrix @ matrix.T


def complete(basis: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the whole space that starts with `basis`."""
    full = np.linalg.qr(np.hstack([basis, np.eye(len(basis))]))[0]
    return full[:, : len(basis)]


def summarize(rows: list[Row]) -> dict[str, Any]:
    """The worst of each kind."""
    rows = [row for row in rows if "error" not in row]
    rank_errors = {m: [abs(r["rank"] / r["true_rank"] - 1) for r in rows if r["method"] == m] for m in METHODS}
    estimated = [abs(r["quad"] - r["exact_quad"]) / r["quad_stderr"] for r in rows if r["quad_stderr"] > 0]
    return {
        "worst_rank_error": {method: max(errors) for method, errors in rank_errors.items() if errors},
        "outside_of_interval": sum(not r["interval"][0] <= r["true_rank"] <= r["interval"][1] for r in rows),
        "worst_quad_in_stderr": max(estimated, default=0.0),
        "worst_exact_quad_error": max(abs(r["quad"] / r["exact_quad"] - 1) for r in rows if r["quad_stderr"] == 0),
        "most_gib": max(r["gib"] for r in rows),
    }


COLUMNS = [
    Column("d", "dim", "{:,}"),
    Column("rank", "true_rank", "{:,}"),
    Column("method", lambda row: row["method"] + (f" → {row['took']}" if row["method"] == "auto" else "")),
    Column("found", "rank", "{:.1f}"),
    Column("± se", lambda row: row["rank_stderr"] or None, "{:.1f}"),
    Column("interval", lambda row: "{:,.0f} … {:,.0f}".format(*row["interval"])),
    Column("error %", lambda row: 100 * (row["rank"] / row["true_rank"] - 1), "{:+.2f}"),
    Column("λ_quad exact", "exact_quad", "{:.3f}"),
    Column("found", "quad", "{:.3f}"),
    Column("± se", lambda row: row["quad_stderr"] or None, "{:.3f}"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("peak GiB", "gib", "{:.2f}"),
]


def figure(rows: list[Row]) -> Figure:
    """Error of the rank, time and memory against d."""
    rows = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(13, 4), layout="constrained")
    axes = fig.subplots(1, 3)
    panels = (
        ("error of the rank in %", lambda row: 100 * abs(row["rank"] / row["true_rank"] - 1), "symlog"),
        ("seconds", lambda row: row["seconds"], "log"),
        ("peak memory in GiB", lambda row: row["gib"], "log"),
    )
    for ax, (label, value, scale) in zip(axes, panels, strict=True):
        for method, color in METHODS.items():
            group = [row for row in rows if row["method"] == method]
            style = {"ls": "--", "mfc": "none", "ms": 9} if method == "auto" else {"ls": "-", "ms": 5}
            x, y = [row["dim"] for row in group], [value(row) for row in group]
            ax.plot(x, y, marker="o", color=color, label=method, **style)
        ax.set(xscale="log", xlabel="parameters d", ylabel=label)
        if scale == "symlog":
            ax.set_yscale("symlog", linthresh=0.1)
            ax.set_ylim(bottom=-0.02)
        else:
            ax.set_yscale(scale)
    axes[0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
