r"""Covariances over draws of two sets of recorded numbers, with errors from batches of draws and from chains.

Every chain is cut into stretches. With n_k the draws of stretch k, C_k the covariance within it and a_k, b_k its means,
what it contributes is

$$ m_k = C_k + (a_k - \bar a)(b_k - \bar b)^\top, \qquad \mathrm{Cov}(a, b) = \sum_k \frac{n_k}{N}\, m_k , $$

and the spread of m_k is the error (batch means). Stretches that are shorter than the chains' memory make it too small.
Then the chains' own contributions differ by more than it says: the ratio of the two variances, a mean over all pairs,
is given as `chain_ratio`, and where it is larger than chance allows (99 % of a χ² law) the errors are those of chains.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.special
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema, validation
from llc.analysis.schema import OBSERVABLES, POSTERIOR, constant, variable
from llc.analysis.series import finite_chains

LOSS = "loss"  # stands for L(w) − L(w*) where the name of an observable is asked for
STRETCHES = 10  # a chain: ten effective draws each, where ESS is 100 a chain
_FEWEST = 2  # draws of a stretch
_CHANCE = 0.99  # quantile of the chains' spread that passes for chance


@dataclass(frozen=True)
class Stretch:
    """Moments of the draws of one stretch of a chain.

    Attributes:
        chain: that it is part of, counted among the finite ones.
        count: draws.
        first: their mean of the first set.
        second: the same of the second set.
        covariance: within the stretch.
        variances: within the stretch, of each set.
    """

    chain: int
    count: float
    first: Float[np.ndarray, "a"]
    second: Float[np.ndarray, "b"]
    covariance: Float[np.ndarray, "a b"]
    variances: tuple[Float[np.ndarray, "a"], Float[np.ndarray, "b"]]


@dataclass(frozen=True)
class Pooled:
    """A mean over stretches, with its error.

    Attributes:
        value: the mean.
        mcse: its standard error.
        chain_ratio: variance of the mean by chains over that by stretches; nan of one chain.
    """

    value: np.ndarray
    mcse: np.ndarray
    chain_ratio: float


def kept_series(draws: xr.DataTree, name: str) -> np.ndarray | None:
    """The draws of an observable (or of the loss) as (chain, draw, entry), those of finite chains; None if not kept."""
    finite = finite_chains(variable(draws, POSTERIOR, schema.ENERGY))
    if name == LOSS:
        values = variable(draws, POSTERIOR, schema.LOSS) - constant(draws, schema.INIT_LOSS)
    elif schema.has(draws, OBSERVABLES, name):
        values = variable(draws, OBSERVABLES, name)
    else:
        return None
    return values[finite].reshape(int(finite.sum()), values.shape[1], -1)


def entry_dims(draws: xr.DataTree, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and sizes of an observable's own dimensions.

    Raises:
        ValueError: if it was not recorded; the message names those that were.
    """
    validation.require(draws)
    if name == LOSS:
        return (), ()
    group = draws[OBSERVABLES].to_dataset() if OBSERVABLES in draws else xr.Dataset()
    for found in (name, f"{name}.mean"):
        if found in group:
            dims = tuple(str(dim) for dim in group[found].dims if dim not in ("chain", "draw", "block"))
            return dims, tuple(group.sizes[dim] for dim in dims)
    names = sorted({str(x).partition(".")[0] for x in group.data_vars} - {LOSS, "num_draws"})
    raise ValueError(
        f"{schema.source_of(draws)} need the observable {name!r}, got {names}; record it with "
        f"llc.sample(…, observables={{{name!r}: …}})."
    )


def stretches(draws: xr.DataTree, first: str, second: str) -> Iterator[Stretch]:
    """The stretches of all finite chains, from the draws of two observables, or from the blocks of their moments.

    Raises:
        ValueError: if neither is there, or there are too few draws.
    """
    for name in (first, second):
        entry_dims(draws, name)
    a, b = kept_series(draws, first), kept_series(draws, second)
    if a is None or b is None:
        yield from _of_blocks(draws, first, second)
        return
    number = min(STRETCHES, a.shape[1] // _FEWEST)
    if not len(a) or number * len(a) < _FEWEST:
        raise ValueError(
            f"covariances need at least {_FEWEST} stretches of {_FEWEST} draws in finite chains, got "
            f"{len(a)} chains of {a.shape[1]} draws; take more num_draws."
        )
    for chain in range(len(a)):
        for rows in np.array_split(np.arange(a.shape[1]), number):
            x, y = (values[chain, rows[0] : rows[-1] + 1].astype(np.float64) for values in (a, b))
            means = x.mean(axis=0), y.mean(axis=0)
            x, y = x - means[0], y - means[1]
            variances = np.mean(x**2, axis=0), np.mean(y**2, axis=0)
            yield Stretch(chain, float(len(rows)), *means, x.T @ y / len(rows), variances)


def _of_blocks(draws: xr.DataTree, first: str, second: str) -> Iterator[Stretch]:
    turned = not schema.has(draws, OBSERVABLES, f"{first}.cov.{second}")
    one, other = (second, first) if turned else (first, second)
    name = f"{one}.cov.{other}"
    if not schema.has(draws, OBSERVABLES, name):
        raise ValueError(
            f"covariances of {first!r} and {second!r} need the draws of both or their running covariance, got "
            "neither; record them with moments=False, or one with "
            f"llc.Observable(…, covariance_with=({second!r},))."
        )
    finite = np.flatnonzero(finite_chains(variable(draws, POSTERIOR, schema.ENERGY)))
    counts = variable(draws, OBSERVABLES, "num_draws")
    products = variable(draws, OBSERVABLES, name)
    means = [variable(draws, OBSERVABLES, f"{x}.mean") for x in (one, other)]
    spreads = [None if x == LOSS else variable(draws, OBSERVABLES, f"{x}.variance") for x in (one, other)]
    for block, count in enumerate(counts):
        for index, chain in enumerate(finite):
            a, b = (x[block, chain].astype(np.float64).ravel() for x in means)
            v, w = (np.full(1, np.nan) if x is None else x[block, chain].astype(np.float64).ravel() for x in spreads)
            covariance = products[block, chain].astype(np.float64).reshape(len(a), len(b))
            stretch = Stretch(index, float(count), a, b, covariance, (v, w))
            yield Stretch(index, float(count), b, a, covariance.T, (w, v)) if turned else stretch


def pooled(
    parts: Callable[[], Iterable[tuple[int, float, np.ndarray]]],
) -> Pooled:
    """Mean of contributions (chain, draws, m) weighted by their draws, with the error of the module's text.

    Args:
        parts: gives the contributions anew each time, so that they need not be in memory together.
    """
    weights: list[tuple[int, float]] = []
    total: np.ndarray | None = None
    for chain, count, contribution in parts():
        weights.append((chain, count))
        total = count * contribution if total is None else total + count * contribution
    assert total is not None
    size = sum(count for _, count in weights)
    value = total / size
    squares, of_chain = np.zeros_like(value), {chain: np.zeros_like(value) for chain, _ in weights}
    for chain, count, contribution in parts():
        off = (count / size) * (contribution - value)
        squares += off**2
        of_chain[chain] += off
    variance = squares * (len(weights) / max(len(weights) - 1, 1))
    if len(of_chain) < _FEWEST:
        return Pooled(value, np.sqrt(variance), np.nan)
    number = len(of_chain)
    by_chains = np.sum([off**2 for off in of_chain.values()], axis=0) * (number / (number - 1))
    known = variance > 0
    ratio = float(np.mean(by_chains[known] / variance[known])) if known.any() else 1.0
    chance = 2 * scipy.special.gammaincinv((number - 1) / 2, _CHANCE) / (number - 1)
    return Pooled(value, np.sqrt(variance * (ratio if ratio > chance else 1.0)), ratio)


def covariance(draws: xr.DataTree, first: str, second: str) -> Pooled:
    """Cov(a, b) over draws, as a matrix of the entries of each, flattened."""
    a, b = means(draws, first, second)

    def parts() -> Iterator[tuple[int, float, np.ndarray]]:
        for s in stretches(draws, first, second):
            yield s.chain, s.count, s.covariance + np.outer(s.first - a, s.second - b)

    return pooled(parts)


def means(draws: xr.DataTree, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of both sets over all draws of finite chains."""
    size, a, b = 0.0, np.zeros(()), np.zeros(())
    for s in stretches(draws, first, second):
        size, a, b = size + s.count, a + s.count * s.first, b + s.count * s.second
    return a / size, b / size
