"""Microseconds of every part of a step, each in a jitted loop of its own, for speed.py."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from speed_problems import Problem, Settings
from timing import measure, progress, quietest

import llc
from llc.sampling.energies import Evaluation, make_evaluation
from llc.sampling.minibatch import minibatch, permuted
from llc.sampling.noise import normal_like

Body = Callable[[PRNGKeyArray, Any], Any]  # a turn of a loop: what it carries, from one turn to the next


def parts(problem: Problem, settings: Settings) -> list[dict[str, Any]]:
    """Microseconds of every part of a step of one chain, alone and with all chains in a vmap.

    Every loop carries what the part returns into its next turn, so that none can be left out by the compiler.
    """
    problem = problem._replace(posterior=jax.device_put(problem.posterior))
    cases = _of_a_batch(problem, settings) | _of_a_sampler(problem, settings) | _of_a_draw(problem, settings)
    results = []
    for name, (body, carry) in cases.items():
        times = {}
        for label, copies in (("alone", 1), ("vmap", settings.num_chains)):
            seconds = [t / copies for t in time_loop(body, carry, copies, settings)]
            times[label] = [round(1e6 * t, 2) for t in seconds]
        results.append({"model": problem.name, "part": name, "microseconds": times})
        progress(f"{problem.name}, {name}")
    return results


def _of_a_batch(problem: Problem, settings: Settings) -> dict[str, tuple[Body, Any]]:
    """Rows of the minibatch, the minibatch, and the gradient on it."""
    posterior = problem.posterior
    rows = jax.random.permutation(jax.random.key(settings.seed), settings.num_data)[: settings.batch_size]

    def choose(key: PRNGKeyArray, rows: Array) -> Array:
        return permuted(key, rows, settings.num_data)

    def gather(key: PRNGKeyArray, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:  # noqa: ARG001
        rows, _ = carry
        batch = take(posterior.data, rows)
        return (rows + 1 + jnp.int32(batch[0][0, 0])) % settings.num_data, batch

    def gradient(key: PRNGKeyArray, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:  # noqa: ARG001
        position, batch = carry
        return jax.tree.map(lambda w, g: w - 1e-9 * g, position, jax.grad(posterior.loss)(position, batch)), batch

    batch = take(posterior.data, rows)
    return {
        "choice of the minibatch's rows": (choose, rows),
        "gather of the minibatch": (gather, (rows, batch)),
        "gradient": (gradient, (posterior.position, batch)),
    }


def _of_a_sampler(problem: Problem, settings: Settings) -> dict[str, tuple[Body, Any]]:
    """The noise alone, a step on a loss that costs nothing, and the whole step."""
    posterior, sampler = problem.posterior, llc.SGLD(step_size=settings.step_size)
    position, data, batch_size = posterior.position, posterior.data, settings.batch_size
    bowl = llc.LocalPosterior(lambda w, _: 0.5 * optax.tree.norm(w, squared=True), position, data, gamma=settings.gamma)

    def noise(key: PRNGKeyArray, position: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, position, normal_like(key, position))

    def bowl_step(key: PRNGKeyArray, carry: tuple[Any, PyTree, Any]) -> tuple[Any, PyTree, Any]:
        state, batch, total = carry
        state, info = sampler.step(key, bowl, state, batch)
        return state, batch, jax.tree.map(jnp.add, total, info)

    def step(key: PRNGKeyArray, carry: tuple[Any, Array, Any]) -> tuple[Any, Array, Any]:
        state, index, total = carry
        batch = minibatch(jax.random.key(settings.seed), index, data, settings.num_data, batch_size)
        state, info = sampler.step(key, posterior, state, batch)
        return state, index + 1, jax.tree.map(jnp.add, total, info)

    rows = jax.random.permutation(jax.random.key(settings.seed), settings.num_data)[:batch_size]
    state, batch = sampler.init(jax.random.key(0), posterior), take(data, rows)
    info = jax.tree.map(jnp.zeros_like, sampler.step(jax.random.key(0), posterior, state, batch)[1])
    return {
        "noise": (noise, position),
        "noise, update and records": (bowl_step, (state, batch, info)),
        "whole step": (step, (state, jnp.int32(0), info)),
    }


def _of_a_draw(problem: Problem, settings: Settings) -> dict[str, tuple[Body, Any]]:
    """The evaluation of a draw, on all rows and on as many as a minibatch has."""
    posterior = problem.posterior

    def evaluate(evaluation: Evaluation, key: PRNGKeyArray, position: PyTree) -> PyTree:  # noqa: ARG001
        moved = 1e-12 * jnp.sum(evaluation.losses(posterior, position))
        return jax.tree.map(lambda w: w + moved, position)

    subset = np.arange(settings.batch_size)
    everything, some = (jax.device_put(make_evaluation(posterior, *rows)) for rows in ((), (subset,)))
    return {
        f"loss, all {settings.num_data} rows (a draw)": (functools.partial(evaluate, everything), posterior.position),
        f"loss, {settings.batch_size} rows (a draw)": (functools.partial(evaluate, some), posterior.position),
    }


def take(data: PyTree, rows: Array) -> PyTree:
    """The minibatch, as the sampling loop takes it."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), data)


def time_loop(body: Body, carry: Any, copies: int, settings: Settings) -> list[float]:
    """Seconds of one turn of `carry = body(key, carry)`, a number for each repeat."""

    @jax.jit
    def loop(keys: PRNGKeyArray, carry: Any, num_turns: np.int32) -> Any:
        def chain(key: PRNGKeyArray, carry: Any) -> Any:
            return jax.lax.fori_loop(0, num_turns, lambda i, c: body(jax.random.fold_in(key, i), c), carry)

        return chain(keys[0], carry) if copies == 1 else jax.vmap(chain)(keys, carry)

    keys = jax.random.split(jax.random.key(settings.seed), copies)
    if copies > 1:
        carry = jax.tree.map(lambda x: jnp.stack([x] * copies), carry)

    def run(turns: int) -> None:
        jax.block_until_ready(loop(keys, carry, np.int32(turns)))

    run(1)
    turns = max(1, round(2 * settings.part_seconds / measure(lambda: run(2)).seconds))
    timings = [quietest(lambda: measure(lambda: run(turns)), settings.tries) for _ in range(settings.repeats)]
    return [timing.seconds / turns for timing in timings]
