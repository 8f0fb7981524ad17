"""Accuracy beside the PyTorch peer devinterp 1.3.2: λ̂, its reported error and wall time on the same models.

Every model is one line of validation/peers/losses.py, run by JAX here and by PyTorch in the peer's own Python, with the
same w*, nβ = n / log n and γ. Against the exact finite-n value of that posterior (a long NUTS run where none is known):

- llc: `llc.estimate(key, posterior)` with no settings; its reported error is the Monte Carlo standard error. It takes
  22,000 gradients a chain, and up to 100 times as many on a small model with a weak localization;
- devinterp, defaults: `estimate_learning_coeff_with_summary` with its defaults (10 chains of 100 draws, step size 0.01,
  no burn-in), but nβ and γ, which say what is estimated; its reported error is the spread of the chains, "llc/std";
- devinterp, best: its best step size of seven over three decades, chosen *knowing the truth* by the least error of λ̂
  in runs a quarter as long, then run with 22,000 gradients a chain (4 chains, 2,000 steps of burn-in, 20,000 draws) and
  the exact loss at w*. More would take it hours. A user has no such choice, and the sweep is not in the seconds.

n = 1,000, where the peer's default step size is still stable on the regular model: at h = 1 it is while nβ < 400.
Where the peer is given minibatches (the net on digits) ours takes all rows. Seconds are of one call: ours with and
without compilation (the first call and a second), the peer's without its imports, on one thread. Two models run at a
time and others may use the machine, so that wall time is an upper bound; CPU seconds (of all threads) stand beside it.

    validation/peers/setup.sh FOLDER
    LLC_PEER_PYTHON=FOLDER/bin/python python validation/peer_accuracy.py
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import exact
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from peers.losses import LOSSES
from study import Column, Row, Study, table

import llc

PEERS = Path(__file__).parent / "peers"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_data: int = 1_000
    cases: tuple[str, ...] = tuple(LOSSES)
    step_sizes: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    num_chains: int = 4  # of the peer's best settings: what `llc.estimate` takes at least
    num_warmup: int = 2_000
    num_draws: int = 20_000
    sweep_share: float = 0.25  # of that length, for each step size of the sweep
    batch_size: int = 512  # of the peer on digits
    reference_draws: int = 1_000  # of NUTS a chain, four chains
    peer: bool = True


QUICK = Settings(
    cases=("w²/2 in 10 d", "(w₁²+w₂²)²/2", "polynomial net k=2, L=2"),
    step_sizes=(1e-4, 1e-3, 1e-2),
    num_warmup=200,
    num_draws=2_000,
)


class Model(NamedTuple):
    """A loss with its arrays, w* and γ."""

    name: str
    center: np.ndarray
    arrays: tuple[np.ndarray, ...]
    population: bool  # the arrays are constants of K, not data
    gamma: float | None = 1.0  # None: llc's choice, which the others take over
    moments: Callable[[float, float], exact.Moments] | None = None
    minibatches: bool = False  # for the peer

    def posterior(self, num_data: int) -> llc.LocalPosterior:
        """The posterior at nβ = n / log n; a population loss takes no more than n from its rows."""
        loss = LOSSES[self.name]
        center = np.asarray(self.center, np.float32)
        if self.population:

            def population_loss(w, _):  # asarray in here: the constants follow the precision in which llc calls
                return loss(jnp, w, *map(jnp.asarray, self.arrays))

            return llc.LocalPosterior(population_loss, center, np.zeros((num_data, 0)), gamma=self.gamma)
        return llc.LocalPosterior(lambda w, batch: loss(jnp, w, *batch), center, self.arrays, gamma=self.gamma)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("peer_accuracy", __doc__, Settings(), QUICK, flags=_flags)
    python = study.arguments.peer_python
    peer = Path(python).exists()
    if not peer:
        print("peer: no environment found (validation/peers/setup.sh makes one); our figures only\n")
    os.environ["LLC_PEER_PYTHON"] = python  # the processes of the study read it there
    study.settings = dataclasses.replace(study.settings, peer=peer)
    rows = study.rows(run, study.settings.cases)
    summary = {tool: summarize(rows, tool) for tool in TOOLS}
    text = "\n\n".join([table(rows, COLUMNS), table([{"tool": k, **v} for k, v in summary.items()], SUMMARY)])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def _flags(parser) -> None:
    default = os.environ.get("LLC_PEER_PYTHON", str(PEERS / ".venv" / "bin" / "python"))
    parser.add_argument("--peer-python", default=default, help="default $LLC_PEER_PYTHON, else validation/peers/.venv")


# Models


def model(name: str, settings: Settings) -> Model:
    """One model by its name in validation/peers/losses.py."""
    n = settings.num_data
    if name.startswith("polynomial net"):
        power, depth = (int(part.split("=")[1]) for part in name.removeprefix("polynomial net ").split(", "))
        return polynomial_net(name, power, depth)
    return {
        "w²/2 in 10 d": lambda: _population(name, 10, lambda t, g: exact.quadratic([1.0] * 10, t, g)),
        "w⁴/2": lambda: _population(name, 1, lambda t, g: exact.log_grid(lambda w: 0.5 * w**4, 1, t, g)),
        "(w₁w₂)²/2": lambda: _population(
            name, 2, lambda t, g: exact.log_grid(lambda v, w: 0.5 * (v * w) ** 2, 2, t, g)
        ),
        "(w₁²+w₂²)²/2": lambda: _population(
            name, 2, lambda t, g: exact.log_grid(lambda v, w: 0.5 * (v**2 + w**2) ** 2, 2, t, g)
        ),
        "reduced rank 2-2-2": lambda: _population(name, 8, lambda t, g: exact.reduced_rank(2, 2, t, g)),
        "deep linear net": lambda: deep_linear(name, np.random.default_rng(settings.seed), n),
        "tanh net on digits": lambda: digits(name, settings.seed),
    }[name]()


def _population(name, dim, moments, constants=()):
    return Model(name, np.zeros(dim), constants, population=True, moments=moments)


def polynomial_net(name: str, power: int, depth: int) -> Model:
    """Two parameters at zero; the exact value by adaptive cubature, e^−40 of the localization left out."""
    roots = np.exp(2j * np.pi * np.arange(power ** (depth - 1) + 1) / (power ** (depth - 1) + 1))
    inputs = np.stack([np.ones_like(roots), roots])

    def moments(nbeta, gamma):
        loss = functools.partial(LOSSES[name], np)
        half = math.sqrt(2 * 40 / gamma)
        return exact.cubature(
            lambda *w: loss(np.stack(w, -1), inputs.real, inputs.imag), [-half] * 2, [half] * 2, nbeta, gamma
        )

    return _population(name, 2, moments, (inputs.real, inputs.imag))


def deep_linear(name: str, rng: np.random.Generator, num_data: int, width: int = 5, depth: int = 4) -> Model:
    """100 parameters: all matrices and their product have rank 3 and singular values 1. No noise; γ = 10."""
    rank = 3
    frames = [np.linalg.qr(rng.normal(size=(width, width)))[0][:, :rank] for _ in range(depth + 1)]
    matrices = [(left @ right.T).astype(np.float32) for left, right in itertools.pairwise(frames)]
    x = rng.normal(size=(num_data, width)).astype(np.float32)
    y = functools.reduce(np.matmul, matrices, x)
    return Model(name, np.stack(matrices).ravel(), (x, y), population=False, gamma=10.0)


def digits(name: str, seed: int) -> Model:
    """460 parameters trained to a minimum: the net of `llc demo`."""
    trained = llc.demo.digits_posterior(jax.random.key(seed))
    center = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trained.center)])
    return Model(name, center, tuple(map(np.asarray, trained.data)), population=False, gamma=None, minibatches=True)


# Runs


def run(case: str, settings: Settings) -> Row:
    """All tools on one model."""
    chosen = model(case, settings)
    posterior = chosen.posterior(settings.num_data)
    ours, gamma = run_llc(posterior, settings.seed)
    posterior = posterior.with_scale(gamma=gamma)
    truth, truth_error = reference(chosen, posterior, settings)
    rows = {"llc": ours} | (run_peer(chosen, posterior, settings, truth) if settings.peer else {})
    sweep = rows.pop("sweep", [])
    return {
        "num_params": posterior.num_params,
        "nbeta": float(posterior.nbeta),
        "gamma": gamma,
        "truth": truth,
        "truth_error": truth_error,
        "tools": {tool: _judged(result, truth, truth_error) for tool, result in rows.items()},
        "sweep": [_judged(result, truth, truth_error) for result in sweep],
    }


def run_llc(posterior: llc.LocalPosterior, seed: int) -> tuple[Row, float]:
    """`llc.estimate` with no settings, twice, and the γ that it used; the second call is compiled already."""
    seconds, cpu = [], []
    for _ in range(2):
        start = time.perf_counter(), time.process_time()
        report = llc.estimate(jax.random.key(seed), posterior)
        seconds.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    groups = ("sample_stats", "warmup_sample_stats")
    result = {
        "value": report.llc.value,
        "error": report.llc.mcse,
        "seconds": seconds[0],
        "cpu": cpu[0],
        "compiled": seconds[1],
        "cpu_compiled": cpu[1],
        "gradients": sum(float(report.draws[group]["num_gradients"].sum()) for group in groups),
        "verdict": report.verdict,
        "failed": ", ".join(check.name for check in report.failed),
    }
    return result, float(report.draws["constant_data"]["gamma"])


def reference(chosen: Model, posterior: llc.LocalPosterior, settings: Settings) -> tuple[float, float]:
    """E[nβK] and its standard error: by integration (no error), or by NUTS."""
    if chosen.moments is not None:
        return chosen.moments(float(posterior.nbeta), float(posterior.gamma)).mean, 0.0
    draws = llc.sample(
        jax.random.key(settings.seed + 1),
        posterior,
        llc.NUTS(),
        num_chains=4,
        num_warmup=settings.reference_draws // 2,
        num_draws=settings.reference_draws,
        progress=False,
    )
    estimate = llc.mean_energy(draws)
    return estimate.value, estimate.mcse


def run_peer(chosen: Model, posterior: llc.LocalPosterior, settings: Settings, truth: float) -> Row:
    """The peer's defaults, its sweep, and the best of the sweep."""
    lengths = {"num_burnin_steps": settings.num_warmup, "num_draws": settings.num_draws}
    short = {name: round(settings.sweep_share * value) for name, value in lengths.items()}
    common = {"num_chains": settings.num_chains, "seed": settings.seed}
    steps = [{"step_size": step} for step in settings.step_sizes]
    default, *sweep = _call_peer(chosen, posterior, settings, [{}, *(step | common | short for step in steps)])
    best = min(sweep, key=lambda result: math.inf if result["value"] is None else abs(result["value"] - truth))
    (best,) = _call_peer(chosen, posterior, settings, [{"step_size": best["step_size"]} | common | lengths])
    return {"devinterp, defaults": default, "devinterp, best": best, "sweep": sweep}


def _call_peer(chosen: Model, posterior: llc.LocalPosterior, settings: Settings, runs: list[Row]) -> list[Row]:
    """One result for each of the runs, all in one process of the peer's Python."""
    flags = {
        "model": chosen.name,
        "runs": json.dumps(runs),
        "seed": settings.seed,
        "batch-size": settings.batch_size if chosen.minibatches else posterior.num_data,
        "nbeta": float(posterior.nbeta),
        "gamma": float(posterior.gamma),
    }
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "arrays.npz", *chosen.arrays, center=chosen.center)
        flags["arrays"] = Path(folder) / "arrays.npz"
        command = [os.environ["LLC_PEER_PYTHON"], str(PEERS / "devinterp_accuracy.py")]
        command += [f"--{name}={value}" for name, value in flags.items()] + ["--population"] * chosen.population
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _judged(result: Row, truth: float, truth_error: float) -> Row:
    """With the relative error, and the error in units of the reported one (and of the reference's)."""
    if result["value"] is None:
        return result | {"relative": None, "z": None}
    deviation = result["value"] - truth
    return result | {"relative": deviation / truth, "z": deviation / math.hypot(result["error"], truth_error)}


# Table and figure

TOOLS = {"llc": "#0072B2", "devinterp, defaults": "#D55E00", "devinterp, best": "#E69F00"}


def summarize(rows: list[Row], tool: str) -> Row:
    """How far one tool is off, over all models."""
    results = [row["tools"][tool] for row in rows if tool in row.get("tools", {})]
    finite = [result for result in results if result["value"] is not None]
    errors = [math.inf if result["value"] is None else abs(result["relative"]) for result in results]  # all of them
    if not finite:
        return {"models": len(results), "failures": len(results)}
    return {
        "models": len(results),
        "failures": len(results) - len(finite),
        "median error": statistics.median(errors),
        "worst error": max(abs(result["relative"]) for result in finite),
        "beyond 2": sum(abs(result["z"]) > 2 for result in finite),
        "beyond 4": sum(abs(result["z"]) > 4 for result in finite),
        "seconds": statistics.median(result["seconds"] for result in finite),
        "cpu": statistics.median(result["cpu"] for result in finite),
        "gradients": _median(_count(result) for result in finite),
    }


def _column(tool: str, key: str) -> Callable[[Row], Any]:
    return lambda row: row["tools"].get(tool, {}).get(key)


def _estimate(tool: str) -> Callable[[Row], str | None]:
    def cell(row):
        result = row["tools"].get(tool)
        if result is None:
            return None
        return "diverged" if result["value"] is None else f"{result['value']:.4g} ± {result['error']:.2g}"

    return cell


def _gradients(tool: str) -> Callable[[Row], float | None]:
    def cell(row):
        result = row["tools"].get(tool, {})
        return _count(result) if result else None

    return cell


def _count(result: Row) -> float | None:
    """Gradients of a run, on a minibatch or on all data; None of the peer's defaults, which it does not tell."""
    if "num_draws" not in result:
        return result.get("gradients")
    return result["num_chains"] * (result["num_burnin_steps"] + result["num_draws"])


def _share(value: float | None) -> str | None:
    if value is None:
        return None
    return "diverged" if value == math.inf else f"{value:.1%}"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


COLUMNS = [
    Column("model", "case"),
    Column("d", "num_params", "{:,}"),
    Column("truth", lambda row: f"{row['truth']:.4f}" + (f" ± {row['truth_error']:.4f}" if row["truth_error"] else "")),
    Column("llc", _estimate("llc")),
    Column("error", _column("llc", "relative"), "{:+.1%}"),
    Column("z", _column("llc", "z"), "{:+.1f}"),
    Column("gradients", _column("llc", "gradients"), "{:,.0f}"),
    Column("s", _column("llc", "seconds"), "{:.1f}"),
    Column("CPU", _column("llc", "cpu"), "{:.1f}"),
    Column("s compiled", _column("llc", "compiled"), "{:.1f}"),
    Column("CPU", _column("llc", "cpu_compiled"), "{:.1f}"),
    Column("devinterp, defaults", _estimate("devinterp, defaults")),
    Column("error", _column("devinterp, defaults", "relative"), "{:+.1%}"),
    Column("z", _column("devinterp, defaults", "z"), "{:+.1f}"),
    Column("s", _column("devinterp, defaults", "seconds"), "{:.1f}"),
    Column("CPU", _column("devinterp, defaults", "cpu"), "{:.1f}"),
    Column("devinterp, best", _estimate("devinterp, best")),
    Column("error", _column("devinterp, best", "relative"), "{:+.1%}"),
    Column("z", _column("devinterp, best", "z"), "{:+.1f}"),
    Column("gradients", _gradients("devinterp, best"), "{:,.0f}"),
    Column("s", _column("devinterp, best", "seconds"), "{:.1f}"),
    Column("CPU", _column("devinterp, best", "cpu"), "{:.1f}"),
    Column("its step size", _column("devinterp, best", "step_size"), "{:.0e}"),
    Column("llc: failed checks", _column("llc", "failed")),
]

SUMMARY = [
    Column("tool", "tool"),
    Column("models", "models"),
    Column("diverged", "failures"),
    Column("median |error|", lambda row: _share(row.get("median error"))),
    Column("worst |error|", "worst error", "{:.0%}"),
    Column("off by > 2 reported errors", "beyond 2"),
    Column("> 4", "beyond 4"),
    Column("median s", "seconds", "{:.1f}"),
    Column("median CPU s", "cpu", "{:.1f}"),
    Column("median gradients", "gradients", "{:,.0f}"),
]


def figure(rows: list[Row]) -> Figure:
    """Relative error with the reported error; the error in units of the reported one; seconds."""
    rows = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(13, 1.6 + 0.42 * len(rows)), layout="constrained")
    left, middle, right = fig.subplots(1, 3, sharey=True, width_ratios=(2.2, 1, 1))
    heights = np.arange(len(rows))[::-1]
    for offset, (tool, color) in zip((0.22, 0.0, -0.22), TOOLS.items(), strict=True):
        for height, row in zip(heights + offset, rows, strict=True):
            result = row["tools"].get(tool)
            if result is None:
                continue
            right.plot(result["cpu"], height, "o", color=color, ms=5)
            if "cpu_compiled" in result:
                right.plot(result["cpu_compiled"], height, "o", color=color, ms=5, mfc="none")
            if result["value"] is None:
                left.text(
                    0.99,
                    height,
                    "diverged",
                    color=color,
                    transform=left.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=8,
                )
                continue
            error = 100 * result["error"] / row["truth"]
            left.errorbar(100 * result["relative"], height, xerr=error, fmt="o", color=color, ms=5, capsize=2)
            middle.plot(max(abs(result["z"]), 0.05), height, "o", color=color, ms=5)
        left.errorbar([], [], xerr=[], fmt="o", color=color, label=tool)
    left.axvspan(-3, 3, color="0.9", zorder=0)
    left.axvline(0, color="0.5", lw=0.8)
    left.set_xscale("symlog", linthresh=10, linscale=2)
    left.set_xticks([-100, -30, -10, -3, 0, 3, 10, 30, 100, 300], [-100, -30, -10, -3, 0, 3, 10, 30, 100, 300])
    left.set(yticks=heights, yticklabels=[row["case"] for row in rows], xlim=_limits(rows))
    left.set_xlabel("error of λ̂ and reported error, % of the truth\n(grey: ±3 %; linear up to 10 %)")
    middle.set_xscale("log")
    middle.axvspan(0.04, 2, color="0.9", zorder=0)
    middle.set_xlabel("|error| / reported error\n(grey: up to 2)")
    right.set_xscale("log")
    right.set_xlabel("CPU seconds of one call\n(hollow: compiled before)")
    fig.legend(loc="outside upper center", ncols=len(TOOLS), frameon=False)
    return fig


def _limits(rows: list[Row]) -> tuple[float, float]:
    """Of the errors in %, error bars left out, at least ±30."""
    errors = [
        100 * result["relative"] for row in rows for result in row["tools"].values() if result["value"] is not None
    ]
    return 1.5 * min([-30, *errors]), 1.5 * max([30, *errors])


if __name__ == "__main__":
    main()
