"""The one sampling loop: chains of any `Sampler`, from w* to draws in ArviZ's schema.

Chains run in compiled segments of equal length; between two segments the host reads the finished draws and moves the
progress bar, inside of one nothing leaves the device. A draw is taken every `thinning` steps; its loss is evaluated on
the full data (or one fixed subset), as the difference to the loss of w* on the same rows:

    llc = nβ (L(w) − L(w*)).
"""

import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.posterior import LocalPosterior
from llc.sampling.draws import Draw, Moments, Recorder, describe
from llc.sampling.evaluation import make_evaluation
from llc.sampling.kernel import Info, Sampler
from llc.sampling.minibatch import minibatch
from llc.sampling.settings import check_settings, choose_method
from llc.sampling.stein import make_stein

_CAPACITY = 64  # draws that a segment can hold, at least, so that short and long runs share a program
_NUM_SEGMENTS = 40  # progress steps of a run; each costs one dispatch and one read of its draws


def sample(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    num_chains: int = 4,
    num_warmup: int = 1000,
    num_draws: int = 1000,
    thinning: int = 1,
    batch_size: int | None = None,
    eval_size: int | None = None,
    spectrum: Any = None,
    chain_method: str = "auto",
    keep_params: bool = False,
    progress: bool | None = None,
) -> xr.DataTree:
    """Draws from `posterior`, as a DataTree in ArviZ's schema.

    Args:
        key: `jax.random.key(seed)`; the same key, settings and machine give the same bits.
        posterior: the density; its `gamma` must be set.
        sampler: `SGLD(step_size)`, `NUTS()`, `HMC()`, `MALA()`.
        num_chains: independent chains from w*, each with its own key and minibatches.
        num_warmup: steps discarded from the estimates (kept in `warmup_posterior`) in which samplers adapt.
        num_draws: recorded draws a chain; the chain takes `num_draws * thinning` steps after the warm-up.
        thinning: steps between two draws. A draw costs an evaluation of the loss on `eval_size` rows.
        batch_size: rows of a minibatch, without replacement within an epoch; None takes all data in every step.
        eval_size: rows of one fixed random subset on which L(w) and L(w*) are evaluated; None takes all data. The
            subset's sampling error enters the standard error.
        spectrum: `llc.spectrum(posterior)`; where it has eigenvectors, every draw records the control variates that
            the zero-variance estimate needs, for two derivatives of the loss along a direction.
        chain_method: `"vectorized"` (vmap), `"sequential"`, `"parallel"` (chains spread over devices) or `"auto"`.
        keep_params: whether to keep the parameters of every draw, as `params.<path>`.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        DataTree with `posterior` (`loss`, `llc`), `sample_stats` (`potential`, `virial`, `grad_norm`, `distance`,
        `num_gradients` since the last draw, `diverging`, `acceptance_rate` where there is one, and `stein_curved` and
        `stein_flat`, x·A∇U − tr A, with a spectrum), the same for the warm-up, `constant_data`, and `pointwise`
        (moments of the loss differences, per example or piece) where the loss comes per example or from a subset. All
        losses in nats per example.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting.
    """
    draws, _ = run(
        key,
        posterior,
        sampler,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        spectrum=spectrum,
        chain_method=chain_method,
        keep_params=keep_params,
        progress=progress,
    )
    return draws


def run(
    key,
    posterior,
    sampler,
    *,
    num_chains,
    num_warmup,
    num_draws,
    thinning,
    batch_size,
    eval_size=None,
    spectrum=None,
    chain_method="auto",
    keep_params=False,
    progress=None,
) -> tuple[xr.DataTree, list[PyTree]]:
    """What `sample` returns, and the position where each chain ended."""
    given, posterior = posterior, _on_device(posterior)  # w* in float64 is sampled in JAX's precision
    check_settings(posterior, sampler, num_chains, num_warmup, num_draws, thinning, batch_size, eval_size, keep_params)
    method = choose_method(chain_method, posterior, num_chains)
    step_key, subset_key, init_key = jax.random.split(key, 3)

    num_data = posterior.num_data
    rows = None
    if eval_size is not None and eval_size < num_data:
        rows = np.sort(jax.device_get(jax.random.choice(subset_key, num_data, (eval_size,), replace=False)))
    init_loss = given.init_loss(rows)
    evaluation = _on_device(make_evaluation(posterior, rows))
    stein = make_stein(posterior, spectrum)
    baseline = _losses_at_center(posterior, evaluation)  # in the precision of the draws, which are compared with it

    warmup = math.ceil(num_warmup / thinning)
    size = max(1, math.ceil((warmup + num_draws) / _NUM_SEGMENTS))
    capacity = max(_CAPACITY, 2 ** math.ceil(math.log2(size)))  # few different ones: a program each
    settings = _Settings(None if batch_size == num_data else batch_size, capacity, keep_params)
    keys = jax.random.split(step_key, num_chains)
    init_keys = jax.random.split(init_key, num_chains)

    if method == "sequential":
        groups = [(keys[i], init_keys[i]) for i in range(num_chains)]
    else:
        if method == "parallel":
            keys, init_keys = _spread(keys, num_chains), _spread(init_keys, num_chains)
        groups = [(keys, init_keys)]
    vectorize = method != "sequential"
    adapts = sampler.full_batch  # the others start the same whatever the length: one program for all
    states = [_start(k, posterior, sampler, warmup * thinning if adapts else 0, vectorize) for _, k in groups]

    recorder = Recorder(warmup, num_draws)
    with tqdm(
        total=(warmup + num_draws) * num_chains,
        disable=None if progress is None else not progress,
        desc="sampling",
        unit="draw",
    ) as bar:
        for start, count in _segments(warmup, num_draws, size):
            parts = []
            for i, (group_keys, _) in enumerate(groups):
                span = np.int32(start), np.int32(count), np.int32(thinning)  # Python integers would retrace
                states[i], segment = _advance(
                    group_keys, posterior, sampler, evaluation, stein, baseline, states[i], span, settings, vectorize
                )
                part = jax.device_get(segment)
                parts.append(part if vectorize else jax.tree.map(lambda x: x[None], part))
                bar.update(count * (num_chains if vectorize else 1))
            recorder.add(start, count, jax.tree.map(lambda *x: np.concatenate(x), *parts))

    constants = {
        "init_loss": init_loss,
        "nbeta": float(posterior.nbeta),
        "gamma": float(posterior.gamma),  # pyright: ignore[reportArgumentType] - checked above
        "num_data": num_data,
        "num_params": posterior.num_params,
        "eval_size": num_data if rows is None else len(rows),
    }
    if stein is not None:
        constants["trace_curved"] = float(stein.trace)
    attributes = {
        "sampler": type(sampler).__name__,
        "settings": json.dumps(
            {
                "sampler": describe(sampler),
                "num_chains": num_chains,
                "num_warmup": num_warmup,
                "num_draws": num_draws,
                "thinning": thinning,
                "batch_size": num_data if batch_size is None else batch_size,
                "eval_size": constants["eval_size"],
                "chain_method": method,
            }
        ),
        "seed": json.dumps(np.asarray(jax.random.key_data(key)).tolist()),
        "versions": json.dumps({name: version(name) for name in ("llc", "jax", "numpyro", "arviz")}),
    }
    ends = [jax.device_get(state.position) for state in states]
    if vectorize:
        ends = [jax.tree.map(lambda leaf: leaf[i], ends[0]) for i in range(num_chains)]  # noqa: B023 - used at once
    return recorder.tree(constants, attributes, posterior), ends


class _Settings(NamedTuple):
    """Static settings of the compiled loop."""

    batch_size: int | None
    capacity: int  # draws that a segment can hold
    keep_params: bool


@eqx.filter_jit
def _start(keys, posterior, sampler, num_warmup, vectorize):
    def start(key):
        return sampler.init(key, posterior, num_warmup=num_warmup)

    return jax.vmap(start)(keys) if vectorize else start(keys)


@eqx.filter_jit
def _advance(keys, posterior, sampler, evaluation, stein, baseline, state, span, settings, vectorize):
    """`count` draws (settings.capacity at most) from number `start` on, with `span` = (start, count, thinning)."""
    start, count, thinning = span

    def chain(key, state):
        step_and_batch = tuple(jax.random.split(key))

        def take(i, loop):
            state, draws, moments = loop
            first = (start + i) * thinning
            state, info = _steps(step_and_batch, posterior, sampler, state, first, thinning, settings.batch_size)
            position = state.position
            offset = optax.tree.sub(position, posterior.position)
            if stein is None:
                losses, slopes, residuals = evaluation.losses(posterior, position), None, None
            else:
                directions = stein.directions(offset)
                losses, slopes = evaluation.losses_and_slopes(posterior, position, directions)
                slope = slopes @ jnp.asarray(evaluation.weights, slopes.dtype)
                residuals = stein.residuals(posterior, offset, directions, slope)
            difference = losses - baseline
            draw = Draw(
                delta=jnp.sum(jnp.asarray(evaluation.weights, difference.dtype) * difference),
                distance=optax.tree.norm(offset),
                info=info,
                stein=residuals,
                params=position if settings.keep_params else None,
            )
            draws = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), draws, draw)
            if moments is not None:
                update = Moments(difference, difference**2, jnp.exp(-difference), *(() if slopes is None else slopes))
                moments = jax.tree.map(jnp.add, moments, update)
            return state, draws, moments

        shapes = eqx.filter_eval_shape(
            lambda c: Draw(
                jnp.sum(baseline),
                jnp.sum(baseline),
                _info(jnp.sum(baseline)),
                None if stein is None else jnp.stack([jnp.sum(baseline)] * 2),
                c.position if settings.keep_params else None,
            ),
            state,
        )
        buffers = jax.tree.map(lambda s: jnp.zeros((settings.capacity, *s.shape), s.dtype), shapes)
        moments = None
        if evaluation.pointwise:
            moments = Moments(*[jnp.zeros_like(baseline)] * (3 if stein is None else 5))
        state, draws, moments = jax.lax.fori_loop(0, count, take, (state, buffers, moments))
        return state, (draws, moments)

    return jax.vmap(chain)(keys, state) if vectorize else chain(keys, state)


def _steps(step_and_batch, posterior, sampler, state, first, thinning, batch_size):
    """`thinning` steps from number `first` on: the new state, and the steps' Info: means, gradients counted."""
    step_key, batch_key = step_and_batch

    def one(j, loop):
        state, total = loop
        step = first + j
        batch = posterior.data
        if batch_size is not None:
            batch = minibatch(batch_key, step, posterior.data, posterior.num_data, batch_size)
        state, info = sampler.step(jax.random.fold_in(step_key, step), posterior, state, batch)
        mean = jax.tree.map(lambda t, x: t + x / thinning.astype(zero.dtype), total, info)
        num_gradients = total.num_gradients + info.num_gradients
        return state, mean._replace(num_gradients=num_gradients, diverging=total.diverging | info.diverging)

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(posterior.position)))
    state, info = jax.lax.fori_loop(0, thinning, one, (state, _info(zero)))
    return state, info


@eqx.filter_jit
def _losses_at_center(posterior, evaluation):
    return evaluation.losses(posterior, posterior.position)


def _info(value: Array) -> Info:
    return Info(value, value, value, value, value, diverging=jnp.zeros((), bool))


def _segments(warmup: int, num_draws: int, size: int) -> Iterator[tuple[int, int]]:
    """(first draw, number of draws) of every segment; none crosses the end of the warm-up."""
    for begin, end in ((0, warmup), (warmup, warmup + num_draws)):
        for start in range(begin, end, size):
            yield start, min(size, end - start)


def _on_device(tree: PyTree) -> PyTree:
    """`tree` with its arrays on the device, once instead of in every segment."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays), rest)


def _spread(keys: PRNGKeyArray, num_chains: int) -> PRNGKeyArray:
    mesh = jax.make_mesh((math.gcd(num_chains, jax.device_count()),), ("chain",), axis_types=(AxisType.Auto,))
    return jax.device_put(keys, NamedSharding(mesh, P("chain")))
