import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.bounds.assumptions import Assumption
from llc.bounds.bound import Bound
from llc.bounds.rank import at_scale, tighten
from tests.support.models import MODELS, deep_linear
from tests.support.spectra import spectrum_of
from tests.support.tiers import weekly


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    weekly(
        MODELS, but=("regular", "norm^4", "(ab - 1)^2", "two Gaussians", "rrr 4-2-4 rank 2", "linear 5-3-4-5 rank 3")
    ),
)
def test_known_ranks_and_learning_coefficients(name):
    model = MODELS[name]()
    posterior = model.posterior
    bounds = llc.rank_bounds(llc.spectrum(posterior), nbeta=float(posterior.nbeta), gamma=float(posterior.gamma))
    assert bounds.valid, bounds
    assert bounds.rank_interval == (model.rank, model.rank), bounds
    assert bounds.lower == model.rank / 2
    assert bounds.upper == model.rank / 2 + (posterior.num_params - model.rank) / 4
    assert bounds.lower <= model.learning_coefficient <= bounds.upper
    assert bounds.quad <= model.rank / 2 + 1e-6


@pytest.mark.parametrize(("upper", "vacuous"), [(3.0, True), (2.9, False)])
def test_an_interval_of_any_possible_value_is_not_printed(upper, vacuous):
    bounds = llc.rank_bounds(spectrum_of(np.array([1.0, 1.0, 0.5, 0.5, 0.1, 0.0])))
    bounds = dataclasses.replace(bounds, lower=0.0, upper=upper, rank_interval=(0.0, 6.0))
    assert bounds.is_vacuous == vacuous
    assert ("[" in str(bounds).splitlines()[0]) != vacuous


def test_no_gap_gives_an_interval():
    """Eigenvalues over twenty decades: from what the sampler sees at 10 γ/nβ to the floor."""
    eigenvalues = 10.0 ** -np.arange(0, 20, 0.5)
    bounds = llc.rank_bounds(spectrum_of(eigenvalues), nbeta=1e3, gamma=1.0)
    assert not bounds.rank_is_unique
    assert bounds.rank_interval == (np.sum(eigenvalues > 1e-2), np.sum(eigenvalues > 8 * np.finfo(float).eps))
    assert (bounds.lower, bounds.upper) == (bounds.rank_interval[0] / 2, bounds.rank_interval[1] / 4 + 10)
    assert bounds.gap < 2


def test_an_imperfect_minimum_raises_the_threshold():
    """A largest-gap rule would count the eigenvalues at 1e-7 that imperfect convergence leaves behind."""
    eigenvalues = np.concatenate([np.ones(5), np.full(3, 1e-7), [-1e-7]])
    bounds = llc.rank_bounds(spectrum_of(eigenvalues))
    assert bounds.threshold == pytest.approx(3e-7)
    assert bounds.rank_interval == (5, 5)


@pytest.mark.slow
def test_lanczos_never_counts_the_null_space():
    model = MODELS["linear 6-4-4-4-6 rank 4"]()
    posterior = model.posterior
    spectrum = llc.spectrum(posterior, method="lanczos")
    bounds = llc.rank_bounds(spectrum, nbeta=float(posterior.nbeta), gamma=1.0)
    low, high = bounds.rank_interval
    assert low <= model.rank <= high == posterior.num_params
    assert bounds.lower <= model.learning_coefficient <= bounds.upper
    short = dataclasses.replace(spectrum, nodes=spectrum.nodes[:, :5], weights=spectrum.weights[:, :5])
    unresolved = llc.rank_bounds(short, nbeta=1e6, gamma=1.0)
    assert unresolved.rank_interval == (0, posterior.num_params)


def test_quad_is_the_gaussian_part():
    posterior = llc.LocalPosterior(lambda w, batch: 0.5 * jnp.sum(w**2), np.zeros(1, np.float32), np.zeros((10_000, 1)))
    nbeta = float(posterior.nbeta)
    bounds = llc.rank_bounds(llc.spectrum(posterior), nbeta=nbeta, gamma=1.0)
    assert round(bounds.quad, 4) == 0.4995  # docs/theory.md §2
    assert bounds.quad == pytest.approx(0.5 * nbeta / (nbeta + 1), rel=1e-12)
    assert llc.rank_bounds(llc.spectrum(posterior)).quad == 0.5


@pytest.mark.parametrize(
    "scale", [{"nbeta": 1.0}, {"gamma": 1.0}, {"nbeta": 0.0, "gamma": 1.0}, {"nbeta": 1.0, "gamma": -1.0}]
)
def test_wrong_scale(scale):
    with pytest.raises(ValueError, match="needs"):
        llc.rank_bounds(spectrum_of([1.0]), **scale)


def _record(name, lower=-np.inf, upper=np.inf, status="established"):
    return Bound(name, status, "seen", lower=lower, upper=upper)


@pytest.mark.parametrize(
    ("records", "interval", "sources"),
    [
        ((_record("a", lower=1.25), _record("b", upper=1.4)), (1.25, 1.4), ("a", "b")),
        ((_record("a", lower=0.5), _record("b", upper=1.4)), (1.0, 1.4), ("rank", "b")),
        ((_record("a", 1.0, 1.0), _record("b", upper=2.5)), (1.0, 1.0), ("rank", "a")),
        ((_record("a", lower=1.25, status="undecided"),), (1.0, 1.5), ("rank", "rank")),
        ((_record("a", lower=1.4), _record("b", upper=1.2)), (1.0, 1.5), ("rank", "rank")),
        ((), (1.0, 1.5), ("rank", "rank")),
    ],
    ids=["both", "weaker", "pinned", "undecided", "contradiction", "none"],
)
def test_the_largest_lower_and_the_smallest_upper_bound_are_taken(records, interval, sources):
    bounds = tighten(llc.rank_bounds(spectrum_of([1.0, 1.0, 0.0, 0.0])), records)
    assert (bounds.lower, bounds.upper) == interval
    assert (bounds.lower_source, bounds.upper_source) == sources
    assert bounds.records == records


def test_nothing_is_tightened_where_an_assumption_fails():
    bounds = tighten(llc.rank_bounds(spectrum_of([1.0, -1.0])), (_record("a", 0.5, 0.5),))
    assert np.isnan([bounds.lower, bounds.upper]).all()


def test_what_is_known_beyond_the_rank_moves_with_the_scale():
    posterior = deep_linear([4, 2, 4], [2, 2])
    spectrum = llc.spectrum(posterior)
    certified = tighten(
        llc.rank_bounds(spectrum, nbeta=100.0, gamma=1.0),
        (Bound("certificate", "established", "", lower=6.0, upper=6.0),),
    )
    moved = at_scale(certified, spectrum, nbeta=1000.0, gamma=1.0)
    assert (moved.lower, moved.upper) == (6, 6) != (llc.rank_bounds(spectrum).lower, llc.rank_bounds(spectrum).upper)
    assert moved.localization_scale == 1e-3
    assert moved.quad == spectrum.quad(1e-3) != certified.quad
    saddle = dataclasses.replace(
        certified, assumptions=(*certified.assumptions, Assumption("no descent", False, "a saddle"))
    )
    assert np.isnan(at_scale(saddle, spectrum, nbeta=1000.0, gamma=1.0).upper)


def _lanczos(curvatures, num_matvecs=60):
    curvatures = np.asarray(curvatures)
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.sum(jnp.asarray(curvatures, w.dtype) * w**2),
        np.zeros(len(curvatures), np.float32),
        np.zeros((10, 1)),
    )
    return llc.spectrum(posterior, method="lanczos", num_matvecs=num_matvecs, num_probes=16)


@pytest.mark.slow
@pytest.mark.study
def test_lanczos_counts_above_a_gap_that_it_resolves():
    """100 of 1,000 directions within two decades: γ hides most of them from the sampler, not from the count."""
    scale = {"nbeta": 1.0, "gamma": 0.3}
    found = _lanczos(np.concatenate([np.geomspace(0.02, 1, 100), np.zeros(900)]))
    bounds = llc.rank_bounds(found, **scale)
    error = found.count_stderr(found.resolution)
    assert abs(bounds.rank - 100) < 4 * error
    low, high = bounds.rank_interval
    assert 100 - 4 * error < low <= 100
    assert high == 1000, "what lies below the resolution is not ruled out"
    assert bounds.lower == low / 2
    smooth = _lanczos(np.geomspace(1e-6, 1, 1000))
    assert llc.rank_bounds(smooth, **scale).rank_interval[0] < 30, "no gap: what stands above 10 γ/nβ"


def test_old_names_answer_with_a_warning():
    bounds = llc.rank_bounds(spectrum_of([1.0, 0.0]), nbeta=10.0, gamma=1.0)
    for old, new in (("clean", bounds.rank_is_unique), ("noise_scale", bounds.localization_scale)):
        with pytest.warns(DeprecationWarning, match=old):
            assert getattr(bounds, old) == new
