"""Bounds beyond the rank without a d × d matrix: those of the dense path where it fits, and exact ones beyond it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strata import hessian_rank, local_coefficient, profile

import llc
from llc.geometry.higher_order.records import CERTIFICATE, COMPONENT, ORDER, RESOLUTION, SQUARED, SYMMETRY
from tests.support.polynomials import CONE, NORM, PARABOLA, RIDGE, S, squares
from tests.support.tiers import weekly

KEY = jax.random.key(0)
LINES = ({(1, 1): 1.0}, {(1, 0, 1): 1.0}, {S: 1.0})  # x²(y² + z²) + s²
POLYNOMIALS = {"ridge": RIDGE, "cone": CONE, "norm": NORM, "parabola": PARABOLA, "lines": LINES}


def linear_net(widths, ranks, *, num_inputs, outputs=True):
    """x W₁ ⋯ W_L at matrices of these ranks with singular values of about one, and its own outputs as targets."""
    rng, weights = np.random.default_rng(0), []
    for (rows, columns), rank in zip(itertools.pairwise(widths), ranks, strict=True):
        left, right = (np.linalg.qr(rng.normal(size=(size, rank)))[0] for size in (rows, columns))
        # Products of multiples of 2⁻¹¹ fit in float32, so that the rank is exact.
        left, right = (np.round(factor * 2.0**11) / 2.0**11 for factor in (left * rng.uniform(0.7, 1.4, rank), right))
        weights.append((left @ right.T).astype(np.float32))
    inputs = rng.normal(size=(num_inputs, widths[0]))
    data = inputs, functools.reduce(np.matmul, weights, inputs)
    return llc.LocalPosterior(_loss, weights, data, predict_fn=_outputs if outputs else None)


def _outputs(weights, batch):
    return functools.reduce(jnp.matmul, weights, batch[0])


def _loss(weights, batch):
    return 0.5 * jnp.sum((_outputs(weights, batch) - batch[1]) ** 2, axis=1)


def rescaling(weights):
    """W₁ eᵗ and W₂ e⁻ᵗ have the same product."""
    return [weights[0], -weights[1], *(jnp.zeros_like(weight) for weight in weights[2:])]


def truth(widths, ranks):
    """Half of the rank, and the interval of λ(w*) that is known."""
    table = profile(widths, ranks)
    return hessian_rank(table) / 2, local_coefficient(table, 64)


def both(posterior):
    return [llc.higher_bounds(posterior, key=KEY, method=method) for method in ("dense", "matrix_free")]


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(POLYNOMIALS, but=("parabola",)))
def test_the_same_bracket_as_from_dense_matrices(name):
    dense, free = both(squares(*POLYNOMIALS[name], exact_fit=True))
    assert (free.lower, free.upper) == (dense.lower, dense.upper)
    assert [record.status for record in free.records] == [record.status for record in dense.records]


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(["ridge", "parabola"], but=("parabola",)))
def test_the_same_bracket_from_a_loss_without_outputs(name):
    """Where no nearby component is needed: its search needs residuals where there is no d × d matrix."""
    dense, free = both(squares(*POLYNOMIALS[name]))
    assert (free.lower, free.upper) == (dense.lower, dense.upper)


@pytest.mark.study
@pytest.mark.parametrize(
    ("widths", "ranks"),
    [
        ((2, 3, 2), (0, 0)),
        ((2, 3, 2), (1, 1)),
        ((3, 2, 3), (2, 1)),
        ((3, 4, 4, 3), (3, 4, 3)),
        ((3, 4, 4, 3), (2, 3, 2)),
        ((2, 3, 3, 2), (1, 1, 1)),
    ],
    ids=str,
)
def test_the_same_bracket_at_small_linear_nets(widths, ranks):
    dense, free = both(linear_net(widths, ranks, num_inputs=2 * widths[0]))
    _, known = truth(widths, ranks)
    assert (free.lower, free.upper) == (dense.lower, dense.upper)
    assert free.lower <= known.upper + 1e-9
    assert known.lower <= free.upper + 1e-9


WIDE = (2, 75, 75, 2)  # 5,925 parameters


@pytest.mark.slow
@pytest.mark.study
def test_a_large_net_of_full_rank_has_half_of_its_rank():
    half, known = truth(WIDE, (2, 75, 2))
    bounds = llc.higher_bounds(linear_net(WIDE, (2, 75, 2), num_inputs=3), key=KEY)
    assert (bounds.lower, bounds.upper) == (half, half) == (known.lower, known.upper)
    records = {record.name: record for record in bounds.records}
    assert records[CERTIFICATE].status == "established"
    assert records[SYMMETRY].status == "not used"


@pytest.mark.study
def test_a_large_net_of_lower_rank_is_pinned_too():
    """One equation is left in the kernel, so λ is half a unit above half of the rank; no certificate says r/2."""
    half, known = truth(WIDE, (1, 40, 1))
    bounds = llc.higher_bounds(linear_net(WIDE, (1, 40, 1), num_inputs=3), key=KEY)
    records = {record.name: record for record in bounds.records}
    assert (bounds.lower, bounds.upper) == (known.lower, known.upper) == (half + 0.5, half + 0.5)
    assert records[CERTIFICATE].status == "undecided"
    assert records[ORDER].number == 4
    assert records[COMPONENT].number == 2 * half + 1
    assert records[RESOLUTION].status == "not needed"


@pytest.mark.slow
@pytest.mark.study
def test_without_outputs_the_probes_that_need_them_say_so():
    posterior = linear_net(WIDE, (1, 40, 1), num_inputs=3, outputs=False)
    bounds = llc.higher_bounds(posterior, key=KEY, generators=[rescaling])
    half, known = truth(WIDE, (1, 40, 1))
    records = {record.name: record for record in bounds.records}
    assert bounds.lower <= known.value <= bounds.upper
    assert bounds.lower == half + 0.25
    assert {records[name].status for name in (SQUARED, COMPONENT, RESOLUTION)} == {"not used"}
    assert records[SYMMETRY].number == 1, "the one that is given; none is looked for"


@pytest.mark.slow
def test_a_probe_above_the_budget_is_left_out():
    posterior = squares(*PARABOLA, exact_fit=True)
    bounds = llc.higher_bounds(posterior, key=KEY, budget=100)
    rank = llc.rank_bounds(llc.spectrum(posterior))
    assert (bounds.lower, bounds.upper) != (0.5, 0.5)
    assert rank.lower <= bounds.lower <= 0.5 <= bounds.upper <= rank.upper
    assert {record.status for record in bounds.records} == {"established", "undecided"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"memory": 1e-3}, r"memory=0\.001"),
        ({"memory": 1e-3, "method": "dense"}, "matrix_free"),
        ({"method": "sparse"}, "method"),
        ({"budget": 0}, "budget"),
        ({"memory": -1.0}, "memory"),
    ],
)
def test_wrong_settings(settings, names):
    posterior = llc.LocalPosterior(lambda w, _: jnp.sum(w**2), np.zeros(10_000), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=names):
        llc.higher_bounds(posterior, key=KEY, **settings)
