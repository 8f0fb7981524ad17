import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.geometry.features.kernels import grouped_kernels

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(9, 3))


def _linear(params, inputs):
    return inputs @ params


def _net(params, inputs):
    return jnp.tanh(inputs @ params["a"]["weight"] + params["a"]["bias"]) @ params["b"]["weight"]


NET = {
    "a": {"weight": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)},
    "b": {"weight": RNG.normal(size=(4, 2))},
}


def test_a_linear_model_has_the_gram_matrix_of_its_inputs():
    labels = INPUTS @ np.ones(3)
    kernel = llc.tangent_kernel(_linear, np.ones(3), INPUTS, labels=labels)
    np.testing.assert_allclose(kernel.gram, INPUTS @ INPUTS.T, atol=1e-13)
    values = np.linalg.eigvalsh(INPUTS.T @ INPUTS)[::-1]
    np.testing.assert_allclose(kernel.eigenvalues[:3], values, rtol=1e-12)
    assert kernel.rank == 3
    assert kernel.trace == pytest.approx(np.sum(INPUTS**2))
    assert kernel.effective_rank == pytest.approx(values.sum() ** 2 / np.sum(values**2))
    assert kernel.label_shares[2] == pytest.approx(1), "linear labels lie in the span of the first three"
    assert kernel.label_shares[0] < 1


@pytest.mark.parametrize(
    ("labels", "alignment"), [(np.array([1.0, -1.0, 0.0, 0.0]), 1.0), (np.array([0.0, 0.0, 1.0, -1.0]), 0.0)]
)
def test_alignment_is_one_for_the_kernel_of_the_labels_and_zero_for_orthogonal_ones(labels, alignment):
    inputs = np.array([[1.0], [-1.0], [0.0], [0.0]])
    found = llc.tangent_kernel(_linear, np.ones(1), inputs, labels=labels)
    assert found.alignment == pytest.approx(alignment, abs=1e-12)
    assert found.label_shares[0] == pytest.approx(alignment, abs=1e-12)


def test_alignment_is_centred_output_by_output():
    """Against centring features and labels themselves."""
    labels = RNG.normal(size=(9, 2)) + 5
    kernel = llc.tangent_kernel(_net, NET, INPUTS, labels=labels)
    rows = behavioral_gradients(_net, NET, INPUTS).matrix.T.reshape(9, 2, -1)
    rows = (rows - rows.mean(axis=0)).reshape(18, -1)
    y = (labels - labels.mean(axis=0)).ravel()
    expected = np.sum((rows.T @ y) ** 2) / np.linalg.norm(rows @ rows.T) / (y @ y)
    assert kernel.alignment == pytest.approx(expected)
    shifted = llc.tangent_kernel(_net, NET, INPUTS, labels=labels + 100)
    assert shifted.alignment == pytest.approx(kernel.alignment)
    assert shifted.label_shares[0] != pytest.approx(kernel.label_shares[0]), "shares are not centred"


def test_layers_add_up_and_a_mask_takes_one():
    kernel = llc.tangent_kernel(_net, NET, INPUTS)
    assert [layer.path for layer in kernel.layers] == ["a", "b"]
    assert sum(layer.trace for layer in kernel.layers) == pytest.approx(kernel.trace)
    last = llc.tangent_kernel(_net, NET, INPUTS, mask="b.weight")
    assert last.trace == pytest.approx(kernel.layers[1].trace)
    features = np.tanh(INPUTS @ NET["a"]["weight"] + NET["a"]["bias"])
    np.testing.assert_allclose(last.gram, np.kron(features @ features.T, np.eye(2)), atol=1e-12)
    assert np.isnan(kernel.alignment)
    assert kernel.label_shares is None


@pytest.mark.parametrize("block_bytes", [1, 600, 10**9], ids=["an input", "a few inputs", "all at once"])
def test_blocks_of_any_size_give_the_same_kernels(block_bytes):
    gradients = behavioral_gradients(_net, NET, INPUTS)
    groups = np.arange(gradients.dim) % 3
    found = grouped_kernels(gradients.operator, groups, 3, block_bytes=block_bytes)
    for g in range(3):
        part = gradients.matrix[groups == g]
        np.testing.assert_allclose(found[g], part.T @ part, atol=1e-12)


def test_many_params_need_no_dense_jacobian():
    """20,000 params and 8 inputs: K of a linear model, whose Jacobian is never whole."""
    inputs = np.random.default_rng(3).normal(size=(8, 20_000))
    kernel = llc.tangent_kernel(_linear, np.zeros(20_000), inputs)
    np.testing.assert_allclose(kernel.gram, inputs @ inputs.T, rtol=1e-11, atol=1e-9)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"labels": np.ones(9)}, "labels"),
        ({"labels": np.ones((9, 2))}, "labels"),
        ({"labels": np.full(9, np.nan)}, "labels"),
        ({"labels": "cat"}, "labels"),
        ({"predict_fn": lambda w, x: (x - x.mean(axis=0)) @ w}, "predict_fn"),
        ({"predict_fn": lambda w, x: jnp.sqrt(0 * w[0]) * x[:, 0]}, "predict_fn"),
        ({"params": {"w": "text"}}, "params"),
        ({"inputs": np.zeros((0, 3))}, "inputs"),
        ({"mask": "nothing"}, "mask"),
    ],
    ids=["constant", "shape", "nan", "text", "mixed inputs", "no derivative", "params", "no inputs", "mask"],
)
def test_wrong_arguments_are_named(changed, named):
    right = {"predict_fn": _linear, "params": np.ones(3), "inputs": INPUTS}
    with pytest.raises(ValueError, match=named):
        llc.tangent_kernel(**(right | changed))
