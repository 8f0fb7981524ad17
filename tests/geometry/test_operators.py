import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry import operators
from llc.geometry.operators import curvature_operator


def _posterior(num_data, mask=None):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(4,)).astype(np.float32)}
    data = (rng.normal(size=(num_data, 3)), rng.normal(size=num_data))

    def loss_fn(params, batch):
        return (jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2

    return llc.LocalPosterior(loss_fn, params, data, gamma=1.0, mask=mask)


def _oracle(posterior):
    """Hessian and gradient of the mean loss over all rows at once, by jax.hessian in float64."""
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(posterior.position)
        flat = flat.astype(jnp.float64)

        def loss(z):
            return posterior.loss(posterior.params_at(unravel(z)))

        return np.asarray(jax.hessian(loss)(flat)), np.asarray(jax.grad(loss)(flat))


@pytest.mark.parametrize("num_data", [7, 10, 13], ids=lambda n: f"n={n}")
@pytest.mark.parametrize(
    "mask", [None, "a", {"a": np.eye(3, 4, dtype=bool), "b": True}], ids=["all", "leaf", "entries"]
)
def test_products_match_the_dense_hessian(num_data, mask, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 5)  # pieces of 5 and 10 rows, with and without a rest
    posterior = _posterior(num_data, mask)
    hessian, gradient = _oracle(posterior)
    vector = np.random.default_rng(1).normal(size=posterior.num_params)
    with jax.enable_x64(True):
        operator = curvature_operator(posterior)
        product, found = np.asarray(operator.product(jnp.asarray(vector))), np.asarray(operator.gradient())
    assert product.dtype == np.float64
    # float64 round-off of sums over at most 13 rows; the float32 params are exact in float64.
    np.testing.assert_allclose(product, hessian @ vector, rtol=0, atol=1e-13 * np.abs(hessian).sum())
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-13 * max(1.0, np.abs(gradient).max()))


def test_a_change_of_one_row_is_seen():
    """Negative control of the comparison above: another row, another Hessian."""
    posterior = _posterior(10)
    inputs, targets = posterior.data
    other = llc.LocalPosterior(posterior.loss_fn, posterior.center, (np.array(inputs) * 1.001, targets), gamma=1.0)
    hessian, _ = _oracle(posterior)
    changed, _ = _oracle(other)
    assert np.abs(hessian - changed).max() > 1e-13 * np.abs(hessian).sum()


def test_global_precision_is_untouched():
    llc.spectrum(_posterior(10))
    assert not jax.config.jax_enable_x64
    assert jnp.zeros(1).dtype == jnp.float32
