"""The lct of forms by resolution, against known values of products of matrices at zero."""

import itertools
import math

import numpy as np
import pytest
from theory import deep_linear

from llc.geometry.higher_order.forms import restricted
from llc.geometry.higher_order.resolution import resolve


def product(*widths):
    """The entries of a product of matrices, widths[0] to widths[-1], as forms in all entries of the factors."""
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    starts, degree = np.cumsum([0, *sizes]), len(sizes)
    forms = np.zeros((widths[0] * widths[-1], *(sum(sizes),) * degree))
    for path in itertools.product(*map(range, widths)):
        index = [starts[i] + path[i + 1] * widths[i] + path[i] for i in range(degree)]
        for order in itertools.permutations(index):
            forms[(path[-1] * widths[0] + path[0], *order)] += 1 / math.factorial(degree)
    return forms


@pytest.mark.parametrize(
    "widths", [(1, 1, 1), (1, 1, 2), (2, 2, 2), (3, 2, 3), (2, 3, 1), (1, 1, 1, 1), (2, 1, 2, 1), (2, 2, 2, 2)], ids=str
)
def test_products_of_matrices_at_zero_have_twice_the_known_coefficient(widths):
    found = resolve(product(*widths), np.random.default_rng(0)).value
    assert found == pytest.approx(2 * float(deep_linear(widths, 0).value), abs=1e-9)


def test_without_zeros_the_bound_would_be_too_large():
    forms = product(2, 2, 2)
    assert resolve(forms, np.random.default_rng(0)).value < forms.shape[-1] / 2


def test_neither_turned_nor_unused_variables_nor_repeated_equations_matter():
    rng = np.random.default_rng(1)
    padded = np.pad(product(2, 1, 2), ((0, 0), (0, 3), (0, 3)))
    turned = restricted(padded, np.linalg.qr(rng.normal(size=(7, 7)))[0])
    found = resolve(np.concatenate([turned, -2 * turned]), np.random.default_rng(0))
    assert (found.value, found.num_variables) == (2.0, 4)


@pytest.mark.parametrize(
    ("forms", "value"),
    [
        pytest.param(np.eye(3)[None], 1.0, id="a sum of squares is one equation over the complex numbers"),
        pytest.param(np.stack([np.diag(row) for row in np.eye(3)]), 1.5, id="squares of all variables have no zero"),
        pytest.param(np.ones((1, 1, 1, 1)), 1 / 3, id="a cube"),
        pytest.param(np.diag([1.0, -1.0, 0.0])[None], 1.0, id="two crossing lines"),
    ],
)
def test_forms_of_known_threshold(forms, value):
    assert resolve(forms, np.random.default_rng(0)).value == pytest.approx(value, abs=1e-9)


def test_forms_of_many_variables_are_seen_on_a_part_of_them():
    found = resolve(np.eye(60)[None], np.random.default_rng(0))
    assert (found.value, found.num_variables) == (1.0, 48)


def test_on_a_subspace_the_bound_is_lower_and_on_combinations_of_many_forms_the_same():
    rng = np.random.default_rng(0)
    forms, turn = product(2, 2, 2), np.linalg.qr(rng.normal(size=(8, 8)))[0]
    found = [resolve(restricted(forms, turn[:, :size]), rng).value for size in (3, 5, 8)]
    assert found == [1.5, 2.5, 3.0]
    squares = np.stack([np.diag(row) for row in np.eye(4)])
    many = np.tensordot(rng.normal(size=(20, 4)), squares, 1)
    assert resolve(many, rng).value == resolve(squares, rng).value == 2.0
