r"""Step size: does gradient descent with a larger step follow a modified loss, and stop at simpler functions?

Backward error analysis: over a time of order 1, gradient descent with steps ε stays within O(ε) of the flow of L and
within O(ε²) of the flow of $L + \tfrac\varepsilon4 \lVert \nabla L \rVert^2$ (Barrett & Dherin 2021, arXiv 2009.11162).
Flows by Runge–Kutta with steps that leave no error here.

The bias: from the same starts, gradient descent with each ε goes down to the same training loss; h_max, the geometric
complexity, λ̂ at one scale and the test loss are measured there. The largest ε is at the edge of stability. λ̂ is taken
where nβ L(w*) ≤ 0.1, so that what is left of the slope takes at most 0.1 from it. The bias holds where the difference
between the largest and the smallest step, seed by seed, is below 0 with its 95 % interval.

    uv run --directory validation python -m inductive_bias.step_size --quick
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.verdict import headline, verdict
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from study import Column, Row, Study, table

import llc
from llc.posterior.precision import float64


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(6))
    seed: int = 0  # of the data
    widths: tuple[int, ...] = (2, 16, 16, 1)
    num_data: int = 40
    num_test: int = 2000
    step_sizes: tuple[float, ...] = (0.03, 0.12, 0.48)
    target_loss: float = 1e-3
    longest: float = 3000.0  # time, in units of ε · steps
    time: float = 1.0  # of backward error analysis
    errors_at: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125, 0.00625)
    nbeta: float = 100.0
    gamma: float = 1.0


QUICK = Settings(seeds=(0, 1), step_sizes=(0.08, 0.32), target_loss=1e-2)
MEASURES = {"sharpness": "h_max", "complexity": "geometric complexity", "llc": "λ̂", "test": "test loss"}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("step_size", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    cases = [f"{kind} | {seed}" for kind in ("analysis", "bias") for seed in settings.seeds]
    rows = study.rows(run, cases)
    good = [row for row in rows if "error" not in row]
    reached = _reached(good, settings)
    orders = np.array([[row["plain_order"], row["modified_order"]] for row in good if row["kind"] == "analysis"])
    analysis = bool((np.abs(orders - [1, 2]) < 0.2).all())
    points = [point | {"case": row["case"]} for row in good for point in row.get("points", [])]
    parts: list[bool | None] = [analysis]
    found = (
        f"Orders of the distance in ε: {orders[:, 0].mean():.2f} to the flow of L, {orders[:, 1].mean():.2f} to that "
        f"of the modified loss (claimed: 1 and 2; holds: {analysis}).\n"
        f"Largest less smallest step at a training loss of {settings.target_loss:g}, logarithms for all but λ̂, with "
        f"95 % intervals over the {len(reached)} of {len(good) - len(orders)} starts from which all steps reached it:"
    )
    differences = {}
    for name, title in MEASURES.items():
        first, last = (np.array([row["points"][i][name] for row in reached]) for i in (0, -1))
        change = last - first if name == "llc" else np.log(last / first)
        mean, low, high = differences[name] = networks.paired_interval(change)
        parts.append(True if high < 0 else False if low > 0 else None)
        found += f"\n  {title}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict(parts[-1:])}"
    claim = (
        "gradient descent follows L + (ε/4)‖∇L‖² to ε², and larger steps stop at flatter, simpler functions of less λ̂"
    )
    text = f"{headline(parts, claim, found)}\n{table(points, COLUMNS)}"
    print(text)
    study.save(
        rows,
        summary={"orders": orders.mean(axis=0).tolist(), "differences": differences},
        text=text,
        figure=figure(good, settings),
    )


def _reached(rows: list[Row], settings: Settings) -> list[Row]:
    """Starts from which gradient descent with every step came down to the training loss."""
    own = [row for row in rows if "points" in row]
    return [row for row in own if all(point["train"] <= settings.target_loss for point in row["points"])]


def run(case: str, settings: Settings) -> Row:
    """One start."""
    kind, seed = case.split(" | ")
    key = jax.random.key(int(seed))
    with float64():
        data = _data(settings.num_data, settings.seed)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), networks.init(key, settings.widths))
        if kind == "analysis":
            return {"kind": kind} | _analysis(params, data, settings)
    return {"kind": kind, "points": [_point(key, params, data, step, settings) for step in settings.step_sizes]}


def _data(num: int, seed: int) -> Data:
    inputs = np.random.default_rng(seed).uniform(-1, 1, size=(num, 2))
    labels = np.sin(3 * inputs[:, :1]) * np.cos(2 * inputs[:, 1:])
    return jnp.asarray(inputs), jnp.asarray(labels)


def _analysis(params: Params, data: Data, settings: Settings) -> dict[str, float | list[float]]:
    """Distances of gradient descent to the two flows, and their orders."""

    def loss(params: Params) -> Array:
        return networks.mean_loss(params, data)

    def modified(params: Params, step: float) -> Array:
        gradient = jax.grad(loss)(params)
        return loss(params) + step / 4 * sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    flow = jax.jit(lambda w, step: _flow(lambda z: modified(z, step), w, settings.time))
    plain = flow(params, 0.0)
    descend = jax.jit(lambda w, e, n: jax.lax.fori_loop(0, n, lambda _, z: networks.step(loss, z, e), w))
    distances = []
    for step in settings.errors_at:
        there = descend(params, step, round(settings.time / step))
        distances.append([_distance(there, end) for end in (plain, flow(params, step))])
    orders = np.polyfit(np.log(settings.errors_at), np.log(distances), 1)[0]
    return {"plain_order": orders[0], "modified_order": orders[1], "distances": np.array(distances).tolist()}


def _flow(loss: Callable[[Params], Array], params: Params, time: float, num_steps: int = 200) -> Params:
    """Of gradient flow, by the classical Runge–Kutta method."""
    h = time / num_steps
    slope = jax.grad(loss)

    def step(_: int, w: Params) -> Params:
        moved = lambda k, size: jax.tree.map(lambda x, g: x - size * g, w, k)  # noqa: E731
        k1 = slope(w)
        k2 = slope(moved(k1, h / 2))
        k3 = slope(moved(k2, h / 2))
        k4 = slope(moved(k3, h))
        return jax.tree.map(lambda x, a, b, c, d: x - h / 6 * (a + 2 * b + 2 * c + d), w, k1, k2, k3, k4)

    return jax.lax.fori_loop(0, num_steps, step, params)


def _distance(first: Params, second: Params) -> float:
    return float(jnp.sqrt(sum(jnp.sum((first[name] - second[name]) ** 2) for name in first)))


def _point(key: Array, params: Params, data: Data, step_size: float, settings: Settings) -> Row:
    """What gradient descent with this step has learnt when it first reaches the training loss."""
    with float64():
        there, value, steps = _until(params, data, step_size, settings.target_loss, int(settings.longest / step_size))
        test = float(networks.mean_loss(there, _data(settings.num_test, settings.seed + 1)))
    there, data = jax.tree.map(lambda x: np.asarray(x, np.float32), (there, data))
    posterior = llc.LocalPosterior(networks.loss_fn, there, data, nbeta=settings.nbeta, gamma=settings.gamma)
    found = networks.measure(key, posterior)
    implicit = llc.implicit_gradient_penalty(posterior, step_size)
    return {
        "step_size": step_size,
        "steps": int(steps),
        "train": float(value),
        "test": test,
        "complexity": llc.geometric_complexity(networks.predict, there, data[0]).value,
        "stability": implicit.stability,
    } | found._asdict()


@jax.jit
def _until(params: Params, data: Data, step_size: float, target: float, most: int) -> tuple[Params, Array, Array]:
    """Gradient descent up to the first loss below the target: params, that loss and the number of steps."""

    def go_on(state: tuple[Params, Array, Array]) -> Array:
        loss = networks.mean_loss(state[0], data)
        return (loss > target) & (state[2] < most)

    def body(state: tuple[Params, Array, Array]) -> tuple[Params, Array, Array]:
        there = networks.step(lambda w: networks.mean_loss(w, data), state[0], step_size)
        return there, state[1], state[2] + 1

    there, _, steps = jax.lax.while_loop(go_on, body, (params, jnp.zeros(()), jnp.asarray(0)))
    return there, networks.mean_loss(there, data), steps


COLUMNS = [
    Column("case", "case"),
    Column("ε", "step_size", "{:g}"),
    Column("steps", "steps"),
    Column("train", "train", "{:.2e}"),
    Column("test", "test", "{:.2e}"),
    Column("h_max", "sharpness", "{:.2f}"),
    Column("ε h_max / 2", "stability", "{:.2f}"),
    Column("complexity", "complexity", "{:.3f}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Distances to the flows, and the measures over the step size."""
    fig = Figure(figsize=(13, 3.2), layout="constrained")
    axes = fig.subplots(1, 1 + len(MEASURES))
    distances = np.array([row["distances"] for row in rows if row["kind"] == "analysis"])
    for i, (label, color) in enumerate((("flow of L", "#E69F00"), ("of L + (ε/4)‖∇L‖²", "#0072B2"))):
        axes[0].loglog(settings.errors_at, distances[:, :, i].T, color=color, lw=0.7, alpha=0.5)
        axes[0].loglog(settings.errors_at, distances[:, :, i].mean(axis=0), "o-", color=color, label=label)
    axes[0].set(xlabel="ε", title="distance of GD after time 1")
    axes[0].legend(fontsize=8)
    for ax, (name, title) in zip(axes[1:], MEASURES.items(), strict=True):
        values = np.array([[point[name] for point in row["points"]] for row in _reached(rows, settings)])
        ax.plot(settings.step_sizes, values.T, color="#56B4E9", lw=0.7, alpha=0.7)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        ax.errorbar(settings.step_sizes, values.mean(axis=0), 2 * error, fmt="o-", color="#0072B2", lw=2)
        ax.set(xscale="log", xlabel="ε", title=title)
        ax.set_xticks(settings.step_sizes, [f"{step:g}" for step in settings.step_sizes])
        ax.xaxis.set_minor_formatter(NullFormatter())
        if name == "sharpness":
            ax.plot(settings.step_sizes, 2 / np.array(settings.step_sizes), "k--", lw=1, label="2/ε")
            ax.set(ylim=(0, 1.2 * values.max()))
            ax.legend(fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
