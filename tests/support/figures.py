"""Whether a figure can be read: what is drawn in each of its panels, and where its texts lie."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

_SLACK = 2.0  # pixels that two texts may share, or that one may stand out of the figure: the edges of letters


def assert_readable(figure: Figure) -> None:
    """Every panel has data and a name for each axis, and no text leaves the figure or runs into another."""
    FigureCanvasAgg(figure).draw()
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.axison]
    assert panels, "a figure without panels"
    assert [name_of(ax) for ax in panels if not has_data(ax)] == [], "panels without data"
    assert [name_of(ax) for ax in panels if not is_named(ax)] == [], "panels without a name for their numbers"
    assert outside(figure) == [], "texts beyond the edge of the figure"
    assert overlapping(figure) == [], "texts that run into each other"


def has_data(ax: Axes) -> bool:
    """Whether anything is drawn but lines and bands over the whole axis: points, bars, an image, or a note."""
    lines = [line for line in ax.lines if line.get_transform().contains_branch(ax.transData)]
    points = [np.asarray(line.get_xydata(), float) for line in lines if _spans_no_axis(line.get_transform(), ax)]
    found = any(np.isfinite(xy).all(axis=1).any() for xy in points if xy.size)
    found = found or any(len(c.get_paths()) and c.get_visible() for c in ax.collections)
    return bool(found or ax.images or ax.texts or any(_is_bar(patch, ax) for patch in ax.patches))


def is_named(ax: Axes) -> bool:
    """Whether both axes that have tick labels have a name: a label, or a title for what is drawn."""
    named = bool(ax.get_title() or ax.get_title(loc="left"))
    for axis in (ax.xaxis, ax.yaxis):
        words = [text for text in axis.get_ticklabels() if text.get_visible() and text.get_text()]
        numbers = [text for text in words if not any(c.isalpha() for c in text.get_text().replace("mathdefault", ""))]
        if numbers and not axis.get_label().get_text() and not named:
            return False
    return True


def name_of(ax: Axes) -> str:
    """What a message calls a panel."""
    return ax.get_title() or ax.get_title(loc="left") or f"{ax.get_xlabel()} | {ax.get_ylabel()}"


def outside(figure: Figure) -> list[str]:
    """Texts that the edge of the figure cuts."""
    box = figure.bbox
    return [
        text.get_text()
        for text, extent in _extents(figure)
        if extent.x0 < box.x0 - _SLACK
        or extent.y0 < box.y0 - _SLACK
        or extent.x1 > box.x1 + _SLACK
        or extent.y1 > box.y1 + _SLACK
    ]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that share more than their edges."""
    pairs = itertools.combinations(_extents(figure), 2)
    return [(one.get_text(), two.get_text()) for (one, first), (two, second) in pairs if _overlap(first, second)]


def _extents(figure: Figure) -> list[tuple[Text, Bbox]]:
    hidden = {text for ax in figure.findobj(Axes) for text in _hidden(ax)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent()) for text in texts if text not in hidden and not text.get_rotation() % 90]


def _hidden(ax: Axes) -> set[Text]:
    """Texts that exist and are not drawn: of hidden axes, and labels of ticks beyond their limits."""
    if not ax.get_visible():
        return set(ax.findobj(Text))
    of_axes = set(ax.xaxis.findobj(Text)) | set(ax.yaxis.findobj(Text))
    return _undrawn(ax.xaxis) | _undrawn(ax.yaxis) if ax.axison else of_axes


def _undrawn(axis: Axis) -> set[Text]:
    low, high = sorted(axis.get_transform().transform(np.asarray(axis.get_view_interval())))
    slack = 1e-6 * (high - low)
    current = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    places = axis.get_transform().transform(np.array([tick.get_loc() for tick in current], float))
    drawn = [tick for tick, place in zip(current, places, strict=True) if low - slack <= place <= high + slack]
    shown = {label for tick in drawn for label in (tick.label1, tick.label2)}
    ticks = [*axis.majorTicks, *axis.minorTicks]
    return {label for tick in ticks for label in (tick.label1, tick.label2)} - shown


def _is_bar(patch: Patch, ax: Axes) -> bool:
    """Whether both sides of a patch are in the units of the data; a band over a whole axis has one in those of it."""
    return patch.get_transform() - ax.transData == IdentityTransform() or patch.get_data_transform() == ax.transData


def _spans_no_axis(transform: object, ax: Axes) -> bool:
    return transform not in (ax.get_xaxis_transform(), ax.get_yaxis_transform(), ax.transAxes)


def _overlap(first: Bbox, second: Bbox) -> bool:
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return width > _SLACK and height > _SLACK
