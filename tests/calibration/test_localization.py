"""The weakest γ at which the loss is about quadratic: κ(γ) against its closed form on L = Σ ½ hᵢ xᵢ² + a xᵢ⁴."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import llc
from llc.calibration.localization import anharmonicity, choose_localization, has_use_for_localization
from llc.calibration.pipeline import find_localization
from llc.calibration.price import Price
from llc.calibration.record import Request
from llc.posterior.reference import reference_loss
from llc.sampling.run_lengths import RequestedLengths
from tests.support.spectra import spectrum_of

DIM, NUM_DATA = 400, 1000
NBETA = NUM_DATA / np.log(NUM_DATA)
CURVATURES = 10.0 ** -np.linspace(0, 16, DIM)  # down to round-off, without a gap
PAIRS = 16


class Moments(NamedTuple):
    """An exact mean, and the standard error of its estimate."""

    value: float
    error: float


def closed_form(quartic, gamma):
    """E x² = s, E x⁴ = 3 s², Var x² = 2 s², Cov(x², x⁴) = 12 s³, Var x⁴ = 96 s⁴; a pair w* ± x is one point."""
    s = 1 / (NBETA * CURVATURES + gamma)
    quad = NBETA * np.sum(CURVATURES * s) / 2
    mean = quad + 3 * NBETA * quartic * np.sum(s**2)
    terms = 0.5 * CURVATURES**2 * s**2 + 12 * CURVATURES * quartic * s**3 + 96 * quartic**2 * s**4
    return Moments(mean / quad, NBETA * np.sqrt(np.sum(terms) / PAIRS) / quad)


def posterior_of(quartic=0.0, *, num_data=NUM_DATA, **scale):
    def loss_fn(w, _):
        return jnp.sum(0.5 * jnp.asarray(CURVATURES, w.dtype) * w**2 + quartic * w**4)

    return llc.LocalPosterior(loss_fn, jnp.zeros(DIM), np.zeros((num_data, 1), np.float32), **scale)


def spectrum_with_vectors(eigenvalues, *, num_vectors=64):
    """The eigenvectors of the largest eigenvalues; the others count as flat in the Gaussian, as they are here."""
    return dataclasses.replace(
        spectrum_of(eigenvalues), vectors=np.eye(len(eigenvalues), dtype=np.float32)[:num_vectors]
    )


SPECTRUM = spectrum_with_vectors(CURVATURES, num_vectors=DIM)


def choose(quartic, weakest, seed=0):
    posterior = posterior_of(quartic)
    return choose_localization(jax.random.key(seed), posterior, SPECTRUM, weakest, operations=1e6)


@pytest.mark.parametrize("quartic", [1e-3, 1.0, 100.0])
def test_the_ratio_is_that_of_the_gaussian(quartic):
    found = choose(quartic, 1e-3)
    assert len(found.profile) > 4
    for gamma, kappa in found.profile:
        exact, error = closed_form(quartic, gamma)
        assert abs(kappa - exact) < 4 * error + 1e-3 * exact, gamma
    gamma, kappa = found.profile[-1]
    assert abs(1.5 * kappa - closed_form(quartic, gamma).value) > 4 * closed_form(quartic, gamma).error, "control"


@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_is_one_at_every_gamma(seed):
    weakest = 1e-3
    found = choose(0.0, weakest, seed)
    assert found.gamma == weakest
    assert found.is_local
    assert found.profile[0][0] / found.profile[-1][0] > 1e6
    for gamma, kappa in found.profile:
        assert abs(kappa - 1) < 4 * closed_form(0.0, gamma).error + 1e-3, gamma


@pytest.mark.parametrize("quartic", [1e-3, 1.0, 100.0])
def test_gamma_is_the_weakest_at_which_the_loss_is_about_quadratic(quartic):
    found = choose(quartic, 1e-3)
    limit = brentq(lambda gamma: closed_form(quartic, gamma).value - 2, 1e-3, 1e12)
    assert found.is_local
    assert 0.9 < found.gamma / limit < 1.1
    weaker = [kappa for gamma, kappa in found.profile if gamma < found.gamma]
    assert weaker, "a weaker one was tried"
    assert min(weaker) > 2
    assert closed_form(quartic, 1e-3).value > 30, "negative control: at the length of the run alone it is not local"


def test_one_gamma_is_looked_at_by_the_same_points():
    found = choose(1.0, 1e-3, seed=3)
    for gamma, kappa in found.profile[:3]:
        again = anharmonicity(jax.random.key(3), posterior_of(1.0), SPECTRUM, gamma, operations=1e6)
        assert again == pytest.approx(kappa, rel=1e-6)
    other = anharmonicity(jax.random.key(4), posterior_of(1.0), SPECTRUM, found.gamma, operations=1e6)
    assert other != pytest.approx(found.anharmonicity, rel=1e-6), "control: other points"


def test_the_weaker_gamma_goes_a_tenth_of_the_way_to_the_loss_at_zero():
    quartic, shift = 1.0, 0.2

    def loss_fn(w, _):
        return jnp.sum(0.5 * jnp.asarray(CURVATURES, w.dtype) * (w - shift) ** 2 + quartic * (w - shift) ** 4)

    data = np.zeros((NUM_DATA, 1), np.float32)
    posterior = llc.LocalPosterior(loss_fn, jnp.full(DIM, shift), data)
    found = choose_localization(jax.random.key(0), posterior, SPECTRUM, 1e-3, operations=1e6)
    zero = np.sum(0.5 * CURVATURES * shift**2 + quartic * shift**4)

    def excess(gamma):
        s = 1 / (NBETA * CURVATURES + gamma)
        return np.sum(CURVATURES * s / 2 + 3 * quartic * s**2)

    exact = brentq(lambda gamma: excess(gamma) - 0.1 * zero, 1e-3, 1e9)
    # Between two γ apart by 4, log ΔL is taken as linear in log γ; its slope is −1 … −2, and it bends by less than 1.
    assert abs(np.log(found.weaker / exact)) < 0.2
    assert found.weaker < found.gamma
    assert np.isnan(choose(quartic, 1e-3).weaker), "w* is at zero"
    assert np.isnan(choose_localization(jax.random.key(0), posterior, SPECTRUM, found.gamma, operations=1e6).weaker)


def test_a_loss_that_is_nowhere_quadratic_is_told():
    """|x| has no quadratic part: κ grows as √γ at strong γ, and as 1/√γ at weak ones; the least is taken."""
    posterior = llc.LocalPosterior(
        lambda w, _: jnp.sum(jnp.abs(w)), jnp.zeros(DIM), np.zeros((NUM_DATA, 1), np.float32)
    )
    found = choose_localization(jax.random.key(0), posterior, SPECTRUM, 1e-3, operations=1e6)
    assert not found.is_local
    assert found.anharmonicity == min(kappa for _, kappa in found.profile)
    assert min(gamma for gamma, _ in found.profile) < found.gamma < max(gamma for gamma, _ in found.profile)


def test_a_loss_in_whose_rounding_the_strongest_gamma_are_lost():
    """Near 1,000 nats float32 has a spacing of 6e-5: κ is 6 at the strongest γ for that, and right further down."""

    def loss_fn(w, _):
        rise = jnp.sum(0.5 * jnp.asarray(CURVATURES, w.dtype) * w**2 + w**4)
        return jnp.asarray(1000.0, w.dtype) + (jnp.asarray(2.9e-5, w.dtype) + rise)

    posterior = llc.LocalPosterior(loss_fn, jnp.zeros(DIM), np.zeros((NUM_DATA, 1), np.float32))
    found = choose_localization(jax.random.key(0), posterior, SPECTRUM, 1e-3, operations=1e6)
    assert max(found.profile)[1] > 2
    assert found.is_local
    assert abs(np.log(found.gamma / choose(1.0, 1e-3).gamma)) < 0.1


def test_a_loss_that_is_not_finite_is_not_quadratic():
    """Beyond |x| = 0.01 the loss is not defined."""

    def loss_fn(w, _):
        return jnp.sum(0.5 * jnp.asarray(CURVATURES, w.dtype) * w**2) + 0 * jnp.sum(jnp.sqrt(1e-4 - w**2))

    posterior = llc.LocalPosterior(loss_fn, jnp.zeros(DIM), np.zeros((NUM_DATA, 1), np.float32))
    found = choose_localization(jax.random.key(0), posterior, SPECTRUM, 1e-3, operations=1e6)
    assert found.is_local
    assert found.gamma > 1e4
    assert min(found.profile)[1] == np.inf


def test_a_loss_that_flattens_out_is_not_left_at_chance():
    """L = c (1 − e^(−q/c)), q = Σ ½ hᵢ xᵢ², has κ < 1 at all γ, and E L = c (1 − Π (1 + hᵢ s/c)^−½) of a Gaussian."""
    plateau, shift = 0.05, 3.0

    def loss_fn(w, _):
        quadratic = jnp.sum(0.5 * jnp.asarray(CURVATURES, w.dtype) * (w - shift) ** 2)
        return -plateau * jnp.expm1(-quadratic / plateau)

    def share(gamma):
        """And its standard error, from E e^(−2q/c); a pair w* ± x is one point."""
        s = CURVATURES / (NBETA * CURVATURES + gamma) / plateau
        first, second = (np.exp(-0.5 * np.sum(np.log1p(times * s))) for times in (1, 2))
        return Moments(1 - first, np.sqrt((second - first**2) / PAIRS))

    center = jnp.full(DIM, shift)
    posterior = llc.LocalPosterior(loss_fn, center, np.zeros((NUM_DATA, 1), np.float32))
    assert reference_loss(posterior) == pytest.approx(plateau)
    found = choose_localization(jax.random.key(0), posterior, SPECTRUM, 1e-3, operations=1e6)
    exact = share(found.gamma)
    assert found.is_local
    assert found.decided_by_share
    assert found.anharmonicity < 1
    assert 0.2 < found.share <= 0.25
    assert abs(found.share - exact.value) < 4 * exact.error
    assert all(kappa <= 2 for _, kappa in found.profile), "negative control: κ alone would have taken the weakest"
    assert share(1e-3).value > 0.5


@pytest.mark.parametrize(
    ("posterior", "spectrum", "found"),
    {
        "no gap, γ open": (posterior_of(1.0), SPECTRUM, True),
        "γ is given": (posterior_of(1.0, gamma=7.0), SPECTRUM, False),
        "the rank is one number": (
            posterior_of(1.0),
            spectrum_with_vectors(np.where(CURVATURES > 1e-3, CURVATURES, 0.0)),
            False,
        ),
        "no eigenvectors": (posterior_of(1.0), spectrum_of(CURVATURES), False),
        "steps cost only their overhead": (posterior_of(1.0, num_data=100), SPECTRUM, False),
    }.values(),
)
def test_where_gamma_is_found_from_the_loss(posterior, spectrum, found):
    asked = RequestedLengths(num_chains=4, num_draws=10)
    request = Request(posterior, None, asked, asked, spectrum, Price(1e6, costly=False))
    assert (find_localization(jax.random.key(0), request, 1.0) is not None) == found


def test_a_gap_or_a_missing_eigenvector_leaves_gamma_to_the_length_of_the_run():
    assert has_use_for_localization(SPECTRUM)
    assert not has_use_for_localization(spectrum_of(CURVATURES))
    assert not has_use_for_localization(spectrum_with_vectors(np.array([1.0, 0.5, 0.0, 0.0]), num_vectors=2))
