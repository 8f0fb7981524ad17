"""Points where small curvature, small parameters or a nearby component must not be taken for what they are not.

Each is a model with known λ at which a bound would exclude it if the small part were dropped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.precision import float64

KEY = jax.random.key(0)


def posterior_of(loss, center, **scale):
    return llc.LocalPosterior(lambda w, _: loss(w), jnp.asarray(center), np.zeros((1000, 1), np.float32), **scale)


def higher(loss, center):
    jax.config.update("jax_enable_x64", True)
    try:
        posterior = posterior_of(loss, np.asarray(center, np.float64))
        spectrum = llc.spectrum(posterior)
        return llc.higher_bounds(posterior, spectrum, llc.rank_bounds(spectrum), key=KEY)
    finally:
        jax.config.update("jax_enable_x64", False)


def spectrum_of(eigenvalues, **fields):
    nodes = np.asarray(eigenvalues, float)[None]
    fields = {"method": "dense", "noise": 0.0, "gauss_newton_discrepancy": 0.0} | fields
    nothing = np.zeros(1)
    return llc.Spectrum(
        nodes=nodes,
        weights=np.ones_like(nodes),
        gradient_nodes=nothing,
        gradient_weights=nothing,
        dim=nodes.size,
        matrix="hessian",
        **fields,
    )


def test_positive_eigenvalues_below_the_negative_ones_may_count():
    """Beside one of −5e-4, 80 of +1e-3 are no noise: the true λ of the minimum next to it, 45.5, is not excluded."""
    bounds = llc.rank_bounds(spectrum_of([1.0] * 10 + [1e-3] * 80 + [-5e-4]))
    assert bounds.rank_interval == (10, 90)
    assert bounds.upper >= 45.25
    noise = 5e-4 * np.cos(np.linspace(0, np.pi, 80))  # as much of either sign
    assert llc.rank_bounds(spectrum_of([1.0] * 10 + [*noise, -5e-4])).rank_interval == (10, 10), "negative control"


def test_what_a_range_finder_does_not_see_is_said():
    few = [1.0] * 10 + [0.0] * 90
    assert "curvature below 2e-06" in llc.rank_bounds(spectrum_of(few, method="range_finder", noise=2e-6)).note
    assert not llc.rank_bounds(spectrum_of(few, method="range_finder", noise=1e-16)).note


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("loss", "center", "known"),
    [
        pytest.param(lambda w: 20 + (w[0] - 3e-4) ** 2 + w[1] ** 4, [3e-4, 0.0], 0.75, id="small parameters, quartic"),
        pytest.param(lambda w: (w[0] - 1e-3) ** 2 + w[1] ** 8, [1e-3, 0.0], 0.625, id="small parameters, order 8"),
        pytest.param(lambda w: w[0] ** 4 + 1e-9 * w[1] ** 4, [0.0, 0.0], 0.5, id="quartics of other units"),
        pytest.param(
            lambda w: jnp.sum(w**2) ** 2 * (w[0] - 0.05) ** 2, [0.0, 0.0, 0.0], 0.75, id="a component that ends nearby"
        ),
    ],
)
def test_bounds_do_not_exclude(loss, center, known):
    bounds = higher(loss, center)
    assert bounds.lower <= known <= bounds.upper, str(bounds)


@pytest.mark.slow
@pytest.mark.study
def test_a_component_through_the_point_is_still_found():
    """K = (w₀w₁)²: lines of zeros through 0, of codimension 1."""
    bounds = higher(lambda w: (w[0] * w[1]) ** 2, [0.0, 0.0])
    assert any(record.name == "nearby component" and record.status == "established" for record in bounds.records)


def test_arrays_without_elements():
    loss = lambda w, _: jnp.sum(w["a"] ** 2) + jnp.sum(w["b"])  # noqa: E731
    center = {"a": jnp.zeros(2), "b": jnp.zeros((0, 3))}
    posterior = llc.LocalPosterior(loss, center, np.zeros((100, 1), np.float32))
    spectrum = llc.spectrum(posterior)
    bounds = llc.higher_bounds(posterior, spectrum, llc.rank_bounds(spectrum), key=KEY)
    assert (bounds.lower, bounds.upper) == (1.0, 1.0)


def _beside(loss, center):
    with float64():
        return llc.spectrum(posterior_of(loss, np.asarray(center, np.float64)))


@pytest.mark.parametrize(
    ("loss", "center", "known"),
    [
        pytest.param(lambda w: 0.5 * w[0] ** 2 + w[1] ** 4, [0.0, 1e-3], 0.75, id="quartic"),
        pytest.param(lambda w: 0.5 * w[0] ** 2 + w[1] ** 6, [1e-9, 1e-2], 0.5 + 1 / 6, id="of order six"),
    ],
)
def test_curvature_beside_a_degenerate_minimum_is_not_counted(loss, center, known):
    spectrum = _beside(loss, center)
    assert spectrum.unstable_eigenvalues.size == 1
    posterior = posterior_of(loss, np.asarray(center, np.float64), gamma=1.0)
    for bounds in (
        llc.rank_bounds(spectrum, nbeta=100.0, gamma=1.0),
        llc.higher_bounds(posterior, spectrum, llc.rank_bounds(spectrum), key=KEY),
    ):
        assert bounds.lower <= known <= bounds.upper, str(bounds)
        assert bounds.note
    again = llc.Spectrum.from_dataset(spectrum.to_dataset())
    np.testing.assert_array_equal(again.unstable_eigenvalues, spectrum.unstable_eigenvalues)


def test_curvature_beside_a_sharp_minimum_is_counted():
    """Anharmonic and coupled; the small curvature is 1e-4 + 2 w₀, so it depends on how far w₀ is off."""

    def loss(w):
        return 0.5 * w[0] ** 2 + 5e-5 * w[1] ** 2 + w[0] ** 3 + w[0] * w[1] ** 2

    spectrum = _beside(loss, [1e-6, 1e-3])
    assert not spectrum.unstable_eigenvalues.size
    assert llc.rank_bounds(spectrum).rank_interval == (2, 2)
    assert _beside(loss, [1e-4, 1e-3]).unstable_eigenvalues.size == 1, "negative control"


def test_polish_settles():
    """Beside a line of minima, w₀ = 0, where the curvature is another one."""
    posterior = posterior_of(lambda w: 0.5 * w[0] ** 2 * (1 + w[1] ** 2) + w[0] ** 4, np.array([0.3, 0.3]))
    assert llc.spectrum(posterior).unstable_eigenvalues.size
    there = llc.polish(posterior, max_steps=50, progress=False).posterior
    assert not llc.spectrum(there).unstable_eigenvalues.size
    assert llc.rank_bounds(llc.spectrum(there)).rank_interval == (1, 1)


def test_soft_directions_do_not_unsettle_stiff_ones(monkeypatch):
    """Beside a minimum with curvatures 1 … 1e-7, the step along the softest goes far, where stiff ones are others."""

    def loss(w):
        return 0.5 * jnp.sum(jnp.asarray([1.0, 1e-2, 1e-7]) * w**2) + 1e-2 * w[2] ** 2 * w[1] ** 2 + 1e-8 * w[2]

    assert _beside(loss, [1e-9, 1e-9, 1.0]).unstable_eigenvalues.max(initial=0.0) < 1e-6
    monkeypatch.setattr("llc.geometry.curvature.stability._SOFTER", 0.0)  # all directions at once
    assert _beside(loss, [1e-9, 1e-9, 1.0]).unstable_eigenvalues.max() > 1e-3, "negative control"
