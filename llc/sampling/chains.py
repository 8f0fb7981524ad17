"""The one sampling loop: chains of any `Sampler`, from w* to draws in ArviZ's schema.

Chains run in compiled segments of about a second; between two segments the host reads the finished draws, moves the
progress bar and answers Ctrl-C, inside of one nothing leaves the device. No number depends on where segments end. A
draw is taken every `thinning` steps; its loss is evaluated on the full data (or one fixed subset), as the difference to
the loss of w* on the same rows:

    llc = nβ (L(w) − L(w*)).
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.sampling.dispatch import run_at_once
from llc.sampling.draws import Recorder, Segment, Sums, describe
from llc.sampling.kernel import Sampler
from llc.sampling.loop import LoopSettings, Span, run_segment, start_chains, start_moments
from llc.sampling.measure import make_measure
from llc.sampling.observable import Observable
from llc.sampling.observables import prepare_observables
from llc.sampling.pace import Pace
from llc.sampling.placement import choose_method, on_device, place_keys, place_posterior
from llc.sampling.rounding import LossRounding, params_rounding
from llc.sampling.run_lengths import RunLengths
from llc.sampling.standing import Interrupted, Standing
from llc.sampling.validation import check_key, check_memory, check_settings

_CAPACITY = 64  # draws that a segment can hold, at least, so that short and long runs share a program
_SMALL = 1000  # numbers of observables in a draw, above which a segment holds no more draws than it has
_NUM_SEGMENTS = 40  # progress steps of a run, at least; each costs one dispatch and one read of its draws


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
    spectrum: Spectrum | None = None,
    chain_method: str = "auto",
    keep_params: bool = False,
    observables: Mapping[str, Callable[..., Any] | Observable] | None = None,
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
        eval_size: rows of one fixed random subset on which L(w) and L(w*) are evaluated, with the slope at w* as a
            control variate; None takes all data. The subset's sampling error enters the standard error.
        spectrum: `llc.spectrum(posterior)`; where it has eigenvectors, every draw records the control variates that
            the zero-variance estimate needs, for two derivatives of the loss along a direction.
        chain_method: `"vectorized"` (vmap), `"sequential"`, `"parallel"` (chains spread over devices) or `"auto"`.
        keep_params: whether to keep the parameters of every draw, as `params.<path>`.
        observables: functions by name, `fn(params)`, `fn(params, batch)` of the posterior's data, or `llc.Observable`
            with data of its own; see the group `observables` below. Each costs an evaluation a draw.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        DataTree with `posterior` (`loss`, `llc`), `sample_stats` (`potential`, `virial`, `grad_norm`, `distance`,
        `num_gradients` since the last draw, `diverging`, `acceptance_rate` where there is one, and `stein_curved` and
        `stein_flat`, x·A∇U − tr A, with a spectrum), the same for the warm-up, `constant_data`, and `pointwise`
        (moments of the loss differences, per example or piece) where the loss comes per example or from a subset. All
        losses in nats per example. With `observables` also the group of that name: φ(w) − φ(w*) of each, in its own
        unit and with its own dimensions after (chain, draw), or its moments in blocks of draws (`<name>.mean`,
        `<name>.variance`, `<name>.cov.loss`); φ(w*) is `init_<name>` in `constant_data`.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting.
        Interrupted: on Ctrl-C, a KeyboardInterrupt whose `partial` is the DataTree of the draws so far.
    """
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    lengths = RunLengths(
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
    )
    chains = Chains(
        key,
        posterior,
        sampler,
        lengths,
        spectrum=spectrum,
        chain_method=chain_method,
        keep_params=keep_params,
        observables=observables,
    )
    chains.draw(num_draws, progress=progress)
    return chains.tree()


@contextlib.contextmanager
def _full_products() -> Iterator[None]:
    """Matrix products of float32 in float32, in `loss_fn` too, unless the user has set JAX's default.

    JAX's own default is TF32 on a GPU, of 10 bits: too few for the difference of two losses that are nearly the same.
    Of a linear model of 512 parameters at nβ = 10⁷ it made λ̂ 298.0 ± 1.1 for 253.4, and 253.4 in float32 (on an H200).
    """
    chosen = jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(chosen or "highest"), lenient():
        yield


class Chains:
    """Chains under way: `draw` goes on where they stand, `tree` gives what they have drawn so far.

    An interrupted `draw` raises `Interrupted` and loses the segment that ran, no more; another one goes on.

    Args:
        key: `jax.random.key(seed)`.
        posterior: the density; its `gamma` must be set.
        sampler: as of `sample`.
        lengths: as of `sample`; `num_draws` is how many `draw` is asked for at first.
        spectrum: as of `sample`.
        chain_method: as of `sample`.
        keep_params: as of `sample`.
        observables: as of `sample`.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting.
    """

    @_full_products()
    def __init__(
        self,
        key: PRNGKeyArray,
        posterior: LocalPosterior,
        sampler: Sampler,
        lengths: RunLengths,
        *,
        spectrum: Spectrum | None = None,
        chain_method: str = "auto",
        keep_params: bool = False,
        observables: Mapping[str, Callable[..., Any] | Observable] | None = None,
    ):
        check_key(key)
        self.posterior = on_device(posterior)  # w* in float64 is sampled in JAX's precision
        check_settings(self.posterior, sampler, lengths, keep_params=keep_params)
        check_memory(self.posterior, lengths, keep_params=keep_params)
        self.given = posterior  # w* in its own precision
        self.sampler, self.lengths = sampler, lengths
        self.method = choose_method(chain_method, posterior, lengths.num_chains)
        self.posterior = place_posterior(self.posterior, lengths.num_chains, self.method)
        self.seed = np.asarray(jax.random.key_data(key)).tolist()
        step_key, subset_key, init_key = jax.random.split(key, 3)
        recorded = prepare_observables(observables, self.posterior, lengths)
        kept = sum(one.center.size for one in recorded.values() if not one.moments)
        self.measure = make_measure(subset_key, self.posterior, lengths, spectrum, recorded)
        self.rounding = LossRounding(self.posterior, self.measure)

        self.warmup = lengths.num_warmup_draws
        self.size = max(1, math.ceil((self.warmup + lengths.num_draws) / _NUM_SEGMENTS))
        self.settings = LoopSettings(
            batch_size=None if lengths.batch_size == posterior.num_data else lengths.batch_size,
            capacity=max(
                1 if keep_params or kept > _SMALL else _CAPACITY, 2 ** math.ceil(math.log2(self.size))
            ),  # few different ones: a program each
            keep_params=keep_params,
            vectorize=self.method != "sequential",
        )
        self.keys = place_keys(step_key, lengths.num_chains, self.method)
        # A sampler that does not adapt starts the same whatever the length: one program for all.
        adaptation = self.warmup * lengths.thinning if sampler.adapts_in_warmup else 0
        states = [
            start_chains(keys, self.posterior, sampler, adaptation, vectorize=self.settings.vectorize)
            for keys in place_keys(init_key, lengths.num_chains, self.method)
        ]
        moments = [
            start_moments(self.posterior, self.measure, state, vectorize=self.settings.vectorize) for state in states
        ]
        self._standing = Standing(states, moments, Recorder(self.warmup, lengths.num_draws), 0)
        self._pace = Pace(self.size)

    @property
    def states(self) -> list[Any]:
        """The states of the chains, one for each compiled program."""
        return self._standing.states

    @property
    def moments(self) -> list[Sums]:
        """The sums of the block under way, one for each compiled program."""
        return self._standing.moments

    @property
    def done(self) -> int:
        """Draws so far of every chain, of the warm-up too."""
        return self._standing.done

    @_full_products()
    def draw(self, num_draws: int, *, progress: bool | None = None) -> None:
        """`num_draws` more draws of every chain; the first ones after the warm-up.

        Raises:
            Interrupted: on Ctrl-C, within about a second, or a draw where that takes longer.
        """
        end = max(self.done, self.warmup) + num_draws
        self._standing.recorder.reserve(end)
        try:
            with tqdm(
                total=(end - self.done) * self.lengths.num_chains,
                disable=None if progress is None else not progress,
                desc="sampling",
                unit="draw",
            ) as bar:
                while self.done < end:
                    block = self._standing.recorder.block_end(self.done)
                    count = min(self._pace.next_size(), min(block, end) - self.done)
                    self._advance(count)
                    bar.update(count * self.lengths.num_chains)
        except KeyboardInterrupt:
            raise Interrupted(self._partial) from None

    def _advance(self, count: int) -> None:
        """`count` more draws of every chain, all or none."""
        _, moments, recorder, first = standing = self._standing
        # Python integers would be another program each.
        lengths = np.int32(first), np.int32(count), np.int32(self.lengths.thinning)
        span = Span(*lengths, fresh=np.bool_(recorder.starts_block(first)))
        begin = time.monotonic()
        # One after the other: two programs at once were slower (.75 times the steps a second of an MLP on busy cores).
        segment = functools.partial(self._segment, standing, span=span)
        parts = run_at_once(segment, range(len(self.keys)), num_threads=1)
        states, moments, seen = (list(column) for column in zip(*parts, strict=True))
        recorder = recorder.add(first, count, seen)
        self._standing = Standing(states, moments, recorder, first + count)
        self._pace.saw(count, time.monotonic() - begin)

    def _segment(self, standing: Standing, part: int, span: Span) -> tuple[Any, Sums, Segment]:
        """Moves the chains of one program on, and takes what they recorded off the device, chains first."""
        state, segment = run_segment(
            self.keys[part],
            self.posterior,
            self.sampler,
            self.measure,
            standing.states[part],
            standing.moments[part],
            span,
            self.settings,
        )
        seen = jax.device_get(segment)
        return state, segment.moments, seen if self.settings.vectorize else jax.tree.map(lambda x: x[None], seen)

    @property
    def positions(self) -> list[PyTree]:
        """Where each chain stands."""
        ends = [jax.device_get(state.position) for state in self.states]
        if not self.settings.vectorize:
            return ends
        return [jax.tree.map(lambda leaf: leaf[i], ends[0]) for i in range(self.lengths.num_chains)]  # noqa: B023

    @property
    def last_deltas(self) -> Float[np.ndarray, "chain"]:
        """L(w) − L(w*) of the last draw of every chain, in float64."""
        return self._standing.recorder.last_deltas.astype(np.float64)

    def tree(self) -> xr.DataTree:
        """All draws so far, as `sample` returns them.

        Raises:
            ValueError: if there are none after the warm-up.
        """
        if self.done <= self.warmup:
            raise ValueError(
                f"tree needs draws after the warm-up, got {self.done} of its {self.warmup}; call draw first."
            )
        self.rounding.add(self.positions, self._standing.recorder.last_deltas)
        attributes = {
            "sampler": type(self.sampler).__name__,
            "settings": json.dumps(self._settings()),
            "seed": json.dumps(self.seed),
            "versions": json.dumps({name: version(name) for name in ("llc", "jax", "numpyro", "arviz")}),
        }
        weights = np.asarray(self.measure.evaluation.weights)
        observables = self.measure.observables
        return self._standing.recorder.tree(self._constants(), attributes, self.posterior, weights, observables)

    def _partial(self) -> xr.DataTree | None:
        return self.tree() if self.done > self.warmup else None

    @property
    def _eval_size(self) -> int:
        num_data, size = self.posterior.num_data, self.lengths.eval_size
        return num_data if size is None else size

    def _constants(self) -> dict[str, float]:
        """The scale, the sizes and L(w*) over all data: a draw's loss is this and its difference on the rows."""
        constants = {
            "init_loss": self.init_loss,
            "nbeta": self.posterior.scale.nbeta,
            "gamma": self.posterior.scale.gamma,
            "num_data": self.posterior.num_data,
            "num_params": self.given.num_params,
            "eval_size": self._eval_size,
            "loss_rounding": self.rounding.error,
            "params_rounding": params_rounding(self.posterior),
        }
        variates = self.measure.control_variates
        return constants if variates is None else constants | {"trace_curved": float(variates.trace)}

    def _settings(self) -> dict[str, object]:
        """How the draws were made, as plain data."""
        lengths = self.lengths
        recorded = {name: one.fn.fingerprint for name, one in self.measure.observables.items()}
        settings: dict[str, object] = {
            "sampler": describe(self.sampler),
            "num_chains": lengths.num_chains,
            "num_warmup": lengths.num_warmup,
            "thinning": lengths.thinning,
            "batch_size": self.posterior.num_data if lengths.batch_size is None else lengths.batch_size,
            "eval_size": self._eval_size,
            "chain_method": self.method,
            "num_draws": self.done - self.warmup,
        }
        return settings | {"observables": recorded} if recorded else settings

    @functools.cached_property
    def init_loss(self) -> float:
        """L(w*), in float64; pilots need none."""
        return self.given.init_loss()
