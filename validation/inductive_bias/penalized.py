"""Networks trained from the same starts under one of several penalties at several strengths: what the penalty changed.

A row has `penalty` ("none" without one), `strength` and `seed`, the number of its start, beside its measures.
"""

from collections.abc import Sequence

import numpy as np
import scipy.stats
from inductive_bias.networks import Interval, paired_interval
from jaxtyping import Float, Int
from study import Row


def strongest(rows: Sequence[Row], penalty: str, strengths: Sequence[float], *, fits: float, num_starts: int) -> float:
    """The largest strength with which every start fits: a test loss below `fits`; the least where there is none."""
    own = [row for row in rows if row["penalty"] == penalty and row["test"] < fits]
    good = [x for x in strengths if sum(row["strength"] == x for row in own) == num_starts]
    return max(good, default=min(strengths))


def change(rows: Sequence[Row], penalty: str, strength: float, name: str) -> Interval:
    """Of a measure by a penalty, start by start, with its 95 % interval."""
    free = {row["seed"]: row[name] for row in rows if row["penalty"] == "none"}
    own = {row["seed"]: row[name] for row in rows if (row["penalty"], row["strength"]) == (penalty, strength)}
    return paired_interval(np.array([own[seed] - free[seed] for seed in own if seed in free]))


def rank_correlation(rows: Sequence[Row], first: str, second: str, *, within: tuple[str, ...] = ()) -> Interval:
    """Spearman's of two measures, with its 95 % interval by the bootstrap over starts.

    Networks from one start are not independent: they are drawn together. With `within`, the mean rank of the rows that
    have these fields in common is taken off first, so that what the fields explain does not count.
    """
    values = np.array([[row[first], row[second]] for row in rows], float).T
    kinds = np.unique(["|".join(str(row[field]) for field in within) for row in rows], return_inverse=True)[1]
    starts = np.array([row["seed"] for row in rows])
    own = [np.flatnonzero(starts == start) for start in np.unique(starts)]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([own[i] for i in rng.integers(0, len(own), len(own))]) for _ in range(1000)]
    low, high = np.quantile([_correlation(values[:, rows], kinds[rows]) for rows in drawn], [0.025, 0.975])
    return _correlation(values, kinds), float(low), float(high)


def _correlation(values: Float[np.ndarray, "measure network"], kinds: Int[np.ndarray, "network"]) -> float:
    ranks = scipy.stats.rankdata(values, axis=1)
    for kind in np.unique(kinds):
        same = kinds == kind
        ranks[:, same] -= ranks[:, same].mean(axis=1, keepdims=True)
    norm = np.sqrt(np.prod(np.sum(ranks**2, axis=1)))
    return float(ranks[0] @ ranks[1] / norm) if norm else 0.0
