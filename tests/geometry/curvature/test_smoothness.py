import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import llc
from llc.analysis.bound_checks import bound_checks
from llc.analysis.estimators import Estimate
from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum
from llc.demo import digits_posterior
from llc.geometry.curvature.operators import curvature_operator
from llc.geometry.curvature.residuals import first_order
from llc.geometry.curvature.smoothness import directions, kinks_nearby, probe_smoothness
from llc.posterior.precision import float64
from tests.support.runs import make_draws
from tests.support.tiers import weekly, weekly_cases

LLC = Estimate("mean energy", 1.0, 0.01, (1.0,), 1000.0, 1.0)


def _population(loss, center):
    return llc.LocalPosterior(lambda w, batch: loss(*w), np.asarray(center, float), np.zeros((1000, 0)), gamma=1.0)


def _network(activation, *, num_data, biased, origin=False, hidden=8, noise=0.3):
    """A one-hidden-layer net at its own noisy outputs; `origin` puts one input at exactly 0."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(num_data, 5))
    if origin:
        inputs[num_data // 2] = 0.0
    params = {"in": rng.normal(size=(5, hidden)), "b": biased * rng.normal(size=hidden), "out": rng.normal(size=hidden)}

    def outputs(params, inputs):
        return activation(inputs @ params["in"] + params["b"]) @ params["out"]

    targets = np.asarray(outputs(params, inputs)) + noise * rng.normal(size=num_data)
    return llc.LocalPosterior(
        lambda params, batch: 0.5 * (outputs(params, batch[0]) - batch[1]) ** 2, params, (inputs, targets), gamma=1.0
    )


def _half_plane(a, b):
    return jnp.where(b < 0, jnp.inf, 0.5 * a**2 + b)


KINKS = {
    "|b|^3": lambda: _population(lambda a, b: 0.5 * a**2 + jnp.abs(b) ** 3 / 6, [0, 0]),
    "|b|^3 beside quartics": lambda: _population(lambda a, b: (a**2 + a * b - 1) ** 2 + jnp.abs(b) ** 3 / 6, [1, 0]),
    "relu(b)^2": lambda: _population(lambda a, b: 0.5 * a**2 + 0.5 * jax.nn.relu(b) ** 2, [0, 0]),
    "|b|": lambda: _population(lambda a, b: 0.5 * a**2 + jnp.abs(b), [0, 0]),
    "|b1 b2|": lambda: _population(lambda a, b: jnp.abs(a * b), [0, 0]),
    "|a b - 1|^3 away from 0": lambda: _population(lambda a, b: jnp.abs(a * b - 1) ** 3 + (a - b) ** 4, [1, 1]),
    "ReLU net, one of 1500 inputs at its kink": lambda: _network(jax.nn.relu, num_data=1500, biased=False, origin=True),
}

SMOOTH = {
    "ReLU net": lambda: _network(jax.nn.relu, num_data=300, biased=True),
    "ReLU net, many kinks near": lambda: _network(jax.nn.relu, num_data=5_000, biased=True, hidden=12),
    "ReLU net, no bias": lambda: _network(jax.nn.relu, num_data=300, biased=False),
    "ReLU net, no residual": lambda: _network(jax.nn.relu, num_data=300, biased=True, noise=0.0),
    "tanh net, one input at 0": lambda: _network(jnp.tanh, num_data=300, biased=False, origin=True),
    "exp net": lambda: _network(lambda x: jnp.exp(0.3 * x), num_data=300, biased=True),
    "quadratic": lambda: _population(lambda a, b: 0.5 * a**2 + 0.005 * b**2, [0, 0]),
    "w^4": lambda: _population(lambda a, b: 0.5 * a**2 + b**4, [0, 0]),
    "w^6": lambda: _population(lambda a, b: (a - 1) ** 6 + b**6, [1, 0]),
    "ends at a distance": lambda: _population(lambda a, b: jnp.log1p(1e3 * a) ** 2 + b**2, [0, 0]),
}


@functools.cache
def _bounds_of_kink(name, method="auto"):
    return _bounds(KINKS[name](), method=method)


def _bounds(posterior, **settings):
    spectrum = llc.spectrum(posterior, **settings)
    return llc.rank_bounds(spectrum, nbeta=float(posterior.nbeta), gamma=1.0), spectrum.smoothness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    weekly_cases(
        {f"{name}-auto": (name, "auto") for name in KINKS}
        | {f"{name}-lanczos": (name, "lanczos") for name in ("|b|^3", "relu(b)^2")},
        but=("|b|^3-auto", "relu(b)^2-auto", "|b|-auto", "|b1 b2|-auto", "relu(b)^2-lanczos"),
    ),
)
def test_a_kink_is_seen(name, method):
    bounds, smoothness = _bounds_of_kink(name, method)
    assert smoothness.state == "kink", smoothness
    assert "smooth" in [a.name for a in bounds.assumptions if not a.holds]
    assert np.isnan(bounds.lower)
    assert np.isnan(bounds.upper)
    assert not bounds.valid
    assert "nan" not in str(bounds).splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(SMOOTH, but=("ReLU net", "quadratic", "w^4")))
def test_a_smooth_loss_passes(name):
    _, smoothness = _bounds(SMOOTH[name]())
    assert smoothness.state == "smooth", smoothness


@pytest.mark.parametrize(
    ("name", "even", "odd"), [("|b|^3", np.inf, 2), ("relu(b)^2", 1, 1), ("|b|", 0, 0), ("|b1 b2|", np.inf, 1)]
)
def test_exponents_of_kinks(name, even, odd):
    _, smoothness = _bounds_of_kink(name)
    assert smoothness.even == pytest.approx(even, abs=0.01)
    assert smoothness.odd == pytest.approx(odd, abs=0.01)


def _kink_at(w, batch):
    return 0.5 * w[0] ** 2 + jax.nn.relu(w[1] - batch[0]) + 0.5 * w[1] ** 2


@pytest.mark.parametrize("distance", [2.0**-7, 2.0**-17, 2.0**-27])  # exact in float32
def test_a_kink_at_a_distance_is_no_kink_at_the_minimum(distance):
    at_zero, at_it = (
        llc.LocalPosterior(_kink_at, np.array([0.0, b]), np.full(1000, distance), gamma=1.0) for b in (0.0, distance)
    )
    assert _bounds(at_zero)[1].state == "smooth"
    assert not _bounds(at_it)[0].valid


def test_a_boundary_is_named():
    bounds, smoothness = _bounds(_population(_half_plane, [0, 0]))
    assert smoothness.state == "boundary"
    assert not bounds.valid
    assert "boundary" in str(bounds)
    assert _bounds(_population(_half_plane, [0, 1e-6]))[1].state == "smooth"


def test_a_loss_in_single_precision_is_not_judged():
    def cast(loss):
        return lambda *w: loss(*(x.astype(jnp.float32) for x in w))

    bounds, smoothness = _bounds(_population(cast(lambda a, b: (a * b - 1) ** 2 + jnp.cosh(a)), [1.0, 1.0]))
    assert smoothness.state == "coarse"
    assert "not judged" in str(bounds)


def test_a_mask_takes_the_kink_away():
    center = {"a": np.zeros(1), "b": np.zeros(1)}

    def loss(w, _batch):
        return 0.5 * w["a"][0] ** 2 + jnp.abs(w["b"][0])

    for mask, state in (("a", "smooth"), ("b", "kink")):
        posterior = llc.LocalPosterior(loss, center, np.zeros((10, 0)), gamma=1.0, mask=mask)
        assert _bounds(posterior)[1].state == state


@pytest.mark.parametrize("smoothness", [Smoothness("kink", 1.0, np.inf), Smoothness("boundary", np.nan, np.nan), None])
def test_round_trip_through_a_file(smoothness, tmp_path):
    spectrum = dataclasses.replace(llc.spectrum(_population(lambda a, b: a**2 + b**2, [0, 0])), smoothness=smoothness)
    spectrum.to_dataset().to_netcdf(tmp_path / "spectrum.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "spectrum.nc", engine="h5netcdf") as dataset:
        again = Spectrum.from_dataset(dataset)
    np.testing.assert_equal(again.smoothness, smoothness)
    assert llc.rank_bounds(again).valid == (smoothness is None)


def _transformer_layer(activation, *, num_data=200, length=8, width=8, hidden=32, vocabulary=11):
    """A language model of one layer at random weights, where kinks have weight: its residuals are large."""
    rng = np.random.default_rng(0)
    matrix = lambda *shape: rng.normal(size=shape) / np.sqrt(shape[0])  # noqa: E731
    params = {name: matrix(width, width) for name in ("query", "key", "value", "out")}
    params |= {"embed": rng.normal(size=(vocabulary, width)), "unembed": matrix(width, vocabulary)}
    params |= {"up": matrix(width, hidden), "bias": 0.1 * rng.normal(size=hidden), "down": matrix(hidden, width)}
    tokens = rng.integers(0, vocabulary, (num_data, length + 1))

    def normed(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def loss_fn(p, tokens):
        x = p["embed"][tokens[:, :-1]]
        query, key, value = (normed(x) @ p[name] for name in ("query", "key", "value"))
        scores = query @ jnp.swapaxes(key, 1, 2) / np.sqrt(width)
        causal = jnp.where(jnp.tril(jnp.ones((length, length))) > 0, scores, -1e9)
        x = x + jax.nn.softmax(causal) @ value @ p["out"]
        x = x + activation(normed(x) @ p["up"] + p["bias"]) @ p["down"]
        logits = normed(x) @ p["unembed"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(axis=1)

    return llc.LocalPosterior(loss_fn, params, tokens, gamma=1.0)


KINKS_AROUND = {  # the least share, and the largest
    "ReLU transformer layer": (lambda: _transformer_layer(jax.nn.relu), 0.15, 0.35),
    "GELU transformer layer": (lambda: _transformer_layer(jax.nn.gelu), 0.0, 0.0),
    "ReLU net": (SMOOTH["ReLU net"], 0.01, 0.05),
    "tanh net": (SMOOTH["tanh net, one input at 0"], 0.0, 0.0),
    "quadratic": (SMOOTH["quadratic"], 0.0, 0.0),
    "w^6": (SMOOTH["w^6"], 0.0, 0.0),
    "|b|^3": (KINKS["|b|^3"], 0.0, 1e-3),  # its second derivative has no jump
    "tanh net of the demo": (lambda: digits_posterior(jax.random.key(0)), 0.0, 0.0),  # far from quadratic
    "rounded |b|": (lambda: _population(lambda a, b: 0.5 * a**2 + jnp.logaddexp(1e4 * b, -1e4 * b), [0, 0]), 0.0, 0.0),
    "|b|": (KINKS["|b|"], 0.5, 1.0),
}


@pytest.mark.study
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * ("transformer" in name or "demo" in name)) for name in KINKS_AROUND],
)
def test_the_share_of_curvature_in_kinks(name):
    make, least, most = KINKS_AROUND[name]
    posterior = make()
    with float64():
        operator = curvature_operator(posterior)
        gradient, products = map(np.asarray, first_order(operator, jnp.asarray(directions(operator.dim))))
        share = probe_smoothness(operator, gradient, products).kinks
        nearby = kinks_nearby(operator, 3)
    assert least <= share <= most
    assert least / 2 <= nearby <= 2 * most  # of fewer rows


@pytest.mark.parametrize(("share", "passed"), [(0.0, True), (0.04, True), (0.25, False), (np.nan, None)])
def test_kinks_around_the_minimum_are_a_check(share, passed):
    spectrum = dataclasses.replace(llc.spectrum(SMOOTH["quadratic"]()), smoothness=Smoothness("smooth", 2, 3, share))
    again = Spectrum.from_dataset(spectrum.to_dataset())
    np.testing.assert_equal(again.smoothness, spectrum.smoothness)
    checks = [c for c in bound_checks(make_draws(), LLC, None, again, LLC, corrected=False, sensitivity=None)]
    found = [(check.kind, check.passed) for check in checks if check.name == "kinks"]
    assert found == ([] if passed is None else [("scale", passed)])
