import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.bounds.assumptions import Assumption
from llc.bounds.rank import Bound, at_scale, tighten
from llc.bounds.spectral_measure import Smoothness, Spectrum
from tests.support.models import MODELS, deep_linear


def _spectrum(eigenvalues, gradient=None):
    nodes = np.asarray(eigenvalues, float)
    weights = np.zeros(len(nodes)) if gradient is None else np.square(gradient)
    return Spectrum(nodes[None], np.ones((1, len(nodes))), len(nodes), "hessian", "dense", nodes, weights)


@pytest.mark.parametrize("name", MODELS)
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


def test_no_gap_gives_an_interval():
    """Eigenvalues over twenty decades: from what the sampler sees at 10 γ/nβ to the floor."""
    eigenvalues = 10.0 ** -np.arange(0, 20, 0.5)
    bounds = llc.rank_bounds(_spectrum(eigenvalues), nbeta=1e3, gamma=1.0)
    assert not bounds.rank_is_unique
    assert bounds.rank_interval == (np.sum(eigenvalues > 1e-2), np.sum(eigenvalues > 8 * np.finfo(float).eps))
    assert (bounds.lower, bounds.upper) == (bounds.rank_interval[0] / 2, bounds.rank_interval[1] / 4 + 10)
    assert "no gap" in str(bounds)


def test_an_imperfect_minimum_raises_the_threshold():
    """A largest-gap rule would count the eigenvalues at 1e-7 that imperfect convergence leaves behind."""
    eigenvalues = np.concatenate([np.ones(5), np.full(3, 1e-7), [-1e-7]])
    bounds = llc.rank_bounds(_spectrum(eigenvalues))
    assert bounds.threshold == pytest.approx(3e-7)
    assert bounds.rank_interval == (5, 5)


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


@pytest.mark.parametrize(
    ("eigenvalues", "gradient", "failing"),
    [
        ([1.0, 1.0], [0.0, 0.0], None),
        ([1.0, -1.0], [0.0, 0.0], "no negative curvature"),
        ([1.0, -5e-4], [0.0, 0.0], "no negative curvature"),  # nβ|h| = γ/2: doubles that direction's variance
        ([1.0, -1e-5], [0.0, 0.0], None),
        ([1.0, 1.0], [0.1, 0.0], "stationary"),  # shifts λ̂ by nβ g² / h = 10
        ([1.0, 1.0], [1e-3, 0.0], None),
    ],
    ids=["minimum", "saddle", "weak saddle", "round-off", "untrained", "trained"],
)
def test_assumptions(eigenvalues, gradient, failing):
    bounds = llc.rank_bounds(_spectrum(eigenvalues, gradient), nbeta=1e3, gamma=1.0)
    failed = [assumption.name for assumption in bounds.assumptions if not assumption.holds]
    assert failed == ([] if failing is None else [failing])
    assert bounds.valid == (failing is None)
    assert np.isnan(bounds.lower) == np.isnan(bounds.upper) == (failing is not None)


def test_saddle_without_a_scale():
    assert not llc.rank_bounds(_spectrum([1.0, -0.1])).valid
    assert llc.rank_bounds(_spectrum([1.0, -1e-4])).valid


@pytest.mark.parametrize(
    ("smoothness", "holds", "words"),
    [
        (None, True, "not judged"),
        (Smoothness("coarse", 1.0, 1.0), True, "not judged"),
        (Smoothness("smooth", np.inf, 3.0), True, "no even part and an odd part ~ t^3.0"),
        (Smoothness("kink", 1.0, np.inf), False, "move w* off the kink"),
        (Smoothness("boundary", np.nan, np.nan), False, "boundary of its domain"),
    ],
    ids=lambda x: getattr(x, "state", None),
)
def test_smooth(smoothness, holds, words):
    spectrum = dataclasses.replace(_spectrum([1.0, 1.0]), smoothness=smoothness)
    bounds = llc.rank_bounds(spectrum, nbeta=1e3, gamma=1.0)
    (assumption,) = (a for a in bounds.assumptions if a.name == "smooth")
    assert assumption.holds == holds == bounds.valid
    assert words in assumption.message
    assert ("do not hold" in str(bounds)) == (not holds)


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
    with pytest.raises(ValueError, match="rank_bounds needs"):
        llc.rank_bounds(_spectrum([1.0]), **scale)


def _record(name, lower=-np.inf, upper=np.inf, status="established"):
    return Bound(name, status, "seen", lower=lower, upper=upper)


@pytest.mark.parametrize(
    ("records", "interval", "words"),
    [
        ((_record("a", lower=1.25), _record("b", upper=1.4)), (1.25, 1.4), "lower bound: a, upper bound: b"),
        ((_record("a", lower=0.5), _record("b", upper=1.4)), (1.0, 1.4), "lower bound: rank, upper bound: b"),
        ((_record("a", 1.0, 1.0), _record("b", upper=2.5)), (1.0, 1.0), "lower bound: rank, upper bound: a"),
        ((_record("a", lower=1.25, status="undecided"),), (1.0, 1.5), "r/2 ≤ λ"),
        ((_record("a", lower=1.4), _record("b", upper=1.2)), (1.0, 1.5), "a says λ ≥ 1.4, b says λ ≤ 1.2"),
        ((), (1.0, 1.5), "r/2 ≤ λ"),
    ],
    ids=["both", "weaker", "pinned", "undecided", "contradiction", "none"],
)
def test_the_tightest_pair(records, interval, words):
    bounds = tighten(llc.rank_bounds(_spectrum([1.0, 1.0, 0.0, 0.0])), records)
    assert (bounds.lower, bounds.upper) == interval
    assert words in bounds.source
    assert bounds.records == records


def test_nothing_is_tightened_where_an_assumption_fails():
    bounds = tighten(llc.rank_bounds(_spectrum([1.0, -1.0])), (_record("a", 0.5, 0.5),))
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
