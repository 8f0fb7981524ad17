r"""Bounds beyond the rank at large deep linear networks, without a d × d matrix: brackets, time and memory.

Matrices W₁ … W_L have ranks by design and singular values of about one; the data are the unit vectors, with the
network's own outputs as targets. λ(w*), or an interval of it, is known from the ranks (strata.py). At a point where the
Jacobian has full rank the certificate has to say λ = r/2. At deficient points the bracket is compared with the interval
that theory knows.

Each case is a process of its own, whose largest resident size is the memory. Targets: no violation, at 10⁵ parameters
≤ 10 minutes and at 10⁶ ≤ 60 on two cores, ≤ 8 GiB.

    python validation/large_nets.py --processes 1
"""

import dataclasses
import functools
import itertools
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from strata import hessian_rank, local_coefficient, profile
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    nets: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (  # widths, and the ranks of the matrices
        ((40, 1_250, 40), (40, 40)),
        ((40, 1_250, 40), (35, 35)),
        ((40, 1_250, 40), (30, 36)),
        ((40, 280, 280, 40), (40, 280, 40)),
        ((40, 280, 280, 40), (36, 100, 36)),
        ((40, 12_500, 40), (40, 40)),
        ((40, 12_500, 40), (35, 35)),
        ((40, 960, 960, 40), (36, 100, 36)),
        ((224, 224, 224), (2, 2)),  # more residuals than a Gram matrix of them fits
    )
    tries: int = 64  # random ways to a component of the zero set, for the interval that is known


QUICK = Settings(nets=(((2, 75, 75, 2), (2, 75, 2)), ((2, 75, 75, 2), (1, 40, 1))))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("large_nets", __doc__, Settings(), QUICK)
    cases = [f"{' '.join(map(str, widths))} | {' '.join(map(str, ranks))}" for widths, ranks in study.settings.nets]
    rows = study.rows(run, cases)
    summary = summarize([row for row in rows if "error" not in row])
    text = "\n\n".join([table(rows, COLUMNS), "\n".join(f"{name}: {value}" for name, value in summary.items())])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """Bounds at one point, made in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, case, settings).result()  # raises if the process was killed for its memory


def measured(case: str, settings: Settings) -> Row:
    """Bounds at one point, with what they took."""
    widths, ranks = (tuple(map(int, part.split())) for part in case.split(" | "))
    known_ranks = profile(widths, ranks)
    known = local_coefficient(known_ranks, settings.tries)
    posterior = linear_posterior(widths, ranks, settings.seed)
    start = time.perf_counter()
    bounds = llc.higher_bounds(posterior, key=jax.random.key(settings.seed), progress=False)
    return {
        "dim": posterior.num_params,
        "rank": hessian_rank(known_ranks),
        "found_rank": bounds.rank,
        "known": tuple(known),
        "lower": bounds.lower,
        "upper": bounds.upper,
        "source": bounds.source.split("; ", 1)[-1],
        "bounds": {b.name: [b.status, b.lower, b.upper, b.evaluations, b.seconds] for b in bounds.records},
        "seconds": time.perf_counter() - start,
        "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def linear_posterior(widths: tuple[int, ...], ranks: tuple[int, ...], seed: int) -> llc.LocalPosterior:
    """The posterior of x W₁ ⋯ W_L at matrices of these ranks, with unit vectors x and its own outputs as targets."""
    rng, weights = np.random.default_rng(seed), []
    for (rows, columns), rank in zip(itertools.pairwise(widths), ranks, strict=True):
        left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (rows, columns))
        # Products of multiples of 2⁻¹¹ fit in float32's 24 bits, so that the rank is exact.
        left, right = (np.round(factor * 2.0**11) / 2.0**11 for factor in (left * rng.uniform(0.7, 1.4, rank), right))
        weights.append((left @ right.T).astype(np.float32))
    inputs = np.eye(widths[0])
    return llc.LocalPosterior(
        squared_error, weights, (inputs, functools.reduce(np.matmul, weights, inputs)), predict_fn=outputs
    )


def outputs(weights: list[Array], batch: tuple[Array, Array]) -> Float[Array, "batch output"]:
    """The rows of x times W₁ ⋯ W_L."""
    return functools.reduce(jnp.matmul, weights, batch[0])


def squared_error(weights: list[Array], batch: tuple[Array, Array]) -> Float[Array, "batch"]:
    """½‖f(x) − y‖²."""
    return 0.5 * jnp.sum((outputs(weights, batch) - batch[1]) ** 2, axis=1)


def violated(row: Row) -> bool:
    """Whether the bracket excludes all of the interval that is known."""
    return row["lower"] > row["known"][1] + 1e-6 or row["upper"] < row["known"][0] - 1e-6


def summarize(rows: list[Row]) -> Row:
    """What was aimed at."""
    return {
        "points": len(rows),
        "violations": sum(map(violated, rows)),
        "ranks right": sum(row["rank"] == row["found_rank"] for row in rows),
        "pinned": sum(row["lower"] == row["upper"] for row in rows),
        "longest, minutes": round(max(row["seconds"] for row in rows) / 60, 1),
        "largest, GiB": round(max(row["gibibytes"] for row in rows), 2),
    }


def figure(rows: list[Row]) -> Figure:
    """Brackets beyond half of the rank, beside what is known."""
    rows = [row for row in rows if "error" not in row]
    result = Figure(figsize=(8, 0.5 * len(rows) + 1.5), layout="constrained")
    axes = result.add_subplot()
    for place, row in enumerate(rows):
        half = row["rank"] / 2
        low, high = row["lower"] - half, row["upper"] - half
        axes.plot([low, high], [place, place], "o-", color="#0072B2", label="bracket" if not place else None)
        known = [value - half for value in row["known"]]
        axes.plot(known, [place, place], "|", color="#D55E00", ms=18, mew=2, label=None if place else "known")
    axes.set_yticks(range(len(rows)), [f"{row['case'].replace(' | ', ', ranks ')}" for row in rows])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.5)
    axes.invert_yaxis()
    axes.set_xlabel("λ − r/2")
    axes.legend()
    return result


COLUMNS = [
    Column("widths | ranks", "case"),
    Column("d", "dim", "{:,}"),
    Column("r", "rank"),
    Column(
        "λ known",
        lambda row: "{:g} … {:g}".format(*row["known"]) if len(set(row["known"])) > 1 else f"{row['known'][0]:g}",
    ),
    Column("lower", "lower", "{:g}"),
    Column("upper", "upper", "{:g}"),
    Column("from", "source"),
    Column("minutes", lambda row: row["seconds"] / 60, "{:.1f}"),
    Column("GiB", "gibibytes", "{:.2f}"),
]


if __name__ == "__main__":
    main()
