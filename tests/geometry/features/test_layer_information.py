import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import llc

BITS = np.array(list(itertools.product([-1.0, 1.0], repeat=5)))


def _layers(params, inputs):
    first = inputs @ params["a"]
    return {"first": first, "second": jnp.sign(first) * (jnp.abs(first) > 0.5), "product": jnp.prod(first, axis=1)}


def test_a_linear_layer_passes_on_the_bits_that_it_reads():
    """3 of 5 bits, of rank 3; their product is the parity, one bit."""
    parity = np.prod(BITS[:, :3], axis=1)
    found = {
        layer.path: layer
        for layer in llc.layer_information(_layers, {"a": np.eye(5)[:, :3]}, BITS, labels=parity.astype(int))
    }
    assert [found[name].bits for name in ("first", "second", "product")] == pytest.approx([3, 3, 1])
    assert [found[name].label_bits for name in ("first", "second", "product")] == pytest.approx([1, 1, 1])
    assert [found[name].rank for name in ("first", "second", "product")] == [3, 3, 1]
    assert found["first"].num_states == 8


def test_labels_that_a_layer_does_not_see_give_no_information():
    found = llc.layer_information(lambda w, x: x @ w, np.eye(5)[:, :2], BITS, labels=BITS[:, 4])
    assert found[0].label_bits == pytest.approx(0, abs=1e-12)
    assert np.isnan(llc.layer_information(lambda w, x: x @ w, np.eye(5), BITS)[0].label_bits)


def test_sums_have_the_entropy_of_a_binomial_distribution():
    shares = np.array([1, 5, 10, 10, 5, 1]) / 32
    [found] = llc.layer_information(lambda w, x: x @ w, np.ones(5), BITS)
    assert found.bits == pytest.approx(-np.sum(shares * np.log2(shares)))
    assert found.num_states == 6


def test_a_constant_layer_passes_on_nothing():
    [found] = llc.layer_information(lambda w, x: 0 * x + w[0] + 0.1, np.ones(1), BITS)
    assert (found.bits, found.num_states, found.rank) == (0, 1, 0)


def test_tolerance_joins_what_is_nearly_equal():
    inputs = np.array([[1.0], [1.0 + 1e-9], [2.0]])
    one, other = (llc.layer_information(lambda w, x: x * w, np.ones(1), inputs, tolerance=t)[0] for t in (1e-6, 1e-12))
    assert (one.num_states, other.num_states) == (2, 3)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"activations_fn": lambda w, x: x @ w[:2]}, "activations_fn"),
        ({"activations_fn": lambda w, x: jnp.sum(x)}, "activations_fn"),
        ({"activations_fn": lambda w, x: []}, "activations_fn"),
        ({"activations_fn": lambda w, x: x / 0}, "activations_fn"),
        ({"inputs": None}, "inputs"),
        ({"params": "text"}, "params"),
        ({"labels": np.ones(3)}, "labels"),
        ({"labels": "cat"}, "labels"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
    ids=["shapes", "no rows", "nothing", "infinite", "inputs", "params", "rows", "text", "tolerance"],
)
def test_wrong_arguments_are_named(changed, named):
    right = {"activations_fn": lambda w, x: x @ w, "params": np.eye(5), "inputs": BITS}
    with pytest.raises(ValueError, match=named):
        llc.layer_information(**(right | changed))
