"""The compiled programs of a run: one for all chains side by side, or the same one for each of them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.dispatch import run_at_once
from llc.sampling.draws import Recorder, Segment, Sums
from llc.sampling.kernel import Sampler
from llc.sampling.loop import Kept, LoopSettings, Span, run_segment_in_place, start_chains, start_moments
from llc.sampling.measure import Measure
from llc.sampling.minibatch import Window
from llc.sampling.placement import to_host
from llc.sampling.standing import Standing
from llc.sampling.validation import told_what_to_change


class Programs(NamedTuple):
    """What the programs of a run are given in every segment.

    Attributes:
        keys: of the chains, a part for each program.
        posterior: the density.
        sampler: of the steps.
        measure: of the draws.
        settings: of the loop.
    """

    keys: Sequence[Array]
    posterior: LocalPosterior
    sampler: Sampler
    measure: Measure
    settings: LoopSettings

    def start(self, init_keys: Sequence[Array], num_adapted: int, recorder: Recorder) -> Standing:
        """Chains at w*; a sampler that adapts does so in its first `num_adapted` steps."""
        states = [start_chains(keys, self.posterior, self.sampler, num_adapted, self.settings) for keys in init_keys]
        moments = [start_moments(self.posterior, self.measure, state, self.settings) for state in states]
        return Standing(states, moments, recorder, 0)

    def advance(
        self,
        standing: Standing,
        count: int,
        thinning: int,
        windows: Sequence[Window | None] | None = None,
        *,
        at_once: int = 1,
        compiled: bool = True,
    ) -> Standing:
        """`count` more draws of every chain, in the memory of `standing`'s states, which are gone afterwards.

        Args:
            standing: where the chains stand.
            count: draws to add.
            thinning: steps of each.
            windows: batches of a stream, for each program.
            at_once: programs that run at the same time, each in a thread.
            compiled: whether they are, so that the first one need not run alone.
        """
        recorder, first = standing.recorder, standing.done
        # Python integers would be another program each.
        lengths = np.int32(first), np.int32(count), np.int32(thinning)
        span = Span(*lengths, fresh=np.bool_(recorder.starts_block(first)))
        windows = [None] * len(self.keys) if windows is None else windows
        segment = functools.partial(self._segment, standing, windows=windows, span=span)
        parts = run_at_once(segment, range(len(self.keys)), num_threads=at_once, first_alone=not compiled)
        states, moments, seen = (list(column) for column in zip(*parts, strict=True))
        return Standing(states, moments, recorder.add(first, count, seen), first + count)

    def _segment(
        self, standing: Standing, part: int, windows: Sequence[Window | None], span: Span
    ) -> tuple[Any, Sums, Segment]:
        """Moves the chains of one program on, and takes what they recorded off the device, chains first."""
        fixed = self.posterior, self.sampler, self.measure, span, self.settings
        with told_what_to_change():
            kept = Kept(self.keys[part], *fixed, windows[part])
            state, segment = run_segment_in_place(kept, standing.states[part], standing.moments[part])
            seen = to_host(segment)
        return state, segment.moments, seen if self.settings.vectorize else jax.tree.map(lambda x: x[None], seen)
