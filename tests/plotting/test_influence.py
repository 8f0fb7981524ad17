"""Figures of influence: what is drawn of a matrix, of one set of values and of many; refusals."""

import numpy as np
import pytest
import xarray as xr

import llc
from tests.support.gaussian import Regression
from tests.support.runs import render

DRAWS = Regression().draws(num_draws=200)


def test_a_small_matrix_marks_what_is_noise():
    found = llc.influence(DRAWS, "probe", "probe")
    ax = llc.plot_influence(found)
    render(ax.figure)
    np.testing.assert_array_equal(ax.images[0].get_array(), found["value"])
    noise = np.abs(found["value"]) < 2 * found["mcse"]
    marked = sum(len(line.get_xdata()) for line in ax.lines)
    assert marked == int(noise.sum())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("probe_row_2", "probe_row")


def test_a_large_matrix_has_no_marks():
    ax = llc.plot_influence(llc.influence(DRAWS, "train", "train"))
    render(ax.figure)
    assert not ax.lines


@pytest.mark.parametrize(("number", "drawn"), [(5, 5), (60, 60), (200, 60)])
def test_points_have_their_errors(number, drawn):
    value = np.linspace(-1, 2, number)
    ax = llc.plot_influence(xr.Dataset({"value": ("row", value), "mcse": ("row", np.full(number, 0.3))}))
    render(ax.figure)
    found = np.sort(np.concatenate([container[0].get_ydata() for container in ax.containers]))
    np.testing.assert_array_equal(found, np.sort(value[np.argsort(-np.abs(value))[:drawn]]))


def test_one_number_and_a_susceptibility_are_drawn():
    for found in (llc.loss_kernel(DRAWS, "ood"), llc.susceptibility(DRAWS, "probe")):
        ax = llc.plot_influence(found)
        render(ax.figure)
        assert sum(len(container[0].get_ydata()) for container in ax.containers) == found["value"].size


@pytest.mark.parametrize("found", [xr.Dataset({"value": 1.0}), llc.influence(DRAWS, "probe", "probe").expand_dims("x")])
def test_what_can_not_be_drawn_is_refused(found):
    with pytest.raises(ValueError, match="plot_influence"):
        llc.plot_influence(found)
