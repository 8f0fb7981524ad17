"""The figure of a sweep: its lines, its axis, its marks, and what is left out."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llc.plotting.sweep import plot_sweep

STEPS = np.array([0.0, 10.0, 100.0, 1000.0])


def table(steps=STEPS, labels=None, **changes):
    size = len(steps)
    value = np.linspace(3.0, 9.0, size)
    numbers = {
        "llc": value,
        "mcse": np.full(size, 0.2),
        "quad": value + 1,
        "singular": np.full(size, -1.0),
        "singular_mcse": np.full(size, 0.2),
        "lower": np.where(np.arange(size) > 1, value + 1.5, np.nan),
        "upper": np.where(np.arange(size) > 1, value + 90, np.nan),
        "corrected": value + 2,
        "loss": np.geomspace(3.0, 1e-4, size),
        "grad_norm": np.geomspace(1.0, 1e-5, size),
        "polished": value + np.geomspace(2.0, 1e-3, size),
        "difference": np.r_[np.nan, np.diff(value)],
        "difference_mcse": np.r_[np.nan, np.full(size - 1, 0.1)],
        "verdict": np.array(["SCALE_DEPENDENT"] * (size - 1) + ["CONSISTENT"]),
    } | changes
    coords = {"checkpoint": [f"item {i}" for i in range(size)], "step": ("checkpoint", steps)}
    coords |= {name: ("checkpoint", values) for name, values in (labels or {}).items()}
    return xr.Dataset({name: ("checkpoint", x) for name, x in numbers.items()}, coords)


def drawn(source):
    figure = plot_sweep(source)
    FigureCanvasAgg(figure).draw()
    return figure


def labels_of(ax):
    return ax.get_legend_handles_labels()[1]


def test_panels_and_their_lines():
    figure = drawn(xr.DataTree(table()))
    values, singular, loss, difference = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["step"] * 4
    assert {"bounds of λ", "without the slope", "scale-dependent", "consistent"} <= set(labels_of(values))
    assert loss.get_yscale() == "log"
    for ax, name in ((values, "llc"), (singular, "singular"), (loss, "loss"), (difference, "difference")):
        ys = [np.asarray(line.get_ydata(), float) for line in ax.lines]
        assert any(np.array_equal(y, table()[name], equal_nan=True) for y in ys), name


def test_steps_of_many_decades_are_on_a_logarithmic_axis_without_negative_ones():
    ax = drawn(table()).axes[0]
    assert ax.get_xscale() == "symlog"
    assert -10 < ax.get_xlim()[0] < 0 < 1000 < ax.get_xlim()[1]
    assert drawn(table(STEPS + 1)).axes[0].get_xscale() == "log"
    assert drawn(table(np.array([1.0, 2.0, 3.0, 4.0]))).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("steps", [np.full(4, np.nan), np.array([1.0, 1.0, 2.0, 3.0])])
def test_without_steps_the_axis_has_names(steps):
    ax = drawn(table(steps)).axes[2]
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"item {i}" for i in range(4)]


def test_far_upper_bounds_do_not_stretch_the_axis():
    assert drawn(table()).axes[0].get_ylim()[1] < 20


def test_failed_items_are_crosses_on_the_axis():
    values = np.array([3.0, np.nan, 5.0, 6.0])
    figure = drawn(table(llc=values, verdict=np.array(["UNRESOLVED", "FAILED", "BELOW", "ABOVE"])))
    assert {"failed", "unresolved", "below its bounds", "above its bounds"} <= set(labels_of(figure.axes[0]))
    assert "failed" not in labels_of(drawn(table()).axes[0])


def test_masks_are_lines_of_one_axis():
    parts = {"mask": ["first"] * 2 + ["second"] * 2, "point": ["a", "b"] * 2}
    figure = drawn(table(np.array([1.0, 2.0, 1.0, 2.0]), parts))
    assert {"first", "second"} <= set(labels_of(figure.axes[0]))
    assert "bounds of λ" not in labels_of(figure.axes[0])


def test_masks_of_one_point_are_on_the_axis():
    figure = drawn(table(np.full(4, np.nan), {"mask": list("abcd"), "point": ["center"] * 4}))
    assert [text.get_text() for text in figure.axes[2].get_xticklabels()] == [f"item {i}" for i in range(4)]


@pytest.mark.parametrize("size", [1, 2])
def test_few_items_are_a_figure(size):
    part = table().isel(checkpoint=slice(0, size))
    assert len(drawn(part).axes) == 4


def test_nothing_but_failures_is_a_figure():
    nothing = {name: np.full(4, np.nan) for name in table().data_vars if name != "verdict"}
    assert len(drawn(table(**nothing, verdict=np.array(["FAILED"] * 4))).axes) == 4
