r"""Edge of stability: does the sharpness of full-batch gradient descent rise to 2/ε and stay there, and what does λ̂ do?

A tanh network on 20 evenly spaced points of a Chebyshev polynomial, as in Cohen et al. 2021 (arXiv 2103.00065) but
smaller. On a quadratic loss gradient descent with h_max > 2/ε diverges; on networks the sharpness rises until it meets
2/ε and hovers there while the loss goes on falling. The control has a step so small that it follows the gradient flow,
whose sharpness has to pass 2/ε of the others. λ_quad and λ̂ are taken at one scale at some steps.

    uv run --directory validation python -m inductive_bias.edge_of_stability --quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.verdict import headline
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc
from llc.posterior.precision import float64


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    widths: tuple[int, ...] = (1, 24, 24, 1)
    num_data: int = 20
    degree: int = 4
    step_sizes: tuple[float, ...] = (0.2, 0.1)
    control: float = 0.02
    time: float = 1500.0  # ε · steps
    num_records: int = 100
    measured_at: tuple[float, ...] = (0.05, 0.25, 1.0)  # of the time: where λ̂ is taken
    nbeta: float = 100.0
    gamma: float = 1.0


QUICK = Settings(seeds=(0,), num_records=50, measured_at=(1.0,))
COLORS = ("#0072B2", "#E69F00", "#6E6E6E")


def main() -> None:
    """Runs, prints, writes."""
    study = Study("edge_of_stability", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    steps = (*settings.step_sizes, settings.control)
    rows = study.rows(run, [f"{step} | {seed}" for step in steps for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    large = [row for row in good if row["step_size"] != settings.control]
    control = [row for row in good if row["step_size"] == settings.control]
    rose = [row["start"] < 0.8 for row in large]
    stays = [0.9 < row["late"] < 1.1 for row in large]
    passes = [max(row["sharpness"]) > 2 / min(settings.step_sizes) for row in control]
    falls = [row["losses"][-1] < 0.5 * row["losses"][len(row["losses"]) // 3] for row in large]
    late = ", ".join(f"{row['late']:.2f}" for row in large)
    top = ", ".join(f"{max(row['sharpness']):.1f}" for row in control)
    found = (
        f"ε h_max / 2 over the last half of the time: {late} ({len(large)} runs; at the start "
        f"{min(r['start'] for r in large):.2f} to {max(r['start'] for r in large):.2f}). The loss goes on falling in "
        f"{sum(falls)} of {len(falls)}. With ε = {settings.control} h_max reaches {top}, beyond 2/ε of the others "
        f"({', '.join(f'{2 / e:.0f}' for e in settings.step_sizes)}) in {sum(passes)} of {len(passes)}."
    )
    claim = "with full-batch gradient descent h_max rises to 2/ε and stays there while the loss falls"
    parts = [all(rose), all(stays), all(falls), True if all(passes) else None]
    points = [point | {"case": row["case"]} for row in good for point in row["points"]]
    text = f"{headline(parts, claim, found)}\n{table(points, COLUMNS)}"
    print(text)
    summary = {"late": [row["late"] for row in large], "control": [max(row["sharpness"]) for row in control]}
    study.save(rows, summary=summary, text=text, figure=figure(good, settings))


def run(case: str, settings: Settings) -> Row:
    """One run of gradient descent."""
    step_size, seed = float(case.split(" | ")[0]), int(case.split(" | ")[1])
    key = jax.random.key(seed)
    block = round(settings.time / step_size / settings.num_records)
    inputs = np.linspace(-1, 1, settings.num_data)[:, None]
    labels = np.polynomial.chebyshev.chebval(inputs, [0] * settings.degree + [1])
    losses, sharpness, points = [], [], []
    with float64():
        data = jnp.asarray(inputs), jnp.asarray(labels)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), networks.init(key, settings.widths))
        vector = jax.random.normal(key, ravel_pytree(params)[0].shape, jnp.float64)
    for i in range(settings.num_records + 1):
        with float64():
            loss, largest, vector = _curvature(params, data, vector)
        losses.append(float(loss))
        sharpness.append(float(largest))
        if any(i == round(share * settings.num_records) for share in settings.measured_at):
            points.append(_measured(key, params, data, settings) | {"time": i * block * step_size, "loss": float(loss)})
        with float64():
            params = _descend(params, data, step_size, block)
    late = np.array(sharpness[settings.num_records // 2 :]) * step_size / 2
    return {
        "step_size": step_size,
        "times": (np.arange(settings.num_records + 1) * block * step_size).tolist(),
        "losses": losses,
        "sharpness": sharpness,
        "start": sharpness[0] * step_size / 2,
        "late": float(late.mean()),
        "points": points,
    }


@jax.jit
def _descend(params: Params, data: Data, step_size: float, num_steps: int) -> Params:
    def step(_: Array, w: Params) -> Params:
        return networks.step(lambda z: networks.mean_loss(z, data), w, step_size)

    return jax.lax.fori_loop(0, num_steps, step, params)


@jax.jit
def _curvature(params: Params, data: Data, start: Array) -> tuple[Array, Array, Array]:
    """Loss, and h_max by power iterations that go on from where the last ones ended."""
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda w: networks.mean_loss(unravel(w), data))

    def product(vector: Array) -> Array:
        return jax.jvp(gradient, (flat,), (vector,))[1]

    def iterate(_: Array, vector: Array) -> Array:
        image = product(vector)
        return image / jnp.linalg.norm(image)

    vector = jax.lax.fori_loop(0, 60, iterate, start)
    return networks.mean_loss(params, data), vector @ product(vector), vector


def _measured(key: Array, params: Params, data: Data, settings: Settings) -> Row:
    params, data = jax.tree.map(lambda x: np.asarray(x, np.float32), (params, data))
    posterior = llc.LocalPosterior(networks.loss_fn, params, data, nbeta=settings.nbeta, gamma=settings.gamma)
    return networks.measure(key, posterior)._asdict()


COLUMNS = [
    Column("ε | seed", "case"),
    Column("time", "time", "{:.0f}"),
    Column("loss", "loss", "{:.2e}"),
    Column("h_max", "sharpness", "{:.1f}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Sharpness, loss and λ̂ along the runs."""
    fig = Figure(figsize=(12, 3.6), layout="constrained")
    sharp, loss, llcs = fig.subplots(1, 3)
    for step_size, color in zip((*settings.step_sizes, settings.control), COLORS, strict=True):
        for i, row in enumerate(row for row in rows if row["step_size"] == step_size):
            label = f"ε = {step_size:g}" if i == 0 else None
            sharp.plot(row["times"], row["sharpness"], color=color, lw=1, label=label)
            loss.semilogy(row["times"], row["losses"], color=color, lw=1)
            points = [[point[name] for point in row["points"]] for name in ("time", "llc", "mcse")]
            llcs.errorbar(points[0], points[1], 2 * np.array(points[2]), fmt="o-", ms=4, lw=1, color=color)
        if step_size != settings.control:
            sharp.axhline(2 / step_size, color=color, ls="--", lw=1)
    sharp.set(title="h_max; dashed: 2/ε", xlabel="time ε · steps")
    loss.set(title="loss", xlabel="time ε · steps")
    llcs.set(title=f"λ̂ ± 2 mcse at nβ = {settings.nbeta:g}, γ = {settings.gamma:g}", xlabel="time ε · steps")
    sharp.legend(fontsize=8)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
