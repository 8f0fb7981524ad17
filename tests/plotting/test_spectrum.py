"""The panels of the spectrum."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

import llc
from llc.plotting import spectrum as spectrum_plots
from tests.support.runs import (
    GAMMA,
    NBETA,
    line,
    patch,
    render,
    texts,
)


def test_spectrum_panels_draw_on_the_given_axes(spectrum, bounds):
    for panel in (spectrum_plots.plot_spectrum, spectrum_plots.plot_effective_dimension):
        ax = Figure().add_subplot()
        assert panel(spectrum, bounds, ax=ax) is ax


def test_spectrum_shows_signs_floor_and_scale(spectrum, bounds):
    ax = spectrum_plots.plot_spectrum(spectrum, bounds)
    render(ax.figure)
    # τ = 3 |h_min| = 1.2e-8; what is a decade below it is clipped.
    assert bounds.threshold == pytest.approx(1.2e-8)
    positive, negative, clipped = line(ax, "positive"), line(ax, "negative"), line(ax, "below")
    np.testing.assert_array_equal(positive.get_xdata(), np.arange(1, 8))
    np.testing.assert_array_equal(positive.get_ydata(), spectrum.nodes[0, :7])
    np.testing.assert_array_equal(negative.get_xdata(), [12])
    np.testing.assert_array_equal(negative.get_ydata(), [4e-9])
    np.testing.assert_array_equal(clipped.get_xdata(), [8, 9, 10, 11])
    assert np.all(clipped.get_ydata() == 0.1 * bounds.threshold)
    assert len({x.get_marker() for x in (positive, negative, clipped)}) == 3
    assert np.all(np.asarray(line(ax, "τ").get_ydata()) == bounds.threshold)
    assert np.all(np.asarray(line(ax, "10 γ/nβ").get_ydata()) == 10 * GAMMA / NBETA)
    assert patch(ax, "rank 7").get_x() == 7
    assert ax.get_yscale() == "log"


def test_spectrum_counts_weights_of_lanczos(spectrum):
    nodes = np.array([[3.0, 0.1, -0.2], [2.5, 0.3, 0.0]])
    weights = np.array([[2.5, 9.5, 0.0], [4.0, 6.0, 2.0]])
    lanczos = dataclasses.replace(spectrum, nodes=nodes, weights=weights, method="lanczos")
    ax = spectrum_plots.plot_spectrum(lanczos)
    render(ax.figure)
    np.testing.assert_allclose(line(ax, "positive").get_xdata(), [1.25, 3.25, 6.25, 11])
    np.testing.assert_array_equal(line(ax, "positive").get_ydata(), [3.0, 2.5, 0.3, 0.1])
    assert line(ax, "below").get_xdata() == pytest.approx(12)  # the zero; the node without weight is left out
    assert "2 probes" in ax.get_title(loc="left")


@pytest.mark.parametrize("panel", [spectrum_plots.plot_spectrum, spectrum_plots.plot_effective_dimension])
def test_missing_spectrum_is_said(panel):
    ax = panel(None)
    render(ax.figure)
    assert "no spectrum" in texts(ax)


@pytest.mark.parametrize("panel", [spectrum_plots.plot_spectrum, spectrum_plots.plot_effective_dimension])
@pytest.mark.parametrize("nodes", [[0.0, 0.0], [-1.0, -2.0], [1.0, 1.0]], ids=["zero", "negative", "equal"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_degenerate_spectra_draw(panel, nodes, scale, spectrum):
    nodes = np.array([nodes])
    degenerate = dataclasses.replace(spectrum, nodes=nodes, weights=np.ones_like(nodes), dim=2)
    render(panel(degenerate, llc.rank_bounds(degenerate, nbeta=scale, gamma=scale)).figure)
    render(panel(degenerate).figure)


def test_curve_is_twice_lambda_quad(spectrum, bounds):
    ax = spectrum_plots.plot_effective_dimension(spectrum, bounds)
    render(ax.figure)
    scales, seen = ax.lines[0].get_data()
    expected = [2 * spectrum.quad(scale) for scale in scales]
    # Sums of at most dim = 12 terms of order one, in another order.
    np.testing.assert_allclose(seen, expected, rtol=12 * np.finfo(float).eps)
    now = line(ax, "the draws")
    assert now.get_xdata() == [GAMMA / NBETA]
    assert now.get_ydata() == [2 * bounds.quad]
    assert scales[0] < bounds.threshold < GAMMA / NBETA < scales[-1]
    assert np.all(np.asarray(line(ax, "rank 7").get_ydata()) == 7)
    assert np.all(np.diff(seen) < 0)


def test_curve_leaves_out_a_trivial_rank(spectrum, bounds):
    wide = dataclasses.replace(bounds, rank_interval=(5.0, 1e6))
    ax = spectrum_plots.plot_effective_dimension(spectrum, wide)
    assert line(ax, "rank 5")
    assert not [x for x in ax.lines if str(x.get_label()).startswith("rank 1")]
    assert ax.get_ylim()[1] < 24


@pytest.mark.parametrize(("dim", "scale"), [(12, "linear"), (1000, "log")])
def test_many_parameters_have_a_logarithmic_index(dim, scale, spectrum):
    nodes = np.geomspace(1, 1e-3, dim)[None]
    large = dataclasses.replace(spectrum, nodes=nodes, weights=np.ones_like(nodes), dim=dim)
    wide = dataclasses.replace(llc.rank_bounds(large, nbeta=1.0, gamma=1.0), rank_interval=(0.0, float(dim)))
    ax = spectrum_plots.plot_spectrum(large, wide)
    render(ax.figure)
    assert ax.get_xscale() == scale
    low, high = ax.get_xlim()
    assert low < 1 < dim < high
    (span,) = (patch for patch in ax.patches if str(patch.get_label()).startswith("rank"))
    assert np.isfinite(span.get_window_extent().bounds).all()


def test_the_old_name_warns(spectrum):
    with pytest.warns(DeprecationWarning, match="plot_effective_dimension"):
        llc.plot_curve(spectrum)
