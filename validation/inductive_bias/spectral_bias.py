r"""Spectral bias: does a network learn the frequencies of its target lowest first, and does complexity rise with them?

The target is a sum of sines of amplitude 1, random phases and κ = 1 … 8 cycles over evenly spaced points, after Rahaman
et al. 2019 (arXiv 1806.08734), who take κ = 5 … 50, 200 points and 6 × 256 ReLU units; here a network of two hidden
layers of 48 ReLU units with 64 points, which fits two cores. Full-batch Adam, as there. A frequency is learnt at the
first record at which the error has less than half of the target's amplitude there. Beside it only the last layer is
trained, on the same random features: a linear model, whose kernel, and so λ = rank / 2, does not change.

λ_quad is that of the squared error at a fixed γ/nβ, from the tangent kernel: ½ Σ h / (h + γ/nβ) with h = k / n. λ̂ is
not sampled here.

    uv run --directory validation python -m inductive_bias.spectral_bias --quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.verdict import headline
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    seed: int = 0
    width: int = 48
    num_data: int = 64
    frequencies: tuple[int, ...] = tuple(range(1, 9))
    learning_rate: float = 2e-3
    records: tuple[int, ...] = (0, 30, 60, 120, 250, 500, 1000, 2000, 4000, 8000, 16_000)
    scale: float = 1e-2  # γ/nβ of λ_quad
    inputs_to: float = 4.0  # inputs are spread over an interval of this length, for the sake of the first layer


QUICK = Settings(seeds=(0,), records=(0, 250, 1000, 4000))
TRAINED = {"all layers": None, "last layer": "w2"}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("spectral_bias", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    rows = study.rows(run, [f"{trained} | {seed}" for trained in TRAINED for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    every = [row for row in good if row["trained"] == "all layers"]
    last = [row for row in good if row["trained"] == "last layer"]
    order = [row["order"] for row in every]
    drift = max(abs(row["points"][-1]["quad"] - row["points"][0]["quad"]) for row in last)
    found = (
        f"Rank correlation of κ with the step at which it is learnt: {_list(order)} in {len(every)} networks. Learnt "
        f"at the end: {_counts(every)} of {len(settings.frequencies)} frequencies, and {_counts(last)} where only the "
        f"last layer is trained.\nRank correlation of λ_quad with the number of frequencies learnt, along training: "
        f"{_list([row['with_quad'] for row in every])}; λ_quad of the last layer changes by at most {drift:.1e}."
    )
    enough = [True if row["points"][-1]["learnt"] >= 4 else None for row in every]
    parts = [*(bool(x > 0.9) for x in order), *enough, all(row["with_quad"] > 0 for row in every)]
    claim = "networks learn the lowest frequencies first, and λ_quad rises with the highest frequency learnt"
    points = [point | {"case": row["case"]} for row in good for point in row["points"]]
    text = f"{headline(parts, claim, found)}\n{table(points, COLUMNS)}"
    print(text)
    study.save(rows, summary={"order": order}, text=text, figure=figure(good, settings))


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _counts(rows: list[Row]) -> str:
    return ", ".join(str(row["points"][-1]["learnt"]) for row in rows)


def run(case: str, settings: Settings) -> Row:
    """One training run."""
    trained, seed = case.split(" | ")
    rng = np.random.default_rng(int(seed))
    grid = np.arange(settings.num_data) / settings.num_data
    inputs = np.float32(settings.inputs_to * (grid - 0.5))[:, None]
    kappa, phases = np.array(settings.frequencies), rng.uniform(0, 2 * np.pi, len(settings.frequencies))
    labels = np.float32(np.sin(2 * np.pi * (grid[:, None] - 0.5) * kappa + phases).sum(axis=1, keepdims=True))
    params = networks.init(jax.random.key(int(seed)), (1, settings.width, settings.width, 1), 2**0.5)
    params["b0"] = (
        jnp.asarray(-np.float32(rng.uniform(-0.5, 0.5, settings.width)) * settings.inputs_to) * params["w0"][0]
    )
    state, points = optax.adam(settings.learning_rate).init(params), []
    moves = {name: jnp.float32(TRAINED[trained] in (None, name)) for name in params}
    for i, step in enumerate(settings.records):
        length = step - settings.records[max(i - 1, 0)]
        params, state = _train(params, state, moves, (inputs, labels), settings.learning_rate, length)
        points.append({"step": step} | _measured(params, TRAINED[trained], (inputs, labels), phases, settings))
    learnt = np.array([point["errors"] for point in points]) < 0.5
    when = np.where(learnt.any(axis=0), np.argmax(learnt, axis=0), len(points))
    order = scipy.stats.spearmanr(kappa, when).statistic if np.ptp(when) else 0.0
    quads, counts = ([point[name] for point in points] for name in ("quad", "learnt"))
    moving = TRAINED[trained] is None and np.ptp(counts) > 0
    with_quad = scipy.stats.spearmanr(quads, counts).statistic if moving else 0.0
    return {"trained": trained, "points": points, "order": float(order), "with_quad": float(with_quad)}


def _predict(params: Params, inputs: Array) -> Array:
    hidden = jax.nn.relu(inputs @ params["w0"] + params["b0"])
    hidden = jax.nn.relu(hidden @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


@jax.jit
def _train(
    params: Params, state: optax.OptState, moves: Params, data: Data, learning_rate: float, num_steps: int
) -> tuple[Params, optax.OptState]:
    """Adam on the params that move."""
    optimizer = optax.adam(learning_rate)
    gradient = jax.grad(lambda params: 0.5 * jnp.mean((_predict(params, data[0]) - data[1]) ** 2))

    def step(_: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        updates, state = optimizer.update(jax.tree.map(jnp.multiply, moves, gradient(carry[0])), carry[1])
        return optax.apply_updates(carry[0], updates), state

    return jax.lax.fori_loop(0, num_steps, step, (params, state))


def _measured(params: Params, mask: str | None, data: Data, phases: np.ndarray, settings: Settings) -> Row:
    inputs, labels = data
    params = jax.tree.map(np.asarray, params)
    waves = np.array(settings.frequencies) / settings.inputs_to
    energies = llc.frequency_content(_of_line, params, inputs[:, 0], frequencies=waves)
    error_params = {"net": params, "waves": np.float32(waves), "phases": np.float32(phases)}
    errors = llc.frequency_content(_error, error_params, inputs[:, 0], frequencies=waves)
    kernel = llc.tangent_kernel(_predict, params, inputs, labels=labels, mask=mask)
    sizes = np.maximum(kernel.eigenvalues, 0) / settings.num_data
    amplitudes = np.sqrt(2 * errors.energy)
    return {
        "loss": float(np.mean((np.asarray(_predict(params, inputs)) - labels) ** 2) / 2),
        "errors": amplitudes.tolist(),
        "learnt": int(np.sum(amplitudes < 0.5)),
        "mean_frequency": energies.mean_frequency * settings.inputs_to,
        "quad": float(0.5 * np.sum(sizes / (sizes + settings.scale))),
        "alignment": kernel.alignment,
        "complexity": llc.geometric_complexity(_predict, params, inputs).value,
    }


def _of_line(params: Params, inputs: Array) -> Array:
    return _predict(params, inputs[:, None])


def _error(params: dict[str, Params | Array], inputs: Array) -> Array:
    """The network less the target."""
    target = jnp.sum(jnp.sin(2 * jnp.pi * inputs[:, None] * params["waves"] + params["phases"]), axis=1, keepdims=True)
    return _of_line(params["net"], inputs) - target


COLUMNS = [
    Column("case", "case"),
    Column("step", "step"),
    Column("loss", "loss", "{:.2e}"),
    Column("learnt", "learnt"),
    Column("mean κ", "mean_frequency", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("alignment", "alignment", "{:.3f}"),
    Column("complexity", "complexity", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Amplitudes by frequency along training, and λ_quad against the number of frequencies that are learnt."""
    fig = Figure(figsize=(13, 3.6), layout="constrained")
    axes = fig.subplots(1, 3)
    for ax, trained in zip(axes, TRAINED, strict=False):
        own = [[p["errors"] for p in row["points"]] for row in rows if row["trained"] == trained]
        image = ax.imshow(
            np.clip(1 - np.mean(own, axis=0), 0, 1).T, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1
        )
        ax.set_xticks(range(len(settings.records)), [f"{step:g}" for step in settings.records], rotation=60)
        ax.set_yticks(range(len(settings.frequencies)), settings.frequencies)
        ax.set(title=f"{trained}: share of the amplitude", xlabel="step", ylabel="κ")
    fig.colorbar(image, ax=axes[:2])
    for trained, color in zip(TRAINED, ("#0072B2", "#E69F00"), strict=True):
        for i, row in enumerate(row for row in rows if row["trained"] == trained):
            x, y = ([p[name] for p in row["points"]] for name in ("learnt", "quad"))
            axes[2].plot(x, y, "o-", ms=4, lw=0.8, color=color, label=trained if i == 0 else None)
    axes[2].set(title=f"λ_quad at γ/nβ = {settings.scale:g}", xlabel="frequencies learnt")
    axes[2].legend(fontsize=8)
    axes[2].spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
