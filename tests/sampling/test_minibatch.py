"""The epoch's permutation: a permutation for every n, uniform for single rows and for pairs of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc.sampling.minibatch import minibatch, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 64, 97, 1000])
def test_is_a_permutation(size):
    images = jax.vmap(lambda key: permuted(key, jnp.arange(size), size))(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_array_equal(np.sort(images, axis=1), np.tile(np.arange(size), (20, 1)))


def test_an_epoch_holds_every_row_once_and_the_next_one_another_order():
    data = {"x": jnp.arange(100.0)}
    rows = [np.asarray(minibatch(jax.random.key(1), jnp.int32(i), data, 100, 20)["x"]) for i in range(10)]
    first, second = np.concatenate(rows[:5]), np.concatenate(rows[5:])
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    np.testing.assert_array_equal(np.sort(second), np.arange(100))
    assert np.any(first != second)


def _pair_table(shuffle, size, repeats):
    """How often rows 0 and 1 land on each ordered pair of places."""
    images = np.asarray(jax.jit(jax.vmap(shuffle))(jax.random.split(jax.random.key(2), repeats)))
    return np.bincount(images[:, 0] * size + images[:, 1], minlength=size**2)


def _chi_square_z(counts, size):
    """Pearson's statistic over the size·(size−1) pairs of different places, standardised."""
    cells = counts[~np.eye(size, dtype=bool).ravel()]
    expected = cells.sum() / cells.size
    freedom = cells.size - 1
    return (np.sum((cells - expected) ** 2) / expected - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [11, 16])
def test_pairs_are_uniform(size):
    counts = _pair_table(lambda key: permuted(key, jnp.arange(2), size), size, 200_000)
    assert abs(_chi_square_z(counts, size)) < 4


def test_a_cyclic_shift_is_caught():
    """Negative control: uniform for every single row, not for pairs."""
    shift = lambda key: (jnp.arange(2) + jax.random.randint(key, (), 0, 11)) % 11  # noqa: E731
    assert _chi_square_z(_pair_table(shift, 11, 200_000), 11) > 4
