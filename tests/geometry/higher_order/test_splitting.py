import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.higher_order.splitting import order, remainder_profile, vanishes
from llc.posterior.precision import float64
from tests.support.points import CASES, around
from tests.support.polynomials import CONE, NORM, PARABOLA, RIDGE, squares
from tests.support.tiers import weekly_cases


def profile_of(posterior, form="dense"):
    with float64():
        excess, splitting, scale, _ = around(posterior, form)
        return remainder_profile(excess, splitting, scale, jax.random.key(2)), scale


ORDERS = {
    "ridge": (RIDGE, 10),
    "cone": (CONE, 4),
    "norm": (NORM, 4),
    "sextic": (({(3,): 1.0}, {(0, 1): 1.0}), 6),
    "product": (({(1, 1, 1, 1): 1.0},), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("polynomials", "expected", "form", "exact_fit"),
    weekly_cases(
        {f"{name}-{form}": (*ORDERS[name], *case) for name in ORDERS for form, case in CASES.items()},
        but=[f"{name}-dense of the outputs" for name in ORDERS] + [f"norm-{form}" for form in CASES],
    ),
)
def test_order(polynomials, expected, form, exact_fit):
    profile, scale = profile_of(squares(*polynomials, exact_fit=exact_fit), form)
    assert order(profile) == expected
    assert not vanishes(profile, scale)


@pytest.mark.parametrize(("form", "exact_fit"), weekly_cases(CASES, but=("dense of the outputs",)))
def test_manifold(form, exact_fit):
    profile, scale = profile_of(squares(*PARABOLA, exact_fit=exact_fit), form)
    assert vanishes(profile, scale)
    assert order(profile) is None


@pytest.mark.slow
def test_no_certificate_below_round_off():
    """On a loss of 1 a part of order 12 is round-off up to t = 0.05, but is seen at larger distances."""
    centered = squares({(6,): 1.0})
    lifted = llc.LocalPosterior(lambda w, batch: 1.0 + centered.loss_fn(w, batch), centered.center, centered.data)
    profile, scale = profile_of(lifted)
    assert not vanishes(profile, scale)
    near = profile._replace(steps=profile.steps[5:], values=profile.values[:, 5:])
    near = near._replace(decided=profile.decided[:, 5:], floors=profile.floors[:, 5:])
    assert (np.abs(near.values) <= near.floors).all()  # nothing but round-off is seen there
    assert not vanishes(near, scale)


def test_two_orders_are_undecided():
    profile, _ = profile_of(squares({(2,): 1.0}, {(0, 2): 1.0}))
    assert order(profile) == 4
    mixed = profile._replace(values=profile.values * (1 + 0.5 * np.sin(np.arange(profile.values.shape[1]))))
    assert order(mixed) is None
    assert order(profile._replace(values=-profile.values)) is None
    assert order(profile._replace(decided=np.zeros_like(profile.decided))) is None


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(("layers", "expected"), [(2, 4), (3, 6), (4, 8)])
def test_zero_blocks(layers, expected):
    """K = ½|W₄ ⋯ W₁|² has order 2L where L matrices are zero; the others are the identity, and held there."""
    moves = np.arange(4) < layers
    data = np.tile(moves, (2, 1))
    profile, _ = profile_of(llc.LocalPosterior(_blocks, np.zeros((4, 2, 2)), data))
    assert order(profile) == expected


def _blocks(weights, batch):
    moves = batch[0][:, None, None]
    return 0.5 * jnp.sum(jnp.linalg.multi_dot(list(jnp.where(moves, weights, jnp.eye(2)))) ** 2)
