"""Data that do not fit in memory: a source of batches that is gone through again and again, and some rows that stay.

The steps of a sampler take rows of the source as they come. What needs the same rows again and again (the loss of a
draw, the curvature, pilots, observables) takes the *resident* rows, a uniform sample without replacement that one pass
draws by a reservoir (Vitter 1985, algorithm R).
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.arguments import require_callable, require_integer
from llc.posterior.reservoir import Reservoir
from llc.posterior.source import Form, Source, as_arrays, check_ends, check_repeatable, open_pass, takes_number
from llc.posterior.weights import WeightedRows

_RESIDENT = 4096  # rows whose mean loss has 1/64 of the spread of a row's as its error
_COMPARED = 1024  # rows of two passes whose order is compared
_MOST_KNOWN = 8  # values over all rows that are remembered, two of each w*


class Stream:
    """A source of n rows; made by `llc.stream`, and given to `LocalPosterior` as its data.

    Attributes:
        source: what yields batches.
        weights: of a batch's rows; None where all are 1.
        num_data: n.
        resident: the rows that stay in memory, in the order of the source.
        batch_rows: rows of the first batch.
        order: of the passes: `"same"` in all of them, `"numbered"` where the run's key chooses it, `"varies"` where two
            passes differed and nothing chooses it.
        known: what was computed over all rows before.
    """

    def __init__(
        self, source: Source, weights: Callable[[PyTree], Any] | None, num_data: int | None, num_resident: int
    ) -> None:
        self.source, self.weights, self.num_data = source, weights, num_data or 0
        self.mean_weight = 1.0
        self.known: dict[Hashable, Any] = {}
        sample, total = Reservoir(min(num_resident, num_data or num_resident)), 0.0
        first = next((batch for batch in self.batches(0) if not _is_empty(batch)), None)
        if first is None:
            raise ValueError("source needs at least one batch with rows, got none.")
        self.form, self.batch_rows = Form(first), len(jax.tree.leaves(first)[0])
        for batch in self.rows_of_pass(0, num_data):
            sample.add(batch, self.form)
            if isinstance(batch, WeightedRows):
                total += _checked_sum(np.asarray(batch.weights))
        if sample.count < 2:
            raise ValueError(f"source needs n >= 2 rows, got {sample.count}; n / log n is not defined for one.")
        self.num_data, self.resident = sample.count, sample.rows()
        if weights is not None:
            self.mean_weight = _checked_mean(total, sample.count)
            self.resident = _divided(self.resident, self.mean_weight)
        self.order = self._order()

    @property
    def fits(self) -> bool:
        """Whether all rows are resident, so that they are arrays like others."""
        return len(jax.tree.leaves(self.resident)[0]) == self.num_data

    def batches(self, number: int) -> Iterator[PyTree]:
        """The batches of a pass, as arrays, with their weights beside them; `number` chooses the order if it can."""
        batches = open_pass(self.source, number)
        if self.weights is None:
            return batches
        return (_divided(WeightedRows(x, _numbers(self.weights(x))), self.mean_weight) for x in batches)

    def rows_of_pass(self, number: int, num_data: int | None) -> Iterator[PyTree]:
        """The batches of one pass over the first `num_data` rows, the last one cut to them; None takes all rows.

        Raises:
            ValueError: if there are fewer rows, or batches are of different form.
        """
        count = 0
        for batch in self.batches(number):
            rows = self.form.num_rows(batch, count)
            if not rows:
                continue
            if num_data is not None and count + rows >= num_data:
                left = num_data - count
                yield batch if left == rows else jax.tree.map(lambda x: x[:left], batch)  # noqa: B023
                return
            count += rows
            yield batch
        if num_data is not None:
            raise ValueError(
                f"source needs n = {num_data} rows in every pass, got {count}; give n={count}, or leave n out to count "
                "them. A function has to return a new iterator each time that it is called."
            )

    def remember(self, what: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()`, or what it gave before."""
        if what not in self.known:
            self.known[what] = compute()
            if len(self.known) > _MOST_KNOWN:
                del self.known[next(iter(self.known))]
        return self.known[what]

    def _order(self) -> str:
        if takes_number(self.source):
            return "numbered" if self._first_rows(1) == self._first_rows(1) else "varies"
        return "same" if self._first_rows(0) == self._first_rows(0) else "varies"

    def _first_rows(self, number: int) -> list[bytes]:
        some = min(self.num_data, _COMPARED)
        return [leaf.tobytes() for batch in self.rows_of_pass(number, some) for leaf in jax.tree.leaves(batch)]

    def __repr__(self) -> str:
        num_resident = len(jax.tree.leaves(self.resident)[0])
        return f"Stream(n={self.num_data}, resident={num_resident}, order={self.order!r})"


def stream(
    source: Source,
    *,
    n: int | None = None,
    resident: int = _RESIDENT,
    weights: Callable[[PyTree], Any] | None = None,
) -> Stream:
    """Data that do not fit in memory, for `LocalPosterior`: batches that are read again and again while chains run.

    Every step of every chain takes rows of its own from the source, which is read ahead by a thread and shuffled in
    windows of some ten thousand rows by the key of the run. What needs the same rows again and again takes a uniform
    sample of `resident` rows: the loss of a draw, with the slope at w* over all rows as a control variate (its sampling
    error is part of the standard error), the curvature, bounds, pilots and observables. Where all n rows fit into it,
    the posterior is that of arrays, to the last bit.

    One pass is made here, and one over L and ∇L at each w* that is sampled.

    Args:
        source: what yields batches whenever it is iterated over, each a pytree of arrays or tensors with the rows along
            the leading axis: a PyTorch `DataLoader`, grain, `tf.data`, a class with `__iter__`; or a function that
            returns an iterator. The last batch may be shorter. Where it shuffles, let the order be chosen by a number:
            by the one argument of the function, or `set_epoch(number)` of the source. The number follows from the run's
            key and the pass, so that the same key meets the same rows, also when a run is resumed.
        n: rows of the data; a pass then ends after n rows. None counts them; an endless source needs it.
        resident: rows that stay in memory, 4,096 by default: a mean loss over them has 1/64 of the spread of a row's.
        weights: of the rows of a batch, `weights(batch)`, shape `(batch,)`, numbers >= 0 as of `LocalPosterior`. A mask
            or weights of tokens are part of the batch instead, and go into `loss_fn`.

    Raises:
        ValueError: if the source can be gone through once only, has fewer than n rows or, without n, no end that is
            known, or batches of different form.

    Example:
        >>> import jax.numpy as jnp, numpy as np, llc
        >>> def batches():
        ...     for seed in range(4):
        ...         yield np.random.default_rng(seed).normal(size=50).astype(np.float32)
        >>> data = llc.stream(batches, resident=100)
        >>> posterior = llc.LocalPosterior(lambda w, x: (w - x) ** 2, jnp.zeros(()), data)
        >>> posterior.num_data, len(posterior.data)
        (200, 100)
    """
    check_repeatable(source)
    if n is None:
        check_ends(source, "n")
    else:
        require_integer("n", n, least=2, most=2**62)
    require_integer("resident", resident, least=2, most=2**31 - 1)
    require_callable("weights", weights, "a function of a batch", optional=True)
    return Stream(source, weights, n, resident)


class Given(NamedTuple):
    """What a posterior is made from.

    Attributes:
        rows: arrays, all of the data or those of a stream that are resident.
        stream: the other rows; None where `rows` are all.
        num_data: n; None where it is the length of `rows`.
        weights: of the rows.
        normalized: whether those have mean one over all the data.
    """

    rows: PyTree
    stream: Stream | None
    num_data: int | None
    weights: PyTree
    normalized: bool


def given_data(data: PyTree, weights: PyTree) -> Given:
    """The arrays of a posterior's data, and where the rest of them comes from.

    Raises:
        ValueError: if the data are a stream and weights are given beside it.
    """
    if not isinstance(data, Stream):
        return Given(data, None, None, weights, normalized=False)
    if weights is not None:
        raise ValueError("weights need to be None where data are a stream; give llc.stream(source, weights=fn).")
    rows, own = (*data.resident,) if isinstance(data.resident, WeightedRows) else (data.resident, None)
    return Given(rows, None if data.fits else data, data.num_data, own, normalized=True)


def _is_empty(batch: PyTree) -> bool:
    """Whether a batch is of arrays without rows."""
    return any(np.ndim(leaf) and not len(leaf) for leaf in jax.tree.leaves(batch))


def _numbers(weights: Any) -> np.ndarray:
    return np.asarray(as_arrays(weights), np.float64)


def _divided(batch: WeightedRows, mean: float) -> WeightedRows:
    return WeightedRows(batch.rows, batch.weights / mean)


def _checked_sum(weights: np.ndarray) -> float:
    if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            f"weights(batch) needs finite numbers >= 0, one of each row, got shape {weights.shape} with values from "
            f"{weights.min():.4g} to {weights.max():.4g}; weights of tokens belong in the batch, and into loss_fn."
        )
    return float(weights.sum())


def _checked_mean(total: float, num_data: int) -> float:
    if not total > 0:
        raise ValueError("weights(batch) needs a mean above 0 over the n rows, got 0 for all of them.")
    return total / num_data
