"""The compiled part of sampling: a segment of draws, of one chain or of all at once; nothing leaves the device."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from llc.sampling.draws import Draw, Moments
from llc.sampling.kernel import Info, center_gradient
from llc.sampling.minibatch import minibatch


class Settings(NamedTuple):
    """Static settings of the loop."""

    batch_size: int | None
    capacity: int  # draws that a segment can hold
    keep_params: bool


@eqx.filter_jit
def start(keys, posterior, sampler, num_warmup, vectorize):
    """States of chains at w*."""

    def initial(key):
        return sampler.init(key, posterior, num_warmup=num_warmup)

    return jax.vmap(initial)(keys) if vectorize else initial(keys)


@eqx.filter_jit
def run_segment(keys, posterior, sampler, evaluation, stein, baseline, state, span, settings, vectorize):
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
            seen = evaluate_draw(posterior, evaluation, stein, baseline, position, offset)
            draw = Draw(
                delta=seen.delta,
                distance=optax.tree.norm(offset),
                info=info,
                stein=seen.residuals,
                params=position if settings.keep_params else None,
            )
            draws = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), draws, draw)
            if moments is not None:
                moments = jax.tree.map(jnp.add, moments, seen.moments)
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
            moments = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                eqx.filter_eval_shape(
                    lambda c: evaluate_draw(posterior, evaluation, stein, baseline, c.position, c.position).moments,
                    state,
                ),
            )
        state, draws, moments = jax.lax.fori_loop(0, count, take, (state, buffers, moments))
        return state, (draws, moments)

    return jax.vmap(chain)(keys, state) if vectorize else chain(keys, state)


class Evaluated(NamedTuple):
    """L(w) − L(w*), x·A∇U − tr A, and what is summed up for every unit."""

    delta: Array
    residuals: Array | None
    moments: Moments


def evaluate_draw(posterior, evaluation, stein, baseline, position, offset):
    """One draw on the rows of the evaluation."""
    weights = jnp.asarray(evaluation.weights, baseline.dtype)
    if stein is None:
        losses, slopes, residuals = evaluation.losses(posterior, position), None, None
    elif evaluation.uses_all_data:  # one gradient serves all directions
        losses, gradient = evaluation.losses_and_gradient(posterior, position)
        directions = stein.directions(offset)
        along = jax.vmap(lambda direction: optax.tree.vdot(gradient, direction))(directions)
        slopes, residuals = None, stein.residuals(posterior, offset, directions, along)
    else:
        directions = stein.directions(offset)
        losses, slopes = evaluation.losses_and_slopes(posterior, position, directions)
        if evaluation.center_grad is not None:
            slopes = slopes - evaluation.excess_slopes(posterior, directions)
        residuals = stein.residuals(posterior, offset, directions, slopes @ weights)
    difference = losses - baseline
    moments = Moments(difference, difference**2, jnp.exp(-difference), *(() if slopes is None else slopes))
    if evaluation.center_grad is None:
        return Evaluated(jnp.sum(weights * difference), residuals, moments)
    paired = difference - evaluation.excess_slopes(posterior, jax.tree.map(lambda x: x[None], offset))[0]
    moments = moments._replace(paired=paired, paired_second=paired**2)
    return Evaluated(jnp.sum(weights * paired), residuals, moments)


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
def losses_at_center(posterior, evaluation):
    """Losses of w*, in the precision of the draws."""
    return evaluation.losses(posterior, posterior.position)


@eqx.filter_jit
def slope_at_center(posterior, batch_size):
    """∇L(w*) over all the data, in the precision of the draws; None where the loss has no derivative along x."""
    return center_gradient(posterior, batch_size) if posterior.supports_jvp else None


def _info(value: Array) -> Info:
    return Info(value, value, value, value, value, diverging=jnp.zeros((), bool))
