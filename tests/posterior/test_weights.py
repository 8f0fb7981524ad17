"""Weights of rows: the same numbers as rows that are repeated or weighted in the loss, in every part of the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior

RNG = np.random.default_rng(0)
N = 3000
LENGTHS = np.sort(RNG.integers(1, 13, N)).astype(np.float32)
SIGNED = (RNG.normal(size=N) + np.where(LENGTHS < 6, 2.0, -2.0)).astype(np.float32)
CENTER = jnp.float32((LENGTHS * SIGNED).sum() / LENGTHS.sum())
NBETA = N / np.log(N)
EXACT = 0.5 * NBETA / (NBETA + 1)  # .498668: a quadratic of curvature 1, as the weights have mean one
KEY = jax.random.key(0)


def half_square(p, batch):
    return 0.5 * (p - batch) ** 2


def weighted(**settings):
    return LocalPosterior(half_square, CENTER, SIGNED, gamma=1.0, weights=LENGTHS, **settings)


def in_loss(p, batch):
    """The same weights within the loss, from the data."""
    return batch[1] / LENGTHS.mean() * half_square(p, batch[0])


def test_weights_have_mean_one():
    posterior = weighted()
    np.testing.assert_allclose(posterior.weights, LENGTHS / LENGTHS.astype(np.float64).mean(), rtol=1e-15)
    assert (posterior.num_data, float(posterior.nbeta)) == (N, NBETA)
    assert LocalPosterior(half_square, CENTER, SIGNED).weights is None


def test_the_loss_at_the_minimum_and_on_rows():
    posterior = weighted()
    losses = 0.5 * (float(CENTER) - SIGNED.astype(np.float64)) ** 2 * LENGTHS / LENGTHS.astype(np.float64).mean()
    np.testing.assert_allclose(posterior.init_loss(), losses.mean(), rtol=1e-12)
    rows = np.array([1, 5, 2999])
    np.testing.assert_allclose(posterior.init_loss(rows), losses[rows].mean(), rtol=1e-12)
    np.testing.assert_allclose(posterior.loss(CENTER), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        posterior.loss(CENTER, jax.tree.map(lambda x: x[rows], posterior.data)), losses[rows].mean(), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"batch needs the weights.*posterior\.data"):
        posterior.loss(CENTER, SIGNED[rows])


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_quadratic_part_of_lambda(method):
    spectrum = llc.spectrum(weighted(), method=method)
    np.testing.assert_allclose(spectrum.quad(1 / NBETA), EXACT, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="all rows", marks=pytest.mark.study),
        pytest.param({"batch_size": 256}, id="minibatches", marks=pytest.mark.study),
        pytest.param({"eval_size": 500}, id="subset", marks=pytest.mark.study),
        pytest.param({"batch_size": 256, "eval_size": 500}, id="both"),
    ],
)
@pytest.mark.optimized
def test_sampled_lambda(settings):
    posterior = weighted()
    step_size = 0.05 / NBETA  # minibatches of the gradient's noise heat by less than a standard error
    draws = llc.sample(
        KEY,
        posterior,
        llc.SGLD(step_size, control_variates="batch_size" in settings),
        num_chains=4,
        num_warmup=200,
        num_draws=400,
        thinning=10,
        spectrum=llc.spectrum(posterior),
        progress=False,
        **settings,
    )
    for estimate in (llc.report(draws).llc, llc.mean_energy(draws)):
        assert abs(estimate.value - EXACT) < 4 * estimate.mcse
        assert estimate.mcse < 0.1
    llc_of_rows = draws["pointwise"]["first"].to_numpy().mean(axis=(0, 1)) if "first" in draws["pointwise"] else None
    assert llc_of_rows is not None
    assert len(llc_of_rows) == settings.get("eval_size", N)


@pytest.mark.slow
@pytest.mark.study
def test_weights_and_weights_in_the_loss_are_the_same_run(tmp_path):
    """To the bits of the draws, the losses of every example, the report and the file."""
    found = []
    for posterior in (weighted(), LocalPosterior(in_loss, CENTER, (SIGNED, LENGTHS), gamma=1.0)):
        draws = llc.sample(
            KEY, posterior, llc.SGLD(1e-3), num_chains=2, num_warmup=20, num_draws=50, batch_size=64, progress=False
        )
        llc.save(draws, tmp_path / "run.nc")
        found.append(llc.load(tmp_path / "run.nc"))
    for name in ("llc", "loss"):
        np.testing.assert_allclose(found[0]["posterior"][name], found[1]["posterior"][name], rtol=1e-3, atol=1e-4)
    for name in ("first", "second", "exponential"):
        np.testing.assert_allclose(found[0]["pointwise"][name], found[1]["pointwise"][name], rtol=1e-3, atol=1e-4)
    effective = LENGTHS.sum(dtype=float) ** 2 / (LENGTHS.astype(float) ** 2).sum()
    assert llc.report(found[0]).settings["effective_rows"] == pytest.approx(effective)
    for estimator in (llc.mean_energy, llc.waic, llc.singular_fluctuation):
        a, b = (estimator(draws) for draws in found)
        np.testing.assert_allclose([a.value, a.mcse], [b.value, b.mcse], rtol=1e-3)


def test_counts_are_rows_that_are_repeated():
    inputs = RNG.normal(size=(40, 2)).astype(np.float32)
    targets = RNG.normal(size=40).astype(np.float32)
    counts = RNG.integers(0, 4, 40)
    loss_fn = lambda w, b: 0.5 * (b[0] @ w - b[1]) ** 2  # noqa: E731
    many = np.repeat(np.arange(40), counts)
    nbeta = len(many) / np.log(len(many))
    once = LocalPosterior(loss_fn, jnp.ones(2), (inputs, targets), nbeta=nbeta, weights=counts)
    repeated = LocalPosterior(loss_fn, jnp.ones(2), (inputs[many], targets[many]))
    assert float(repeated.nbeta) == nbeta
    np.testing.assert_allclose(once.init_loss(), repeated.init_loss(), rtol=1e-12)
    np.testing.assert_allclose(llc.spectrum(once).nodes, llc.spectrum(repeated).nodes, rtol=1e-9)


@pytest.mark.parametrize("output_loss", [None, "squared error", lambda f, b: 0.5 * (f - b[1]) ** 2])
def test_the_gauss_newton_matrix_has_the_weights(output_loss):
    inputs = RNG.normal(size=(40, 2)).astype(np.float32)
    weights = np.r_[np.zeros(5), RNG.uniform(0.5, 2, 35)]
    posterior = LocalPosterior(
        lambda w, b: 0.5 * (b[0] @ w - b[1]) ** 2,
        jnp.ones(2),
        (inputs, inputs.sum(axis=1)),
        weights=weights,
        predict_fn=lambda w, b: b[0] @ w,
    )
    spectrum = llc.spectrum(posterior, matrix="ggn", output_loss=output_loss)
    exact = np.linalg.eigvalsh(inputs.T.astype(np.float64) @ (inputs * (weights / weights.sum())[:, None]))
    np.testing.assert_allclose(np.sort(spectrum.nodes.ravel()), exact, rtol=1e-6)
    with pytest.raises(ValueError, match="hessian_identity needs rows of equal weight"):
        llc.hessian_identity(posterior)


def test_a_weighted_posterior_at_another_center_or_scale_keeps_its_weights():
    posterior = weighted()
    assert posterior.with_scale(nbeta=3.0).weights is posterior.weights
    again = LocalPosterior(posterior.loss_fn, CENTER + 1, posterior.data)
    np.testing.assert_allclose(again.init_loss(), posterior.init_loss() + 0.5, rtol=1e-6)


WRONG = {
    "a scalar loss": (lambda p, b: jnp.mean(half_square(p, b)), LENGTHS, "one loss per example"),
    "too few": (half_square, LENGTHS[:-1], rf"shape \({N},\), got shape"),
    "of tokens": (half_square, np.ones((N, 4)), "weights of tokens"),
    "a number": (half_square, 2.0, "weights need one number"),
    "text": (half_square, "counts", "weights need one number"),
    "negative": (half_square, LENGTHS - 3, ">= 0"),
    "nan": (half_square, np.where(LENGTHS > 3, np.nan, 1), "finite"),
    "zero": (half_square, np.zeros(N), "mean above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_weights_is_refused(name):
    loss_fn, weights, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        LocalPosterior(loss_fn, CENTER, SIGNED, weights=weights)


@pytest.mark.parametrize("kind", [bool, int, jnp.asarray, list], ids=["mask", "counts", "JAX", "list"])
def test_kinds_of_weights(kind):
    weights = (LENGTHS > 6).astype(kind) if isinstance(kind, type) and kind is not list else kind(LENGTHS > 6)
    posterior = LocalPosterior(half_square, CENTER, SIGNED, weights=weights)
    kept = 0.5 * (float(CENTER) - SIGNED[LENGTHS > 6].astype(np.float64)) ** 2
    np.testing.assert_allclose(posterior.init_loss(), kept.mean(), rtol=1e-12)
