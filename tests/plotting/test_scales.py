"""The figure of the scales."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import llc
from llc.analysis import schema
from llc.bounds import storage
from llc.bounds.scales import Rays
from tests.support.runs import GAMMA, HEALTHY, NBETA, line, render, texts


@pytest.fixture(scope="module")
def scales():
    """Curvatures of 1 and 0.01, one direction of order 4 that stands for two, and a symmetry direction: d = 5."""
    nodes, curvatures = np.array([[1.0, 0.01, 0.0, 0.0, 0.0]]), np.array([1.0, 0.01, 0.0])
    steps = np.geomspace(0.02, [0.7, 7.0, 10.0], 20).T
    even = np.stack([*(0.5 * curvatures[:2, None] * steps[:2] ** 2), steps[2] ** 4])
    return llc.ScaleSpectrum(
        spectrum=llc.Spectrum(nodes, np.ones_like(nodes), 5, "hessian", "dense", np.zeros(1), np.zeros(1)),
        nbeta=NBETA,
        orbit=1,
        reach=10.0,
        floor=1e-9,
        curvatures=curvatures,
        weights=np.array([1.0, 1.0, 2.0]),
        is_random=np.array([False, False, True]),
        steps=steps,
        values=np.stack([even, even], axis=1),
        rays=Rays(2, steps[2], np.stack([steps[2] ** 4] * 40)),
    )


def test_both_panels_show_every_part(scales):
    figure = llc.plot_scales(scales, [HEALTHY])
    assert isinstance(figure, Figure)
    render(figure)
    top, bottom = figure.axes
    quad = line(top, "$\\lambda_\\mathrm{quad}")
    np.testing.assert_allclose(quad.get_ydata()[0], scales.spectrum.quad(1.0))
    predicted = line(top, "$\\hat\\lambda$ predicted")
    gamma = predicted.get_xdata()[0] * NBETA
    assert gamma == pytest.approx(scales.smallest_gamma)
    assert predicted.get_ydata()[0] == pytest.approx(scales.predicted_llc(gamma).value)
    (sampled,) = top.containers
    assert sampled.lines[0].get_xdata()[0] == pytest.approx(GAMMA / NBETA)
    assert sampled.lines[0].get_ydata()[0] == pytest.approx(llc.mean_energy(HEALTHY).value)
    names = {text.get_text() for text in bottom.get_legend().get_texts()}
    assert {"curved, h > τ", "order 2", "order 4", "symmetry"} <= names
    assert "order 6" not in names
    assert "farther than was probed" in texts(bottom)
    assert bottom.get_ylim()[1] >= 5


def test_counts_and_symmetries_fill_all_directions(scales):
    found = scales.order_spectrum([0.1, 1e-3])
    np.testing.assert_array_equal(found.rank + found.counts.sum(axis=1) + found.orbit, 5)


def test_draws_at_another_nbeta_are_refused(scales):
    with pytest.raises(ValueError, match="nbeta"):
        llc.plot_scales(dataclasses.replace(scales, nbeta=2 * NBETA), [HEALTHY])


def test_scales_come_from_a_file(scales, tmp_path):
    tree = xr.DataTree.from_dict({schema.CURVATURE: storage.to_dataset(scales.spectrum, None, scales)})
    tree.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as stored:
        found = llc.ScaleSpectrum.from_dataset(stored[schema.CURVATURE])
        assert isinstance(llc.plot_scales(stored), Figure)
    for field in dataclasses.fields(scales):
        if field.name not in ("spectrum", "rays"):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(scales, field.name))
    np.testing.assert_array_equal(found.rays.values, scales.rays.values)
    assert found.predicted_llc(1.0) == scales.predicted_llc(1.0)
    without = dataclasses.replace(scales, rays=None, orbit=None)
    again = llc.ScaleSpectrum.from_dataset(storage.to_dataset(without.spectrum, None, without))
    assert (again.rays, again.orbit) == (None, None)


def test_a_file_without_scales_is_refused(scales):
    with pytest.raises(ValueError, match="--scales"):
        llc.plot_scales(xr.DataTree.from_dict({schema.CURVATURE: storage.to_dataset(scales.spectrum, None)}))
    with pytest.raises(ValueError, match="ScaleSpectrum"):
        llc.plot_scales(3)
