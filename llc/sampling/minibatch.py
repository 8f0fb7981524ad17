r"""Minibatches without replacement within an epoch, with no order of the data in memory.

The rows of an epoch come from a keyed permutation of {0, …, n−1} that is computed where it is read: the swap-or-not
shuffle (Hoang, Morris & Rogaway, CRYPTO 2012, arXiv 1208.1176, fig. 1). Round r has a uniform $K_r$ and a random bit
$f_r$ for each pair $\{x, K_r - x\}$ and swaps the pair where the bit is 1:

$$ x \to K_r - x \bmod n \quad\text{if}\quad f_r(\max(x, K_r - x \bmod n)) = 1 . $$

Each round is an involution, so the whole is a permutation for any n. A row has its uniform law as soon as one round
swaps it, a pair of rows as soon as one round swaps exactly one of the two: 16 rounds leave 2⁻¹⁶ of the pairs as they
were, and the covariance of minibatch gradients depends on pairs only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray, PyTree

_ROUNDS = 16


class Window(NamedTuple):
    """Minibatches of consecutive steps, of data that are a stream (see windows.py).

    Attributes:
        batches: their rows, with leading axes (chain, step, row), or (step, row) of one chain.
        first: number of the first step.
    """

    batches: PyTree
    first: Int[ArrayLike, ""]

    def of(self, step: Int[Array, ""]) -> PyTree:
        """The minibatch of one chain for step number `step`."""
        return jax.tree.map(lambda x: x[step - jnp.asarray(self.first, step.dtype)], self.batches)


def minibatch(key: PRNGKeyArray, step: Int[Array, ""], data: PyTree, num_data: int, batch_size: int) -> PyTree:
    """The `batch_size` rows of `data` for step number `step`; the epochs' permutations come from `key`."""
    per_epoch = num_data // batch_size
    start = (step % per_epoch) * batch_size
    rows = permuted(jax.random.fold_in(key, step // per_epoch), start + jnp.arange(batch_size), num_data)
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), data)


def independent_minibatch(
    key: PRNGKeyArray, step: Int[Array, ""], data: PyTree, num_data: int, batch_size: int
) -> PyTree:
    """`batch_size` different rows of `data` for step number `step`, drawn anew whatever the steps before took.

    Within an epoch a position has moved along the gradients of the rows that were taken, and not of those that are
    left, whose loss is then no unbiased estimate of the mean. A random start makes each row equally likely to the last
    bit, which 16 rounds do up to 2⁻¹⁶.
    """
    row_key, start_key = jax.random.split(jax.random.fold_in(key, step))
    start = jax.random.randint(start_key, (), 0, num_data)
    rows = permuted(row_key, (start + jnp.arange(batch_size)) % num_data, num_data)
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), data)


def permuted(key: PRNGKeyArray, index: Int[Array, "rows"], size: int) -> Int[Array, "rows"]:
    """Images of `index` under the random permutation of {0, …, size−1} that belongs to `key`."""
    offsets, seeds = jax.random.bits(key, (2, _ROUNDS))
    offsets = (offsets % np.uint32(size)).astype(index.dtype)

    def swap(index: Array, round_key: tuple[Array, Array]) -> tuple[Array, None]:
        offset, seed = round_key
        partner = offset - index
        partner = jnp.where(partner < 0, partner + size, partner)
        bit = _random_bit(jnp.maximum(index, partner).astype(jnp.uint32) ^ seed)
        return jnp.where(bit, partner, index), None

    return jax.lax.scan(swap, index, (offsets, seeds))[0]


def _random_bit(word: Array) -> Array:
    """Two rounds of multiplication and shift, as in the finalizer of MurmurHash3."""
    word = word * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return (word >> 31).astype(bool)
