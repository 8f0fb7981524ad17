"""Order spectra and predictions at points where both are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import cubature, independent, log_grid, quadratic, reduced_rank
from higher_bounds_points import trained_posterior

import llc
from llc.bounds.order_spectrum import ORDERS
from tests.support.polynomials import RIDGE, X, Y, squares

NBETA = 150.0
GAMMAS = 1000.0, 100.0, 10.0, 1.0


def _scales(posterior, *, nbeta=NBETA, **settings):
    scaled = posterior.with_scale(nbeta=nbeta, gamma=1.0)
    return llc.scale_spectrum(jax.random.key(0), scaled, progress=False, **settings)


def _alone(found):
    """The prediction without rays, as if each direction were alone."""
    return dataclasses.replace(found, rays=None)


def _rotated(w, _):
    """One direction each of order 2, 4 and 6, and a flat one, along no axis."""
    turned = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]) @ w
    return turned[0] ** 2 + turned[1] ** 4 + turned[2] ** 6 + 0 * turned[3]


MIXED = {
    "along the axes": squares({X: 1.0}, {(0, 2): 1.0}, {(0, 0, 3): 1.0}),
    "rotated": llc.LocalPosterior(_rotated, np.zeros(4), np.zeros((10, 0))),
}
PARTS = [
    lambda g: quadratic([2.0], NBETA, g),
    lambda g: log_grid(lambda w: w**4, 1, NBETA, g),
    lambda g: log_grid(lambda w: w**6, 1, NBETA, g),
]


@pytest.fixture(scope="module", params=list(MIXED))
def mixed(request):
    return _scales(MIXED[request.param])


@pytest.mark.slow
def test_orders_are_counted_at_every_scale(mixed):
    found = mixed.order_spectrum([0.1, 1e-3])
    columns = [ORDERS.index(name) for name in ("2", "4", "6", "8+", "falling")]
    np.testing.assert_array_equal(found.rank, [1, 1])
    np.testing.assert_array_equal(found.counts[:, columns], [[0, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(found.counts[:, ORDERS.index("flat")] + found.orbit, [1, 1])
    np.testing.assert_array_equal(found.lower, 0.5)
    np.testing.assert_allclose(found.upper, 0.5 + (3 - found.orbit) / 4)


def test_what_lies_below_the_scale_is_a_small_curvature():
    found = _scales(squares({X: 1.0}, {Y: 0.03})).order_spectrum([1e-2, 1e-4])
    np.testing.assert_array_equal(found.rank, [1, 2])
    np.testing.assert_array_equal(found.counts[:, ORDERS.index("2")], [1, 0])


@pytest.mark.slow
@pytest.mark.parametrize("gamma", GAMMAS)
def test_directions_of_their_own_add_up_exactly(mixed, gamma):
    exact = independent(*(part(gamma) for part in PARTS)).mean
    # The basis is found from random gradients: a part of order 4 in the direction of order 6 is what is left.
    assert _alone(mixed).predicted_llc(gamma).value == pytest.approx(exact, rel=2e-3)
    joint = mixed.predicted_llc(gamma)
    assert abs(joint.value - exact) < 4 * max(joint.stderr, 2e-3 * exact)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_curved_valley_is_followed(gamma):
    found = _scales(squares(*RIDGE))
    exact = cubature(lambda x, y: (y - x**2) ** 2 + x**10, [-7, -7], [7, 7], NBETA, gamma, rtol=1e-5).mean
    assert found.predicted_llc(gamma).value == pytest.approx(exact, rel=0.03)
    assert found.order_spectrum([1e-3]).counts[0, ORDERS.index("8+")] == 1


def _matrices(w, _):
    return 0.5 * jnp.sum((w[:4].reshape(2, 2) @ w[4:].reshape(2, 2)) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "exact"),
    [
        (squares({(1, 1): 0.5**0.5}), lambda g: log_grid(lambda a, b: 0.5 * (a * b) ** 2, 2, NBETA, g)),
        pytest.param(
            llc.LocalPosterior(_matrices, np.zeros(8), np.zeros((10, 0))),
            lambda g: reduced_rank(2, 2, NBETA, g),
            marks=pytest.mark.study,
        ),
    ],
    ids=["(w1 w2)^2/2", "2-2-2 at zero"],
)
def test_directions_that_share_a_zero_set_are_taken_together(posterior, exact):
    found = _scales(posterior)
    for gamma in (100.0, 10.0, 3.0):
        known = exact(gamma).mean
        joint = found.predicted_llc(gamma)
        assert abs(joint.value - known) < 4 * joint.stderr
        assert joint.stderr < 0.1 * known
    assert _alone(found).predicted_llc(1.0).value > 1.15 * exact(1.0).mean


def test_symmetries_are_told_from_singular_directions():
    """B A of rank 1 in shape 2-2-2: a group of dimension 4, whose orbit has 3; one direction of order 4 is singular."""
    factors = [np.diag([1.0, 0.0]), np.diag([1.0, 0.0])]
    truth = factors[1] @ factors[0]
    loss = lambda w, _: 0.5 * jnp.sum((w[1] @ w[0] - jnp.asarray(truth)) ** 2)  # noqa: E731
    found = _scales(llc.LocalPosterior(loss, factors, np.zeros((10, 0))))
    orders = found.order_spectrum([1e-3])
    assert (orders.rank[0], orders.orbit) == (3, 3)
    counts = dict(zip(ORDERS, orders.counts[0], strict=True))
    assert counts["4"] == 2
    assert sum(counts.values()) == 2


def _saddle(w, _):
    return 0.5 * w[0] ** 2 - 0.05 * w[1] ** 2 + w[1] ** 4


def test_a_point_that_is_no_minimum_has_falling_directions():
    found = _scales(llc.LocalPosterior(_saddle, np.zeros(2), np.zeros((10, 0)))).order_spectrum([1.0])
    assert found.counts[0, ORDERS.index("falling")] == 1


@pytest.mark.study
def test_many_directions_are_sampled_with_an_error():
    """100 directions: half of them curved over three decades with a quartic part, half flat."""
    curvatures = np.geomspace(1.0, 1e-3, 50)

    def loss(w, _):
        return 0.5 * jnp.sum(jnp.asarray(curvatures) * w[:50] ** 2) + jnp.sum(w[:50] ** 4) + 0 * jnp.sum(w[50:])

    posterior = llc.LocalPosterior(loss, np.zeros(100), np.zeros((10, 0)))
    found = _scales(posterior, num_directions=16)
    assert found.is_sampled
    assert found.weights.sum() + found.orbit == 100
    every = _scales(posterior, num_directions=100)
    assert not every.is_sampled
    for gamma in (100.0, 10.0):
        sampled, whole = found.predicted_llc(gamma), every.predicted_llc(gamma)
        assert whole.stderr == 0
        assert 0 < sampled.stderr < 0.02 * whole.value
        assert abs(sampled.value - whole.value) < 4 * sampled.stderr


def test_directions_without_an_eigenvector_are_drawn_at_random():
    """5 curved directions and 35 of order 4, of which each drawn one is a mixture."""
    posterior = llc.LocalPosterior(
        lambda w, _: 0.5 * jnp.sum(w[:5] ** 2) + jnp.sum(w[5:] ** 4), np.zeros(40), np.zeros((10, 0))
    )
    found = _scales(posterior, num_directions=12, reach=30.0)
    assert found.is_random.sum() == 7
    orders = found.order_spectrum([1e-3])
    assert orders.counts[0, ORDERS.index("4")] == pytest.approx(35)
    limit = found.predicted_llc(0.01)
    assert limit.value == pytest.approx(5 / 2 + 35 / 4, rel=0.02)


@pytest.mark.slow
def test_a_spectrum_of_leading_eigenpairs_will_do():
    curvatures = np.geomspace(1.0, 1e-3, 150)
    loss = lambda w, _: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2)  # noqa: E731
    posterior = llc.LocalPosterior(loss, np.zeros(150), np.zeros((10, 0)), nbeta=NBETA, gamma=1.0)
    spectrum = llc.spectrum(posterior, method="deflated", budget=80, progress=False)
    found = _scales(posterior, spectrum=spectrum, num_directions=12)
    assert found.is_random.any()
    predicted = found.predicted_llc(1.0)
    assert abs(predicted.value - quadratic(curvatures, NBETA, 1.0).mean) < 4 * predicted.stderr + 1e-3
    assert predicted.anharmonic < 1e-2


def test_beyond_its_reach_nothing_is_predicted():
    found = _scales(MIXED["along the axes"], reach=2.0)
    assert found.smallest_gamma == pytest.approx(1.0)
    with pytest.raises(ValueError, match="reach"):
        found.predicted_llc(0.5)
    assert np.isnan(found.order_spectrum([1e-6]).counts).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_directions": 1}, "num_directions"),
        ({"reach": -1.0}, "reach"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        _scales(MIXED["along the axes"], **settings)


def test_a_spectrum_needs_eigenvectors():
    posterior = MIXED["along the axes"]
    without = llc.spectrum(posterior, method="lanczos", num_matvecs=2, progress=False)
    with pytest.raises(ValueError, match="eigenvectors"):
        _scales(posterior, spectrum=without)


@pytest.mark.study
def test_a_tanh_net_is_predicted_over_two_decades_of_gamma():
    posterior = trained_posterior("tanh 2-6-1 of three units", seed=0, num_inputs=60).with_scale(nbeta=1000.0)
    found = _scales(posterior, nbeta=1000.0)
    for gamma in (1000.0, 100.0, 10.0):
        draws = llc.sample(
            jax.random.key(1), posterior.with_scale(gamma=gamma), llc.NUTS(), num_warmup=300, num_draws=400
        )
        sampled, predicted = llc.mean_energy(draws), found.predicted_llc(gamma)
        assert abs(sampled.value - predicted.value) < 4 * sampled.mcse + 0.02 * sampled.value
