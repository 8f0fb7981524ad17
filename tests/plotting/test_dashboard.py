"""The dashboard, and the files of all figures."""

import dataclasses
import io
import itertools
import subprocess
import sys
import typing

import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure

import llc
from llc.analysis.assembly import assemble
from llc.analysis.check import Check
from llc.analysis.verdict import Verdict
from llc.plotting import canvas, dashboard
from llc.plotting import chains as plots
from tests.support.runs import (
    DRAWS,
    line,
    make_report,
    texts,
)
from tests.support.tiers import weekly

PANELS = ("running", "trace", "distance", "rank", "ess", "autocorrelation")


def boxes(artists, figure):
    renderer = figure.canvas.get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def overlap(first, second, slack=1.0):
    """Whether two boxes share more than `slack` pixels in both directions."""
    return (
        min(first.x1, second.x1) - max(first.x0, second.x0) > slack
        and min(first.y1, second.y1) - max(first.y0, second.y0) > slack
    )


def bad_report(report, num_checks):
    """With `num_checks` failed checks of long messages full of marks that mathtext would read."""
    message = "a sum of $5 and $6 in step_size_{bias}: " + "lower step_size to about 0.5 / (nβ h_max + γ) " * 4
    checks = tuple(Check(f"check_{i}", "chains", False, 1.0, 0.0, message) for i in range(num_checks))
    return dataclasses.replace(report, checks=checks, verdict="ABOVE", draws=DRAWS["a dead chain"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    weekly(["consistent", "3 failed", "60 failed", "one chain, no bounds"], but=("3 failed",)),
)
def test_report_has_no_overlaps(case, report):
    report = {
        "consistent": lambda: dataclasses.replace(report, verdict="CONSISTENT"),
        "3 failed": lambda: bad_report(report, 3),
        "60 failed": lambda: bad_report(report, 60),
        "one chain, no bounds": lambda: make_report(DRAWS["one chain"]),
    }[case]()
    figure = dashboard.plot_report(report)
    FigureCanvasAgg(figure).draw()
    summary, *panels = figure.axes
    page = figure.bbox
    words = boxes(summary.texts, figure)
    for first, second in itertools.combinations(words, 2):
        assert not overlap(first, second)
    for box in words:
        assert box.x0 >= page.x0
        assert box.y0 >= page.y0
    extents = [ax.get_tightbbox() for ax in panels]
    assert len(panels) == 8
    for first, second in itertools.combinations(extents, 2):
        assert not overlap(first, second)
    for extent, word in itertools.product(extents, words):
        assert not overlap(extent, word)
    for ax in panels:
        if ax.get_legend() is not None:
            legend, title = boxes([ax.get_legend(), ax._left_title], figure)
            assert not overlap(legend, ax.bbox)
            assert not overlap(legend, title)
            assert legend.x1 <= ax.get_tightbbox().x1


def test_report_says_verdict_numbers_and_failed_checks(report):
    bad = bad_report(report, 2)
    summary = dashboard.plot_report(bad).axes[0]
    assert summary.texts[0].get_text() == "ABOVE"
    assert not same_color(
        summary.texts[0].get_color(),
        dashboard.plot_report(dataclasses.replace(bad, verdict="CONSISTENT")).axes[0].texts[0].get_color(),
    )
    words = texts(summary)
    value, error = report.llc.value, report.llc.mcse
    for text in (
        f"{value:.2f}",
        f"± {error:.2f}",
        r"\mathrm{quad}",
        r"\mathrm{corr}",
        "✗ check_0",
        "✗ check_1",
        "$5 and $6",
    ):
        assert text in words
    assert f"[{report.bounds.lower:.4g}, {report.bounds.upper:.4g}]" in words
    assert "58 more" not in words
    assert "failed: print(report)" in texts(dashboard.plot_report(bad_report(report, 60)).axes[0])


@pytest.mark.slow
@pytest.mark.study
def test_figures_of_a_real_run_from_a_file(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "_DPI", 40)
    sampled_draws, posterior = sampled
    llc.save(sampled_draws, tmp_path / "draws.nc")
    draws = llc.load(tmp_path / "draws.nc")
    assert isinstance(draws, xr.DataTree)
    spectrum = llc.spectrum(posterior)
    bounds = llc.rank_bounds(spectrum, nbeta=float(posterior.nbeta), gamma=float(posterior.gamma))
    report = assemble(draws, bounds=bounds, spectrum=spectrum)
    folder = tmp_path / "runs" / "figures"
    paths = llc.save_figures(report, folder)
    assert sorted(paths) == sorted(
        folder / f"{name}.png" for name in ("report", *PANELS, "spectrum", "effective_dimension")
    )
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        assert matplotlib.image.imread(path).shape[:2] == ((520, 760) if path.stem == "report" else (160, 280))
    running, trace = plots.plot_running(report), plots.plot_trace(report)
    assert np.all(np.asarray(line(running, r"$\lambda_\mathrm{quad}$").get_ydata()) == bounds.quad)
    assert np.all(np.asarray(line(trace, "$L(w^*)$").get_ydata()) == 0)
    assert line(trace, "chain 0").get_xdata()[0] == -50


@pytest.mark.slow
def test_figures_of_dead_chains_without_a_spectrum(bounds, tmp_path):
    paths = llc.save_figures(assemble(DRAWS["all dead"], bounds=bounds), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths) == sorted(tmp_path / f"{n}.png" for n in ("report", *PANELS))


def test_a_figure_that_fails_leaves_the_old_file(report, tmp_path, monkeypatch):
    def fail(figure):
        raise RuntimeError("no ink")

    (tmp_path / "report.png").write_text("before")
    monkeypatch.setattr(dashboard, "to_png", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        dashboard.save_figures(report, str(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.png", "before")]


def test_png_has_150_dots_per_inch():
    picture = dashboard.to_png(Figure(figsize=(2, 1)))
    assert matplotlib.image.imread(io.BytesIO(picture)).shape[:2] == (150, 300)


@pytest.mark.slow
def test_import_needs_neither_pyplot_nor_the_samplers():
    code = (
        "import sys, llc.plotting.dashboard;"
        "print([m for m in ('matplotlib.pyplot', 'llc.sampling', 'llc.geometry') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_verdict_has_a_colour_and_its_reason(report):
    colors = set()
    for verdict in typing.get_args(Verdict):
        texts_of = dashboard.plot_report(dataclasses.replace(report, verdict=verdict, reason="because")).axes[0].texts
        assert [text.get_text() for text in texts_of[:2]] == [verdict, "because"]
        colors.add(texts_of[0].get_color())
    assert len(colors) == 4, "below and above share theirs"
    assert canvas.BLACK not in colors


def test_long_numbers_and_notes_do_not_meet(report):
    """Many digits of a small error, and the names of long methods."""
    estimates = (
        dataclasses.replace(report.llc, value=123456.7891234, mcse=1.2e-7, method="a method with a very long name"),
        *report.estimates[1:],
    )
    figure = dashboard.plot_report(dataclasses.replace(report, estimates=estimates))
    FigureCanvasAgg(figure).draw()
    words = boxes(figure.axes[0].texts, figure)
    assert not any(overlap(first, second) for first, second in itertools.combinations(words, 2))
