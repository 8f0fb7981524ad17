import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import llc
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.lanczos import quadratures
from llc.geometry.curvature.methods import METHODS
from llc.geometry.curvature.operators import curvature_operator
from llc.geometry.curvature.problem import Limits, Settings, problem_of
from llc.geometry.curvature.smoothness import directions
from llc.posterior.precision import as_float64, float64
from tests.geometry.curvature.test_operators import _oracle, _posterior
from tests.support.models import deep_linear
from tests.support.tiers import weekly


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
    np.testing.assert_allclose(llc.spectrum(moved).newton_decrement(0.01), exact, rtol=1e-9)


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


@pytest.mark.slow
@pytest.mark.study
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


# All eigenvalues, without a d × d matrix


def _classifier(num_data=30):
    """Softmax regression behind tanh units, with residuals: the Hessian is not its Gauss–Newton part."""
    rng = np.random.default_rng(4)
    center = {"a": rng.normal(size=(4, 5)).astype(np.float32), "b": rng.normal(size=(5, 3)).astype(np.float32)}
    data = rng.normal(size=(num_data, 4)).astype(np.float32), rng.integers(3, size=num_data)

    def predict_fn(params, batch):
        return jnp.tanh(batch[0] @ params["a"]) @ params["b"]

    def loss_fn(params, batch):
        return -jnp.take_along_axis(jax.nn.log_softmax(predict_fn(params, batch)), batch[1][:, None], axis=1)[:, 0]

    return llc.LocalPosterior(loss_fn, center, data, gamma=1.0, predict_fn=predict_fn)


def _gauss_newton(posterior):
    """Jᵀ (diag p − ppᵀ) J / n, from a dense Jacobian."""
    num_data = posterior.num_data
    with float64():
        center, data = as_float64(posterior.center), as_float64(posterior.data)
        columns = jax.jit(jax.jacobian(posterior.predict_fn))(center, data)
        (a, b), inputs = (np.asarray(center[name]) for name in ("a", "b")), np.asarray(data[0])
    jacobian = np.concatenate([np.reshape(columns[name], (num_data, 3, -1)) for name in ("a", "b")], axis=2)
    p = scipy.special.softmax(np.tanh(inputs @ a) @ b, axis=1)
    middle = np.einsum("ia,ab->iab", p, np.eye(3)) - np.einsum("ia,ib->iab", p, p)
    return np.einsum("iad,iab,ibe->de", jacobian, middle, jacobian) / num_data


# Fewer outputs than parameters, and more.
@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("num_data", "methods"), [(5, ("gram", "range_finder")), (30, ("dense", "gram", "range_finder"))]
)
def test_gauss_newton_by_every_method(num_data, methods):
    posterior = _classifier(num_data)
    exact = np.linalg.eigvalsh(_gauss_newton(posterior))
    for method in methods:
        found = llc.spectrum(posterior, matrix="ggn", method=method)
        assert found.exact
        assert found.weights.sum() == posterior.num_params
        tolerance = max(found.noise, 1e-13 * exact.max())
        assert tolerance < 1e-9 * exact.max()
        eigenvalues = np.sort(np.repeat(found.nodes[0], found.weights[0].astype(int)))
        np.testing.assert_allclose(eigenvalues, exact, rtol=0, atol=tolerance)
        bounds = llc.rank_bounds(found)
        assert [a.name for a in bounds.assumptions if not a.holds] == ["Gauss–Newton is the Hessian"]
        assert np.isnan(bounds.lower)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gram", "dense"])
def test_the_hessian_is_not_its_gauss_newton_part(method):
    """The gauss_newton_discrepancy is ‖(H − G) V‖ / ‖H V‖ for the directions V of the smoothness probe."""
    posterior = _classifier()
    hessian, gauss_newton, vectors = _oracle(posterior)[0], _gauss_newton(posterior), directions(posterior.num_params).T
    exact = np.linalg.norm((hessian - gauss_newton) @ vectors) / np.linalg.norm(hessian @ vectors)
    assert llc.spectrum(posterior, matrix="ggn", method=method).gauss_newton_discrepancy == pytest.approx(
        exact, rel=1e-9
    )
    of_hessian = llc.spectrum(posterior)
    assert of_hessian.gauss_newton_discrepancy == pytest.approx(exact, rel=1e-9)
    bounds = llc.rank_bounds(of_hessian)
    assert f"{exact:.2g} of the Hessian's norm comes from residuals" in bounds.note
    assert bounds.note in str(bounds)
    without = llc.spectrum(llc.LocalPosterior(posterior.loss_fn, posterior.center, posterior.data))
    assert np.isnan(without.gauss_newton_discrepancy)
    assert not llc.rank_bounds(without).note
    assert exact > 1e-3, "negative control: the two differ"


@pytest.mark.slow
def test_outputs_that_do_not_make_the_loss_are_named():
    posterior = _classifier()

    def regularized(params, batch):
        return posterior.loss_fn(params, batch) + 0.1 * jnp.sum(params["a"] ** 2)

    mixed = llc.LocalPosterior(regularized, posterior.center, posterior.data, predict_fn=posterior.predict_fn)
    with pytest.warns(
        UserWarning, match="what residuals add to the Hessian is not measured: .* leave regularizers out"
    ):
        assert np.isnan(llc.spectrum(mixed).gauss_newton_discrepancy)
    wrong = llc.LocalPosterior(regularized, posterior.center, posterior.data, predict_fn=lambda w, batch: batch[0])
    with pytest.raises(ValueError, match="outputs of predict_fn need to depend on the params"):
        llc.spectrum(wrong)


def _chain(params, batch):
    return functools.reduce(jnp.matmul, params, batch[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", weekly(["range_finder", "sketch"], but=("range_finder",)))
def test_a_rank_by_design_is_found(method):
    posterior = deep_linear([12, 6, 12], [4, 4])  # 4 · (12 + 12 − 4) = 80 of 144
    found = llc.spectrum(posterior, method=method)
    dense = llc.spectrum(posterior)
    ggn = llc.spectrum(
        llc.LocalPosterior(posterior.loss_fn, posterior.center, posterior.data, predict_fn=_chain), matrix="ggn"
    )
    assert ggn.gauss_newton_discrepancy < 1e-7
    assert llc.rank_bounds(ggn).valid, "at an exact fit"
    bounds = [llc.rank_bounds(s, nbeta=float(posterior.nbeta), gamma=1.0) for s in (found, dense)]
    assert bounds[0].rank_interval == bounds[1].rank_interval == (80, 80)
    assert bounds[0].quad == pytest.approx(bounds[1].quad, rel=1e-10)
    assert found.nodes.size == 81, "eighty eigenvalues, and zero"


def _spectrum(method, posterior, limits, **settings):
    with float64():
        return METHODS[method](problem_of(posterior, Settings(**settings), limits))


@pytest.mark.parametrize("method", ["range_finder", "sketch"])
def test_too_many_eigenvalues_are_an_error(method):
    with pytest.raises(ValueError, match=f"method '{method}' needs at most 10 eigenvalues that are not zero, got more"):
        _spectrum(method, deep_linear([12, 6, 12], [4, 4]), Limits(order=10))


def test_the_old_name_of_the_range_finder_is_taken():
    posterior = deep_linear([4, 2, 4], [1, 1])
    with pytest.warns(DeprecationWarning, match="range_finder"):
        old = llc.spectrum(posterior, method="block")
    new = llc.spectrum(posterior, method="range_finder")
    assert old.method == new.method == "range_finder"
    np.testing.assert_array_equal(old.nodes, new.nodes)


@pytest.mark.slow
def test_auto_finds_a_low_rank_in_a_large_model():
    posterior = deep_linear([12, 6, 12], [4, 4])
    limits = Limits(order=143, spare=20)
    assert _spectrum("auto", posterior, limits).method == "range_finder"
    few_vectors = dataclasses.replace(limits, vector_bytes=8 * 144 * 50)
    assert _spectrum("auto", posterior, few_vectors).method == "sketch"
    assert _spectrum("auto", posterior, limits, budget=60).method == "deflated"
    flat = 10.0 ** -np.linspace(0, 8, 200)  # no gap: nothing is low
    decaying = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.sum(jnp.asarray(flat, w.dtype) * w**2), np.zeros(200, np.float32), np.zeros((10, 1))
    )
    assert _spectrum("auto", decaying, limits).method == "lanczos"


@pytest.mark.study
def test_auto_tries_the_range_of_a_middling_model():
    """From some size on the range finder is tried first, and dense is taken where it fails or could lose λ_quad."""
    limits = Limits(small=100)
    posterior = deep_linear([12, 6, 12], [2, 2])  # rank 44 of 144, found in two blocks of 64
    found, dense = _spectrum("auto", posterior, limits), llc.spectrum(posterior, method="dense")
    assert (found.method, dense.method) == ("range_finder", "dense")
    assert found.quad(1e-3) == pytest.approx(dense.quad(1e-3), rel=1e-9)
    assert _spectrum("auto", deep_linear([12, 6, 12], [4, 4]), limits).method == "dense", "rank 80: more than one block"
    curvatures = np.concatenate([np.ones(20), np.full(180, 4e-7)])  # 180 that add up, below the precision of w*

    def spectrum(gamma):
        center, data = np.zeros(200, np.float32), np.zeros((1000, 1))
        loss = lambda w, batch: 0.5 * jnp.sum(jnp.asarray(curvatures, w.dtype) * w**2)  # noqa: E731
        return _spectrum("auto", llc.LocalPosterior(loss, center, data, gamma=gamma), limits)

    weak = spectrum(0.01)
    assert weak.method == "dense"
    scale = 0.01 / (1000 / np.log(1000))
    assert weak.quad(scale) == pytest.approx(0.5 * np.sum(curvatures / (curvatures + scale)), rel=1e-6)
    assert spectrum(100.0).method == "range_finder", "a localization that hides them"
    flat = llc.LocalPosterior(lambda w, batch: 0.0 * jnp.sum(w), np.zeros(200, np.float32), np.zeros((10, 1)))
    nothing = _spectrum("auto", flat, limits)
    assert nothing.method == "range_finder"
    assert nothing.vectors.shape == (0, 200)


def test_a_large_dense_matrix_comes_in_parts(monkeypatch):
    posterior = deep_linear([8, 4, 8], [3, 3])
    whole = llc.spectrum(posterior, method="dense")
    monkeypatch.setattr("llc.geometry.curvature.dense._CHUNK", 40)
    parts = llc.spectrum(posterior, method="dense", progress=False)
    np.testing.assert_allclose(parts.nodes, whole.nodes, atol=1e-12 * whole.largest)
    np.testing.assert_allclose(parts.gradient_weights.sum(), whole.gradient_weights.sum())


@pytest.mark.parametrize("name", ["count", "count_stderr", "quad"])
def test_a_negative_threshold_is_an_error(name):
    found = llc.spectrum(deep_linear([3, 2, 3], [2, 2]))
    with pytest.raises(ValueError, match=rf"{name} needs a \w+ >= 0, got -1.0"):
        getattr(found, name)(-1.0)


def test_too_little_memory_is_an_error(monkeypatch):
    monkeypatch.setattr("llc.posterior.memory.free_memory", lambda: 1e4)
    with pytest.raises(ValueError, match=r"need .* GiB of memory, got .* free; take method='lanczos'"):
        llc.spectrum(deep_linear([12, 6, 12], [4, 4]), method="dense")
    with pytest.raises(ValueError, match=r"Lanczos steps need .* take fewer of them"):
        llc.spectrum(deep_linear([12, 6, 12], [4, 4]), method="lanczos")


def test_errors_of_lanczos_cover():
    """Counts and λ_quad of 100 seeds: 95 % intervals that are too wide, if anything (the probes' error is a bound)."""
    posterior = deep_linear([8, 4, 8], [3, 3])
    scale, rank = 1e-3, 3 * (8 + 8 - 3)
    dense = llc.spectrum(posterior)
    exact = dense.quad(scale)
    spectra = []
    with float64():
        operator = curvature_operator(posterior)
        for seed in range(100):
            (nodes, weights), (half_nodes, half_weights) = quadratures(operator, 40, 2, seed, progress=False)
            halves = {"half_nodes": half_nodes, "half_weights": half_weights}
            spectra.append(dataclasses.replace(dense, nodes=nodes, weights=weights, method="lanczos", **halves))
    inside = [abs(s.quad(scale) - exact) < 1.96 * s.quad_stderr(scale) for s in spectra]
    assert sum(inside) >= 89, "below the 0.5 % point of Binomial(100, 0.95)"
    assert np.mean([s.quad_stderr(scale) for s in spectra]) < 0.3 * exact
    threshold = spectra[0].resolution
    counted = [abs(s.count(threshold) - rank) < 1.96 * s.count_stderr(threshold) for s in spectra]
    assert sum(counted) >= 89
    wrong = [abs(s.count(threshold) - 2 * rank) < 1.96 * s.count_stderr(threshold) for s in spectra]
    assert sum(wrong) < 50, "negative control"


def test_dataset_round_trip():
    spectrum = llc.spectrum(_posterior(20), method="lanczos", num_matvecs=5, num_probes=2)
    again = Spectrum.from_dataset(spectrum.to_dataset())
    for name in ("nodes", "weights", "gradient_nodes", "gradient_weights", "half_nodes", "half_weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spectrum, name))
    assert (again.dim, again.matrix, again.method, again.noise) == (16, "hessian", "lanczos", 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qr"}, "method needs one of"),
        ({"method": "gram"}, "method 'gram' needs matrix 'ggn', got 'hessian'"),
        ({"matrix": "ggn"}, "without predict_fn"),
        ({"matrix": "fisher"}, "matrix needs one of"),
        ({"num_probes": 0}, "num_probes needs an integer >= 1"),
        ({"num_matvecs": 0}, "num_matvecs needs an integer >= 1"),
        ({"budget": 5}, "budget needs an integer >= 13"),
        ({"relative_error": 0.0}, "relative_error needs a finite number > 0"),
        ({"relative_scale": float("nan")}, "relative_scale needs a finite number > 0"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.spectrum(_posterior(10), **settings)


def test_a_hessian_that_is_not_finite_is_an_error():
    posterior = llc.LocalPosterior(lambda w, batch: jnp.sum(jnp.abs(w) ** 1.5), np.zeros(2), np.zeros((5, 1)))
    with pytest.raises(ValueError, match="Hessian at w\\* needs to be finite"):
        llc.spectrum(posterior)
