"""Speed: chain-steps a second of `llc.sample` beside the PyTorch peer devinterp, and where the time of a step goes.

Four tables, the fourth from a run of its own (--sweep).

1. Throughput: total chain-steps a second of SGLD, ours and the peer's in turns (A B A B …) because machines are noisy.
   Ours is the second and later calls; the first call's compilation stands apart. A draw of ours costs an evaluation of
   the loss on all the data, a draw of the peer nothing (it records the minibatch loss of the step), so ours is shown
   with a draw at every step and at every tenth, each on all the data and on a fixed subset as large as a minibatch.
2. Ratios ours / peer, pairwise within a repeat, against its usual loader and against the fastest of all its variants.
3. Parts of a step, each a jitted loop of its own.
4. Sequential against vectorized chains by number of parameters: what `_SEQUENTIAL_PARAMS` in llc/sampling/settings.py
   rests on, and the same for samplers with an accept step.

"others" is the share of the machine that other processes took meanwhile; a figure with a large share is a lower bound,
and the peer's default of one thread a core suffers most from it (its threads wait for one another).

    validation/peers/setup.sh FOLDER
    LLC_PEER_PYTHON=FOLDER/bin/python python validation/speed.py --json validation/results/speed.json
    python validation/speed.py --sweep --json validation/results/chain_methods.json
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import llc
from llc.sampling.energies import make_evaluation
from llc.sampling.minibatch import minibatch, permuted
from llc.sampling.noise import normal_like


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    repeats: int = 3
    tries: int = 1  # of one measurement, until others leave the machine alone; the quietest counts
    num_chains: int = 4
    num_data: int = 10_000
    batch_size: int = 512
    num_steps: int = 1000  # of a chain, in every variant of the deep linear net
    mlp_steps: int = 100  # of the MLP, whose step takes 50 times as long
    thinning: int = 10  # of the variant that does not draw at every step
    step_size: float = 1e-7  # small enough that no chain leaves
    gamma: float = 10.0
    part_seconds: float = 0.3  # length of one timed loop of the table of parts
    widths: tuple[int, ...] = (20, 47, 97, 138, 197, 280, 364)  # MLPs with 1k, 5k, 20k, 40k, 80k, 160k, 270k parameters
    sweep_steps: int = 200
    mcmc_widths: tuple[int, ...] = (1, 8, 20)  # 24, 234 and 1,050 parameters
    mcmc_data: int = 500
    mcmc_warmup: int = 100
    mcmc_draws: int = 100


QUICK = Settings(
    repeats=1, num_steps=50, part_seconds=0.02, widths=(20, 97), sweep_steps=20, mcmc_widths=(8,), mcmc_draws=20
)


class Problem(NamedTuple):
    """A model with its data."""

    name: str
    posterior: llc.LocalPosterior
    count: "Counter"


class Counter:
    """A loss function that counts how often it is traced or called."""

    def __init__(self, loss_fn: Callable):
        self.loss_fn, self.calls = loss_fn, 0

    def __call__(self, params, batch):
        """The loss."""
        self.calls += 1
        return self.loss_fn(params, batch)


class Timing(NamedTuple):
    """One measurement: seconds, and the share of the machine that other processes took (nan where unknown)."""

    seconds: float
    others: float


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a check of the script, not of the speed")
    parser.add_argument("--sweep", action="store_true", help="table 4 instead of the others")
    parser.add_argument("--repeats", type=int, help=f"default {Settings.repeats}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all figures there")
    parser.add_argument("--peer-python", default=os.environ.get("LLC_PEER_PYTHON"), help="default $LLC_PEER_PYTHON")
    parser.add_argument("--tries", type=int, help="of one measurement, until no other process disturbs it; default 1")
    args = parser.parse_args()
    settings = QUICK if args.quick else Settings()
    given = {name: getattr(args, name) for name in ("repeats", "tries") if getattr(args, name) is not None}
    settings = dataclasses.replace(settings, **given)
    peer = args.peer_python or str(Path(__file__).parent / "peers" / ".venv" / "bin" / "python")
    if not Path(peer).exists():
        print("peer: no environment found (validation/peers/setup.sh makes one); our figures only\n")
        peer = None

    results = {"settings": dataclasses.asdict(settings), "machine": describe_machine()}
    print(" ".join(f"{k} {v}" for k, v in results["machine"].items()), end="\n\n")
    if args.sweep:
        results["chain_methods"] = [*sweep_sgld(settings), *sweep_mcmc(settings)]
        print_chain_methods(results["chain_methods"])
        write(results, args.json)
        return
    problems = [deep_linear(settings), mlp(settings, (784, 256, 256, 10), settings.num_data, "MLP")]
    lengths = settings, dataclasses.replace(settings, num_steps=min(settings.num_steps, settings.mlp_steps))
    pairs = zip(problems, lengths, strict=True)
    results["throughput"] = [row for problem, length in pairs for row in throughput(problem, length, peer)]
    results["ratios"] = print_throughput(results["throughput"])
    results["parts"] = [row for problem in problems for row in parts(problem, settings)]
    print_parts(results["parts"])
    write(results, args.json)


def write(results: dict[str, Any], path: Path | None) -> None:
    """All figures as JSON, if a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


# Models


def deep_linear(settings: Settings) -> Problem:
    """Four 20×20 matrices, squared error: 1,600 parameters."""
    rng = np.random.default_rng(settings.seed)
    matrices = [rng.normal(size=(20, 20)) / math.sqrt(20) for _ in range(4)]
    x = rng.normal(size=(settings.num_data, 20))
    y = functools.reduce(np.matmul, matrices, x) + rng.normal(size=x.shape)

    def loss_fn(params, batch):
        x, y = batch
        return 0.5 * jnp.mean(jnp.sum((functools.reduce(jnp.matmul, params, x) - y) ** 2, axis=1))

    return _problem("deep linear", loss_fn, matrices, (x, y), settings)


def mlp(settings: Settings, sizes: tuple[int, ...], num_data: int, name: str) -> Problem:
    """ReLU network with cross-entropy, on generated data."""
    rng = np.random.default_rng(settings.seed)
    params = [(rng.normal(size=shape) / math.sqrt(shape[0]), np.zeros(shape[1])) for shape in itertools.pairwise(sizes)]
    data = rng.normal(size=(num_data, sizes[0])), rng.integers(sizes[-1], size=num_data)

    def loss_fn(params, batch):
        hidden, labels = batch
        for weight, bias in params[:-1]:
            hidden = jax.nn.relu(hidden @ weight + bias)
        weight, bias = params[-1]
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(hidden @ weight + bias, labels))

    return _problem(name, loss_fn, params, data, settings)


def _problem(name, loss_fn, params, data, settings) -> Problem:
    counter = Counter(loss_fn)
    params, data = jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype == float else np.int32), (params, data))
    return Problem(name, llc.LocalPosterior(counter, params, data, gamma=settings.gamma), counter)


# Throughput

PEER_VARIANTS = {
    "usual loader": ("usual", 1, None),
    "fastest loader": ("fastest", 1, None),
    "fastest loader, 1 thread": ("fastest", 1, 1),
    "fastest loader, a process a core": ("fastest", os.cpu_count(), 1),
}


def throughput(problem: Problem, settings: Settings, peer: str | None) -> list[dict[str, Any]]:
    """Our variants and the peer's, in turns."""
    rows, runs = [], {}
    draws = {
        "draw a step": {"thinning": 1},
        f"draw every {settings.thinning}": {"thinning": settings.thinning},
        f"draw a step, {settings.batch_size} rows": {"thinning": 1, "eval_size": settings.batch_size},
        f"draw every {settings.thinning}, {settings.batch_size} rows": {
            "thinning": settings.thinning,
            "eval_size": settings.batch_size,
        },
    }
    for (label, draw), method in itertools.product(draws.items(), ("vectorized", "sequential")):
        row = {"model": problem.name, "tool": "llc", "variant": f"{label}, {method}"}
        run = functools.partial(sample, problem, settings, chain_method=method, **draw)
        rows.append(row | first_calls(problem, run))
        runs[row["variant"]] = functools.partial(measure, run)
    for name, variant in PEER_VARIANTS.items() if peer else ():
        rows.append({"model": problem.name, "tool": "devinterp", "variant": name})
        runs[name] = functools.partial(measure_peer, peer, problem.name, settings, *variant)
    rows = [row | {"num_params": problem.posterior.num_params, "rates": [], "others": []} for row in rows]

    ours, theirs = ([row for row in rows if row["tool"] == tool] for tool in ("llc", "devinterp"))
    turns = [row for pair in itertools.zip_longest(ours, theirs) for row in pair if row]
    for repeat, row in itertools.product(range(settings.repeats), turns):
        timing = quietest(runs[row["variant"]], settings.tries)
        row["rates"].append(settings.num_chains * settings.num_steps / timing.seconds)
        row["others"].append(timing.others)
        progress(f"repeat {repeat + 1}, {row['model']}, {row['tool']}, {row['variant']}: {row['rates'][-1]:.0f}/s")
    return rows


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


def first_calls(problem: Problem, run: Callable) -> dict[str, Any]:
    """Compilation and traces of the loss in the first call and in the second."""
    events, compiling, traces = [], [], []

    def listen(name, seconds, **_):
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


def measure(run: Callable) -> Timing:
    """Wall time of `run()` in this process."""
    before, start = busy_seconds(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return Timing(seconds, share_of_others(before, seconds))


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


# Parts of a step


def parts(problem: Problem, settings: Settings) -> list[dict[str, Any]]:
    """Microseconds of every part of a step of one chain, alone and with all chains in a vmap.

    Every loop carries what the part returns into its next turn, so that none can be left out by the compiler.
    """
    posterior = jax.device_put(problem.posterior)
    position, data, batch_size = posterior.position, posterior.data, settings.batch_size
    sampler = llc.SGLD(step_size=settings.step_size)
    bowl = llc.LocalPosterior(lambda w, _: 0.5 * optax.tree.norm(w, squared=True), position, data, gamma=settings.gamma)
    everything = jax.device_put(make_evaluation(posterior))
    subset = jax.device_put(make_evaluation(posterior, np.arange(batch_size)))
    rows = jax.random.permutation(jax.random.key(settings.seed), settings.num_data)[:batch_size]

    def choose(key, rows):
        return permuted(key, rows, settings.num_data)

    def gather(key, carry):  # noqa: ARG001
        rows, _ = carry
        batch = take(data, rows)
        return (rows + 1 + jnp.int32(batch[0][0, 0])) % settings.num_data, batch

    def gradient(key, carry):  # noqa: ARG001
        position, batch = carry
        return jax.tree.map(lambda w, g: w - 1e-9 * g, position, jax.grad(posterior.loss)(position, batch)), batch

    def noise(key, position):
        return jax.tree.map(jnp.add, position, normal_like(key, position))

    def bowl_step(key, carry):
        state, batch, total = carry
        state, info = sampler.step(key, bowl, state, batch)
        return state, batch, jax.tree.map(jnp.add, total, info)

    def step(key, carry):
        state, index, total = carry
        batch = minibatch(jax.random.key(settings.seed), index, data, settings.num_data, batch_size)
        state, info = sampler.step(key, posterior, state, batch)
        return state, index + 1, jax.tree.map(jnp.add, total, info)

    def evaluate(evaluation, key, position):  # noqa: ARG001
        shift = 1e-12 * jnp.sum(evaluation.losses(posterior, position))
        return jax.tree.map(lambda w: w + shift, position)

    state = sampler.init(jax.random.key(0), posterior)
    batch = take(data, rows)
    info = jax.tree.map(jnp.zeros_like, sampler.step(jax.random.key(0), posterior, state, batch)[1])
    cases = {
        "choice of the minibatch's rows": (choose, rows),
        "gather of the minibatch": (gather, (rows, batch)),
        "gradient": (gradient, (position, batch)),
        "noise": (noise, position),
        "noise, update and records": (bowl_step, (state, batch, info)),
        "whole step": (step, (state, jnp.int32(0), info)),
        f"loss, all {settings.num_data} rows (a draw)": (functools.partial(evaluate, everything), position),
        f"loss, {batch_size} rows (a draw)": (functools.partial(evaluate, subset), position),
    }
    results = []
    for name, (body, carry) in cases.items():
        times = {}
        for label, copies in (("alone", 1), ("vmap", settings.num_chains)):
            seconds = [t / copies for t in time_loop(body, carry, copies, settings)]
            times[label] = [round(1e6 * t, 2) for t in seconds]
        results.append({"model": problem.name, "part": name, "microseconds": times})
        progress(f"{problem.name}, {name}")
    return results


def take(data: Any, rows: jax.Array) -> Any:
    """The minibatch, as the sampling loop takes it."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), data)


def time_loop(body: Callable, carry: Any, copies: int, settings: Settings) -> list[float]:
    """Seconds of one turn of `carry = body(key, carry)`, a number for each repeat."""

    @jax.jit
    def loop(keys, carry, num_turns):
        def chain(key, carry):
            return jax.lax.fori_loop(0, num_turns, lambda i, c: body(jax.random.fold_in(key, i), c), carry)

        return chain(keys[0], carry) if copies == 1 else jax.vmap(chain)(keys, carry)

    keys = jax.random.split(jax.random.key(settings.seed), copies)
    if copies > 1:
        carry = jax.tree.map(lambda x: jnp.stack([x] * copies), carry)
    run = lambda turns: jax.block_until_ready(loop(keys, carry, np.int32(turns)))  # noqa: E731
    run(1)
    turns = max(1, round(2 * settings.part_seconds / measure(lambda: run(2)).seconds))
    timings = [quietest(lambda: measure(lambda: run(turns)), settings.tries) for _ in range(settings.repeats)]
    return [timing.seconds / turns for timing in timings]


# Sequential against vectorized


def sweep_sgld(settings: Settings) -> list[dict[str, Any]]:
    """SGLD on MLPs of growing width, with two draws only so that the steps are what is timed."""
    results = []
    for width in settings.widths:
        problem = mlp(settings, (width, width, width, 10), settings.num_data, "SGLD")
        kwargs = {"batch_size": settings.batch_size, "eval_size": settings.batch_size, "num_warmup": 0, "num_draws": 2}
        sampler = llc.SGLD(step_size=settings.step_size)
        results.append(compare_methods(problem, sampler, settings, thinning=settings.sweep_steps // 2, **kwargs))
    return results


def sweep_mcmc(settings: Settings) -> list[dict[str, Any]]:
    """The samplers with an accept step, adapted, on small MLPs."""
    results = []
    for width, sampler in itertools.product(settings.mcmc_widths, (llc.MALA(), llc.HMC(), llc.NUTS(max_tree_depth=6))):
        problem = mlp(settings, (width, width, width, 10), settings.mcmc_data, type(sampler).__name__)
        kwargs = {"num_warmup": settings.mcmc_warmup, "num_draws": settings.mcmc_draws}
        results.append(compare_methods(problem, sampler, settings, **kwargs))
    return results


def compare_methods(problem: Problem, sampler, settings: Settings, **kwargs: Any) -> dict[str, Any]:
    """Seconds of the same chains, one by one and in a vmap, in turns."""

    def run(method):
        key = jax.random.key(settings.seed)
        kwargs_all = {"num_chains": settings.num_chains, "chain_method": method, "progress": False} | kwargs
        llc.sample(key, problem.posterior, sampler, **kwargs_all)

    timings = {"vectorized": [], "sequential": []}
    for method in timings:
        run(method)
    for _, method in itertools.product(range(settings.repeats), timings):
        timings[method].append(quietest(lambda: measure(lambda: run(method)), settings.tries))  # noqa: B023
    seconds = {method: [t.seconds for t in ts] for method, ts in timings.items()}
    progress(f"{problem.name}, {problem.posterior.num_params} parameters: {seconds}")
    others = [t.others for ts in timings.values() for t in ts]
    return {"sampler": problem.name, "num_params": problem.posterior.num_params, "seconds": seconds, "others": others}


# The machine


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {name: version(name) for name in ("llc", "jax", "numpyro")}
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()} | versions


def busy_seconds() -> tuple[float, float]:
    """CPU seconds so far of the whole machine (nan where the system does not say) and of this process."""
    times = os.times()
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan, math.nan
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    machine = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return machine, times.user + times.system + times.children_user + times.children_system


def share_of_others(before: tuple[float, float], seconds: float) -> float:
    """Share of the machine that went to other processes in the `seconds` since `before`."""
    machine, own = (b - a for a, b in zip(before, busy_seconds(), strict=True))
    return max(0.0, machine - own) / (seconds * os.cpu_count())


def quietest(measurement: Callable[[], Timing], tries: int) -> Timing:
    """The one that others disturbed least; the first with less than a twentieth of the machine ends the tries."""
    timings = []
    while len(timings) < tries and not (timings and timings[-1].others < 0.05):
        if tries > 1:
            wait_for_quiet()
        timings.append(measurement())
    return min(timings, key=lambda timing: timing.others)


def wait_for_quiet(limit: float = 60.0) -> None:
    """Returns when others take less than a twentieth of the machine during a second, or after `limit` seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit and measure(lambda: time.sleep(1)).others >= 0.05:
        pass


def progress(line: str) -> None:
    """A line on stderr; stdout is for the tables."""
    print(line, file=sys.stderr, flush=True)


# Tables


def print_throughput(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints rates and ratios; returns the ratios."""
    ratios = []
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        group = list(group)
        peers = [row["rates"] for row in group if row["tool"] == "devinterp"]
        print(f"{model}, {group[0]['num_params']:,} parameters: total chain-steps a second, median (range)\n")
        print(_HEAD.format("", "rate", "others", "compile", "traces", "/ usual", "/ fastest"))
        for row in group:
            cells = [f"{row['tool']:10}{row['variant']}", spread(row["rates"], 0), mean_share(row["others"])]
            if row["tool"] == "llc":
                cells += [f"{row['compile_seconds'][0]:.1f} s", "{}, {}".format(*row["traces"])]
            if row["tool"] == "llc" and peers:
                usual = [a / b for a, b in zip(row["rates"], peers[0], strict=True)]
                fastest = [a / max(b) for a, b in zip(row["rates"], zip(*peers, strict=True), strict=True)]
                ratios.append({"model": model, "variant": row["variant"], "usual": usual, "fastest": fastest})
                cells += [spread(usual, 2), spread(fastest, 2)]
            print(_HEAD.format(*cells, *[""] * (7 - len(cells))).rstrip())
        print()
    print("compile: tracing, lowering and compiling in the first call; traces: of loss_fn in the first and second call")
    print(
        "/ usual, / fastest: ours over the peer's usual loader, over the fastest of its variants in the same repeat\n"
    )
    return ratios


_HEAD = "{:46}{:>20}{:>8}{:>9}{:>8}{:>22}{:>20}"


def print_parts(rows: list[dict[str, Any]]) -> None:
    """Prints the parts of a step."""
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        print(f"{f'{model}: microseconds a chain-step, median (range)':48}{'one chain':>30}{'chains in a vmap':>30}")
        for row in group:
            alone, vmap = (spread(row["microseconds"][label], 1) for label in ("alone", "vmap"))
            print(f"  {row['part']:46}{alone:>30}{vmap:>30}")
        print()


def print_chain_methods(rows: list[dict[str, Any]]) -> None:
    """Prints sequential against vectorized."""
    cells = "{:10}{:>12}{:>14}{:>14}{:>28}{:>10}"
    print(cells.format("sampler", "parameters", "vectorized", "sequential", "sequential is faster by", "others"))
    for row in rows:
        times = row["seconds"].values()
        factors = [vectorized / sequential for vectorized, sequential in zip(*times, strict=True)]
        medians = [f"{statistics.median(t):.3f} s" for t in times]
        size, share = f"{row['num_params']:,}", mean_share(row["others"])
        print(cells.format(row["sampler"], size, *medians, spread(factors, 2), share))


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def mean_share(values: list[float]) -> str:
    """Mean of shares as a percentage."""
    return f"{100 * statistics.fmean(values):.0f} %"


if __name__ == "__main__":
    main()
