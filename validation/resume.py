"""A stored run that is killed again and again ends with the bits of one that was left alone.

A process samples a small network's posterior into a store, with a checkpoint after every segment, and is killed
(SIGKILL) after a random time: in the start, in a segment, in the writing of a checkpoint. It is started again until it
ends, and every array of its draws is compared, bit by bit, with those of a run without a store.

    python validation/resume.py --kills 20 --json validation/results/resume.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import llc
from llc.analysis.manifest import Manifest

LENGTHS = {"num_chains": 2, "num_warmup": 200, "num_draws": 2400, "batch_size": 16, "eval_size": 48}
_IN_START = 4  # of so many kills one is before the process has added anything, the others while it adds more
_LONGEST = 2.0  # times that the first new checkpoint took, within which a process is killed after it


class Killed(NamedTuple):
    """What kills did to a run.

    Attributes:
        done: draws of each chain in the store after each kill, of the warm-up too.
        leftovers: kills that left a part which the manifest does not name.
        differing: variables that are not bit by bit those of the run that was left alone.
        compared: variables that were compared.
    """

    done: list[int]
    leftovers: int
    differing: list[str]
    compared: int


def make_posterior() -> llc.LocalPosterior:
    """A network of 2 tanh units on its own noisy outputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(96, 3)).astype(np.float32)
    params = {"a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.asarray(rng.normal(size=2), jnp.float32)}
    outputs = np.asarray(jnp.tanh(inputs @ params["a"]) @ params["b"]) + 0.1 * rng.normal(size=96)

    def loss_fn(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return 0.5 * (jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2

    return llc.LocalPosterior(loss_fn, params, (inputs, outputs.astype(np.float32)), gamma=5.0)


def run(path: Path) -> None:
    """The process that is killed."""
    posterior = make_posterior()
    print("ready", flush=True)
    llc.sample(
        jax.random.key(0),
        posterior,
        llc.SGLD(1e-3),
        store=llc.Store(path, seconds=0.0),
        keep_params=True,
        progress=False,
        **LENGTHS,
    )


def kill_again_and_again(path: Path, num_kills: int, seed: int = 0) -> Killed:
    """Kills `num_kills` processes, lets the last one end, and compares."""
    rng = np.random.default_rng(seed)
    done, leftovers = [], 0
    for number in range(num_kills + 1):
        command = [sys.executable, __file__, "--child", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if number == num_kills:
                if process.wait() != 0:
                    raise RuntimeError(f"the last process ended with status {process.returncode}")
                break
            took = 0.0 if number % _IN_START == _IN_START - 1 else _time_of_checkpoint(process, path / "run")
            time.sleep(rng.uniform(0, _LONGEST) * (took or 1.0))
            process.kill()
        manifest = Manifest.read(path / "run")
        done.append(0 if manifest is None else manifest.done)
        named = set() if manifest is None else {segment.draws.name for segment in manifest.segments}
        there = {entry.name for entry in (path / "run" / "draws").glob("0*")}
        leftovers += there != named
    whole = llc.sample(jax.random.key(0), make_posterior(), llc.SGLD(1e-3), keep_params=True, progress=False, **LENGTHS)
    stored = llc.load(path)
    names = [(group, name) for group, node in whole.children.items() for name in node.data_vars]
    differing = [
        f"{group}.{name}"
        for group, name in names
        if whole[group][name].to_numpy().tobytes() != stored[group][name].to_numpy().tobytes()
    ]
    return Killed(done, leftovers, differing, len(names))


def _time_of_checkpoint(process: subprocess.Popen[str], folder: Path) -> float:
    """Waits for two checkpoints more, or the end of the process; the time between the two."""
    times: list[float] = []
    before = Manifest.read(folder)
    last = 0 if before is None else before.done
    while len(times) < 2 and process.poll() is None:
        manifest = Manifest.read(folder)
        if manifest is not None and manifest.done > last:
            last = manifest.done
            times.append(time.monotonic())
        time.sleep(0.002)
    return times[1] - times[0] if len(times) == 2 else 0.0


def main() -> None:
    """Kills, compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="processes that are killed")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        run(arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = kill_again_and_again(Path(folder) / "run.zarr", arguments.kills)
    total = LENGTHS["num_warmup"] + LENGTHS["num_draws"]
    print(f"draws in the store after each kill, of {total}: {result.done}")
    print(f"kills that left a part which does not count: {result.leftovers}")
    print(f"variables that differ: {result.differing or 'none'} of {result.compared}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result._asdict(), indent=1) + "\n")


if __name__ == "__main__":
    main()
