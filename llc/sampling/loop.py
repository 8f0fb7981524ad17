"""The compiled part of sampling: a segment of draws, of one chain or of all at once; nothing leaves the device."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.comoments import with_draw
from llc.sampling.draws import Draw, Moments, Segment, Sums
from llc.sampling.kernel import Info, Sampler
from llc.sampling.measure import Measure, evaluate_draw
from llc.sampling.minibatch import Window, minibatch
from llc.sampling.observables import differences, kept_draws, start_comoments
from llc.sampling.placement import over_chains, split_rows


class LoopSettings(NamedTuple):
    """Static settings of the loop.

    Attributes:
        batch_size: rows of a minibatch; None takes all the data.
        capacity: draws that a segment can hold.
        keep_params: whether the parameters of every draw are recorded.
        vectorize: whether all chains run side by side, so that keys and states have a leading axis.
        mesh: over which they are spread; None is one device.
    """

    batch_size: int | None
    capacity: int
    keep_params: bool
    vectorize: bool
    mesh: Mesh | None = None


class Span(NamedTuple):
    """The draws of a segment: `num_draws` of them from number `start` on, `thinning` steps apart.

    The sums over the units' losses go on from those of the segment before, or from zero if they are `fresh`: then they
    do not depend, to the last bit, on how a run is cut into segments.
    """

    start: Int[ArrayLike, ""]
    num_draws: Int[ArrayLike, ""]
    thinning: Int[ArrayLike, ""]
    fresh: Bool[ArrayLike, ""]


@eqx.filter_jit
def start_chains(
    keys: Array, posterior: LocalPosterior, sampler: Sampler, num_warmup: int, settings: LoopSettings
) -> Any:
    """States of chains at w*."""

    def initial(key: PRNGKeyArray) -> Any:
        return sampler.init(key, posterior, num_warmup=num_warmup)

    return over_chains(initial, vectorize=settings.vectorize, mesh=settings.mesh)(keys)


@eqx.filter_jit
def start_moments(posterior: LocalPosterior, measure: Measure, states: Any, settings: LoopSettings) -> Sums:
    """Zeros for the sums of every unit and observable, in every chain."""

    def initial(state: Any) -> Sums:
        zero = jnp.zeros((), measure.baseline.dtype)
        return Sums(_empty_moments(posterior, measure, state), start_comoments(measure.observables, zero))

    return over_chains(initial, vectorize=settings.vectorize, mesh=settings.mesh)(states)


@eqx.filter_jit
def run_segment(
    keys: Array,
    posterior: LocalPosterior,
    sampler: Sampler,
    measure: Measure,
    states: Any,
    moments: Sums,
    span: Span,
    settings: LoopSettings,
    window: Window | None = None,
) -> tuple[Any, Segment]:
    """The draws of `span` (settings.capacity at most): the chains' new states, and what is recorded.

    Minibatches are those of `window`, which has all steps of the span, or rows of the posterior's data.
    """

    def chain(key: PRNGKeyArray, state: Any, before: Sums, batches: PyTree) -> tuple[Any, Segment]:
        step_key, batch_key = jax.random.split(key)
        source = batch_key if window is None else Window(batches, window.first)

        def take(i: Array, loop: tuple[Any, Draw, Sums]) -> tuple[Any, Draw, Sums]:
            state, draws, moments = loop
            first = (span.start + i) * span.thinning
            state, info = _steps(step_key, source, posterior, sampler, state, first, span.thinning, settings)
            draw, moments = _record(posterior, measure, state.position, info, moments, keep_params=settings.keep_params)
            draws = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), draws, draw)
            return state, draws, moments

        start = jax.tree.map(lambda x: jnp.where(span.fresh, jnp.zeros_like(x), x), before)
        empty = _empty_draws(measure, state, settings)
        state, draws, moments = jax.lax.fori_loop(0, span.num_draws, take, (state, empty, start))
        return state, Segment(draws, moments)

    batches = None if window is None else window.batches
    return over_chains(chain, vectorize=settings.vectorize, mesh=settings.mesh)(keys, states, moments, batches)


class Kept(NamedTuple):
    """What `run_segment_in_place` leaves as it was: all arguments of `run_segment` but states and moments."""

    keys: Array
    posterior: LocalPosterior
    sampler: Sampler
    measure: Measure
    span: Span
    settings: LoopSettings
    window: Window | None = None


@eqx.filter_jit(donate="all-except-first")
def run_segment_in_place(kept: Kept, states: Any, moments: Sums) -> tuple[Any, Segment]:
    """As `run_segment`, in the memory of `states` and `moments`, which are gone afterwards."""
    keys, posterior, sampler, measure, span, settings, window = kept
    return run_segment(keys, posterior, sampler, measure, states, moments, span, settings, window)


def _record(
    posterior: LocalPosterior, measure: Measure, position: PyTree, info: Info, sums: Sums, *, keep_params: bool
) -> tuple[Draw, Sums]:
    """A draw, and the sums with it."""
    offset = optax.tree.sub(position, posterior.position)
    seen = evaluate_draw(posterior, measure, position, offset)
    params = position if keep_params else None
    values = differences(measure.observables, posterior.params_at(position)) if measure.observables else {}
    kept = kept_draws(measure.observables, values)
    draw = Draw(seen.delta, optax.tree.norm(offset), info, seen.residuals, params, kept)
    units = None if sums.units is None else jax.tree.map(jnp.add, sums.units, seen.moments)
    return draw, Sums(units, None if sums.observables is None else with_draw(sums.observables, values, seen.delta))


def _empty_draws(measure: Measure, state: Any, settings: LoopSettings) -> Draw:
    """Zeros for all draws that a segment can hold."""

    def one(state: Any) -> Draw:
        zero = jnp.sum(measure.baseline)
        residuals = None if measure.control_variates is None else jnp.stack([zero, zero])
        kept = kept_draws(measure.observables, {name: one.center for name, one in measure.observables.items()})
        params = state.position if settings.keep_params else None
        return Draw(zero, zero, _equal_info(zero), residuals, params, kept)

    shapes = eqx.filter_eval_shape(one, state)
    return jax.tree.map(lambda s: jnp.zeros((settings.capacity, *s.shape), s.dtype), shapes)


def _empty_moments(posterior: LocalPosterior, measure: Measure, state: Any) -> Moments | None:
    """Zeros for the sums of every unit; None where there are none to keep."""
    if not measure.evaluation.pointwise:
        return None
    shapes = eqx.filter_eval_shape(lambda s: evaluate_draw(posterior, measure, s.position, s.position).moments, state)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _steps(
    step_key: PRNGKeyArray,
    source: PRNGKeyArray | Window,
    posterior: LocalPosterior,
    sampler: Sampler,
    state: Any,
    first: Int[ArrayLike, ""],
    thinning: Int[ArrayLike, ""],
    settings: LoopSettings,
) -> tuple[Any, Info]:
    """`thinning` steps from number `first` on: the new state, and the steps' Info: means, gradients counted."""

    def one(j: Array, loop: tuple[Any, Info]) -> tuple[Any, Info]:
        state, total = loop
        step = j + jnp.asarray(first)
        batch = posterior.data
        if isinstance(source, Window):
            batch = source.of(step)
        elif settings.batch_size is not None:
            batch = minibatch(source, step, posterior.data, posterior.num_data, settings.batch_size)
            batch = split_rows(batch, settings.mesh)
        state, info = sampler.step(jax.random.fold_in(step_key, step), posterior, state, batch)
        mean = jax.tree.map(lambda t, x: t + x / jnp.asarray(thinning).astype(zero.dtype), total, info)
        num_gradients = total.num_gradients + info.num_gradients
        return state, mean._replace(num_gradients=num_gradients, diverging=total.diverging | info.diverging)

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(posterior.position)))
    state, info = jax.lax.fori_loop(0, thinning, one, (state, _equal_info(zero)))
    return state, info


def _equal_info(value: Float[Array, ""]) -> Info:
    return Info(value, value, value, value, value, diverging=jnp.zeros((), bool))
