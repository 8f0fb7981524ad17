import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.features import feature_basis as module
from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.geometry.features.units import moving_leaves

RNG = np.random.default_rng(0)


def _linear(params, inputs):
    return inputs @ params


def _two_layers(params, inputs):
    return inputs @ params["a"] @ params["b"]


def _blocks(params, inputs):
    """Two networks side by side, each with its own inputs and its own output: nothing is shared."""
    hidden = jnp.tanh(inputs @ params["a"])
    return hidden @ params["b"]


def _separate(size=3):
    a, b = np.zeros((2 * size, 2 * size)), np.zeros((2 * size, 2))
    for k in range(2):
        part = slice(k * size, (k + 1) * size)
        a[part, part], b[part, k] = RNG.normal(size=(size, size)), RNG.normal(size=size)
    return {"a": a, "b": b}


def test_a_linear_model_has_the_covariance_of_its_inputs():
    inputs = RNG.normal(size=(20, 3)) * np.array([2.0, 1.0, 0.0])
    basis = llc.feature_basis(_linear, np.ones(3), inputs)
    covariance = inputs.T @ inputs / 20
    np.testing.assert_allclose(basis.gram, covariance, atol=1e-13)
    sizes = np.linalg.eigvalsh(covariance)[::-1][:2]
    np.testing.assert_allclose(basis.sizes, sizes, rtol=1e-12)
    assert basis.rank == 2
    assert basis.participation == pytest.approx(sizes.sum() ** 2 / np.sum(sizes**2))
    assert basis.couplings[0, 1] == pytest.approx(abs(covariance[0, 1]) / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    assert basis.couplings[2, 2] == 0, "a param without effect"
    assert basis.units == ("params[0]", "params[1]", "params[2]")


def test_quadratic_features_are_orthogonal_where_their_functions_are():
    """x and x² − 1/3 on a symmetric grid; 1 and x² are not orthogonal."""
    x = np.linspace(-1, 1, 101)
    mean = np.mean(x**2)
    orthogonal = llc.feature_basis(lambda w, x: w[0] * x + w[1] * (x**2 - mean), np.ones(2), x)
    np.testing.assert_allclose(orthogonal.couplings, np.eye(2), atol=1e-12)
    assert orthogonal.modularity == 0
    np.testing.assert_allclose(np.sort(orthogonal.unit_shares), [[0, 1], [0, 1]], atol=1e-12)
    coupled = llc.feature_basis(lambda w, x: w[0] + w[1] * x**2, np.ones(2), x)
    assert coupled.couplings[0, 1] == pytest.approx(mean / np.sqrt(np.mean(x**4)))


def test_two_linear_layers_have_the_rank_of_their_product_and_share_features():
    """Rank of the Jacobian of BA: r (M + N − r) for a product of rank r."""
    params = {"a": RNG.normal(size=(4, 2)), "b": RNG.normal(size=(2, 3))}
    basis = llc.feature_basis(_two_layers, params, RNG.normal(size=(30, 4)))
    assert basis.rank == 2 * (4 + 3 - 2)
    np.testing.assert_allclose(basis.unit_shares.sum(axis=1), 1)
    np.testing.assert_allclose(sum(basis.layer_shares.values()), 1)
    assert basis.units == ("a[0]", "a[1]", "b[0]", "b[1]", "b[2]")
    assert basis.layers == ("a", "a", "b", "b", "b")
    whole = llc.feature_basis(_two_layers, params, RNG.normal(size=(30, 4)), unit_axis=None)
    assert whole.units == ("a", "b")


def test_kernels_and_the_matrix_agree():
    params = _separate()
    gradients = behavioral_gradients(_blocks, params, RNG.normal(size=(10, 6)))
    units, _, groups = module._units(moving_leaves(gradients.operator), -1)
    dense, free = (find(gradients, groups, len(units)) for find in (module._from_matrix, module._from_kernels))
    for first, second in zip(dense, free, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-9)


def test_many_params_take_no_matrix_of_them():
    inputs = RNG.normal(size=(6, 6000))
    basis = llc.feature_basis(_linear, np.zeros(6000), inputs, unit_axis=None)
    np.testing.assert_allclose(basis.sizes, np.linalg.eigvalsh(inputs @ inputs.T / 6)[::-1], rtol=1e-10)
    assert basis.gram is None


def test_separate_networks_are_two_communities_and_a_mixed_one_is_not():
    inputs = RNG.normal(size=(40, 6))
    params = _separate()
    apart = llc.feature_basis(_blocks, params, inputs)
    groups = {frozenset(np.array(apart.units)[list(group)]) for group in apart.communities}
    first, second = ({f"a[{3 * k + i}]" for i in range(3)} | {f"b[{k}]"} for k in range(2))
    assert groups == {frozenset(first), frozenset(second)}
    mixed = {name: leaf + 0.7 * RNG.normal(size=leaf.shape) for name, leaf in params.items()}
    assert apart.modularity > llc.feature_basis(_blocks, mixed, inputs).modularity + 0.2


def test_weights_and_biases_of_a_layer_share_units():
    params = {"a": {"weight": RNG.normal(size=(4, 3)), "bias": np.zeros(4)}, "b": {"weight": RNG.normal(size=(1, 4))}}

    def predict(params, x):
        return jnp.tanh(x @ params["a"]["weight"].T + params["a"]["bias"]) @ params["b"]["weight"].T

    basis = llc.feature_basis(predict, params, RNG.normal(size=(50, 3)), unit_axis=0)
    assert basis.units == ("a[0]", "a[1]", "a[2]", "a[3]", "b[0]")
    assert (basis.units_per_feature >= 1).all()
    assert (basis.units_per_feature <= 5).all()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"unit_axis": 2}, "unit_axis"),
        ({"mask": "c"}, "mask"),
        ({"inputs": None}, "inputs"),
        ({"predict_fn": lambda w, x: (x - x.mean(axis=0)) @ w["a"] @ w["b"]}, "predict_fn"),
    ],
    ids=["axis", "mask", "inputs", "mixed inputs"],
)
def test_wrong_arguments_are_named(changed, named):
    params = {"a": np.ones((2, 2)), "b": np.ones((2, 1))}
    right = {"predict_fn": _two_layers, "params": params, "inputs": np.arange(6.0).reshape(3, 2)}
    with pytest.raises(ValueError, match=named):
        llc.feature_basis(**(right | changed))
