import jax
import pytest

from llc.geometry.higher_order.components import Search, nearby_component
from llc.geometry.higher_order.ranges import Storage
from llc.posterior.precision import float64
from tests.support.points import around
from tests.support.polynomials import CONE, NORM, RIDGE, S, squares
from tests.support.tiers import weekly_cases

CROSS = ({(1, 1): 1.0},)  # two lines, and the planes beside them: codimension 1
LINES = ({(1, 1): 1.0}, {(1, 0, 1): 1.0}, {S: 1.0})  # x (y, z) = 0 and s = 0: codimension 2 (x = 0) and 3


def _component(polynomials, order, form, exact_fit):
    excess, _, scale, storage = around(squares(*polynomials, exact_fit=exact_fit), form)
    return nearby_component(Search(excess, scale, storage, order), jax.random.key(2))


FORMS = {"dense of the loss": ("dense", False), "dense": ("dense", True), "residuals": ("residuals", True)}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "exact_fit"), weekly_cases(FORMS, but=("dense",)))
@pytest.mark.parametrize(
    ("polynomials", "order", "rank"),
    [(CROSS, 4, 1), (CONE, 4, 1), (LINES, 4, 2), (RIDGE, 10, None), (CROSS, 60, None)],
    ids=["cross", "cone", "lines", "no smooth zeros", "a part that would not be seen"],
)
def test_known_codimensions(polynomials, order, rank, form, exact_fit):
    with float64():
        assert _component(polynomials, order, form, exact_fit).rank == rank


@pytest.mark.slow
def test_an_isolated_zero_gives_no_less_than_its_dimension():
    """|x|⁴ + s²: λ = 5/4, and half the number of equations would be 1."""
    with float64():
        assert _component(NORM, 4, "dense", True).rank in (None, 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "found"), [(4, (2, 2)), (0, (None,))])
def test_a_component_whose_range_does_not_fit_is_left_out(most, found):
    with float64():
        excess, _, scale, _ = around(squares(*LINES, exact_fit=True), "residuals")
        component = nearby_component(Search(excess, scale, Storage("vectors", most), 4), jax.random.key(2))
    assert component.found == found
    assert component.rank == found[0]
