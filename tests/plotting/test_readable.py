"""Every panel of a report can be read, and the test of it sees figures that can't."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import llc
from tests.support.figures import assert_readable

OF_REPORT = ("plot_running", "plot_trace", "plot_rank", "plot_ess", "plot_autocorrelation", "plot_distance")
OF_SPECTRUM = ("plot_spectrum", "plot_effective_dimension")


@pytest.mark.parametrize("name", [*OF_REPORT, *OF_SPECTRUM])
def test_a_panel_can_be_read(name, report):
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    arguments = (report,) if name in OF_REPORT else (report.spectrum, report.bounds)
    getattr(llc, name)(*arguments, ax=figure.add_subplot())
    assert_readable(figure)


def _figure(change) -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    ax = figure.add_subplot()
    ax.plot([1, 2, 3], [1, 4, 9])
    ax.set(xlabel="step", ylabel="loss")
    change(figure, ax)
    return figure


UNREADABLE = {
    "an empty panel": lambda figure, ax: ax.cla() or ax.set(xlabel="step", ylabel="loss"),
    "nan only": lambda figure, ax: ax.lines[0].set_ydata(np.full(3, np.nan)),
    "lines over the whole axis only": lambda figure, ax: (ax.lines[0].remove(), ax.axhline(1), ax.axvspan(0, 1)),
    "no name of an axis": lambda figure, ax: ax.set_xlabel(""),
    "text beyond the edge": lambda figure, ax: figure.text(0.9, 0.5, "a text that is too long"),
    "two texts in one place": lambda figure, ax: (ax.text(1, 4, "diverged"), ax.text(1, 4.1, "diverged")),
}


def test_a_figure_can_be_read():
    assert_readable(_figure(lambda figure, ax: ax.text(1, 4, "a note")))


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_can_not_be_read_is_seen(name):
    with pytest.raises(AssertionError):
        assert_readable(_figure(UNREADABLE[name]))
