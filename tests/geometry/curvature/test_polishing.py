"""`polish`: the rank by design comes back, the minimum is that of an oracle, and what must not move does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from tests.support.models import deep_linear


def _predict(params, batch):
    return functools.reduce(jnp.matmul, params, batch[0])


def _disturbed(with_outputs=False, size=0.03):
    posterior = deep_linear([6, 3, 6], [3, 3])
    rng = np.random.default_rng(1)
    center = [np.asarray(w) + size * rng.normal(size=w.shape).astype(np.float32) for w in posterior.center]
    outputs = {"predict_fn": _predict} if with_outputs else {}
    return llc.LocalPosterior(posterior.loss_fn, center, posterior.data, gamma=1.0, **outputs)


def _rank(posterior):
    return llc.rank_bounds(llc.spectrum(posterior), nbeta=float(posterior.nbeta), gamma=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "with_outputs", [False, pytest.param(True, marks=pytest.mark.study)], ids=["hessian", "gauss-newton"]
)
def test_the_rank_by_design_comes_back(with_outputs):
    before = _disturbed(with_outputs)
    polished = llc.polish(before)
    rank = 3 * (6 + 6 - 3)
    assert _rank(before).rank_interval != (rank, rank)
    assert _rank(polished.posterior).rank_interval == (rank, rank)
    assert _rank(polished.posterior).gap > 6
    assert polished.converged
    assert polished.loss[1] < 1e-6 * polished.loss[0]
    assert polished.grad_norm[1] < 1e-6 * polished.grad_norm[0]
    assert 0 < polished.distance < 1
    assert "converged" in str(polished)


def test_least_squares_in_one_step(monkeypatch):
    """A linear model with noise: the minimum is that of the normal equations; by conjugate gradients as well."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=40).astype(np.float32)
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2, np.zeros(5, np.float32), (x, y)
    )
    exact = np.linalg.lstsq(x.astype(float), y.astype(float))[0]
    for dense in (1000, 0):
        monkeypatch.setattr("llc.geometry.curvature.polishing._DENSE", dense)
        polished = llc.polish(posterior)
        assert polished.converged
        np.testing.assert_allclose(polished.posterior.center, exact, rtol=1e-9)
        assert polished.distance == pytest.approx(np.linalg.norm(exact))


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_loss_that_falls_for_ever_is_told(decay):
    """A logistic regression on classes that can be separated has a minimum only with a weight decay."""
    x = np.array([-2.0, -1.0, 1.0, 2.0], np.float32)[:, None]

    def loss_fn(w, batch):
        return jnp.logaddexp(0.0, -jnp.sign(batch[:, 0]) * (batch @ w)) + decay * w @ w

    polished = llc.polish(llc.LocalPosterior(loss_fn, np.ones(1, np.float32), x))
    assert polished.ran_away == (decay == 0)
    assert ("weight decay" in str(polished)) == (decay == 0)


@pytest.mark.slow
@pytest.mark.study
def test_only_what_moves_is_moved_and_samplers_take_it():
    before = _disturbed()
    masked = llc.LocalPosterior(before.loss_fn, before.center, before.data, gamma=1.0, mask="1")
    polished = llc.polish(masked).posterior
    np.testing.assert_array_equal(polished.center[0], before.center[0])
    assert not np.array_equal(polished.center[1], before.center[1])
    assert polished.center[1].dtype == np.float64
    for sampler in (llc.SGLD(1e-4), llc.NUTS()):
        draws = llc.sample(jax.random.key(0), polished, sampler, num_warmup=5, num_draws=5, progress=False)
        assert np.isfinite(draws["posterior"]["llc"]).all()


def test_refused():
    with pytest.raises(ValueError, match="max_steps needs an integer >= 1, got 0"):
        llc.polish(_disturbed(), max_steps=0)
    flat = llc.LocalPosterior(lambda w, batch: jnp.sum(w**4), np.zeros(2, np.float32), np.zeros((5, 1)))
    with pytest.raises(ValueError, match="needs a positive eigenvalue at w"):
        llc.polish(flat)
