"""The compiled part of sampling: a segment of draws, of one chain or of all at once; nothing leaves the device."""

import math
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
from llc.sampling.minibatch import Window, independent_minibatch, minibatch
from llc.sampling.observables import differences, kept_draws, start_comoments
from llc.sampling.placement import over_chains, split_rows
from llc.sampling.run_lengths import RunLengths
from llc.sampling.step_energies import StepEnergies

_CAPACITY = 64  # draws that a segment can hold, at least, so that short and long runs share a program


class LoopSettings(NamedTuple):
    """Static settings of the loop.

    Attributes:
        batch_size: rows of a minibatch; None takes all the data.
        capacity: draws that a segment can hold.
        keep_params: whether the parameters of every draw are recorded.
        vectorize: whether all chains run side by side, so that keys and states have a leading axis.
        mesh: over which they are spread; None is one device.
        independent_batches: whether a minibatch is drawn without regard to those before it, not within an epoch.
    """

    batch_size: int | None
    capacity: int
    keep_params: bool
    vectorize: bool
    mesh: Mesh | None = None
    independent_batches: bool = False


def loop_settings(
    lengths: RunLengths,
    num_data: int,
    most_draws: int,
    *,
    method: str,
    large: bool,
    keep_params: bool,
    mesh: Mesh | None,
) -> LoopSettings:
    """The settings of a run's loop, few different ones, since each is a program of its own.

    Args:
        lengths: of the run.
        num_data: n; a batch of so many rows is all the data.
        most_draws: of a segment.
        method: how chains run; all but "sequential" ones are side by side.
        large: whether a draw is so large that a segment should hold no more of them than it takes.
        keep_params: as of `sample`.
        mesh: over which chains are spread; None is one device.
    """
    return LoopSettings(
        batch_size=None if lengths.batch_size == num_data else lengths.batch_size,
        capacity=max(1 if large else _CAPACITY, 2 ** math.ceil(math.log2(most_draws))),
        keep_params=keep_params,
        vectorize=method != "sequential",
        mesh=mesh,
        independent_batches=lengths.step_energies,
    )


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
            stretch = _Stretch(step_key, source, first, span.thinning)
            state, seen = _steps(stretch, posterior, sampler, measure.step_energies, state, settings)
            draw, moments = _record(posterior, measure, state.position, seen, moments, keep_params=settings.keep_params)
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
    posterior: LocalPosterior, measure: Measure, position: PyTree, steps: "_Seen", sums: Sums, *, keep_params: bool
) -> tuple[Draw, Sums]:
    """A draw, and the sums with it."""
    offset = optax.tree.sub(position, posterior.position)
    seen = evaluate_draw(posterior, measure, position, offset)
    params = position if keep_params else None
    values = differences(measure.observables, posterior.params_at(position)) if measure.observables else {}
    kept = kept_draws(measure.observables, values)
    draw = Draw(seen.delta, optax.tree.norm(offset), steps.info, seen.residuals, params, kept, steps.delta)
    units = None if sums.units is None else jax.tree.map(jnp.add, sums.units, seen.moments)
    return draw, Sums(units, None if sums.observables is None else with_draw(sums.observables, values, seen.delta))


def _empty_draws(measure: Measure, state: Any, settings: LoopSettings) -> Draw:
    """Zeros for all draws that a segment can hold."""

    def one(state: Any) -> Draw:
        zero = jnp.sum(measure.baseline)
        residuals = None if measure.control_variates is None else jnp.stack([zero, zero])
        kept = kept_draws(measure.observables, {name: one.center for name, one in measure.observables.items()})
        params = state.position if settings.keep_params else None
        of_steps = None if measure.step_energies is None else zero
        return Draw(zero, zero, _equal_info(zero), residuals, params, kept, of_steps)

    shapes = eqx.filter_eval_shape(one, state)
    return jax.tree.map(lambda s: jnp.zeros((settings.capacity, *s.shape), s.dtype), shapes)


def _empty_moments(posterior: LocalPosterior, measure: Measure, state: Any) -> Moments | None:
    """Zeros for the sums of every unit; None where there are none to keep."""
    if not measure.evaluation.pointwise:
        return None
    shapes = eqx.filter_eval_shape(lambda s: evaluate_draw(posterior, measure, s.position, s.position).moments, state)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


class _Stretch(NamedTuple):
    """The steps between two draws: `num_steps` of them from number `first` on, and where a chain has its batches from.

    Attributes:
        step_key: of the steps.
        source: the key by which rows are drawn, or the batches of a stream.
        first: number of the first step.
        num_steps: how many there are.
    """

    step_key: PRNGKeyArray
    source: PRNGKeyArray | Window
    first: Int[ArrayLike, ""]
    num_steps: Int[ArrayLike, ""]


class _Seen(NamedTuple):
    """Means over the steps of a stretch: of their Info, gradients counted, and of L_B(w) − L_B(w*) on their batches."""

    info: Info
    delta: Float[Array, ""] | None


def _steps(
    stretch: _Stretch,
    posterior: LocalPosterior,
    sampler: Sampler,
    energies: StepEnergies | None,
    state: Any,
    settings: LoopSettings,
) -> tuple[Any, _Seen]:
    """The steps of a stretch: the new state, and what was seen."""

    def one(j: Array, loop: tuple[Any, _Seen]) -> tuple[Any, _Seen]:
        state, (total, delta) = loop
        step = j + jnp.asarray(stretch.first)
        batch = _batch(stretch.source, step, posterior, energies, settings)
        state, info = sampler.step(jax.random.fold_in(stretch.step_key, step), posterior, state, batch[0])
        count = jnp.asarray(stretch.num_steps).astype(zero.dtype)
        if energies is not None and delta is not None:
            if info.loss is None:
                raise ValueError("step_energies needs Info.loss of a sampler that says has_batch_loss, got None.")
            delta = delta + (info.loss - energies.center_loss(posterior, batch)).astype(zero.dtype) / count
        info = info._replace(loss=None)
        mean = jax.tree.map(lambda t, x: t + x / count, total, info)
        num_gradients = total.num_gradients + info.num_gradients
        mean = mean._replace(num_gradients=num_gradients, diverging=total.diverging | info.diverging)
        return state, _Seen(mean, delta)

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(posterior.position)))
    seen = _Seen(_equal_info(zero), None if energies is None else zero)
    return jax.lax.fori_loop(0, stretch.num_steps, one, (state, seen))


def _batch(
    source: PRNGKeyArray | Window,
    step: Int[Array, ""],
    posterior: LocalPosterior,
    energies: StepEnergies | None,
    settings: LoopSettings,
) -> tuple[PyTree, Array | None]:
    """The rows of a step, with the losses of w* on them where they are known."""
    if isinstance(source, Window):
        return source.of(step), None
    data = posterior.data, None if energies is None else energies.center_losses
    if settings.batch_size is None:
        return data
    draw = independent_minibatch if settings.independent_batches else minibatch
    return split_rows(draw(source, step, data, posterior.num_data, settings.batch_size), settings.mesh)


def _equal_info(value: Float[Array, ""]) -> Info:
    return Info(value, value, value, value, value, diverging=jnp.zeros((), bool))
