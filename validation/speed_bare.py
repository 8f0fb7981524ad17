"""What a step costs at least, for speed.py: scans of it that record nothing, written by hand.

With the noise of `jax.random` and chains one after the other a scan is what a user writes first. Without noise, and
with a chain in each core at once, it is about all that a machine can do, as XLA's loops leave cores idle between
products.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree
from speed_problems import Problem, Settings
from timing import Timing, measure

Run = Callable[[], Timing]


def bare_scans(problem: Problem, settings: Settings) -> dict[str, Run]:
    """The measurements of the two scans, by name, compiled."""
    return {
        "by hand, one chain after the other": _timed(problem, settings, num_threads=1, noise=True),
        "without noise, chains on all cores": _timed(problem, settings, num_threads=settings.num_threads, noise=False),
    }


def _timed(problem: Problem, settings: Settings, *, num_threads: int, noise: bool) -> Run:
    keys = jax.random.split(jax.random.key(settings.seed), settings.num_chains)
    chain = functools.partial(_chain, _compiled(problem, settings, noise=noise), problem.posterior.data)
    chain(keys[0])

    def run() -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(chain, keys))

    return functools.partial(measure, run)


def _chain(scan: Callable[[PRNGKeyArray, PyTree], Array], data: PyTree, key: PRNGKeyArray) -> None:
    scan(key, data).block_until_ready()


def _compiled(problem: Problem, settings: Settings, *, noise: bool) -> Callable[[PRNGKeyArray, PyTree], Array]:
    """The mean loss of the minibatches of all steps of a chain."""
    posterior, step_size, gamma = problem.posterior, settings.step_size, settings.gamma
    nbeta, center = float(posterior.nbeta), posterior.position

    @jax.jit
    def scan(key: PRNGKeyArray, data: PyTree) -> Array:
        def step(carry: tuple[PyTree, Array], index: Array) -> tuple[tuple[PyTree, Array], None]:
            position, total = carry
            rows_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
            rows = jax.random.randint(rows_key, (settings.batch_size,), 0, settings.num_data)
            batch = jax.tree.map(lambda x: x[rows], data)
            loss, grad = jax.value_and_grad(posterior.loss)(position, batch)
            keys = jax.random.split(noise_key, len(jax.tree.leaves(position)))

            def move(w: Array, w0: Array, g: Array, key: PRNGKeyArray) -> Array:
                kick = jax.random.normal(key, w.shape, w.dtype) * np.sqrt(step_size) if noise else 0.0
                return w - step_size / 2 * (nbeta * g + gamma * (w - w0)) + kick

            tree = jax.tree.unflatten(jax.tree.structure(position), list(keys))
            return (jax.tree.map(move, position, center, grad, tree), total + loss), None

        start: tuple[Any, Array] = center, jnp.float32(0)
        (_, total), _ = jax.lax.scan(step, start, jnp.arange(settings.num_steps))
        return total / settings.num_steps

    return scan
