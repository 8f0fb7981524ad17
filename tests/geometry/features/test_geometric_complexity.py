import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

RNG = np.random.default_rng(0)
LINEAR = RNG.normal(size=(3, 4))


def _linear(params, inputs):
    return inputs @ params


def _sine(params, inputs):
    return jnp.sin(params * inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predict_fn", "params", "inputs", "exact", "method"),
    [
        (_linear, LINEAR, RNG.normal(size=(7, 3)), np.sum(LINEAR**2), "forward"),
        pytest.param(
            _linear,
            LINEAR[:, :1],
            RNG.normal(size=(7, 3)),
            np.sum(LINEAR[:, 0] ** 2),
            "reverse",
            marks=pytest.mark.study,
        ),
        (
            lambda w, x: x @ w[0] @ w[1],
            (LINEAR, LINEAR.T),
            np.ones((5, 3)),
            np.sum((LINEAR @ LINEAR.T) ** 2),
            "forward",
        ),
        pytest.param(_sine, np.array(3.0), 2 * np.pi * np.arange(16.0) / 16, 4.5, "forward", marks=pytest.mark.study),
        (
            lambda w, x: 0.5 * w * jnp.sum(x**2, axis=1),
            np.array(2.0),
            np.array([[1.0, 2.0], [0.0, 0.0]]),
            10.0,
            "reverse",
        ),
        (
            lambda w, x: w * x["real"] + x["token"],
            np.array(2.0),
            {"real": np.ones(4), "token": np.arange(4)},
            4.0,
            "forward",
        ),
    ],
    ids=["linear", "few outputs", "two-layer linear", "sine", "quadratic", "beside tokens"],
)
def test_value_is_the_closed_form(predict_fn, params, inputs, exact, method):
    found = llc.geometric_complexity(predict_fn, params, inputs)
    assert found.value == pytest.approx(exact, rel=1e-12)
    assert found.method == method
    assert found.probe_error == 0
    assert found.per_input.mean() == pytest.approx(exact, rel=1e-12)


def test_probes_agree_within_their_error_and_a_wrong_value_does_not():
    matrix = np.random.default_rng(1).normal(size=(300, 280)) / 20
    inputs = np.random.default_rng(2).normal(size=(6, 300))
    exact = np.sum(matrix**2)
    found = llc.geometric_complexity(_linear, matrix, inputs, key=jax.random.key(0))
    assert found.method == "probes"
    assert found.num_derivatives == 64
    assert 0 < found.probe_error < 0.05 * exact
    assert abs(found.value - exact) < 4 * found.probe_error
    assert not abs(found.value - 1.3 * exact) < 4 * found.probe_error
    again = llc.geometric_complexity(_linear, matrix, inputs, key=jax.random.key(0))
    assert again.value == found.value


def test_error_over_inputs_is_that_of_a_mean():
    found = llc.geometric_complexity(lambda w, x: w * x**2, np.array(1.0), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found.per_input, [4.0, 16.0, 36.0])
    assert found.row_error == pytest.approx(np.std([4.0, 16.0, 36.0], ddof=1) / np.sqrt(3))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"predict_fn": lambda w, x: (x - x.mean(axis=0)) @ w}, "predict_fn"),
        (
            {"predict_fn": lambda w, x: jnp.sqrt(jnp.sum(x**2, axis=1)) * w.sum(), "inputs": np.zeros((3, 3))},
            "predict_fn",
        ),
        ({"inputs": None}, "inputs"),
        ({"predict_fn": lambda w, x: x * w.sum(), "inputs": np.arange(3)}, "inputs"),
        ({"num_probes": 1}, "num_probes"),
        ({"num_probes": 8}, "key"),
    ],
    ids=["mixed inputs", "no derivative", "no inputs", "integers", "one probe", "no key"],
)
def test_wrong_arguments_are_named(changed, named):
    right = {"predict_fn": _linear, "params": LINEAR, "inputs": np.arange(9.0).reshape(3, 3)}
    with pytest.raises(ValueError, match=named):
        llc.geometric_complexity(**(right | changed))
