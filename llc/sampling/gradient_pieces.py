"""Gradients of a step in pieces that fit in memory, found from the values that they keep alive; nothing is computed."""

import copy
import os

import jax

from llc.posterior.gradients import gradient_bytes, gradient_of_rows
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import require_memory
from llc.posterior.microbatches import microbatched
from llc.posterior.rows import num_rows, rows_that_fit
from llc.sampling.run_lengths import RunLengths
from llc.sampling.validation import CURE

_FUSED = 0.5  # of the values that a gradient computes: what stays in memory, at least, as others are fused away
_BYTES = 2.0**31  # of the gradients of a step, on a CPU, from which pieces are as fast as the whole
_SHARE = 0.25  # of the memory of another device


def in_fitting_pieces(posterior: LocalPosterior, lengths: RunLengths, *, method: str) -> LocalPosterior:
    """The posterior with a loss in pieces where the gradients of a step would need more memory than they should have.

    Args:
        posterior: where chains run.
        lengths: of the run.
        method: by which chains run; where their rows are spread over devices, pieces are not taken.

    Raises:
        ValueError: if not even a piece fits in the memory that is free, naming what to change.
    """
    if method != "parallel":
        rows = min(lengths.batch_size or posterior.num_data, num_rows(posterior.data))  # of a stream some are at hand
        at_once = _at_once(lengths.num_chains, method)
        gradient, program = gradient_of_rows(posterior)
        size = rows_that_fit(gradient, posterior.data, rows, times=float(at_once), budget=_budget(), program=program)
        if size < rows:
            posterior = in_pieces_of(posterior, size)
    check_gradient(posterior, lengths, side_by_side=method == "vectorized")
    return posterior


def in_pieces_of(posterior: LocalPosterior, size: int) -> LocalPosterior:
    """The same posterior with a loss that is computed `size` rows at a time."""
    posterior = copy.copy(posterior)
    object.__setattr__(posterior, "loss_fn", microbatched(posterior.loss_fn, size))
    return posterior


def check_gradient(posterior: LocalPosterior, lengths: RunLengths, *, side_by_side: bool) -> None:
    """Raises ValueError if the gradient of a minibatch can't fit in the memory that is free, naming what to change.

    Args:
        posterior: where chains run.
        lengths: of the run.
        side_by_side: whether all chains take their gradients at once.
    """
    rows = lengths.batch_size or posterior.num_data
    alive = gradient_bytes(posterior, rows)
    num_chains = lengths.num_chains if side_by_side else 1
    require_memory(
        int(_FUSED * alive * num_chains),
        f"the gradients of {num_chains} chains, on {rows:,} rows each,",
        CURE if side_by_side else "microbatch_size=… of LocalPosterior, or a smaller batch_size",
    )


def _at_once(num_chains: int, method: str) -> int:
    """Chains whose gradients are in memory at one time: all, or one a thread."""
    return num_chains if method == "vectorized" else min(num_chains, os.cpu_count() or 1)


def _budget() -> float:
    """Bytes that the gradients of a step may take."""
    stats = jax.devices()[0].memory_stats() or {}
    return max(_BYTES, _SHARE * stats["bytes_limit"]) if "bytes_limit" in stats else _BYTES
