import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

GRID = np.arange(64.0) / 64
SCATTERED = np.sort(np.random.default_rng(0).uniform(size=200))


def _waves(params, inputs):
    """Sines of 3 and 7 cycles and a constant."""
    x = inputs.reshape(len(inputs))
    return params[0] * jnp.sin(6 * jnp.pi * x + 0.4) + params[1] * jnp.cos(14 * jnp.pi * x) + params[2]


def _first(params, inputs):
    return params[0] * inputs[:, 0]


PARAMS = np.array([2.0, 1.0, 0.5])


@pytest.mark.parametrize("inputs", [GRID, GRID[:, None], SCATTERED], ids=["grid", "column", "scattered"])
def test_energies_of_sines_are_half_their_squared_amplitudes(inputs):
    found = llc.frequency_content(_waves, PARAMS, inputs, frequencies=np.arange(1.0, 11.0))
    np.testing.assert_allclose(found.energy, [0, 0, 2, 0, 0, 0, 0.5, 0, 0, 0], atol=1e-12)
    assert found.constant == pytest.approx(0.25)
    assert found.residual == pytest.approx(0, abs=1e-20)
    assert found.mean_frequency == pytest.approx((3 * 2 + 7 * 0.5) / 2.5)
    assert found.share_above(5.0) == pytest.approx(0.2)


def test_default_frequencies_of_a_grid_are_its_fourier_modes():
    found = llc.frequency_content(_waves, PARAMS, GRID)
    np.testing.assert_allclose(found.frequencies, np.arange(1, 32))
    assert found.total == pytest.approx(found.constant + found.energy.sum() + found.residual), "Parseval"


def test_default_frequencies_of_a_plane_are_those_of_its_grid():
    x = np.stack(np.meshgrid(GRID[::8], 2 * GRID[::8]), axis=-1).reshape(-1, 2)
    found = llc.frequency_content(lambda w, x: w * jnp.sin(2 * jnp.pi * (2 * x[:, 0] - x[:, 1])), np.array(2.0), x)
    assert len(found.energy) == 24, "cycles −3 to 3 along each axis, one of each pair"
    np.testing.assert_allclose(found.frequencies[np.argmax(found.energy)], [2.0, -1.0])
    assert found.energy.max() == pytest.approx(2)
    assert found.energy.sum() == pytest.approx(2)


def test_default_frequencies_of_scattered_inputs_can_be_told_apart():
    found = llc.frequency_content(_waves, PARAMS, SCATTERED)
    assert len(found.energy) >= 10
    assert found.magnitudes[np.argmax(found.energy)] == pytest.approx(3, abs=0.1)


def test_what_is_not_among_the_frequencies_is_left_and_widens_errors():
    found = llc.frequency_content(_waves, PARAMS, SCATTERED, frequencies=np.array([3.0]))
    exact = llc.frequency_content(_waves, PARAMS, SCATTERED, frequencies=np.array([3.0, 7.0]))
    assert found.residual == pytest.approx(0.5, rel=0.2)
    assert abs(found.energy[0] - 2) < 4 * found.error[0]
    assert exact.error.max() < 1e-6 < found.error[0] < 1


def test_plane_waves_are_found_in_space():
    x = np.stack(np.meshgrid(GRID[::8], GRID[::8]), axis=-1).reshape(-1, 2)
    waves = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [1.0, -2.0]])
    found = llc.frequency_content(
        lambda w, x: w * jnp.cos(2 * jnp.pi * (x[:, :1] + 2 * x[:, 1:])), np.array(3.0), x, frequencies=waves
    )
    np.testing.assert_allclose(found.energy, [0, 0, 4.5, 0], atol=1e-12)
    np.testing.assert_allclose(found.magnitudes, [1, 1, np.sqrt(5), np.sqrt(5)])


def test_a_segment_has_the_window_of_hann():
    """Of a sine of 5 cycles: energies 1 : 4 : 1 at 4, 5 and 6, and its mean square in all."""
    found = llc.segment_frequency_content(
        jax.random.key(0), lambda w, x: w * jnp.sin(10 * jnp.pi * x), np.array(2.0), np.array([[0.0], [1.0]])
    )
    np.testing.assert_allclose(found.shares[[3, 4, 5]], [1 / 6, 2 / 3, 1 / 6], atol=1e-10)
    assert found.energy.sum() == pytest.approx(2)
    np.testing.assert_allclose(found.error, 0, atol=1e-10)


def test_segments_of_a_smoother_function_have_lower_frequencies_beyond_their_errors():
    inputs = np.random.default_rng(0).normal(size=(50, 5, 2))

    def predict(params, x):
        return jnp.sin(params * jnp.sum(x, axis=(1, 2)))

    smooth, rough = (llc.segment_frequency_content(jax.random.key(0), predict, np.array(w), inputs) for w in (1.0, 6.0))
    assert smooth.mean_frequency < 0.5 * rough.mean_frequency
    assert (smooth.error > 0).all()
    assert smooth.energy[9] + 3 * smooth.error[9] < rough.energy[9] - 3 * rough.error[9]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"frequencies": np.array([1.0, 63.0])}, "frequencies"),
        ({"frequencies": np.array([0.0, 1.0])}, "frequencies"),
        ({"frequencies": np.array([1.0, -1.0])}, "frequencies"),
        ({"frequencies": np.arange(1.0, 40.0)}, "frequencies"),
        ({"frequencies": np.ones((2, 2))}, "frequencies"),
        ({"frequencies": "low"}, "frequencies"),
        ({"inputs": np.arange(10)}, "inputs"),
        ({"inputs": np.ones(10)}, "inputs"),
        ({"inputs": np.ones((10, 2)), "predict_fn": lambda w, x: x @ w[:2]}, "inputs"),
        ({"inputs": np.random.default_rng(0).normal(size=(30, 9)), "predict_fn": _first}, "frequencies"),
        ({"inputs": np.ones((10, 2, 2))}, "inputs"),
        ({"inputs": np.array([0.0, np.nan, 1.0])}, "inputs"),
    ],
    ids=[
        "alias",
        "zero",
        "mirror",
        "many",
        "shape",
        "text",
        "integers",
        "one place",
        "one point",
        "many dimensions",
        "images",
        "nan",
    ],
)
def test_wrong_arguments_are_named(changed, named):
    right = {"predict_fn": _waves, "params": PARAMS, "inputs": GRID}
    with pytest.raises(ValueError, match=named):
        llc.frequency_content(**(right | changed))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"inputs": GRID[:1]}, "inputs"),
        ({"num_segments": 1}, "num_segments"),
        ({"num_points": 4}, "num_points"),
        ({"predict_fn": lambda w, x: x.sum() * w}, "predict_fn"),
    ],
    ids=["one input", "one segment", "few points", "no rows"],
)
def test_wrong_arguments_of_segments_are_named(changed, named):
    right = {"key": jax.random.key(0), "predict_fn": _waves, "params": PARAMS, "inputs": GRID}
    with pytest.raises(ValueError, match=named):
        llc.segment_frequency_content(**(right | changed))
