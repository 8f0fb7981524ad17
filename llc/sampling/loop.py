"""The compiled part of sampling: a segment of draws, of one chain or of all at once; nothing leaves the device."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from llc.sampling.draws import Draw, Moments
from llc.sampling.kernel import Info
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
def advance(keys, posterior, sampler, evaluation, stein, baseline, state, span, settings, vectorize):
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
            directions, slopes, residuals = None, None, None
            if stein is None:
                losses = evaluation.losses(posterior, position)
            else:
                directions = stein.directions(offset)
                losses, slopes = evaluation.losses_and_slopes(posterior, position, directions)
            difference = losses - baseline
            paired = difference
            if evaluation.center_grad is not None:
                along = jax.tree.map(lambda x: x[None], offset)
                if directions is not None:
                    along = jax.tree.map(lambda x, v: jnp.concatenate([x, v]), along, directions)
                excess = evaluation.excess_slopes(posterior, along)
                paired = difference - excess[0]
                slopes = None if slopes is None else slopes - excess[1:]
            weights = jnp.asarray(evaluation.weights, difference.dtype)
            if stein is not None and slopes is not None:
                residuals = stein.residuals(posterior, offset, directions, slopes @ weights)
            draw = Draw(
                delta=jnp.sum(weights * paired),
                distance=optax.tree.norm(offset),
                info=info,
                stein=residuals,
                params=position if settings.keep_params else None,
            )
            draws = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), draws, draw)
            if moments is not None:
                update = Moments(difference, difference**2, jnp.exp(-difference), *(() if slopes is None else slopes))
                if evaluation.center_grad is not None:
                    update = update._replace(paired=paired, paired_second=paired**2)
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
            zeros = jnp.zeros_like(baseline)
            moments = Moments(*[zeros] * (3 if stein is None else 5))
            if evaluation.center_grad is not None:
                moments = moments._replace(paired=zeros, paired_second=zeros)
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
def losses_at_center(posterior, evaluation):
    """Losses of w*, in the precision of the draws."""
    return evaluation.losses(posterior, posterior.position)


def _info(value: Array) -> Info:
    return Info(value, value, value, value, value, diverging=jnp.zeros((), bool))
