"""The one sampling loop: chains of any `Sampler`, from w* to draws in ArviZ's schema.

Chains run in compiled segments of about a second; between two segments the host reads the finished draws, moves the
progress bar and answers Ctrl-C, inside of one nothing leaves the device. No number depends on where segments end. A
draw is taken every `thinning` steps; its loss is evaluated on the full data (or one fixed subset), as the difference to
the loss of w* on the same rows:

    llc = nβ (L(w) − L(w*)).
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.analysis.segments import join
from llc.analysis.stored_run import StoredRun
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.stream import Stream
from llc.sampling.checkpoint import Keeper, deciding_settings, terminated_as_interrupted
from llc.sampling.description import Description, full_products
from llc.sampling.dispatch import Workers
from llc.sampling.draws import Recorder, Sums
from llc.sampling.gradient_pieces import in_fitting_pieces
from llc.sampling.kernel import Sampler
from llc.sampling.loop import loop_settings
from llc.sampling.measure import make_measure
from llc.sampling.observable import Observable
from llc.sampling.observables import prepare_observables
from llc.sampling.pace import Pace
from llc.sampling.placement import agreed, choose_devices, place_keys, place_posterior, programs_at_once, to_host
from llc.sampling.programs import Programs
from llc.sampling.rounding import LossRounding
from llc.sampling.run_lengths import RunLengths
from llc.sampling.standing import Interrupted, NotStored, held_back
from llc.sampling.validation import check_key, ready_to_sample
from llc.sampling.windows import Windows, check_stream

_SMALL = 1000  # numbers of observables in a draw, above which a segment holds no more draws than it has
_NUM_SEGMENTS = 40  # progress steps of a run, at least; each costs one dispatch and one read of its draws


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
        store: where the run is kept; None keeps nothing.
        mesh: as of `sample`.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting.
    """

    @full_products()
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
        store: StoredRun | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        check_key(key)
        require_differentiable(posterior)
        self.sampler, self.lengths = sampler, check_stream(posterior, sampler, lengths, mesh)
        ready = ready_to_sample(posterior, sampler, self.lengths, keep_params=keep_params)
        mesh, self.method = choose_devices(mesh, chain_method, posterior, self.lengths)
        ready = in_fitting_pieces(ready, self.lengths, method=self.method)
        self.posterior = place_posterior(ready, mesh, spread_rows=self.lengths.batch_size is None)
        step_key, subset_key, init_key = jax.random.split(key, 3)
        recorded = prepare_observables(observables, self.posterior, self.lengths)
        self.measure = make_measure(subset_key, self.posterior, self.lengths, spectrum, recorded)
        self.rounding = LossRounding(self.posterior, self.measure)
        self._windows = self._stream_windows(key, posterior.stream, mesh)
        parts = posterior, self.posterior, sampler, self.lengths, self.measure, self.rounding
        self._description = Description(*parts, method=self.method, key=key, windows=self._windows)
        self.warmup = self.lengths.num_warmup_draws
        self._pace = Pace(max(1, math.ceil((self.warmup + self.lengths.num_draws) / _NUM_SEGMENTS)))
        large = keep_params or sum(one.center.size for one in recorded.values() if not one.moments) > _SMALL
        limit = self._pace.limit
        self.settings = loop_settings(
            self.lengths, posterior.num_data, limit, method=self.method, large=large, keep_params=keep_params, mesh=mesh
        )
        self.keys = place_keys(step_key, self.lengths.num_chains, self.method, mesh)
        self.workers = Workers(programs_at_once(self.method, self.posterior, self.lengths.num_chains))
        self._programs = Programs(self.keys, self.posterior, sampler, self.measure, self.settings)
        adaptation = self.warmup * self.lengths.thinning if sampler.adapts_in_warmup else 0  # else one program for all
        init_keys = place_keys(init_key, self.lengths.num_chains, self.method, mesh)
        self._standing = self._programs.start(init_keys, adaptation, Recorder(self.warmup, self.lengths.num_draws))
        self._measured = 0  # draws after which rounding was measured
        self._keeper: Keeper | None = None
        if store is not None:
            deciding = {"spectrum": spectrum, "method": self.method, "keep_params": keep_params}
            settings = deciding_settings(key, posterior, sampler, self.lengths, observables=recorded, **deciding)
            self._resume(Keeper(store, settings))

    def _stream_windows(self, key: PRNGKeyArray, stream: Stream | None, mesh: Mesh | None) -> Windows | None:
        """Minibatches of data that are a stream; None of arrays."""
        if stream is None:
            return None
        apart = self.method == "sequential"
        return Windows(key, stream, self.lengths, self.posterior.data, mesh=mesh, apart=apart)

    def _resume(self, keeper: Keeper) -> None:
        """Goes on from the last checkpoint of a store, if it has one."""
        self._keeper = keeper
        self._standing = keeper.resumed(self._standing, vectorize=self.settings.vectorize)
        self.rounding.squares = list(keeper.manifest.squares)
        self._measured = keeper.manifest.measured

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

    @property
    def num_drawn(self) -> int:
        """Draws so far of every chain, after the warm-up."""
        return max(self.done - self.warmup, 0)

    @property
    def seconds_per_draw(self) -> float:
        """Of all chains, in the last segment; 0 after the first one, which compiles."""
        return self._pace.seconds

    @property
    def asked(self) -> int:
        """Draws after the warm-up that were asked for; 0 without a store."""
        return 0 if self._keeper is None else self._keeper.asked

    def draw(self, num_draws: int, *, progress: bool | None = None) -> None:
        """`num_draws` more draws of every chain; the first ones after the warm-up.

        Raises:
            Interrupted: on Ctrl-C, within about a second, or a draw where that takes longer.
        """
        self.draw_until(self.num_drawn + num_draws, progress=progress)

    @full_products()
    def draw_until(self, num_draws: int, *, asked: int | None = None, progress: bool | None = None) -> None:
        """Draws until every chain has `num_draws` of them after the warm-up, those from the store included.

        Args:
            num_draws: of a chain; below zero, it ends as many draws before the end of the warm-up.
            asked: how many the store is to have in the end, where these are a part of them.
            progress: as of `sample`.

        Raises:
            ValueError: if the store has more already.
            Interrupted: on Ctrl-C, within about a second, or a draw where that takes longer.
        """
        end = self.warmup + num_draws
        if self.done > end:
            raise ValueError(
                f"num_draws needs at least the {self.num_drawn} draws that the store has, got {num_draws}; "
                "ask for as many, or give another store."
            )
        self._standing.recorder.reserve(end)
        if self._keeper is None:
            self._draw_until(end, progress=progress)
            return
        self._keeper.run.ask(asked or num_draws, self.rounding.squares, self._measured)
        with terminated_as_interrupted():
            self._draw_until(end, progress=progress)
            self._keep()

    def _draw_until(self, end: int, *, progress: bool | None) -> None:
        try:
            with (
                contextlib.nullcontext() if self._windows is None else self._windows.reading(),
                tqdm(
                    total=(end - self.done) * self.lengths.num_chains,
                    disable=None if progress is None else not progress,
                    desc="sampling",
                    unit="draw",
                ) as bar,
            ):
                while self.done < end:
                    last = min(self._standing.recorder.block_end(self.done), end)
                    if self._windows is not None:
                        last = min(last, self.done + self._windows.left(self.done))
                    count = agreed(min(self._pace.next_size(), last - self.done))
                    self._advance(count)
                    bar.update(count * self.lengths.num_chains)
                    if self._keeper is not None and self._keeper.is_due():
                        self._keep()
        except KeyboardInterrupt:
            if self._keeper is None:
                raise Interrupted(self._partial) from None
            try:
                self._keep()
            except NotStored as error:
                raise Interrupted(self._partial, f"; {error.strerror or error}") from None
            there = f"{self.done} of {end} draws of every chain (warm-up included) are in {self._keeper.run.store}"
            raise Interrupted(self._partial, f"; {there}: the same call goes on from there") from None

    def _keep(self) -> None:
        """Writes what was drawn since the last checkpoint, and where the chains stand."""
        if self._keeper is not None and self.done > self._keeper.stored:
            with NotStored.told(self._partial):
                self._keeper.keep(self._standing, self._tree(self._standing.recorder.since(self._keeper.stored)))

    def _advance(self, count: int) -> None:
        """`count` more draws of every chain, all or none."""
        begin, at_once, compiled = time.monotonic(), self.workers.at_once(), self.workers.count > 0
        windows = None if self._windows is None else self._windows.holding(self.done)
        with held_back():
            self._standing = self._programs.advance(
                self._standing, count, self.lengths.thinning, windows, at_once=at_once, compiled=compiled
            )
        seconds = time.monotonic() - begin
        self._pace.saw(count, seconds)
        self.workers.saw(at_once, seconds / count)

    @property
    def positions(self) -> list[PyTree]:
        """Where each chain stands."""
        ends = [to_host(state.position) for state in self.states]
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
        tree = self._measured_tree()
        if self._keeper is not None:
            self._keep()
            with NotStored.told(lambda: tree):
                self._keeper.run.replace_head(tree, self.rounding.squares, self._measured)
        return tree

    def _measured_tree(self) -> xr.DataTree:
        if self._measured != self.done:
            self.rounding.add(self.positions, self._standing.recorder.last_deltas)
            self._measured = self.done
        return self.so_far()

    def so_far(self) -> xr.DataTree:
        """As `tree`, without measuring what rounding does to the last draws.

        Raises:
            ValueError: if there are none after the warm-up.
        """
        if not self.num_drawn:
            raise ValueError(
                f"tree needs draws after the warm-up, got {self.done} of its {self.warmup}; call draw first."
            )
        tree = self._tree(self._standing.recorder)
        if self._keeper is None or not self._standing.recorder.offset:
            return tree
        return join([self._keeper.draws(), tree])

    def note(self, groups: xr.DataTree) -> None:
        """Keeps in the store, if there is one, what a report adds to the draws: groups and attributes."""
        if self._keeper is not None:
            self._keeper.run.note(groups)

    def _tree(self, recorder: Recorder) -> xr.DataTree:
        """The draws that a recorder holds, as `sample` returns them."""
        return self._description.tree(recorder, num_draws=self.done - self.warmup)

    def _partial(self) -> xr.DataTree | None:
        return self._measured_tree() if self.done > self.warmup else None
