import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.higher_order.quartic import essential_variables, quadratic_rank, quartic_gradient
from llc.posterior.precision import float64
from tests.support.points import CASES, around, forms
from tests.support.polynomials import CONE, NORM, PARABOLA, RIDGE, S, squares
from tests.support.tiers import weekly_cases

BENT = ({(0, 0, 0, 1): 1.0, (2,): -2.0, (1, 1): 3.0}, {(1, 1): 1.0}, {(0, 0, 2): 1.0})


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("form", "exact_fit"), CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("polynomials", "variables"),
    [(RIDGE, 0), (CONE, 4), (NORM, 3), (PARABOLA, 0), (BENT, 3), (({(2,): 1.0}, {S: 1.0}, {(0, 3): 1.0}), 1)],
    ids=["ridge", "cone", "norm", "parabola", "bent", "quartic and sextic"],
)
def test_essential_variables(polynomials, variables, form, exact_fit):
    with float64():
        excess, splitting, _, _ = around(squares(*polynomials, exact_fit=exact_fit), form)
        assert essential_variables(excess, splitting, jax.random.key(1), most=64).value == variables


def test_more_variables_than_points_are_not_counted():
    posterior = llc.LocalPosterior(lambda w, _: jnp.sum(w**4), np.zeros(40), np.zeros((4, 0)))
    with float64():
        excess, splitting, _, _ = around(posterior)
        few, enough = (essential_variables(excess, splitting, jax.random.key(1), most=most) for most in (32, 64))
    assert (few.value, few.is_cut) == (None, True)
    assert (enough.value, enough.is_cut) == (40, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "exact_fit"), weekly_cases(CASES, but=("vectors of the loss", "dense of the outputs"))
)
def test_gradient_of_the_quartic(form, exact_fit):
    """BENT: s is minimised out, so that q = (xy)² + z⁴."""
    points = np.random.default_rng(0).normal(size=(4, 4)) * [1, 1, 1, 0]
    x, y, z, s = points.T
    exact = np.stack([2 * x * y**2, 2 * x**2 * y, 4 * z**3, s], axis=1)
    with float64():
        excess, splitting, _, _ = around(squares(*BENT, exact_fit=exact_fit), form)
        unbent = splitting.above(np.inf)  # without ⅛ bᵀH⁺b
        for point, expected in zip(points, exact, strict=True):
            gradient, fourth = (quartic_gradient(excess, h, jnp.asarray(point))[0] for h in (splitting, unbent))
            np.testing.assert_allclose(splitting.on_kernel(gradient), expected, atol=1e-12 * np.abs(exact).max())
            assert np.abs(splitting.on_kernel(fourth) - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("polynomials", "rank"),
    [(CONE, 4), (RIDGE, 0), (NORM, 3), (({(1, 1): 1.0},), 2), (({(2,): 1.0},), 1), (({(3,): 1.0},), 0)],
    ids=["cone", "ridge", "norm", "cross", "square", "cube"],
)
@pytest.mark.parametrize("form", forms(exact_fit=True))
def test_quadratic_rank(polynomials, rank, form):
    with float64():
        excess, splitting, _, _ = around(squares(*polynomials, exact_fit=True), form)
        assert quadratic_rank(excess, splitting, jax.random.key(1)).value == rank
