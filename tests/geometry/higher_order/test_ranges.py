"""Range and kernel of the Hessian in every form, against the dense pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.higher_order.excess import excess_loss
from llc.geometry.higher_order.ranges import RangeError, Storage, beyond_image, decompose, require_fit, storage_for
from llc.posterior.precision import float64
from tests.support.points import CASES, around, forms
from tests.support.polynomials import squares
from tests.support.tiers import weekly_cases

LINEAR = ({(1,): 1.0, (0, 1): 2.0}, {(0, 0, 1): 3.0}, {(1,): 2.0, (0, 1): 4.0})  # K = |A w|², A of rank 2
A = np.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [2.0, 4.0, 0.0, 0.0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "exact_fit"),
    weekly_cases(CASES, but=("dense of the loss", "residuals of the outputs", "vectors of the outputs")),
)
def test_projection_and_pseudo_inverse(form, exact_fit):
    hessian = 2 * A.T @ A
    inverse = np.linalg.pinv(hessian)
    vector = np.random.default_rng(0).normal(size=4)
    with float64():
        _, splitting, _, _ = around(squares(*LINEAR, exact_fit=exact_fit), form)
        counted = np.sort(np.asarray(splitting.curvatures))[-2:]
        kernel, solved = splitting.on_kernel(jnp.asarray(vector)), splitting.solve(jnp.asarray(vector))
        pulled = splitting.pull(jnp.asarray(hessian @ vector))
    assert splitting.rank == 2
    np.testing.assert_allclose(counted, [18, 50], rtol=1e-13)
    np.testing.assert_allclose(kernel, vector - inverse @ hessian @ vector, atol=1e-13)
    np.testing.assert_allclose(solved, inverse @ vector, atol=1e-13)
    # In y the Hessian is the identity: |H^{+½} H w|² = wᵀ H w.
    assert np.sum(np.asarray(pulled) ** 2) == pytest.approx(vector @ hessian @ vector, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", forms(exact_fit=True))
def test_what_lies_beyond_the_image_of_the_jacobian(form):
    """The first and third residuals move together, so that 2 F₁ − F₃ and F₄ = 0 do not move at all."""
    weights = np.array([[1.0, 0, 0, 0], [2.0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    with float64():
        excess, splitting, _, _ = around(squares(*LINEAR, exact_fit=True), form)
        beyond = np.asarray(beyond_image(excess, splitting, jnp.asarray(weights)))
    np.testing.assert_allclose(beyond, [[0.8, 0, -0.4, 0], [2, 0, -1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], atol=1e-13)


def test_the_form_follows_size_and_residuals():
    def excess_of(size, *, outputs):
        def predict(params, batch):
            return batch @ params.reshape(1, -1)[:, :1]

        def loss_fn(params, batch):
            return jnp.sum(predict(params, batch) ** 2, axis=1)

        data = np.ones((3, 1))
        given = predict if outputs else None
        return excess_loss(llc.LocalPosterior(loss_fn, np.zeros(size), data, predict_fn=given), jax.random.key(0))

    with float64():
        small, large, plain = (
            excess_of(4, outputs=True),
            excess_of(6_000, outputs=True),
            excess_of(6_000, outputs=False),
        )
        assert storage_for(small, dense=None, memory=None).form == "dense"
        assert storage_for(small, dense=False, memory=None).form == "residuals"
        assert storage_for(large, dense=None, memory=None).form == "residuals"
        assert storage_for(large, dense=True, memory=None).form == "dense"
        assert storage_for(plain, dense=None, memory=None).form == "vectors"
        fewer = storage_for(plain, dense=None, memory=0.1)
        assert 0 < fewer.most < storage_for(plain, dense=None, memory=0.2).most
        with pytest.raises(ValueError, match="memory"):
            storage_for(large, dense=None, memory=1e-3)


def test_a_rank_that_does_not_fit_is_refused_before_the_work():
    require_fit(Storage("vectors", 10), 10)
    with pytest.raises(RangeError, match="memory"):
        require_fit(Storage("vectors", 10), 11)


def test_a_rank_that_is_larger_than_was_said_is_found_out():
    posterior = llc.LocalPosterior(lambda w, _: jnp.sum(w**2), np.zeros(200), np.zeros((4, 1)))
    with float64(), pytest.raises(RangeError):
        decompose(excess_loss(posterior, jax.random.key(0)), jnp.zeros(200), Storage("vectors", 64))
