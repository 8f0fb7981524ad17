import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc.geometry.higher_order.excess import dense_metric, excess_loss
from llc.geometry.higher_order.quartic import _quartic_gradients, essential_variables, quadratic_rank
from llc.geometry.higher_order.splitting import split
from llc.posterior.precision import float64
from tests.support.polynomials import CONE, NORM, PARABOLA, RIDGE, S, squares


def _at_minimum(polynomials, *, exact_fit=False):
    excess = excess_loss(squares(*polynomials, exact_fit=exact_fit), jax.random.key(0))
    assert excess.exact_fit == exact_fit
    return excess, split(np.asarray(dense_metric(excess, jnp.zeros(excess.dim))), 1e-10)


BENT = ({(0, 0, 0, 1): 1.0, (2,): -2.0, (1, 1): 3.0}, {(1, 1): 1.0}, {(0, 0, 2): 1.0})


@pytest.mark.parametrize("exact_fit", [False, True], ids=["loss", "outputs"])
@pytest.mark.parametrize(
    ("polynomials", "variables"),
    [(RIDGE, 0), (CONE, 4), (NORM, 3), (PARABOLA, 0), (BENT, 3), (({(2,): 1.0}, {S: 1.0}, {(0, 3): 1.0}), 1)],
    ids=["ridge", "cone", "norm", "parabola", "bent", "quartic and sextic"],
)
def test_essential_variables(polynomials, variables, exact_fit):
    with float64():
        excess, splitting = _at_minimum(polynomials, exact_fit=exact_fit)
        assert essential_variables(excess, splitting, jax.random.key(1)).value == variables


def test_gradient_of_the_quartic():
    """BENT: s is minimised out, so that q = (xy)² + z⁴."""
    points = np.random.default_rng(0).normal(size=(32, 4)) * [1, 1, 1, 0]
    x, y, z, _ = points.T
    exact = np.stack([2 * x * y**2, 2 * x**2 * y, 4 * z**3, 0 * x], axis=1)
    with float64():
        excess, splitting = _at_minimum(BENT)
        gradients, _ = _quartic_gradients(excess, jnp.asarray(splitting.root), jnp.asarray(points))
        fourth, _ = _quartic_gradients(excess, jnp.zeros((4, 4)), jnp.asarray(points))  # without ⅛ bᵀH⁺b
    np.testing.assert_allclose(np.asarray(gradients) @ splitting.kernel, exact, atol=1e-12 * np.abs(exact).max())
    assert np.abs(np.asarray(fourth) @ splitting.kernel - exact).max() > 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("polynomials", "rank"),
    [(CONE, 4), (RIDGE, 0), (NORM, 3), (({(1, 1): 1.0},), 2), (({(2,): 1.0},), 1), (({(3,): 1.0},), 0)],
    ids=["cone", "ridge", "norm", "cross", "square", "cube"],
)
def test_quadratic_rank(polynomials, rank):
    with float64():
        excess, splitting = _at_minimum(polynomials, exact_fit=True)
        assert quadratic_rank(excess, splitting, jax.random.key(1)).value == rank
