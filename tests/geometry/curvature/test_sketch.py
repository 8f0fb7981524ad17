"""Eigenvalues from a two-sided sketch against the ones that a diagonal Hessian has by design."""

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.curvature.sketch import sketch_size

DIM = 300


def spectrum_of(eigenvalues, **settings):
    """Of ½ Σ h w² at 0, where w is as precise as its dtype."""
    h = np.append(eigenvalues, np.zeros(DIM - len(eigenvalues)))

    def loss(w, batch):
        return 0.5 * jnp.sum(h.astype(w.dtype) * w**2) + 0 * jnp.sum(batch)

    posterior = llc.LocalPosterior(loss, np.zeros(DIM, np.float32), np.zeros((4, 1)))
    return llc.spectrum(posterior, method="sketch", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("signs", [1, -1], ids=["minimum", "saddle"])
def test_eigenvalues_over_three_decades(signs):
    exact = np.logspace(-3, 0, 40) * np.where(np.arange(40) % 3, 1, signs)
    found = spectrum_of(exact)
    nodes = np.repeat(found.nodes[0], found.weights[0].astype(int))
    every = np.sort(np.append(exact, np.zeros(DIM - 40)))
    assert found.noise < 1e-10
    np.testing.assert_allclose(np.sort(nodes), every, rtol=0, atol=found.noise)
    assert np.abs(np.sort(nodes)[:-1] - every[1:]).max() > 1e6 * found.noise, "negative control: one off"


def test_what_is_missed_is_within_the_noise():
    """100 eigenvalues below what a w* in float32 shows: none is counted, and the noise is no less than any of them."""
    exact = np.append(np.logspace(-1, 0, 20), np.full(100, 1e-7))
    found = spectrum_of(exact)
    assert found.count(0.05) == 20
    assert found.count(found.noise) == 20
    assert 1e-7 < found.noise < 1e-4


def test_no_curvature():
    found = spectrum_of(np.zeros(0))
    assert (found.largest, found.smallest, found.noise) == (0, 0, 0)
    assert found.sum(np.ones_like) == DIM


def test_columns_of_a_sketch():
    assert [sketch_size(rank) for rank in (0, 100, 1000)] == [64, 164, 1250]
