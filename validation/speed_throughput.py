"""Chain-steps a second, ours and the peer's in turns, for speed.py."""

import functools
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from speed_bare import bare_scans
from speed_problems import Problem, Settings
from timing import Timing, busy_seconds, measure, progress, quietest, share_of_others

import llc


class Peer(NamedTuple):
    """A variant of a peer: its environment and script, its name in the table, its loader, and how it runs."""

    environment: str
    script: str
    tool: str
    variant: str
    loader: str
    processes: int = 1
    threads: int | None = None


_OLD, _NEW = (
    ("devinterp", "devinterp_speed.py", "devinterp 1.3.2"),
    ("devinterp2", "devinterp2_speed.py", "devinterp 2.0.1"),
)
_CANONICAL = "canonical", "canonical_speed.py", "canonical 0.2.7"
PEERS = (
    Peer(*_OLD, "usual loader", "usual"),
    Peer(*_OLD, "fastest loader", "fastest"),
    Peer(*_OLD, "fastest loader, 1 thread", "fastest", 1, 1),
    Peer(*_OLD, "fastest loader, a process a core", "fastest", os.cpu_count() or 1, 1),
    Peer(*_NEW, "chains only", "usual"),
    Peer(*_CANONICAL, "eager", "fastest"),
    Peer(*_CANONICAL, "compiled", "compiled"),
)
_RARELY = 100  # steps between the draws that check the energies of steps


def throughput(problem: Problem, settings: Settings, peers: Path) -> list[dict[str, Any]]:
    """Our variants, those of the peers whose environments are there, and scans that record nothing, in turns."""
    ours, runs = _ours(problem, settings)
    scans = bare_scans(problem, settings)
    runs |= scans
    bare = [{"model": problem.name, "tool": "scan", "variant": name} for name in scans]
    there = [peer for peer in PEERS if (peers / peer.environment).is_dir()]
    theirs = [{"model": problem.name, "tool": peer.tool, "variant": peer.variant} for peer in there]
    runs |= {peer.variant: functools.partial(measure_peer, peers, peer, problem.name, settings) for peer in there}
    rows = [*ours, *theirs, *bare]
    for row in rows:
        row |= {"num_params": problem.posterior.num_params, "rates": [], "others": []}
    turns = [row for group in itertools.zip_longest(ours, theirs, bare) for row in group if row]
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
    often = {
        "draw a step": {"thinning": 1},
        f"draw every {settings.thinning}": {"thinning": settings.thinning},
        f"draw a step, {settings.batch_size} rows": {"thinning": 1} | subset,
    }
    draws = (often if problem.often else {}) | {
        f"draw every {settings.thinning}, {settings.batch_size} rows": {"thinning": settings.thinning} | subset,
        "energies of all steps": {"thinning": min(_RARELY, settings.num_steps), "step_energies": True},
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


def measure_peer(peers: Path, peer: Peer, model: str, settings: Settings) -> Timing:
    """Wall time of the peer's sampling call in a process of its own, without the start of that process."""
    flags = {"model": model, "loader": peer.loader, "processes": peer.processes, "num-draws": settings.num_steps}
    for name in ("seed", "num_data", "batch_size", "num_chains", "step_size", "gamma"):
        flags[name.replace("_", "-")] = getattr(settings, name)
    python, script = peers / peer.environment / "bin" / "python", Path(__file__).parent / "peers" / peer.script
    command = [str(python), str(script), *(f"--{name}={value}" for name, value in flags.items())]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    if peer.threads is not None:
        environment["OMP_NUM_THREADS"] = str(peer.threads)
    before, start = busy_seconds(), time.perf_counter()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    others = share_of_others(before, time.perf_counter() - start)
    record = json.loads(done.stdout.splitlines()[-1])
    return Timing(record["seconds"], others)
