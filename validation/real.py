r"""Real networks: what a newcomer gets from `llc.estimate(key, posterior)`, how soon, and at what memory.

Three networks (real_networks.py) are trained with Adam for a while, as people train them: an MLP 784-256-256-10 on
enlarged digits, a transformer on addition modulo 29, and a language model of 2.8 million parameters. None of them is at
a minimum to machine precision. Each is estimated once without settings, the language model under a budget of steps. A
row holds the seconds to the report, the peak memory, λ̂ with its error beside λ_quad at the same scale, γ, and the
verdict. Every row runs in a process of its own, so that its peak memory is its own, and says how fast the machine
multiplies matrices, so that seconds of two machines can be compared.

checkpoints.py does the same along a training.

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
from matplotlib.figure import Figure
from real_networks import LanguageSize, MLPSize, Network, Training, TransformerSize, language, mlp, train, transformer
from study import Column, Row, Study, constant, table
from timing import busy_seconds, share_of_others
from verdicts import COLORS, counts

import llc

NETWORKS = ("mlp", "transformer", "language")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    cases: tuple[str, ...] = NETWORKS
    mlp: MLPSize = dataclasses.field(default_factory=MLPSize)
    transformer: TransformerSize = dataclasses.field(default_factory=TransformerSize)
    language: LanguageSize = dataclasses.field(default_factory=LanguageSize)
    budget: int | None = 100  # gradients over all the data, of the language model
    most_steps: int | None = None  # the same of the others: None sets no limit
    matmul_order: int = 1024  # of the product that is timed


QUICK = Settings(
    mlp=MLPSize(widths=(64, 1, 10), enlargement=1, margin=0, num_images=100, training=Training(100, batch_size=32)),
    transformer=TransformerSize(modulus=3, width=2, layers=1, heads=1, training=Training(200, batch_size=9)),
    language=LanguageSize(8, 20, 4, width=2, layers=1, heads=1, training=Training(20, batch_size=16)),
    budget=500,
    most_steps=500,
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
    summary = summarize(rows)
    text = table(rows, COLUMNS) + "\n\n" + "\n".join(f"{name}: {value}" for name, value in summary.items())
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", type=int, help=f"gradients of the language model; default {Settings.budget}")


def run(case: str, settings: Settings, *, alone: bool = False) -> Row:
    """One network; with `alone` in a process of its own."""
    if alone:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run, case, settings).result()
    machine = {"gflops": matmul_rate(settings.matmul_order)}
    network = make_network(case, settings)
    train_key, key = jax.random.split(jax.random.key(settings.seed))
    (params,) = train(train_key, network).values()
    budget = settings.budget if case == "language" else settings.most_steps
    posterior = llc.LocalPosterior(network.loss_fn, params, network.data)
    return machine | {"steps": network.training.steps} | measure(key, posterior, budget)


def make_network(name: str, settings: Settings) -> Network:
    """One of the three, untrained."""
    key = jax.random.fold_in(jax.random.key(settings.seed), NETWORKS.index(name))
    if name == "mlp":
        return mlp(key, settings.mlp)
    return transformer(key, settings.transformer) if name == "transformer" else language(key, settings.language)


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


def summarize(rows: list[Row]) -> Row:
    """How long a newcomer waits."""
    good = [row for row in rows if "error" not in row]
    return {
        "seconds": {row["case"]: round(row["seconds"], 1) for row in good},
        "verdicts": counts(row["verdict"] for row in good),
        "errors": len(rows) - len(good),
    }


def _relative(row: Row) -> float | None:
    return None if not row["llc"] or row["mcse"] is None else 100 * row["mcse"] / abs(row["llc"])


COLUMNS = [
    Column("case", "case"),
    Column("steps", "steps", "{:,}"),
    Column("d", "num_params", "{:,}"),
    Column("n", "num_data", "{:,}"),
    Column("L(w*)", "init_loss", "{:.4f}"),
    Column("GFLOP/s", "gflops", "{:.0f}"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("others", lambda row: 100 * row["others"], "{:.0f} %"),
    Column("peak GiB", "gib", "{:.2f}"),
    Column("γ", "gamma", "{:.3g}"),
    Column("λ̂", "llc", "{:.4g}"),
    Column("±", "mcse", "{:.2g}"),
    Column("± %", _relative, "{:.1f}"),
    Column("λ_quad", "quad", "{:.4g}"),
    Column("verdict", "verdict"),
    Column("failed", lambda row: " ".join(row["failed"])),
]


def figure(rows: list[Row]) -> Figure:
    """Seconds of each network, by verdict, with λ̂ beside them."""
    good = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(7, 2.6), layout="constrained")
    ax = fig.subplots()
    bars = ax.barh([row["case"] for row in good], [row["seconds"] for row in good])
    for bar, row in zip(bars, good, strict=True):
        bar.set_color(COLORS[row["verdict"]])
    told = [f" λ̂ = {row['llc']:.3g} ± {row['mcse']:.2g}" if row["llc"] and row["mcse"] else "" for row in good]
    ax.bar_label(bars, told, fontsize=8)
    ax.margins(x=0.3)
    ax.set(xlabel="seconds to the report", title="llc.estimate(key, posterior)")
    return fig


if __name__ == "__main__":
    main()
