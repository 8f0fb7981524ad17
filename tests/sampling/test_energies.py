"""Losses and their derivatives on all rows or a subset, in pieces of equal length and a rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.energies import make_evaluation

ROWS = 4099  # a prime: pieces and a rest
DATA = {"x": np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)}
DATA["y"] = (DATA["x"].sum(axis=1) + np.random.default_rng(1).normal(size=ROWS)).astype(np.float32)


def per_example(w, batch):
    return 0.5 * (jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2


def scalar(w, batch):
    return jnp.mean(per_example(w, batch))


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("loss_fn", [per_example, scalar])
@pytest.mark.parametrize("rows", [None, np.arange(997)], ids=["all", "subset"])
@pytest.mark.parametrize("batch_size", [None, 100])
def test_loss_and_gradient_are_those_of_the_rows(loss_fn, rows, batch_size):
    posterior = llc.LocalPosterior(loss_fn, jnp.full(3, 0.3), DATA, gamma=1.0)
    evaluation = make_evaluation(posterior, rows, batch_size=batch_size)
    assert (evaluation.rows.rest is not None) == (rows is None or loss_fn is scalar or batch_size is not None)
    if batch_size is not None:
        assert evaluation.rows.length <= 4 * batch_size
    w = jnp.array([0.5, -0.2, 1.0])
    data = DATA if rows is None else jax.tree.map(lambda leaf: leaf[rows], DATA)
    exact, slope = jax.value_and_grad(scalar)(w, data)
    losses, gradient = evaluation.losses_and_gradient(posterior, w)
    assert float(losses @ evaluation.weights) == pytest.approx(float(exact), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, evaluation.losses(posterior, w), rtol=1e-5, atol=1e-6)
    directions = jnp.eye(3)
    _, slopes = evaluation.losses_and_slopes(posterior, w, directions)
    np.testing.assert_allclose(slopes @ evaluation.weights, slope, rtol=1e-4, atol=1e-6)
    unweighted = losses.mean()
    if loss_fn is scalar:
        assert float(unweighted) != pytest.approx(float(exact), rel=1e-5), "negative control: pieces of other lengths"


@pytest.mark.slow
def test_slopes_in_excess_have_no_mean_over_all_rows():
    posterior = llc.LocalPosterior(per_example, jnp.full(3, 0.3), DATA, gamma=1.0)
    with jax.default_matmul_precision("highest"):
        gradient = jax.grad(scalar)(posterior.position, DATA)
    everything = make_evaluation(posterior, np.arange(ROWS), center_grad=gradient)
    with jax.default_matmul_precision("highest"):  # as chains do it
        excess = everything.excess_slopes(posterior, jnp.eye(3))
    assert np.abs(excess @ everything.weights).max() < 1e-6
    some = make_evaluation(posterior, np.arange(50), center_grad=gradient)
    assert np.abs(some.excess_slopes(posterior, jnp.eye(3)) @ some.weights).max() > 1e-3, "negative control"


@pytest.mark.slow
def test_a_loss_without_derivatives_along_a_direction_is_paired_with_nothing():
    """A `jax.custom_vjp` has gradients only; the subset is evaluated without the slope at w*, as it was asked for."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * square(batch["x"] @ w), jnp.zeros(3), DATA, gamma=1.0)
    assert not posterior.supports_jvp
    settings = {"num_warmup": 0, "num_draws": 4, "eval_size": 20, "progress": False}
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-4), **settings)
    assert np.isfinite(draws["posterior"]["llc"]).all()
    assert "paired" not in draws["pointwise"]
    few = llc.LocalPosterior(posterior.loss_fn, posterior.center, {k: v[:100] for k, v in DATA.items()}, gamma=1.0)
    with_spectrum = llc.sample(jax.random.key(0), few, llc.SGLD(1e-4), spectrum=llc.spectrum(few), **settings)
    assert np.isfinite(with_spectrum["posterior"]["llc"]).all()
    assert "stein_curved" not in with_spectrum["sample_stats"], "a subset's slopes would need that derivative"
