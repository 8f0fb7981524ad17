r"""Real networks: what a newcomer gets from `llc.estimate(key, posterior)`, how soon, and at what memory.

Three networks (real_networks.py) are trained with Adam for a while, as people train them: an MLP 784-256-256-10 on
enlarged digits, a transformer on addition modulo 29, and a language model of 2.8 million parameters. None of them is at
a minimum to machine precision. Each is estimated once without settings, the language model under a budget of steps. A
row holds the seconds to the report, the peak memory, λ̂ with its error beside λ_quad at the same scale, γ, and the
verdict. Every row runs in a process of its own, so that its peak memory is its own, and says how fast the machine
multiplies matrices, so that seconds of two machines can be compared.

The last rows are checkpoints: the transformer after several numbers of steps, all at the γ that the estimate of the
last of them chooses, because numbers at different scales can't be compared. There λ̂ / λ_quad should stay within 0.3 and
3, and no verdict of a trained checkpoint should be UNRESOLVED.

    python validation/real.py
    python validation/real.py --budget 100
"""

import argparse
import dataclasses
import functools
import math
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from real_networks import LanguageSize, MLPSize, Network, Training, TransformerSize, language, mlp, train, transformer
from study import Column, Row, Study, constant, table
from timing import busy_seconds, share_of_others
from verdicts import COLORS, counts

import llc

NETWORKS = ("mlp", "transformer", "language")
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    cases: tuple[str, ...] = (*NETWORKS, CHECKPOINTS)
    mlp: MLPSize = dataclasses.field(default_factory=MLPSize)
    transformer: TransformerSize = dataclasses.field(default_factory=TransformerSize)
    language: LanguageSize = dataclasses.field(default_factory=LanguageSize)
    budget: int | None = 100  # steps of a chain of the language model
    most_steps: int | None = None  # the same of the others: None sets no limit
    checkpoints: tuple[int, ...] = (100, 300, 700, 1500, 2500, 4000)  # steps of training
    matmul_order: int = 1024  # of the product that is timed


QUICK = Settings(
    mlp=MLPSize(widths=(64, 1, 10), enlargement=1, margin=0, num_images=100, training=Training(100, batch_size=32)),
    transformer=TransformerSize(modulus=3, width=2, layers=1, heads=1, training=Training(200, batch_size=9)),
    language=LanguageSize(8, 20, 4, width=2, layers=1, heads=1, training=Training(20, batch_size=16)),
    budget=500,
    most_steps=500,
    checkpoints=(50, 200),
    matmul_order=128,
)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("real", __doc__, Settings(), QUICK, flags=_flags)
    if study.arguments.budget is not None:
        study.settings = dataclasses.replace(study.settings, budget=study.arguments.budget)
    study.processes = 1  # time and memory are measured
    runner = run if study.quick else functools.partial(run, alone=True)
    rows = study.rows(runner, study.settings.cases)
    points = points_of(rows)
    summary = summarize(points)
    text = table(points, COLUMNS) + "\n\n" + "\n".join(f"{name}: {value}" for name, value in summary.items())
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(points))


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=int, help=f"steps of a chain of the language model; default {Settings.budget}")


def run(case: str, settings: Settings, *, alone: bool = False) -> Row:
    """One network, or the checkpoints of the transformer; with `alone` in a process of its own."""
    if alone:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run, case, settings).result()
    machine = {"gflops": matmul_rate(settings.matmul_order)}
    if case == CHECKPOINTS:
        return machine | {"points": estimate_checkpoints(settings)}
    network = make_network(case, settings)
    train_key, key = jax.random.split(jax.random.key(settings.seed))
    (params,) = train(train_key, network).values()
    budget = settings.budget if case == "language" else settings.most_steps
    posterior = llc.LocalPosterior(network.loss_fn, params, network.data)
    return machine | {"points": [{"network": case, "steps": network.training.steps} | measure(key, posterior, budget)]}


def make_network(name: str, settings: Settings) -> Network:
    """One of the three, untrained."""
    key = jax.random.fold_in(jax.random.key(settings.seed), NETWORKS.index(name))
    if name == "mlp":
        return mlp(key, settings.mlp)
    return transformer(key, settings.transformer) if name == "transformer" else language(key, settings.language)


def estimate_checkpoints(settings: Settings) -> list[Row]:
    """The transformer along its training, all at the γ of the last checkpoint."""
    network = make_network("transformer", settings)
    train_key, key = jax.random.split(jax.random.key(settings.seed))
    trained = train(train_key, network, settings.checkpoints)
    points, gamma = [], None
    for steps, params in reversed(trained.items()):
        posterior = llc.LocalPosterior(network.loss_fn, params, network.data, gamma=gamma)
        point = measure(key, posterior, settings.most_steps)
        gamma = point["gamma"]
        points.append({"network": "transformer", "steps": steps} | point)
    return points[::-1]


def measure(key: jax.Array, posterior: llc.LocalPosterior, budget: int | None) -> Row:
    """One estimate without settings, but for the budget."""
    before, start = busy_seconds(), time.perf_counter()
    report = llc.estimate(key, posterior, budget=budget, progress=False)
    seconds = time.perf_counter() - start
    bounds = report.bounds
    return {
        "num_params": posterior.num_params,
        "num_data": posterior.num_data,
        "init_loss": posterior.init_loss(),
        "budget": budget,
        "seconds": seconds,
        "others": share_of_others(before, seconds),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "nbeta": constant(report.draws, "nbeta"),
        "gamma": constant(report.draws, "gamma"),
        "llc": _finite(report.llc.value),
        "mcse": _finite(report.llc.mcse),
        "ess": report.llc.ess,
        "quad": report.quad,
        "corrected": None if report.corrected is None else _finite(report.corrected.value),
        "bounds": [bounds.lower, bounds.upper] if bounds is not None and bounds.valid else None,
        "gamma_converged": report.gamma_converged,
        "verdict": report.verdict,
        "failed": [check.name for check in report.failed],
    }


def matmul_rate(order: int) -> float:
    """GFLOP/s of a float32 product of this order, the best of ten."""
    matrix = jnp.ones((order, order))
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * order**3 / min(seconds) / 1e9


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# Results


def points_of(rows: list[Row]) -> list[Row]:
    """A row for each estimate; a case that raised keeps its error."""
    points = []
    for row in rows:
        common = {"case": row["case"], "gflops": row.get("gflops")}
        points += [common | point for point in row["points"]] if "points" in row else [row]
    return points


def summarize(points: list[Row]) -> Row:
    """How long a newcomer waits, and how the checkpoints compare."""
    good = [point for point in points if "error" not in point]
    checkpoints = [point for point in good if point["case"] == CHECKPOINTS]
    ratios = [point["llc"] / point["quad"] for point in checkpoints if point["llc"] and point["quad"]]
    return {
        "seconds": {point["case"]: round(point["seconds"], 1) for point in good if point["case"] != CHECKPOINTS},
        "verdicts": counts(point["verdict"] for point in good),
        "checkpoints": len(checkpoints),
        "of them with λ̂ / λ_quad within 0.3 and 3": sum(0.3 <= ratio <= 3 for ratio in ratios),
        "of them UNRESOLVED": sum(point["verdict"] == "UNRESOLVED" for point in checkpoints),
        "errors": len(points) - len(good),
    }


def _relative(point: Row) -> float | None:
    return None if not point["llc"] or point["mcse"] is None else 100 * point["mcse"] / abs(point["llc"])


COLUMNS = [
    Column("case", "case"),
    Column("steps", "steps", "{:,}"),
    Column("d", "num_params", "{:,}"),
    Column("n", "num_data", "{:,}"),
    Column("L(w*)", "init_loss", "{:.4f}"),
    Column("GFLOP/s", "gflops", "{:.0f}"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("others", lambda point: 100 * point["others"], "{:.0f} %"),
    Column("peak GiB", "gib", "{:.2f}"),
    Column("γ", "gamma", "{:.3g}"),
    Column("λ̂", "llc", "{:.4g}"),
    Column("±", "mcse", "{:.2g}"),
    Column("± %", _relative, "{:.1f}"),
    Column("λ_quad", "quad", "{:.4g}"),
    Column("verdict", "verdict"),
    Column("failed", lambda point: " ".join(point["failed"])),
]


def figure(points: list[Row]) -> Figure:
    """Seconds of each network, and λ̂ with λ_quad along the checkpoints."""
    good = [point for point in points if "error" not in point]
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    networks = [point for point in good if point["case"] != CHECKPOINTS]
    colors = [COLORS[point["verdict"]] for point in networks]
    left.barh([point["case"] for point in networks], [point["seconds"] for point in networks], color=colors)
    left.set(xlabel="seconds to the report", title="llc.estimate(key, posterior)")
    line = [point for point in good if point["case"] == CHECKPOINTS]
    steps = [point["steps"] for point in line]
    values, errors = (np.array([point[name] for point in line], float) for name in ("llc", "mcse"))
    right.errorbar(steps, values, yerr=2 * errors, fmt="o-", ms=4, capsize=2, label="λ̂ ± 2 mcse")
    right.plot(steps, np.array([point["quad"] for point in line], float), "s--", ms=4, label="λ_quad")
    gamma = f", γ = {line[-1]['gamma']:.3g}" if line else ""
    right.set(xscale="log", xlabel="steps of training", title=f"transformer{gamma}")
    right.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
