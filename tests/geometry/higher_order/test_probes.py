import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.geometry.higher_order.excess import excess_loss
from llc.geometry.higher_order.probes import NAMES
from llc.geometry.higher_order.records import CERTIFICATE, COMPONENT, ORDER, QUARTIC, RESOLUTION, SQUARED, SYMMETRY
from llc.posterior.precision import float64
from tests.support.polynomials import CONE, NORM, PARABOLA, RIDGE, S, squares
from tests.support.tiers import weekly

KEY = jax.random.key(0)
LINES = ({(1, 1): 1.0}, {(1, 0, 1): 1.0}, {S: 1.0})  # x²(y² + z²) + s²
CASES = {  # λ, and the interval: of the ridge, weights of y − x² and x; of the rest, docs/theory.md §3 for sums
    "ridge": (RIDGE, 0.6, (0.6, 0.6)),
    "cone": (CONE, 0.5, (0.5, 0.5)),
    "norm": (NORM, 1.25, (1.0, 1.25)),
    "parabola": (PARABOLA, 0.5, (0.5, 0.5)),
    "lines": (LINES, 1.0, (1.0, 1.0)),
}


def _by_name(bounds):
    return {record.name: record for record in bounds.records}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(CASES, but=("cone", "norm", "lines")))
def test_known_coefficients(name):
    polynomials, known, interval = CASES[name]
    posterior = squares(*polynomials, exact_fit=True)
    bounds = llc.higher_bounds(posterior, key=KEY)
    rank = llc.rank_bounds(llc.spectrum(posterior))
    assert bounds.lower <= known <= bounds.upper
    assert (bounds.lower, bounds.upper) == pytest.approx(interval)
    assert rank.lower <= bounds.lower <= bounds.upper <= rank.upper
    assert [record.name for record in bounds.records] == list(NAMES)
    for record in bounds.records:
        assert record.lower <= known + 1e-12 <= record.upper + 2e-12, record
        assert record.status != "established" or np.isfinite([record.lower, record.upper]).any()
    assert {bounds.lower_source, bounds.upper_source} <= {"rank", *NAMES}
    assert len(str(bounds).splitlines()) >= 3 + len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("independent", "products"), [(True, False), (False, True)])
def test_residuals_with_independent_gradients_need_no_profile(*, independent, products):
    """y − x² and z − x³ in R³: a curve of zeros, λ = 1. One of them twice has the same zeros, seen by the profile."""

    def outputs(w, batch):
        return jnp.stack([w[1] - w[0] ** 2, w[2] - w[0] ** 3])[batch]

    rows = np.array([0, 1] if independent else [0, 1, 1])
    loss_fn = lambda w, batch: outputs(w, batch) ** 2  # noqa: E731
    bounds = llc.higher_bounds(llc.LocalPosterior(loss_fn, np.zeros(3), rows, predict_fn=outputs), key=KEY)
    assert (bounds.lower, bounds.upper) == (1.0, 1.0)
    found = _by_name(bounds)[CERTIFICATE]
    assert (found.status, found.evaluations > 0) == ("established", products)
    assert found.finding.startswith("the gradients of all 2 residuals are independent") == independent


@pytest.mark.slow
def test_false_bounds_stay_out():
    """λ ≥ r/2 + d₄/4, λ ≤ (number of equations)/2 and λ ≤ (rank off the zero set)/2 exclude the λ of these points."""
    cone = _by_name(llc.higher_bounds(squares(*CONE, exact_fit=True), key=KEY))
    assert cone[QUARTIC].number == 4
    assert CASES["cone"][1] < 4 / 4  # d₄/4 is no lower bound: the quartic probe bounds from above only
    assert cone[QUARTIC].lower == -np.inf
    norm = llc.higher_bounds(squares(*NORM, exact_fit=True), key=KEY)
    equations, rank_off_zeros = 2, 2
    assert max(equations, rank_off_zeros) / 2 < CASES["norm"][1] <= norm.upper
    assert _by_name(norm)[COMPONENT].upper >= CASES["norm"][1]


@pytest.mark.slow
def test_what_each_probe_says():
    ridge = _by_name(llc.higher_bounds(squares(*RIDGE, exact_fit=True), key=KEY))
    assert ridge[SYMMETRY].number == 2  # the variables that nothing depends on
    assert (ridge[ORDER].lower, ridge[ORDER].upper) == pytest.approx((0.6, 0.6))
    assert ridge[QUARTIC].status == "not needed"
    assert ridge[CERTIFICATE].status == "undecided"
    parabola = _by_name(llc.higher_bounds(squares(*PARABOLA, exact_fit=True), key=KEY))
    assert parabola[CERTIFICATE].status == "established"
    assert parabola[COMPONENT].status == "not needed"
    plain = _by_name(llc.higher_bounds(squares(*CONE), key=KEY))
    assert plain[SQUARED].status == "not used"


def test_nothing_without_a_rank():
    posterior = squares(*CONE, exact_fit=True)
    spectrum = llc.spectrum(posterior)
    unclear = dataclasses.replace(llc.rank_bounds(spectrum), rank_interval=(0.0, 1.0))
    records = _by_name(llc.higher_bounds(posterior, spectrum, unclear, key=KEY))
    assert {name for name, record in records.items() if record.status == "established"} == {SYMMETRY}
    other = dataclasses.replace(llc.rank_bounds(spectrum), rank=1.0, rank_interval=(1.0, 1.0))
    records = _by_name(llc.higher_bounds(posterior, spectrum, other, key=KEY))
    assert {name for name, record in records.items() if record.status == "established"} == {SYMMETRY}


def test_nothing_on_a_kink():
    posterior = llc.LocalPosterior(lambda w, _: 0.5 * w[0] ** 2 + jnp.abs(w[1]) ** 3, np.zeros(2), np.zeros((4, 1)))
    bounds = llc.higher_bounds(posterior, key=KEY)
    assert np.isnan([bounds.lower, bounds.upper]).all()
    assert {record.status for record in bounds.records} == {"not used"}


def test_a_saddle_that_the_hessian_does_not_see():
    posterior = llc.LocalPosterior(lambda w, _: 0.5 * w[0] ** 2 - w[1] ** 4, np.zeros(2), np.zeros((4, 1)))
    assert llc.rank_bounds(llc.spectrum(posterior)).valid
    bounds = llc.higher_bounds(posterior, key=KEY)
    assert not bounds.valid
    assert np.isnan([bounds.lower, bounds.upper]).all()
    assert bounds.is_saddle
    assert llc.rank_bounds(llc.spectrum(posterior)).is_saddle is False, "the rank alone does not see it"


def test_wrong_input():
    posterior = squares(*CONE)
    other = llc.spectrum(llc.LocalPosterior(lambda w, _: jnp.sum(w**2), np.zeros(2), np.zeros((4, 1))))
    with pytest.raises(ValueError, match="needs the spectrum of the posterior's 4 parameters, got one of order 2"):
        llc.higher_bounds(posterior, other, key=KEY)


@pytest.mark.slow
@pytest.mark.study
def test_the_report_names_both_sources():
    posterior = squares(*CONE, exact_fit=True).with_scale(nbeta=1e3, gamma=1.0)
    spectrum = llc.spectrum(posterior)
    bounds = llc.higher_bounds(posterior, spectrum, key=KEY)
    draws = llc.sample(
        KEY, posterior, llc.SGLD(step_size=1e-4), num_chains=2, num_warmup=10, num_draws=20, progress=False
    )
    named = llc.report(draws, bounds=bounds, spectrum=spectrum).bounds
    assert (named.lower, named.upper) == (0.5, 0.5)
    assert (named.lower_source, named.upper_source) == ("squared loss", "nearby component")
    assert named.source in str(llc.report(draws, bounds=bounds, spectrum=spectrum))


def _bent(power, *, cross):
    """Residuals y − x² and, left after y is eliminated, x^power: as itself, or hidden in y x^(power − 2)."""
    rest = {(power - 2, 1): 1.0} if cross else {(power,): 1.0}
    return squares({(0, 1): 1.0, (2,): -1.0}, rest, exact_fit=True)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("power", [3, 4])
def test_leading_forms_are_those_across_the_range(power, cross):
    """λ = ½ + 1/2k: y − x² is one smooth equation, and what is left is x^k."""
    bounds = llc.higher_bounds(_bent(power, cross=cross), key=KEY)
    assert bounds.lower == bounds.upper == pytest.approx(0.5 + 0.5 / power)


def _two_layers(targets):
    """Cross-entropy of a product of matrices, with w* = 0 and soft targets."""

    def logits(params, batch):
        return batch[0] @ params[0] @ params[1]

    def loss_fn(params, batch):
        return -jnp.sum(batch[1] * jax.nn.log_softmax(logits(params, batch)), axis=-1)

    inputs = np.eye(2, dtype=np.float32)
    params = [np.zeros((2, 1), np.float32), np.zeros((1, 3), np.float32)]
    return llc.LocalPosterior(loss_fn, params, (inputs, np.tile(targets, (2, 1))), predict_fn=logits)


@pytest.mark.slow
@pytest.mark.study
def test_cross_entropy_has_residuals_where_its_targets_are_the_model_s_own_probabilities():
    """Logits up to a shift: a product of 2×1 and 1×2 at zero, so λ = 1."""
    bounds = llc.higher_bounds(_two_layers(np.full(3, 1 / 3, np.float32)), key=KEY)
    assert (bounds.lower, bounds.upper) == pytest.approx((1.0, 1.0))
    assert bounds.lower_source == RESOLUTION


@pytest.mark.slow
@pytest.mark.parametrize(("targets", "expected"), [([1 / 3, 1 / 3, 1 / 3], True), ([0.5, 0.3, 0.2], False)])
def test_other_targets_leave_no_residuals(targets, expected):
    posterior = _two_layers(np.array(targets, np.float32))
    with float64():
        assert excess_loss(posterior, KEY).exact_fit is expected


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"generators": [lambda params: params["nowhere"]]}, "generators"),
        ({"generators": [lambda: None]}, "generators"),
        ({"bounds": "of three parameters"}, "bounds need to be of the posterior's 2 parameters"),
    ],
)
def test_generators_that_raise_and_bounds_of_another_posterior_are_named(wrong, name):
    data = np.ones((20, 1), np.float32)
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * jnp.sum(w["w"] ** 2) * x[:, 0], {"w": jnp.zeros(2)}, data)
    if "bounds" in wrong:
        other = llc.LocalPosterior(lambda w, x: 0.5 * jnp.sum(w**2) * x[:, 0], jnp.zeros(3), data)
        wrong = {"bounds": llc.rank_bounds(llc.spectrum(other))}
    with pytest.raises(ValueError, match=name):
        llc.higher_bounds(posterior, key=jax.random.key(0), progress=False, **wrong)
