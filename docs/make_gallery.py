"""Makes every picture of the documentation from small seeded runs: docs/gallery/*.png, in about three minutes.

uv run python docs/make_gallery.py
"""

import io
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import llc

FOLDER = Path(__file__).parent / "gallery"
DPI, DASHBOARD_DPI, NUM_COLORS = 110, 80, 128  # small files; the figures have few colors


def main() -> None:
    """Writes all pictures."""
    FOLDER.mkdir(exist_ok=True)
    posterior, report = digits_report()
    write("report", llc.plot_report(report), DASHBOARD_DPI)
    of_draws = {
        "running": llc.plot_running,
        "trace": llc.plot_trace,
        "rank": llc.plot_rank,
        "distance": llc.plot_distance,
        "ess": llc.plot_ess,
        "autocorrelation": llc.plot_autocorrelation,
    }
    for name, plot in of_draws.items():
        write_panel(name, lambda ax, plot=plot: plot(report, ax=ax))
    write_panel("spectrum", lambda ax: llc.plot_spectrum(report.spectrum, report.bounds, ax=ax))
    write_panel("effective_dimension", lambda ax: llc.plot_effective_dimension(report.spectrum, report.bounds, ax=ax))
    write("scales", scales_figure(), DPI)
    write("report_unresolved", llc.plot_report(hurried_report(posterior, report.spectrum)), DASHBOARD_DPI)
    calibration = llc.calibrate(jax.random.key(2), posterior, spectrum=report.spectrum)
    write_panel("calibration", lambda ax: llc.plot_calibration(calibration, ax=ax))
    draws = monomial_draws()
    write_panel("temperature", lambda ax: llc.plot_temperature(draws, ax=ax))
    write("sweep", llc.plot_sweep(training_sweep()), DASHBOARD_DPI)
    sigmas = (0.01, 0.03, 0.1, 0.3)
    ladder = llc.sigma_ladder(jax.random.key(5), few_curved(), sigmas=sigmas, num_winners=4000, progress=False)
    write_panel("selected", lambda ax: llc.plot_selected(ladder.rungs[0], ax=ax))
    write_panel("sigma_ladder", lambda ax: llc.plot_sigma_ladder(ladder, ax=ax))
    inputs, labels, params = three_sines(32, 400)
    write_panel(
        "frequency_content",
        lambda ax: llc.plot_frequency_content(llc.frequency_content(tanh_net, params, inputs), ax=ax),
    )
    tangent = llc.tangent_kernel(tanh_net, params, inputs, labels=labels)
    write_panel("tangent_kernel", lambda ax: llc.plot_tangent_kernel(tangent, ax=ax))
    basis = llc.feature_basis(tanh_net, three_sines(6, 400)[2], inputs)
    write_panel("feature_basis", lambda ax: llc.plot_feature_basis(basis, ax=ax))
    kernel = llc.loss_kernel(two_groups(), "losses", correlation=True)
    write_panel("influence", lambda ax: llc.plot_influence(kernel, ax=ax))


def digits_report() -> tuple[llc.LocalPosterior, llc.Report]:
    """What `llc demo` estimates: a tanh network with 6 hidden units on scikit-learn's digits."""
    train_key, key = jax.random.split(jax.random.key(0))
    posterior = llc.demo.digits_posterior(train_key)
    return posterior, llc.estimate(key, posterior, progress=False)


def hurried_report(posterior: llc.LocalPosterior, spectrum: llc.Spectrum) -> llc.Report:
    """The same network with a step that is too large, few draws and no warm-up: a run that checks have to refuse."""
    posterior = posterior.with_scale(gamma=1.0)
    step_size = 3.5 / (float(posterior.nbeta) * spectrum.largest + 1.0)
    sampler = llc.SGLD(step_size, integrator="euler_maruyama")
    draws = llc.sample(
        jax.random.key(1), posterior, sampler, num_warmup=0, num_draws=200, spectrum=spectrum, progress=False
    )
    return llc.report(draws, spectrum=spectrum)


def monomial_draws() -> xr.DataTree:
    """K = w⁴/2 at n = 1,000, where λ = 1/4."""
    loss = lambda w, _: 0.5 * w**4  # noqa: E731 - one line
    posterior = llc.LocalPosterior(loss, jnp.zeros(()), np.zeros((1000, 1)), gamma=1.0)
    return llc.sample(jax.random.key(3), posterior, llc.NUTS(), num_draws=10_000, progress=False)


def three_sines(width: int, num_steps: int) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Inputs, labels (sines of 1, 5 and 9 cycles) and a tanh network after some steps of Adam."""
    inputs = jnp.arange(64.0)[:, None] / 64
    labels = sum(jnp.sin(2 * jnp.pi * k * inputs) for k in (1, 5, 9))
    assert isinstance(labels, jax.Array)
    keys = jax.random.split(jax.random.key(6), 3)
    params = {
        "first": 20 * jax.random.normal(keys[0], (2, width)),
        "second": jax.random.normal(keys[1], (width + 1, width)) / width**0.5,
        "third": jax.random.normal(keys[2], (width + 1, 1)) / width**0.5,
    }
    optimizer = optax.adam(3e-3)
    gradient = jax.grad(lambda params: jnp.mean((tanh_net(params, inputs) - labels) ** 2))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        updates, state = optimizer.update(gradient(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
    return inputs, labels, params


def tanh_net(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """Two hidden layers; biases are the last rows of the weights."""
    with_one = lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)  # noqa: E731
    hidden = jnp.tanh(with_one(inputs) @ params["first"])
    hidden = jnp.tanh(with_one(hidden) @ params["second"])
    return with_one(hidden) @ params["third"]


def two_groups() -> xr.DataTree:
    """A regression on 24 rows, the first half on other inputs than the second."""
    rng = np.random.default_rng(0)
    inputs = np.kron(np.eye(2), np.ones((12, 2))) * (1.5 + rng.normal(size=(24, 4)))
    solution = np.linalg.lstsq(inputs, targets := rng.normal(size=24), rcond=None)[0]
    losses = lambda w, batch: 0.5 * (batch[0] @ w - batch[1]) ** 2  # noqa: E731 - one line
    data = inputs.astype(np.float32), targets.astype(np.float32)
    posterior = llc.LocalPosterior(losses, jnp.asarray(solution, jnp.float32), data, nbeta=24.0, gamma=0.1)
    rows = {"losses": llc.Observable(losses, dims=("example",))}
    return llc.sample(jax.random.key(4), posterior, llc.NUTS(), observables=rows, progress=False)


def training_sweep() -> xr.DataTree:
    """A linear regression without noise, at three points on the way to its minimum."""
    inputs = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    loss = lambda params, batch: 0.5 * (batch @ params["w"]) ** 2  # noqa: E731 - one line
    posterior = llc.LocalPosterior(loss, {"w": jnp.zeros(3)}, inputs)
    run = {f"step_{step}": {"w": np.full(3, x, np.float32)} for step, x in ((2, 0.2), (10, 0.1), (100, 0.0))}
    lengths = {"num_chains": 2, "num_warmup": 100, "num_draws": 800, "thinning": 5}
    return llc.sweep(jax.random.key(0), posterior, checkpoints=run, progress=False, **lengths)


def few_curved() -> llc.LocalPosterior:
    """Twelve parameters, four of them curved and the others quartic."""
    loss = lambda w, _: jnp.sum(w[:4] ** 2) / 2 + 3 * jnp.sum(w[4:] ** 4)  # noqa: E731 - one line
    return llc.LocalPosterior(loss, jnp.zeros(12), np.zeros((10, 0)))


def scales_figure() -> Figure:
    """Twelve parameters: six curved over three decades, three of order 4, two of order 6, and one that is not used."""
    curvatures = jnp.asarray([1.0, 0.3, 0.1, 0.03, 0.01, 0.003])

    def loss(w: jax.Array, _: np.ndarray) -> jax.Array:
        return jnp.sum(curvatures * w[:6] ** 2) / 2 + jnp.sum(w[6:9] ** 4) + jnp.sum(w[9:11] ** 6) + 0 * w[11]

    posterior = llc.LocalPosterior(loss, jnp.zeros(12), np.zeros((10, 0)), nbeta=1000.0, gamma=1.0)
    scales = llc.scale_spectrum(jax.random.key(6), posterior, progress=False)
    lengths = {"num_warmup": 500, "num_draws": 1000, "progress": False}
    runs = [llc.sample(jax.random.key(7), posterior.with_scale(gamma=g), llc.NUTS(), **lengths) for g in (1, 10, 100)]
    return llc.plot_scales(scales, runs)


def write_panel(name: str, plot: Callable[[Axes], object]) -> None:
    """One panel on a figure of its own."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    plot(figure.add_subplot())
    write(name, figure, DPI)


def write(name: str, figure: Figure, dpi: int) -> None:
    """A figure as a PNG file with a palette."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    colors = Image.open(picture).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE)
    colors.save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png  {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
