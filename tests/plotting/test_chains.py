import dataclasses
import io
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
import xarray as xr
from arviz_base import from_dict
from arviz_stats.base import array_stats
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from scipy.signal import lfilter

import llc
from llc.analysis.checks import Check
from llc.analysis.estimators import energy_variance, mean_energy
from llc.analysis.report import Report, assemble
from llc.plotting import chains as plots
from llc.plotting import dashboard
from llc.plotting import spectrum as spectrum_plots

PANELS = {
    "running": plots.plot_running,
    "trace": plots.plot_trace,
    "distance": plots.plot_distance,
    "rank": plots.plot_rank,
    "ess": plots.plot_ess,
    "autocorrelation": plots.plot_autocorrelation,
}
NBETA, GAMMA, INIT_LOSS = 150.0, 1.5, 1.3


def make_draws(num_chains=4, num_draws=300, num_warmup=60, *, phi=0.8, noise=None, seed=0):
    """Draws of llc that are a stationary autoregression of mean 5 and variance 1, or 5 + `noise`."""
    rng = np.random.default_rng(seed)
    shape = num_chains, num_warmup + num_draws
    if noise is None:
        start = rng.normal(size=(num_chains, 1))
        kicks = np.sqrt(1 - phi**2) * rng.normal(size=shape)
        noise = lfilter([1], [1, -phi], kicks, axis=1, zi=phi * start)[0]
    values = 5 + np.broadcast_to(noise, shape)
    stats = {name: values.copy() for name in ("potential", "virial", "grad_norm")}
    stats |= {"distance": 1 + 0.1 * np.abs(values), "diverging": np.zeros(shape, bool)}
    groups = {"posterior": {"loss": INIT_LOSS + values / NBETA, "llc": values.copy()}, "sample_stats": stats}
    split = {name: {k: v[:, num_warmup:] for k, v in group.items()} for name, group in groups.items()}
    if num_warmup:
        split |= {f"warmup_{n}": {k: v[:, :num_warmup] for k, v in group.items()} for n, group in groups.items()}
    split["constant_data"] = {
        "init_loss": INIT_LOSS,
        "nbeta": NBETA,
        "gamma": GAMMA,
        "num_data": 1000,
        "num_params": 12,
        "eval_size": 1000,
    }
    draws = from_dict(split, save_warmup=True)
    sampler = {"name": "NUTS"}
    draws.attrs |= {"sampler": "NUTS", "settings": json.dumps({"sampler": sampler, "thinning": 5})}
    return draws


def kill(draws, chain, start):
    """`draws` with a chain that is NaN from draw `start` on; a negative start is in the warm-up."""
    draws = draws.copy(deep=True)
    num_warmup = draws["warmup_posterior"].sizes["draw"]
    for group, name in itertools.product(("posterior", "sample_stats"), ("loss", "llc", "distance", "virial")):
        if name in draws[group]:
            draws[group][name].values[chain, max(start, 0) :] = np.nan
            if start < 0:
                draws[f"warmup_{group}"][name].values[chain, num_warmup + start :] = np.nan
    return draws


def stick(draws, chain):
    """`draws` with a chain that does not move."""
    draws = draws.copy(deep=True)
    draws["posterior"]["llc"].values[chain] = 5.0
    return draws


def explode(draws, chain):
    """`draws` with a chain that grows to the largest floating-point numbers from draw 40 to 60, and dies."""
    draws = draws.copy(deep=True)
    for group, name in (("posterior", "loss"), ("posterior", "llc"), ("sample_stats", "distance")):
        draws[group][name].values[chain, 40:60] *= 10.0 ** np.linspace(0, 307, 20)
    return kill(draws, chain, 60)


HEALTHY = make_draws()
CAUCHY = np.random.default_rng(1).standard_cauchy(size=(2, 100_000))
DRAWS = {
    "healthy": HEALTHY,
    "one chain": make_draws(num_chains=1),
    "many chains": make_draws(num_chains=16, num_draws=50),
    "no warm-up": make_draws(num_warmup=0),
    "a dead chain": kill(HEALTHY, 2, 100),
    "dead from the start": kill(HEALTHY, 2, -60),
    "dead at draw 0": kill(HEALTHY, 2, 0),
    "one live chain": kill(kill(kill(HEALTHY, 0, 10), 1, 1), 2, -5),
    "exploding": explode(HEALTHY, 2),
    "all exploding": explode(HEALTHY, slice(None)),
    "all dead": kill(HEALTHY, slice(None), 40),
    "infinite": kill(HEALTHY, 1, 7).map_over_datasets(lambda data: data.fillna(np.inf)),
    "stuck": make_draws(noise=np.zeros((4, 360))),
    "one stuck": stick(HEALTHY, 1),
    "one draw": HEALTHY.isel(draw=slice(1)),
    "three draws": make_draws(num_warmup=0).isel(draw=slice(3)),
    "long and heavy-tailed": make_draws(num_chains=2, num_draws=100_000, num_warmup=0, noise=CAUCHY),
}


@pytest.fixture(scope="module")
def spectrum():
    """Twelve eigenvalues: seven counted, two of round-off, one zero, two negative."""
    nodes = np.array([[3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 1e-9, 1e-12, 0.0, -1e-12, -4e-9]])
    return llc.Spectrum(
        nodes=nodes,
        weights=np.ones_like(nodes),
        dim=12,
        matrix="hessian",
        method="dense",
        gradient_nodes=np.zeros(1),
        gradient_weights=np.zeros(1),
    )


@pytest.fixture(scope="module")
def bounds(spectrum):
    return llc.rank_bounds(spectrum, nbeta=NBETA, gamma=GAMMA)


def make_report(draws, bounds=None, spectrum=None):
    """A report whose checks all passed, with λ_corr 0.25 above λ̂."""
    mean = mean_energy(draws)
    checks = tuple(Check(f"check_{i}", "chains", True, 1.0, 0.0, f"{i} is as it should be") for i in range(15))
    return Report(
        estimates=(mean, energy_variance(draws)),
        corrected=None if bounds is None else dataclasses.replace(mean, method="corrected", value=mean.value + 0.25),
        bounds=bounds,
        checks=checks,
        settings=json.loads(draws.attrs["settings"]),
        verdict="UNRESOLVED" if bounds is None else "CONSISTENT",
        draws=draws,
        spectrum=spectrum,
    )


@pytest.fixture(scope="module")
def report(spectrum, bounds):
    return make_report(HEALTHY, bounds, spectrum)


@pytest.fixture(scope="module")
def sampled():
    """A real run with its geometry: w ∈ R³ of curvatures 1, 0.1 and 0."""
    curvature = jnp.array([1.0, 0.1, 0.0])
    posterior = llc.LocalPosterior(
        lambda w, batch: 0.5 * jnp.sum(curvature * w**2) + 0 * jnp.sum(batch),
        jnp.zeros(3),
        np.zeros((1000, 1)),
        gamma=1.0,
    )
    draws = llc.sample(
        jax.random.key(0), posterior, llc.SGLD(step_size=3e-3), num_chains=3, num_warmup=100, num_draws=400, thinning=2
    )
    return draws, posterior


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert matplotlib.pyplot.get_fignums() == []


def render(figure):
    """Draws the figure once, as a file would, but without the layout, which is slow and tested with whole reports."""
    figure.set_layout_engine("none")
    figure.set_dpi(40)
    FigureCanvasAgg(figure).draw()


def line(ax, label):
    """The line whose label starts with `label`."""
    (found,) = [x for x in ax.lines if str(x.get_label()).startswith(label)]
    return found


def patch(ax, label):
    (found,) = [x for x in ax.patches if str(x.get_label()).startswith(label)]
    return found


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


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


def test_spectrum_panels_draw_on_the_given_axes(spectrum, bounds):
    for panel in (spectrum_plots.plot_spectrum, spectrum_plots.plot_effective_dimension):
        ax = Figure().add_subplot()
        assert panel(spectrum, bounds, ax=ax) is ax


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
    assert r"\mathrm{corr}" in strip.get_xlabel()
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


@pytest.mark.parametrize("case", ["consistent", "3 failed", "60 failed", "one chain, no bounds"])
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
    assert sorted(paths) == sorted(folder / f"{name}.png" for name in ("report", *PANELS, "spectrum", "curve"))
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        assert matplotlib.image.imread(path).shape[:2] == ((520, 760) if path.stem == "report" else (160, 280))
    running, trace = plots.plot_running(report), plots.plot_trace(report)
    assert np.all(np.asarray(line(running, r"$\lambda_\mathrm{quad}$").get_ydata()) == bounds.quad)
    assert np.all(np.asarray(line(trace, "$L(w^*)$").get_ydata()) == 0)
    assert line(trace, "chain 0").get_xdata()[0] == -50


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


def test_import_needs_neither_pyplot_nor_the_samplers():
    code = (
        "import sys, llc.plotting.dashboard;"
        "print([m for m in ('matplotlib.pyplot', 'llc.sampling', 'llc.geometry') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
