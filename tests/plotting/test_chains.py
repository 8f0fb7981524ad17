"""The panels of the draws."""

import dataclasses

import numpy as np
import pytest
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llc.plotting import chains as plots
from tests.support.runs import (
    DRAWS,
    GAMMA,
    HEALTHY,
    INIT_LOSS,
    line,
    make_draws,
    patch,
    render,
    texts,
)

PANELS = {
    "running": plots.plot_running,
    "trace": plots.plot_trace,
    "distance": plots.plot_distance,
    "rank": plots.plot_rank,
    "ess": plots.plot_ess,
    "autocorrelation": plots.plot_autocorrelation,
}


@pytest.mark.slow
@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("case", DRAWS)
def test_every_panel_draws_every_run(panel, case):
    ax = PANELS[panel](DRAWS[case])
    render(ax.figure)
    assert isinstance(ax, Axes)
    assert ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.lines or ax.texts


@pytest.mark.parametrize("panel", PANELS)
def test_panel_draws_on_the_given_axes(panel, report):
    figure = Figure()
    ax = figure.add_subplot()
    assert PANELS[panel](report, ax=ax) is ax
    assert ax.figure is figure


def test_trace_shows_losses_and_the_loss_of_the_center():
    ax = plots.plot_trace(HEALTHY)
    assert np.all(np.asarray(line(ax, "$L(w^*)$").get_ydata()) == INIT_LOSS)
    chain = line(ax, "chain 2")
    whole = np.concatenate([HEALTHY["warmup_posterior"]["loss"].values[2], HEALTHY["posterior"]["loss"].values[2]])
    np.testing.assert_array_equal(chain.get_ydata(), whole)
    np.testing.assert_array_equal(chain.get_xdata(), np.arange(-60, 300))
    shade = patch(ax, "warm-up")
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (-60, 0)
    assert "5 steps" in ax.get_xlabel()


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e6])
def test_no_factor_stands_where_the_legend_is(scale):
    draws = HEALTHY.copy(deep=True)
    for group in ("posterior", "warmup_posterior"):
        draws[group]["loss"].values[:] *= scale
    ax = plots.plot_trace(draws)
    render(ax.figure)
    assert ax.yaxis.get_offset_text().get_text() == ""


def test_distance_shows_distances():
    chain = line(plots.plot_distance(make_draws(num_warmup=0)), "chain 1")
    np.testing.assert_array_equal(chain.get_ydata(), make_draws(num_warmup=0)["sample_stats"]["distance"].values[1])


def test_dead_chain_ends_at_its_last_finite_draw():
    ax = plots.plot_trace(DRAWS["a dead chain"])
    assert line(ax, "chain 2").get_xdata()[-1] == 99
    assert line(ax, "chain 1").get_xdata()[-1] == 299
    assert line(ax, "dead: chain 2 (draw 100)").get_marker() == "x"
    marks = [x for x in ax.lines if x.get_marker() == "x" and len(x.get_xdata()) == 1]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [99]
    dead = line(plots.plot_trace(DRAWS["dead from the start"]), "dead")
    assert dead.get_label() == "dead: chain 2 (draw -60)"


def test_long_lines_keep_their_extremes():
    draws = DRAWS["long and heavy-tailed"]
    for ax, name in ((plots.plot_trace(draws), "loss"), (plots.plot_distance(draws), "distance")):
        group = "posterior" if name == "loss" else "sample_stats"
        values = draws[group][name].values[0]
        drawn = line(ax, "chain 0")
        assert len(drawn.get_ydata()) <= 2000
        assert drawn.get_ydata().max() == values.max()
        assert drawn.get_ydata().min() == values.min()
        assert np.all(np.diff(drawn.get_xdata()) >= 0)
        np.testing.assert_array_equal(values[drawn.get_xdata()], drawn.get_ydata())


def test_heavy_tails_leave_the_axis_and_are_counted():
    draws = DRAWS["long and heavy-tailed"]
    ax = plots.plot_trace(draws)
    low, high = ax.get_ylim()
    loss = draws["posterior"]["loss"].values
    outside = int(np.sum((loss < low) | (loss > high)))
    assert line(ax, f"{outside} draws beyond the axis")
    quartiles = np.quantile(loss, (0.25, 0.75))
    # Thrice the 99 % quantile of Cauchy's law, tan(0.49 π) = 31.8, on both sides, and the margin.
    assert (high - low) / np.ptp(quartiles) < 3 * 31.8 * 1.2
    assert not [x for x in plots.plot_trace(HEALTHY).lines if "beyond" in str(x.get_label())]


def test_running_mean_and_its_error(report):
    ax = plots.plot_running(report)
    llc_values = HEALTHY["posterior"]["llc"].values
    pooled = line(ax, r"$\hat\lambda$")
    assert (pooled.get_xdata()[-1], pooled.get_ydata()[-1]) == (300, pytest.approx(llc_values.mean()))
    chains = [x for x in ax.lines if len(x.get_xdata()) == 300]
    np.testing.assert_allclose([x.get_ydata()[-1] for x in chains], llc_values.mean(axis=1))
    band = ax.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 300, 1]
    error = float(array_stats.mcse(llc_values, chain_axis=0, draw_axis=1))
    assert np.ptp(last) / 2 == pytest.approx(error)
    assert error == pytest.approx(report.llc.mcse)


def test_running_mean_leaves_dead_chains_out_and_says_so():
    ax = plots.plot_running(DRAWS["a dead chain"])
    pooled = line(ax, r"$\hat\lambda$ of 3 of 4 chains")
    assert pooled.get_ydata()[-1] == pytest.approx(HEALTHY["posterior"]["llc"].values[[0, 1, 3]].mean())
    assert line(ax, "dead chain")
    assert "no chain is finite" in texts(plots.plot_running(DRAWS["all dead"]))


def test_bounds_stand_beside_the_corrected_value_only(report, bounds):
    ax = plots.plot_running(report)
    assert np.all(np.asarray(line(ax, r"$\lambda_\mathrm{quad}$").get_ydata()) == bounds.quad)
    assert len(ax.patches) == 0
    (strip,) = ax.child_axes
    (band,) = strip.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (bounds.lower, pytest.approx(bounds.upper))
    assert strip.lines[0].get_ydata()[0] == report.corrected.value
    assert strip.get_ylim() == ax.get_ylim()
    assert r"\mathrm{corr}" in strip.get_xlabel()
    assert plots.plot_running(report.draws).child_axes == []


def test_invalid_bounds_are_not_drawn(report, bounds):
    invalid = dataclasses.replace(
        report, bounds=dataclasses.replace(bounds, lower=np.nan, upper=np.nan), corrected=None
    )
    ax = plots.plot_running(invalid)
    render(ax.figure)
    (strip,) = ax.child_axes
    assert len(strip.lines) == 0
    assert strip.get_xlabel() == r"$\lambda$"
    assert "do not hold" in ax.get_legend().get_texts()[-1].get_text()


def test_corrected_value_without_an_error_is_drawn(report):
    corrected = dataclasses.replace(report.corrected, value=20.0, mcse=np.inf)
    ax = plots.plot_running(dataclasses.replace(report, corrected=corrected))
    assert ax.get_ylim()[0] < 20 < ax.get_ylim()[1]
    assert line(ax, r"$\lambda_\mathrm{corr}$ = 20 ± ∞")


def outside_band(draws, ax):
    """Which chains leave the band of the rank plot; `ax` is emptied again, for the next run."""
    plots.plot_rank(draws, ax=ax)
    half = patch(ax, "95% band").get_height() / 2
    outside = [bool(np.any(np.abs(x.get_ydata()) > half)) for x in ax.lines]
    for artist in (*ax.lines, *ax.patches):
        artist.remove()
    return outside


def test_rank_band_covers_equal_chains_and_not_a_shifted_one():
    runs, alarms = 200, 0
    draws, ax = make_draws(num_draws=80, num_warmup=0), Figure().add_subplot()
    for i in range(runs):
        draws["posterior"]["llc"].values[:] = np.random.default_rng(i).normal(size=(4, 80))
        alarms += any(outside_band(draws, ax))
    assert alarms <= runs * 0.05 + 4 * np.sqrt(runs * 0.05 * 0.95)
    shifted = HEALTHY.copy(deep=True)
    shifted["posterior"]["llc"].values[1] += 2
    assert outside_band(shifted, ax)[1]


def test_rank_deviation_is_zero_at_both_ends_and_sums_to_zero():
    ax = plots.plot_rank(HEALTHY)
    values = np.array([x.get_ydata() for x in ax.lines])
    # ECDFs of chains of n draws average to the pooled one; steps are 1/n high.
    step = 1 / (values.shape[1] - 1)
    assert np.all(np.abs(values[:, [0, -1]]) <= step)
    assert np.all(np.abs(values.mean(axis=0)) <= step)


@pytest.mark.parametrize("case", ["one chain", "one live chain", "all dead", "stuck", "three draws"])
def test_rank_says_what_it_needs(case):
    ax = plots.plot_rank(DRAWS[case])
    assert "two finite chains" in texts(ax)
    assert not ax.lines


def test_ess_ends_at_the_ess_of_the_run(report):
    ax = plots.plot_ess(HEALTHY)
    mean, least = line(ax, "of the mean"), line(ax, "400")
    assert mean.get_ydata()[-1] == pytest.approx(report.llc.ess)
    assert mean.get_xdata()[-1] == 1200
    assert np.all(np.asarray(least.get_ydata()) == 400)
    tails = array_stats.ess(HEALTHY["posterior"]["llc"].values, 0, 1, method="tail", prob=(0.05, 0.95))
    assert line(ax, "of the tails").get_ydata()[-1] == pytest.approx(float(tails))


@pytest.mark.parametrize("case", ["stuck", "one stuck"])
def test_stuck_chains_have_no_effective_draws(case):
    ax = plots.plot_ess(DRAWS[case])
    for name in ("of the mean", "of the tails"):
        assert np.all(np.asarray(line(ax, name).get_ydata()) == 0)


def test_autocorrelation_is_that_of_the_chain():
    drawn = line(plots.plot_autocorrelation(HEALTHY), "chain 3").get_ydata()
    x = HEALTHY["posterior"]["llc"].values[3]
    x = x - x.mean()
    direct = np.array([np.sum(x[k:] * x[: len(x) - k]) for k in range(len(drawn))]) / np.sum(x**2)
    # Round-off of a Fourier transform of some hundred numbers of order one.
    np.testing.assert_allclose(drawn, direct, atol=1e3 * np.finfo(float).eps)


def test_autocorrelation_leaves_stuck_chains_out():
    labels = [str(x.get_label()) for x in plots.plot_autocorrelation(DRAWS["one stuck"]).lines]
    assert labels == ["chain 0", "chain 2", "chain 3"]
    assert "no finite chain moves" in texts(plots.plot_autocorrelation(DRAWS["stuck"]))


def test_distance_has_the_scale_of_localization_and_of_w():
    """√(d/γ) = √(12/1.5) beside draws at 1.5; ‖w*‖ only where it was recorded; neither without γ."""
    plain = plots.plot_distance(HEALTHY)
    (level,) = (x for x in plain.lines if str(x.get_label()).startswith("√(d/γ)"))
    assert np.all(np.asarray(level.get_ydata()) == np.sqrt(12 / GAMMA))
    assert plain.get_ylim()[0] < np.sqrt(12 / GAMMA) < plain.get_ylim()[1]
    assert not [x for x in plain.lines if str(x.get_label()).startswith("‖w*‖")]
    recorded = HEALTHY.copy()
    recorded["constant_data"] = HEALTHY["constant_data"].to_dataset().assign(center_norm=1e6, gamma=0.0)
    ax = plots.plot_distance(recorded)
    (level,) = (x for x in ax.lines if str(x.get_label()).startswith("‖w*‖"))
    assert np.all(np.asarray(level.get_ydata()) == 1e6)
    assert ax.get_ylim()[1] < 10, "a far line leaves the axis to the draws"
    assert not [x for x in ax.lines if str(x.get_label()).startswith("√(d/γ)")]
