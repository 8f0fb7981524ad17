"""The ladder of σ: flat on a quadratic, and what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from tests.support.bowls import KEY, assert_same, flat, quadratic


def test_ladder_of_a_quadratic_is_flat():
    """The same candidates win at every σ (up to rounding of σz, which ties none)."""
    ladder = llc.sigma_ladder(KEY, quadratic([1.0, 2.0, 0.0, 0.0], center=1.0), progress=False)
    assert [rung.sigma for rung in ladder.rungs] == pytest.approx([1e-3, 1e-2, 1e-1])
    assert_same(ladder.rungs[0], ladder.rungs[2], rtol=0, atol=1e-9)
    assert ladder.agree == (True, True)
    assert ladder.accepted is ladder.rungs[2]
    assert not ladder.quartic


def test_ladder_shows_quartic_selection():
    def loss(w, batch):
        x = w - 1
        return 0.5 * (x[0] ** 2 + x[1] ** 2) + 10 * x[2] ** 4 + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss, np.ones(4), np.zeros((10, 1)))
    ladder = llc.sigma_ladder(KEY, posterior, num_winners=2000, progress=False)
    assert [rung.rank for rung in ladder.rungs] == [2, 2, 3]
    assert ladder.agree == (True, False)
    assert ladder.accepted is ladder.rungs[1]
    assert ladder.quartic
    assert abs(ladder.kernel_variances[0] - 1) < 4 * ladder.kernel_error


def test_ladder_without_a_plateau():
    def loss(w, batch):
        return jnp.sum((w - 1) ** 2 * jnp.array([1.0, 0.0])) + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss, np.ones(2), np.zeros((10, 1)))

    def noisy(key, w):
        return (w[0] - 1) ** 2 + 1e-5 * jax.random.normal(key)

    ladder = llc.sigma_ladder(KEY, posterior, noisy_loss_fn=noisy, sigmas=(1e-4, 3e-2), progress=False)
    assert [rung.rank for rung in ladder.rungs] == [0, 1]
    assert ladder.accepted is None


def test_rising_sigmas_are_needed():
    for sigmas in ((0.1,), (0.1, 0.01)):
        with pytest.raises(ValueError, match="sigmas needs two or more rising"):
            llc.sigma_ladder(KEY, flat(2, 1), sigmas=sigmas, progress=False)
