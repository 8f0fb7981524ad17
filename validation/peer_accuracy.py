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
    LLC_PEER_PYTHON=FOLDER/devinterp/bin/python python validation/peer_accuracy.py
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from peer_accuracy_results import COLUMNS, SUMMARY, TOOLS, figure, summarize
from peer_models import Model, model
from peers.losses import LOSSES
from study import Row, Study, constant, table

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


def _flags(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("LLC_PEER_PYTHON", str(PEERS / ".venv" / "devinterp" / "bin" / "python"))
    parser.add_argument(
        "--peer-python", default=default, help="default $LLC_PEER_PYTHON, else the one that setup.sh makes"
    )


# Runs


def run(case: str, settings: Settings) -> Row:
    """All tools on one model."""
    chosen = model(case, seed=settings.seed, num_data=settings.num_data)
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
    return result, constant(report.draws, "gamma")


def reference(chosen: Model, posterior: llc.LocalPosterior, settings: Settings) -> tuple[float, float]:
    """E[nβK] and its standard error: by integration (no error), or by NUTS."""
    if chosen.moments is not None:
        return chosen.moments(*posterior.scale).mean, 0.0
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
        "gamma": posterior.scale.gamma,
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


if __name__ == "__main__":
    main()
