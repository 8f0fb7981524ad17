import contextlib
import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
from llc.bounds.shrinkage import signed_shrink
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature import krylov
from llc.geometry.curvature.operators import curvature_operator
from llc.geometry.curvature.symmetric import NotSymmetricError
from llc.posterior.precision import as_precision, float64
from tests.support.models import deep_linear
from tests.support.tiers import weekly_cases

DIM = 300
_BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
DECAYING = np.concatenate([[3.0, 2.0, 1.5, 1.0], 0.3 * 0.98 ** np.arange(DIM - 4)])
SIGNED = np.concatenate([[3.0, 2.0, 1.0], np.linspace(-0.02, 0.05, DIM - 3)])  # as of an imperfect minimum
LOW_RANK = np.concatenate([1 / np.arange(1.0, 13.0), np.zeros(DIM - 12)])
MULTIPLE = np.concatenate([np.ones(40), np.full(20, 0.1), np.zeros(DIM - 60)])


def quadratic(eigenvalues, slope=0.0, **scale):
    """A loss with these eigenvalues, in a basis that is not that of the parameters, and a gradient at w*."""
    matrix = (_BASIS * eigenvalues) @ _BASIS.T

    def loss(w, batch):
        return 0.5 * w @ batch[0][0].astype(w.dtype) @ w + slope * jnp.sum(w) + 0 * batch[1].sum()

    data = np.repeat(matrix[None].astype(np.float32), 2, axis=0), np.zeros((2, 1), np.float32)
    return llc.LocalPosterior(loss, np.zeros(DIM, np.float32), data, **scale)


def of(eigenvalues, **settings):
    return llc.spectrum(quadratic(eigenvalues), method="deflated", **settings)


def z_score(found, exact, scale):
    return (found.signed_quad(scale) - exact) / found.signed_quad_stderr(scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "eigenvalues",
    weekly_cases(
        {"decaying": [DECAYING], "signed": [SIGNED], "low": [LOW_RANK], "multiple": [MULTIPLE]}, but=("signed", "low")
    ),
)
def test_quad_is_within_its_error(eigenvalues):
    scale = 0.1 * eigenvalues.max()
    exact = float(np.sum(signed_shrink(eigenvalues, scale)))
    found = of(eigenvalues, relative_scale=0.1, relative_error=0.03)
    assert found.largest == pytest.approx(eigenvalues.max(), rel=1e-5)
    assert abs(found.signed_quad(scale) - exact) < 4 * found.signed_quad_stderr(scale) + 1e-4 * exact
    assert found.signed_quad_stderr(scale) < 0.045 * exact, "the wanted error, and that of the quadrature"
    np.testing.assert_allclose(found.weights.sum(axis=1), DIM)


@pytest.mark.parametrize(("margin", "rough"), [(5.0, False), (14.0, True), (20.0, True)])
def test_products_are_in_float64_where_float32_is_too_rough(margin, rough):
    """In a cross entropy of 10⁻⁵ and less, float32 loses 1 − p beside p, and no product is that of a Hessian."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, 200)
    x = np.eye(5)[classes] @ rng.normal(size=(5, 30)) + 0.05 * rng.normal(size=(200, 30))
    weights = margin * np.linalg.lstsq(x, np.eye(5)[classes] - 0.2, rcond=None)[0]
    posterior = llc.LocalPosterior(
        lambda w, batch: optax.softmax_cross_entropy_with_integer_labels(batch[0] @ w, batch[1]),
        weights.astype(np.float32),
        (x.astype(np.float32), classes),
    )
    exact = llc.spectrum(posterior, method="dense")
    scale = 0.1 * exact.largest
    settings = {"method": "deflated", "relative_scale": 0.1, "relative_error": 0.03}
    found = llc.spectrum(posterior, **settings)
    assert found.largest == pytest.approx(exact.largest, rel=1e-5)
    assert abs(z_score(found, exact.signed_quad(scale), scale)) < 4
    short = llc.spectrum(posterior, method="deflated", budget=13)
    assert short.largest == pytest.approx(exact.largest, rel=0.1), "a few products, and no refusal"
    with float64():
        operator = as_precision(curvature_operator(posterior), jnp.float32)
    nothing = jnp.zeros((0, operator.dim))
    with pytest.raises(NotSymmetricError) if rough else contextlib.nullcontext():
        run, _ = krylov.start(np.random.default_rng(0).normal(size=operator.dim), nothing)
        for _ in range(10):
            run = krylov.step(operator, nothing, run)


@pytest.mark.study
def test_errors_cover():
    """95 % intervals of 100 seeds."""
    scale = 0.1 * DECAYING.max()
    exact = float(np.sum(signed_shrink(DECAYING, scale)))
    scores = [z_score(of(DECAYING, relative_scale=0.1, relative_error=0.05, seed=i), exact, scale) for i in range(100)]
    inside = np.abs(scores) < 1.96
    assert inside.sum() >= 89, "below the 0.5 % point of Binomial(100, 0.95)"
    assert abs(np.mean(scores)) < 0.4, "no bias"
    assert np.std(scores) > 0.5, "nor are they far too wide"
    wrong = [z_score(of(DECAYING, relative_scale=0.1, seed=i), 1.2 * exact, scale) for i in range(5)]
    assert np.abs(wrong).min() > 1.96, "negative control"


def test_a_low_rank_is_exact():
    """The Krylov space holds all eigenvectors that count, and nothing is left to chance."""
    found, scale = of(LOW_RANK, relative_scale=0.01), 0.01
    assert found.num_exact == 12
    np.testing.assert_allclose(found.nodes[0, :12], LOW_RANK[:12], rtol=1e-5)
    assert found.quad(scale) == pytest.approx(np.sum(0.5 * LOW_RANK / (LOW_RANK + scale)), rel=1e-4)
    assert found.quad_stderr(scale) < 1e-2 * found.quad(scale)
    assert of(DECAYING).num_exact < DIM, "negative control"


def test_vectors_are_eigenvectors():
    found = of(DECAYING, relative_scale=0.1)
    matrix = (_BASIS * DECAYING) @ _BASIS.T
    vectors, values = found.vectors, found.vector_eigenvalues
    assert len(vectors) >= 4
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-5)
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    assert (residuals**2 <= 2e-4 * values * 0.3).all()
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("budget", [13, 20, 40, 100])
def test_a_budget_is_kept(budget):
    """Counted where the loss is differentiated: a program runs once for each product; one on some rows is a part."""
    posterior, calls = quadratic(DECAYING), []

    def loss(w, batch):
        share = len(jax.tree.leaves(batch)[0]) / posterior.num_data
        jax.debug.callback(lambda: calls.append(share))
        return posterior.loss_fn(w, batch)

    counted = llc.LocalPosterior(loss, posterior.center, posterior.data)
    calls.clear()
    found = llc.spectrum(counted, method="deflated", budget=budget, relative_error=1e-3)
    jax.effects_barrier()
    assert 0 < sum(calls) <= 1 + (budget - 1) / 2
    assert found.signed_quad_stderr(0.03) > 0


def test_more_work_brings_a_smaller_error():
    errors = [of(DECAYING, relative_scale=0.1, relative_error=1e-3, budget=b).quad_stderr(0.3) for b in (20, 100, 400)]
    assert errors[0] > errors[1] > errors[2]


def test_the_gradient_is_measured_where_it_matters():
    posterior = quadratic(DECAYING, slope=1e-2, gamma=1.0)
    scale = posterior.scale.localization
    gradient = _BASIS.T @ np.full(DIM, 1e-2)
    exact = 0.5 * np.sum(gradient**2 / (DECAYING + scale))
    found = llc.spectrum(posterior, method="deflated")
    assert found.newton_decrement(scale) == pytest.approx(exact, rel=0.1)
    np.testing.assert_allclose(found.gradient_weights.sum(), np.sum(gradient**2), rtol=1e-4)
    assert not llc.spectrum(quadratic(DECAYING), method="deflated").newton_decrement(scale)


def test_nothing_is_claimed_that_was_not_judged():
    found = of(DECAYING, budget=60)
    assert found.smoothness is not None
    assert found.smoothness.state == "not judged"
    assert not found.exact
    bounds = llc.rank_bounds(found, nbeta=10.0, gamma=1.0)
    assert bounds.rank_interval[1] == DIM
    assert bounds.rank_interval[0] <= np.sum(DECAYING > 0.1)
    smooth = next(a for a in bounds.assumptions if a.name == "smooth")
    assert smooth.holds
    assert "not judged" in smooth.message


def test_round_trip_through_a_file(tmp_path):
    found = of(DECAYING, budget=60)
    again = Spectrum.from_dataset(found.to_dataset())
    assert (again.num_exact, again.method, again.smoothness.state) == (found.num_exact, "deflated", "not judged")
    assert again.quad_stderr(0.03) == found.quad_stderr(0.03)
    assert dataclasses.replace(again, num_exact=0).quad_stderr(0.03) > again.quad_stderr(0.03)


@pytest.mark.slow
@pytest.mark.study
def test_in_float64_where_the_params_are():
    with jax.enable_x64(True):
        posterior = deep_linear([6, 3, 6], [2, 2])
        posterior = llc.LocalPosterior(
            posterior.loss_fn, [np.asarray(w, np.float64) for w in posterior.center], posterior.data
        )
        dense, found = llc.spectrum(posterior), llc.spectrum(posterior, method="deflated", relative_scale=1e-4)
    assert found.largest == pytest.approx(dense.largest, rel=1e-12)
    assert found.noise < 1e-12 * found.largest
    scale = 1e-4 * dense.largest
    assert abs(found.quad(scale) - dense.quad(scale)) < 4 * found.quad_stderr(scale) + 1e-6


def test_the_same_seed_gives_the_same_bits():
    first, second, other = (of(DECAYING, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.nodes, second.nodes)
    assert first.nodes.shape != other.nodes.shape or (first.nodes != other.nodes).any()


def test_a_matrix_that_is_not_symmetric_is_an_error():
    @jax.custom_jvp
    def loss(w):
        return jnp.sum(w**2)

    @loss.defjvp
    def _(primals, tangents):
        (w,), (t,) = primals, tangents
        return loss(w), jnp.sum(jnp.roll(w, 1) * t)

    data = np.zeros((5, 1), np.float32)
    posterior = copy.copy(llc.LocalPosterior(lambda w, _: jnp.sum(w**2), np.ones(50, np.float32), data))
    object.__setattr__(posterior, "loss_fn", lambda w, _: loss(w))  # as no posterior is made
    with pytest.raises(ValueError, match="symmetric"):
        llc.spectrum(posterior, method="deflated")
