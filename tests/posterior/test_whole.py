"""The loss over all rows of a stream at w*, and what resident rows lack of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.whole import on_resident_rows, over_stream, with_whole
from tests.support import sources
from tests.support.sources import CENTER, X, Y

AWAY = jnp.asarray(CENTER) + 0.1


def posteriors(**settings):
    """On a stream and on arrays, beside the minimum."""
    stream = llc.stream(sources.Loader(), resident=200, **settings)
    return (llc.LocalPosterior(sources.losses, AWAY, data, gamma=10.0) for data in (stream, [X, Y]))


def exact():
    x, y, w = (np.asarray(a, np.float64) for a in (X, Y, AWAY))
    residual = x @ w - y
    return 0.5 * np.mean(residual**2), x.T @ residual / len(y)


def test_one_pass_gives_the_loss_and_its_gradient():
    """To the rounding of float64; it is made once for each w*."""
    posterior, _ = posteriors()
    loss, gradient = exact()
    whole = over_stream(posterior)
    assert float(whole.loss) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(whole.gradient, gradient, rtol=1e-10)
    assert over_stream(posterior.with_scale(gamma=1.0)) is whole
    moved = eqx.tree_at(lambda p: p.center, posterior, jnp.asarray(CENTER))
    assert np.linalg.norm(over_stream(moved).gradient) < 1e-5 * np.linalg.norm(gradient)


@pytest.mark.slow
def test_resident_rows_have_the_value_and_slope_of_all():
    """And not by themselves: the negative control."""
    posterior, _ = posteriors()
    loss, gradient = exact()
    resident = on_resident_rows(posterior)
    value, slope = jax.value_and_grad(resident.loss)(AWAY)
    assert float(value) == pytest.approx(loss, rel=1e-5)  # of float32
    np.testing.assert_allclose(slope, gradient, rtol=1e-4)
    alone = jax.grad(posterior.resident().loss)(AWAY)
    assert np.abs(alone - gradient).max() > 1e-2
    # The curvature is that of the resident rows, and batches of the whole stream are left alone.
    np.testing.assert_allclose(jax.hessian(resident.loss)(AWAY), jax.hessian(posterior.loss)(AWAY), rtol=1e-5)
    np.testing.assert_array_equal(
        jax.grad(with_whole(posterior).loss)(AWAY, [X[:9], Y[:9]]), jax.grad(posterior.loss)(AWAY, [X[:9], Y[:9]])
    )


def test_a_spectrum_of_a_stream_has_the_gradient_of_all_rows():
    posterior, arrays = posteriors()
    found, right = llc.spectrum(posterior), llc.spectrum(arrays)
    assert found.gradient_weights.sum() == pytest.approx(right.gradient_weights.sum(), rel=1e-10)
    assert found.row_share == pytest.approx(200 / len(X))
    # Curvatures of 200 normal rows differ from those of all by a few √(2/200) = 10 %.
    assert abs(found.largest / right.largest - 1) < 0.5
    assert not llc.rank_bounds(found).valid


def test_arrays_stay_as_they_are():
    _, arrays = posteriors()
    assert with_whole(arrays) is arrays
    assert on_resident_rows(arrays) is arrays
    assert arrays.resident() is arrays


def test_a_polished_minimum_is_that_of_all_rows():
    """Where the slope of all rows at the first w* and the curvature of the resident ones lead to."""
    posterior, _ = posteriors()
    first = llc.polish(posterior, progress=False).posterior
    second = llc.polish(first, progress=False).posterior
    away = [float(np.linalg.norm(p.center - CENTER)) for p in (posterior, first, second)]
    assert away[0] > 5 * away[1] > 25 * away[2]
