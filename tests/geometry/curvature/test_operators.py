import copy
import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.curvature import operators
from llc.geometry.curvature.operators import curvature_operator, gauss_newton_operator, jacobian_operator
from llc.geometry.curvature.output_loss import CONVEX_PARTS
from llc.geometry.curvature.symmetric import check_symmetric
from llc.posterior.precision import float64

MASKS = [None, "a", {"a": np.eye(3, 4, dtype=bool), "b": True}]


def _squares(params, batch):
    return (jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2


def _posterior(num_data, mask=None):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(4,)).astype(np.float32)}
    data = (rng.normal(size=(num_data, 3)), rng.normal(size=num_data))
    return llc.LocalPosterior(_squares, params, data, gamma=1.0, mask=mask)


def _oracle(posterior):
    """Hessian and gradient of the mean loss over all rows at once, by jax.hessian in float64."""
    with jax.enable_x64(True):
        return jax.device_get(_hessian_and_gradient(posterior))


@eqx.filter_jit
def _hessian_and_gradient(posterior):
    flat, unravel = jax.flatten_util.ravel_pytree(posterior.position)
    flat = flat.astype(jnp.float64)

    def loss(z):
        return posterior.loss(posterior.params_at(unravel(z)))

    return jax.hessian(loss)(flat), jax.grad(loss)(flat)


@eqx.filter_jit
def _product(operator, vector):
    return operator.product(vector)


@eqx.filter_jit
def _gradient(operator):
    return operator.gradient()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_data", "mask"),
    [pytest.param(7, None, marks=pytest.mark.study), (10, MASKS[2]), *((13, mask) for mask in MASKS)],
)
def test_products_match_the_dense_hessian(num_data, mask, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 5)  # pieces of 5 and 10 rows, with and without a rest
    posterior = _posterior(num_data, mask)
    hessian, gradient = _oracle(posterior)
    vector = np.random.default_rng(1).normal(size=posterior.num_params)
    with jax.enable_x64(True):
        operator = curvature_operator(posterior)
        product, found = jax.device_get((_product(operator, jnp.asarray(vector)), _gradient(operator)))
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


def _outputs(params, batch):
    return jnp.tanh(batch[0] @ params["a"]) @ params["b"]


def _softmax_hessian(f):
    p = np.exp(f - f.max())
    p /= p.sum()
    return np.diag(p) - np.outer(p, p)


# The loss of outputs (batch, 2) and targets of the same shape, the Hessian of one example in its outputs, its name.
LOSSES = {
    "sum of squares": (lambda f, y: jnp.sum((f - y) ** 2, axis=-1), lambda f: 2 * np.eye(2), "squared error"),
    "mean over outputs": (lambda f, y: jnp.mean((f - y) ** 2, axis=-1), lambda f: np.eye(2), "squared error"),
    "mean over the batch": (lambda f, y: jnp.mean((f - y) ** 2), lambda f: np.eye(2), "squared error"),
    "cross-entropy": (
        lambda f, y: -jnp.sum(jax.nn.softmax(y) * jax.nn.log_softmax(f), axis=-1),
        _softmax_hessian,
        "cross-entropy",
    ),
    "hard labels": (
        lambda f, y: jnp.mean(-jax.nn.log_softmax(f)[jnp.arange(len(f)), jnp.argmax(y, axis=-1)]),
        _softmax_hessian,
        "cross-entropy",
    ),
    "binary": (
        lambda f, y: 3 * jnp.mean(jax.nn.softplus(f) - (y > 0) * f, axis=-1),
        lambda f: 1.5 * np.diag(1 / (2 + 2 * np.cosh(f))),
        "binary cross-entropy",
    ),
    "fourth power": (
        lambda f, y: jnp.sum((f - 3.0) ** 4, axis=-1),
        lambda f: np.diag(12 * (f - 3.0) ** 2),
        lambda f, batch: jnp.sum((f - 3.0) ** 4, axis=-1),
    ),
}


@functools.cache
def _of_outputs(loss):
    return lambda params, batch: loss(_outputs(params, batch), batch[1])


def _with_outputs(loss, num_data=13, mask=None, targets=None):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(4, 2)).astype(np.float32)}
    inputs = rng.normal(size=(num_data, 3))
    mask = {"a": mask["a"], "b": True} if isinstance(mask, dict) else mask
    if targets is None:
        targets = rng.normal(size=(num_data, 2))
    elif targets == "fitted":  # what the float32 params give in float64
        targets = np.tanh(inputs @ params["a"].astype(float)) @ params["b"].astype(float)
    return llc.LocalPosterior(
        _of_outputs(loss),
        params,
        (inputs, targets),
        gamma=1.0,
        mask=mask,
        predict_fn=_outputs,
    )


def _jacobian(posterior):
    """Outputs (n, k) and their Jacobian (n, k, d) in all rows at once, by jax.jacobian in float64."""
    with jax.enable_x64(True):
        return jax.device_get(_outputs_and_jacobian(posterior))


@eqx.filter_jit
def _outputs_and_jacobian(posterior):
    flat, unravel = jax.flatten_util.ravel_pytree(posterior.position)

    def outputs(z):
        return _outputs(posterior.params_at(unravel(z)), posterior.data)

    flat = flat.astype(jnp.float64)
    return outputs(flat), jax.jacobian(outputs)(flat)


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("name", "mask"), [("sum of squares", None), *((name, MASKS[2]) for name in LOSSES)])
def test_gauss_newton_products_match_the_dense_matrix(name, mask, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 5)  # pieces of 6 rows and a rest of one
    loss, curvature_of, output_loss = LOSSES[name]
    posterior = _with_outputs(loss, mask=mask)
    outputs, jacobian = _jacobian(posterior)
    exact = np.mean([j.T @ curvature_of(f) @ j for f, j in zip(outputs, jacobian, strict=True)], axis=0)
    vector = np.random.default_rng(1).normal(size=posterior.num_params)
    with float64():
        operator = gauss_newton_operator(posterior, output_loss=output_loss if callable(output_loss) else None)
        product = np.asarray(_product(operator, jnp.asarray(vector)))
        gradients = jax.device_get([_gradient(curvature) for curvature in (operator, curvature_operator(posterior))])
    assert product.dtype == np.float64
    assert operator.output_loss is (output_loss if callable(output_loss) else CONVEX_PARTS[output_loss])
    # The factor comes from least squares with the residuals of some tens of float64 losses.
    np.testing.assert_allclose(product, exact @ vector, rtol=0, atol=1e-12 * np.abs(exact).sum())
    np.testing.assert_array_equal(*gradients)


def test_gauss_newton_is_the_hessian_at_zero_residual_only():
    loss, *_ = LOSSES["sum of squares"]
    vector = np.random.default_rng(1).normal(size=20)
    for targets, equal in (("fitted", True), (None, False)):
        posterior = _with_outputs(loss, targets=targets)
        with float64():
            hessian = curvature_operator(posterior)
            gauss_newton = gauss_newton_operator(posterior, output_loss="squared error")
            exact, product = jax.device_get([_product(o, jnp.asarray(vector)) for o in (hessian, gauss_newton)])
        difference, size = np.abs(product - exact).max(), np.abs(exact).max()
        assert (difference < 1e-12 * size) == equal
        assert difference < 1e-12 * size or difference > 1e-2 * size


@eqx.filter_jit
def _jacobian_products(operator, few, vector, cotangent):
    return operator.product(vector), operator.transpose_product(cotangent), operator.outputs(), few.product(vector)


@pytest.mark.parametrize(
    "mask", [*MASKS[:2], pytest.param(MASKS[2], marks=pytest.mark.slow)], ids=["all", "leaf", "entries"]
)
def test_jacobian_products_match_the_dense_jacobian(mask, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 5)
    posterior = _with_outputs(LOSSES["sum of squares"][0], mask=mask)
    outputs, jacobian = _jacobian(posterior)
    jacobian = jacobian.reshape(26, -1)
    rng = np.random.default_rng(1)
    vector, cotangent = rng.normal(size=jacobian.shape[1]), rng.normal(size=26)
    with float64():
        operator = jacobian_operator(posterior)
        few = jacobian_operator(posterior, inputs=jax.tree.map(lambda x: x[:1], posterior.data))
        product, transposed, found, one = jax.device_get(
            _jacobian_products(operator, few, jnp.asarray(vector), jnp.asarray(cotangent))
        )
    assert (operator.num_inputs, operator.num_outputs, few.num_outputs) == (13, 26, 2)
    tolerance = 1e-13 * np.abs(jacobian).sum()
    np.testing.assert_allclose(product, jacobian @ vector, rtol=0, atol=tolerance)
    np.testing.assert_allclose(transposed, jacobian.T @ cotangent, rtol=0, atol=tolerance)
    np.testing.assert_allclose(one, jacobian[:2] @ vector, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found, outputs.ravel(), rtol=0, atol=1e-13 * np.abs(outputs).max())


@pytest.mark.parametrize(
    ("output_loss", "loss", "message"),
    [
        ("hinge", LOSSES["sum of squares"][0], "output_loss needs a callable or one of"),
        ("cross-entropy", LOSSES["sum of squares"][0], "loss_fn needs to be cross-entropy of the outputs"),
        (None, LOSSES["fourth power"][0], "loss_fn needs to be squared error or cross-entropy or binary"),
        (LOSSES["fourth power"][2], LOSSES["sum of squares"][0], "up to a constant"),
    ],
    ids=["unknown", "another name", "no name", "another callable"],
)
def test_a_loss_that_is_another_function_of_the_outputs_is_an_error(output_loss, loss, message):
    with float64(), pytest.raises(ValueError, match=message):
        gauss_newton_operator(_with_outputs(loss), output_loss=output_loss)


def test_a_regularizer_is_no_function_of_the_outputs():
    def loss_fn(params, batch):
        return jnp.mean((_outputs(params, batch) - batch[1]) ** 2) + 0.01 * jnp.sum(params["a"] ** 2)

    plain = _with_outputs(LOSSES["mean over outputs"][0])
    posterior = llc.LocalPosterior(loss_fn, plain.center, plain.data, predict_fn=_outputs)
    with float64(), pytest.raises(ValueError, match="leave regularizers out"):
        gauss_newton_operator(posterior)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predict_fn", "message"),
    [
        (None, "outputs are needed, got a posterior without predict_fn"),
        (
            lambda params, batch: jnp.sum(_outputs(params, batch)),
            "= \\(3, …\\) on a batch of 3 rows, got float",
        ),
        (lambda params, batch: (_outputs(params, batch),), "needs to return an array of real numbers"),
        (lambda params, batch: 1j * _outputs(params, batch), "got complex"),
        (lambda params, batch: batch[0] @ jnp.ones((3, 2)), "need to depend on the params that move"),
        (lambda params, batch: batch[0] @ params["c"], "need to depend on the params that move"),
    ],
    ids=["missing", "no axis of examples", "a tuple", "complex", "of the inputs only", "of params that stay only"],
)
@pytest.mark.parametrize(
    "build", [gauss_newton_operator, pytest.param(jacobian_operator, marks=pytest.mark.study)], ids=["ggn", "jacobian"]
)
def test_wrong_outputs(build, predict_fn, message):
    plain = _with_outputs(LOSSES["sum of squares"][0])
    params = plain.center | {"c": np.ones((3, 2), np.float32)}

    @float64()
    def operator():
        return build(llc.LocalPosterior(plain.loss_fn, params, plain.data, mask=["a", "b"], predict_fn=predict_fn))

    with pytest.raises(ValueError, match=message):
        operator()


def test_too_many_outputs_need_a_callable():
    def predict_fn(params, batch):
        return batch * params[:, None, None] * jnp.ones((1, 50, 50))

    posterior = llc.LocalPosterior(
        lambda params, batch: jnp.mean(predict_fn(params, batch) ** 2),
        np.ones(1, np.float32),
        np.ones((2, 1, 1)),
        predict_fn=predict_fn,
    )
    with float64():
        with pytest.raises(ValueError, match="at most 2000 outputs an example, got 2500"):
            gauss_newton_operator(posterior)
        operator = gauss_newton_operator(posterior, output_loss=lambda outputs, batch: jnp.mean(outputs**2))
        np.testing.assert_allclose(operator.product(jnp.ones(1)), [2.0], rtol=1e-14)


class _Matrix(NamedTuple):
    """Any matrix as an operator."""

    matrix: jax.Array

    @property
    def dim(self):
        return len(self.matrix)

    def product(self, vector):
        return self.matrix @ vector


def test_symmetry():
    """The estimate of ‖A − Aᵀ‖ / ‖A‖ within its spread: a ratio of sums over P probes has about √(2/P)."""
    matrix = np.random.default_rng(0).normal(size=(60, 60))
    symmetric, num_probes = matrix + matrix.T, 64
    with float64():
        assert check_symmetric(_Matrix(jnp.asarray(symmetric))) < 1e-14
        assert check_symmetric(_Matrix(jnp.zeros((3, 3)))) == 0
        tilted = symmetric + 1e-4 * matrix
        exact = np.linalg.norm(tilted - tilted.T) / np.linalg.norm(tilted)
        found = check_symmetric(_Matrix(jnp.asarray(tilted)), num_probes=num_probes)
        assert abs(found / exact - 1) < 4 * 0.5 * np.sqrt(2 / num_probes)
        for wrong in (symmetric + 0.1 * matrix, symmetric * np.nan):
            with pytest.raises(ValueError, match="the operator needs to be symmetric"):
                check_symmetric(_Matrix(jnp.asarray(wrong)))


def test_a_derivative_of_no_function_is_found():
    """The derivative of a b in a alone: ∂/∂b of it is 1, and ∂/∂a of that in b is 0."""

    @jax.custom_jvp
    def product(a, b):
        return a * b

    product.defjvp(lambda primals, tangents: (product(*primals), primals[1] * tangents[0]))
    params = {"a": np.ones((), np.float32), "b": np.ones((), np.float32)}
    loss = lambda w, batch: jnp.mean(batch) * product(w["a"], w["b"])  # noqa: E731
    with pytest.raises(ValueError, match="derivative of the loss"):
        llc.LocalPosterior(loss, params, np.ones(2))
    honest = llc.LocalPosterior(lambda w, batch: jnp.mean(batch) * w["a"] * w["b"], params, np.ones(2))
    posterior = copy.copy(honest)
    object.__setattr__(posterior, "loss_fn", loss)  # as no posterior is made
    with float64():
        check_symmetric(curvature_operator(_posterior(10)))
        with pytest.raises(ValueError, match="custom derivatives"):
            check_symmetric(curvature_operator(posterior))
    for method in ("dense", "lanczos"):
        with pytest.raises(ValueError, match="the operator needs to be symmetric"):
            llc.spectrum(posterior, method=method)
