"""Chain-steps a second, ours and the peer's in turns, for speed.py."""

import functools
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from speed_problems import Problem, Settings
from timing import Timing, busy_seconds, measure, progress, quietest, share_of_others

import llc

PEER_VARIANTS = {
    "usual loader": ("usual", 1, None),
    "fastest loader": ("fastest", 1, None),
    "fastest loader, 1 thread": ("fastest", 1, 1),
    "fastest loader, a process a core": ("fastest", os.cpu_count(), 1),
}


def throughput(problem: Problem, settings: Settings, peer: str | None) -> list[dict[str, Any]]:
    """Our variants and the peer's, in turns."""
    ours, runs = _ours(problem, settings)
    theirs = [{"model": problem.name, "tool": "devinterp", "variant": name} for name in PEER_VARIANTS] if peer else []
    for row in theirs:
        variant = PEER_VARIANTS[row["variant"]]
        runs[row["variant"]] = functools.partial(measure_peer, str(peer), problem.name, settings, *variant)
    rows = [*ours, *theirs]
    for row in rows:
        row |= {"num_params": problem.posterior.num_params, "rates": [], "others": []}
    turns = [row for pair in itertools.zip_longest(ours, theirs) for row in pair if row]
    for repeat, row in itertools.product(range(settings.repeats), turns):
        timing = quietest(runs[row["variant"]], settings.tries)
        row["rates"].append(settings.num_chains * settings.num_steps / timing.seconds)
        row["others"].append(timing.others)
        progress(f"repeat {repeat + 1}, {row['model']}, {row['tool']}, {row['variant']}: {row['rates'][-1]:.0f}/s")
    return rows


def _ours(problem: Problem, settings: Settings) -> tuple[list[dict[str, Any]], dict[str, Callable[[], Timing]]]:
    """A row for each of our variants, with what its first calls cost, and the measurement of each."""
    rows, runs = [], {}
    subset = {"eval_size": settings.batch_size}
    draws = {
        "draw a step": {"thinning": 1},
        f"draw every {settings.thinning}": {"thinning": settings.thinning},
        f"draw a step, {settings.batch_size} rows": {"thinning": 1} | subset,
        f"draw every {settings.thinning}, {settings.batch_size} rows": {"thinning": settings.thinning} | subset,
    }
    for (label, draw), method in itertools.product(draws.items(), ("vectorized", "sequential")):
        row = {"model": problem.name, "tool": "llc", "variant": f"{label}, {method}"}
        run = functools.partial(sample, problem, settings, chain_method=method, **draw)
        rows.append(row | first_calls(problem, run))
        runs[row["variant"]] = functools.partial(measure, run)
    return rows, runs


def sample(problem: Problem, settings: Settings, *, thinning: int, **kwargs: Any) -> None:
    """One call of `llc.sample` with SGLD."""
    llc.sample(
        jax.random.key(settings.seed),
        problem.posterior,
        llc.SGLD(step_size=settings.step_size),
        num_chains=settings.num_chains,
        num_warmup=0,
        num_draws=settings.num_steps // thinning,
        thinning=thinning,
        batch_size=settings.batch_size,
        progress=False,
        **kwargs,
    )


def first_calls(problem: Problem, run: Callable[[], None]) -> dict[str, Any]:
    """Compilation and traces of the loss in the first call and in the second."""
    events, compiling, traces = [], [], []

    def listen(name: str, seconds: float, **_: str | float) -> None:
        events.append(seconds if name.startswith("/jax/core/compile/") else 0.0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(2):
        events.clear()
        problem.count.calls = 0
        run()
        compiling.append(sum(events))
        traces.append(problem.count.calls)
    jax.monitoring.unregister_event_duration_listener(listen)
    return {"compile_seconds": compiling, "traces": traces}


def measure_peer(
    python: str, model: str, settings: Settings, loader: str, processes: int, threads: int | None
) -> Timing:
    """Wall time of the peer's sampling call in a process of its own, without the start of that process."""
    flags = {"model": model, "loader": loader, "processes": processes, "num-draws": settings.num_steps}
    for name in ("seed", "num_data", "batch_size", "num_chains", "step_size", "gamma"):
        flags[name.replace("_", "-")] = getattr(settings, name)
    script = Path(__file__).parent / "peers" / "devinterp_speed.py"
    command = [python, str(script), *(f"--{name}={value}" for name, value in flags.items())]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    before, start = busy_seconds(), time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    others = share_of_others(before, time.perf_counter() - start)
    record = json.loads(done.stdout.splitlines()[-1])
    return Timing(record["seconds"], others)
