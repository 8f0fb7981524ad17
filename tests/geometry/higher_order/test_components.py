import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc.geometry.higher_order.components import nearby_component
from llc.geometry.higher_order.excess import dense_metric, excess_loss, measure_scale
from llc.geometry.higher_order.splitting import split
from llc.posterior.precision import float64
from tests.support.polynomials import CONE, NORM, RIDGE, S, squares

CROSS = ({(1, 1): 1.0},)  # two lines, and the planes beside them: codimension 1
LINES = ({(1, 1): 1.0}, {(1, 0, 1): 1.0}, {S: 1.0})  # x (y, z) = 0 and s = 0: codimension 2 (x = 0) and 3


def _component(polynomials, order, exact_fit):
    excess = excess_loss(squares(*polynomials, exact_fit=exact_fit), jax.random.key(0))
    splitting = split(np.asarray(dense_metric(excess, jnp.zeros(4))), 1e-10)
    return nearby_component(
        excess, measure_scale(excess, splitting.kernel, jax.random.key(1)), order, jax.random.key(2)
    )


@pytest.mark.parametrize("exact_fit", [False, True], ids=["loss", "outputs"])
@pytest.mark.parametrize(
    ("polynomials", "order", "rank"),
    [(CROSS, 4, 1), (CONE, 4, 1), (LINES, 4, 2), (RIDGE, 10, None), (CROSS, 60, None)],
    ids=["cross", "cone", "lines", "no smooth zeros", "a part that would not be seen"],
)
def test_known_codimensions(polynomials, order, rank, exact_fit):
    with float64():
        assert _component(polynomials, order, exact_fit).rank == rank


def test_an_isolated_zero_gives_no_less_than_its_dimension():
    """|x|⁴ + s²: λ = 5/4, and half the number of equations would be 1."""
    with float64():
        assert _component(NORM, 4, True).rank in (None, 3, 4)
