import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.spectrum import Spectrum
from tests.geometry.models import deep_linear
from tests.geometry.test_operators import _oracle, _posterior


def test_dense_is_eigh_of_the_hessian():
    posterior = _posterior(50)
    hessian, gradient = _oracle(posterior)
    spectrum = llc.spectrum(posterior)
    eigenvalues = np.linalg.eigvalsh(hessian)
    scale = np.abs(eigenvalues).max()
    np.testing.assert_allclose(spectrum.nodes[0], eigenvalues, rtol=0, atol=1e-13 * scale)
    assert spectrum.noise < 1e-14 * scale
    assert spectrum.stderr(np.abs) == 0
    # The measure of the gradient: gᵀ f(H) g for f = 1 and f = h.
    np.testing.assert_allclose(spectrum.gradient_weights.sum(), gradient @ gradient, rtol=1e-12)
    found = np.sum(spectrum.gradient_weights * spectrum.gradient_nodes)
    np.testing.assert_allclose(found, gradient @ hessian @ gradient, rtol=1e-10)


def test_decrement_is_the_damped_newton_step():
    posterior = deep_linear([3, 2, 3], [2, 2])
    moved = llc.LocalPosterior(
        posterior.loss_fn, [w + np.float32(1e-3) for w in posterior.center], posterior.data, gamma=1.0
    )
    hessian, gradient = _oracle(moved)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    positive = vectors @ np.diag(np.maximum(eigenvalues, 0)) @ vectors.T
    exact = 0.5 * gradient @ np.linalg.solve(positive + 0.01 * np.eye(len(gradient)), gradient)
    np.testing.assert_allclose(llc.spectrum(moved).decrement(0.01), exact, rtol=1e-9)


def test_full_order_lanczos_is_exact_for_its_probes():
    """Gauss quadrature of full order gives zᵀ f(H) z without error; Rademacher probes give tr H without variance
    only on a diagonal, so the trace is compared with the probes themselves."""
    posterior = _posterior(50)
    hessian, gradient = _oracle(posterior)
    dim, num_probes = posterior.num_params, 3
    spectrum = llc.spectrum(posterior, method="lanczos", num_matvecs=dim, num_probes=num_probes, seed=5)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), num_probes)
        probes = [np.asarray(jax.random.rademacher(key, (dim,), np.float64)) for key in keys]
    exact = np.mean([z @ hessian @ hessian @ z for z in probes])
    np.testing.assert_allclose(spectrum.sum(np.square), exact, rtol=1e-10)
    np.testing.assert_allclose(spectrum.sum(np.ones_like), dim, rtol=1e-12)
    np.testing.assert_allclose(spectrum.gradient_weights.sum(), gradient @ gradient, rtol=1e-12)
    assert not np.isclose(spectrum.sum(np.square), 1.001 * exact, rtol=1e-10)


def test_lanczos_quad_is_within_its_error():
    posterior = deep_linear([12, 8, 12], [8, 8])
    dense = llc.spectrum(posterior)
    lanczos = llc.spectrum(posterior, method="lanczos", num_probes=16)
    scale = float(posterior.gamma) / float(posterior.nbeta)
    assert lanczos.resolves(scale)
    error = lanczos.quad_stderr(scale)
    assert 0 < error < 0.05 * dense.quad(scale)
    assert abs(lanczos.quad(scale) - dense.quad(scale)) < 4 * error
    assert abs(lanczos.quad(scale) - 1.5 * dense.quad(scale)) > 4 * error
    np.testing.assert_allclose(llc.top_eigenvalue(posterior), dense.largest, rtol=1e-6)


def test_too_few_steps_are_named_unresolved():
    """Ten steps smear the null space into λ_quad; the spread of the probes does not show it, `resolves` does."""
    eigenvalues = np.concatenate([10.0 ** -np.linspace(0, 3, 100), np.zeros(100)]).astype(np.float32)
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.sum(jnp.asarray(eigenvalues) * w**2), np.zeros(200, np.float32), np.zeros((10, 1))
    )
    scale = 1e-4
    exact = 0.5 * np.sum(eigenvalues / (eigenvalues + scale))
    short = llc.spectrum(posterior, method="lanczos", num_matvecs=10)
    assert not short.resolves(scale)
    assert abs(short.quad(scale) - exact) > 4 * short.quad_stderr(scale)
    long = llc.spectrum(posterior, method="lanczos", num_matvecs=160)
    assert long.resolves(scale)
    # On a diagonal matrix Rademacher probes have no variance: what remains is the quadrature, exact at this order.
    assert abs(long.quad(scale) - exact) < 1e-3 * exact


def test_dataset_round_trip():
    spectrum = llc.spectrum(_posterior(20), method="lanczos", num_matvecs=5, num_probes=2)
    again = Spectrum.from_dataset(spectrum.to_dataset())
    for name in ("nodes", "weights", "gradient_nodes", "gradient_weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spectrum, name))
    assert (again.dim, again.matrix, again.method, again.noise) == (16, "hessian", "lanczos", 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qr"}, "method needs one of"),
        ({"matrix": "fisher"}, "matrix needs one of"),
        ({"num_probes": 0}, "num_probes needs an integer >= 1"),
        ({"num_matvecs": 0}, "num_matvecs needs an integer >= 1"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.spectrum(_posterior(10), **settings)


def test_a_hessian_that_is_not_finite_is_an_error():
    posterior = llc.LocalPosterior(lambda w, batch: jnp.sqrt(jnp.sum(w**2)), np.zeros(2), np.zeros((5, 1)))
    with pytest.raises(ValueError, match="Hessian at w\\* needs to be finite"):
        llc.spectrum(posterior)
