r"""Lazy and rich: does the tangent kernel align with the labels where features are learnt, and stay elsewhere?

$$ f = \alpha \, \big( h(u) - h(v) \big), \qquad
   L = \frac{1}{2 \alpha^2 n} \sum_i (f(x_i) - y_i)^2, \qquad u = v \text{ at first}, $$

as in Chizat et al. 2019 (arXiv 1812.07956): for large α the params hardly move, the kernel stays what it was, and the
model is linear in them; for small α features are learnt. Alignment is centred (Baratin et al. 2021, arXiv
2008.00938).

In the lazy limit λ = rank K / 2, which is n / 2 with more params than inputs. At a finite resolution ρ, relative to
the largest eigenvalue k₁, the same formula counts $\tfrac12 \sum_i k_i / (k_i + \rho k_1)$, the λ_quad of the squared
error at γ/nβ = ρ k₁ / n; it is computed from K itself. λ̂ is not sampled here.

    uv run --directory validation python -m inductive_bias.tangent_alignment --quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.verdict import headline
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc
from llc.posterior.precision import float64


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(6))
    seed: int = 0  # of the data
    widths: tuple[int, ...] = (3, 24, 24, 1)
    num_data: int = 40
    alphas: tuple[float, ...] = (0.3, 1.0, 10.0, 100.0)
    step_size: float = 0.05
    records: tuple[int, ...] = (0, 100, 1000, 10_000)
    resolution: float = 1e-3


QUICK = Settings(seeds=(0, 1), alphas=(0.3, 100.0), records=(0, 2000))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("tangent_alignment", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    rows = study.rows(run, [f"{alpha} | {seed}" for alpha in settings.alphas for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    found, changes = "Change from the start to the end, with 95 % intervals over seeds:", {}
    for alpha in settings.alphas:
        own = [row["points"] for row in good if row["alpha"] == alpha]
        line = []
        for name, title in (("alignment", "alignment"), ("effective_rank", "effective rank"), ("quad", "λ_quad")):
            change = networks.paired_interval(np.array([p[-1][name] - p[0][name] for p in own]))
            changes[f"{alpha:g} {name}"] = change
            line.append(f"{title} {change[0]:+.3f} [{change[1]:+.3f}, {change[2]:+.3f}]")
        moved = np.mean([p[-1]["moved"] for p in own])
        found += f"\n  α = {alpha:g}: {', '.join(line)}; params moved by {moved:.2%}"
    rich, lazy = (changes[f"{alpha:g} alignment"] for alpha in (settings.alphas[0], settings.alphas[-1]))
    ranks = {row["points"][0]["rank"] for row in good}
    found += (
        f"\nRank of the Jacobian at the start: {sorted(ranks)} of {settings.num_data} inputs, so that λ = rank / 2."
    )
    parts = [
        True if rich[1] > 0 else False if rich[2] < 0 else None,
        abs(lazy[0]) < 0.01,
        rich[1] > lazy[2],
    ]
    claim = "the tangent kernel aligns with the labels in the rich regime (small α) and stays in the lazy one (large α)"
    points = [point | {"case": row["case"]} for row in good for point in row["points"]]
    text = f"{headline(parts, claim, found)}\n{table(points, COLUMNS)}"
    print(text)
    study.save(rows, summary={"changes": changes}, text=text, figure=figure(good, settings))


def run(case: str, settings: Settings) -> Row:
    """One training run."""
    alpha, seed = float(case.split(" | ")[0]), int(case.split(" | ")[1])
    rng = np.random.default_rng(settings.seed)
    inputs = rng.normal(size=(settings.num_data, settings.widths[0]))
    labels = np.sin(2 * inputs[:, :1]) + 0.5 * inputs[:, 1:2] * inputs[:, 2:]
    labels = (labels - labels.mean()) / labels.std()
    points = []
    with float64():
        data = jnp.asarray(inputs), jnp.asarray(labels)
        net = networks.init(jax.random.key(seed), settings.widths)
        net = jax.tree.map(lambda x: x.astype(jnp.float64), net)
        params = start = {"net": {"u": net, "v": net}, "alpha": jnp.asarray(alpha)}
    for i, steps in enumerate(settings.records):
        with float64():
            params, loss = _descend(params, data, settings.step_size, steps - settings.records[max(i - 1, 0)])
            moved = float(_norm(jax.tree.map(jnp.subtract, params, start)) / _norm(start["net"]))
        if not np.isfinite(loss):
            raise ArithmeticError(f"gradient descent diverged before step {steps}; take a smaller step_size")
        points.append({"step": steps, "fit": float(loss), "moved": moved} | _measured(params, data, settings))
    return {"alpha": alpha, "points": points}


def _predict(params: dict[str, Params | Array], inputs: Array) -> Array:
    net = params["net"]
    return params["alpha"] * (networks.predict(net["u"], inputs) - networks.predict(net["v"], inputs))


def _fit(params: dict[str, Params | Array], data: Data) -> Array:
    """½ mean (f − y)²; divided by α² it is what is minimized."""
    return 0.5 * jnp.mean((_predict(params, data[0]) - data[1]) ** 2)


@jax.jit
def _descend(
    params: dict[str, Params | Array], data: Data, step_size: float, num_steps: int
) -> tuple[dict[str, Params | Array], Array]:
    def step(_: Array, net: Params) -> Params:
        loss = lambda net: _fit({"net": net, "alpha": params["alpha"]}, data) / params["alpha"] ** 2  # noqa: E731
        return jax.tree.map(lambda w, g: w - step_size * g, net, jax.grad(loss)(net))

    there = params | {"net": jax.lax.fori_loop(0, num_steps, step, params["net"])}
    return there, _fit(there, data)


def _norm(tree: Params) -> Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _measured(params: dict[str, Params | Array], data: Data, settings: Settings) -> Row:
    params, (inputs, labels) = jax.tree.map(np.asarray, (params, data))
    kernel = llc.tangent_kernel(_predict, params, inputs, labels=labels, mask="net")
    values = np.maximum(kernel.eigenvalues, 0) / kernel.eigenvalues[0]
    return {
        "alignment": kernel.alignment,
        "effective_rank": kernel.effective_rank,
        "rank": llc.behavioral_gradients(_predict, params, inputs, mask="net").rank,
        "quad": float(0.5 * np.sum(values / (values + settings.resolution))),
        "top_5": float(kernel.label_shares[4]),
    }


COLUMNS = [
    Column("α | seed", "case"),
    Column("step", "step"),
    Column("½ mean (f − y)²", "fit", "{:.2e}"),
    Column("params moved", "moved", "{:.2%}"),
    Column("alignment", "alignment", "{:.3f}"),
    Column("effective rank", "effective_rank", "{:.2f}"),
    Column("rank", "rank"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("labels in top 5", "top_5", "{:.3f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Alignment, effective rank and λ_quad along training, a line for each α."""
    fig = Figure(figsize=(12, 3.4), layout="constrained")
    titles = {"alignment": "alignment with the labels", "effective_rank": "effective rank of K"}
    titles["quad"] = f"λ_quad at ρ = {settings.resolution:g}"
    colors = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
    for ax, (name, title) in zip(fig.subplots(1, 3), titles.items(), strict=True):
        for alpha, color in zip(settings.alphas, colors[-len(settings.alphas) :], strict=True):
            values = np.array([[p[name] for p in row["points"]] for row in rows if row["alpha"] == alpha])
            error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
            steps = np.maximum(settings.records, 10)
            ax.errorbar(steps, values.mean(axis=0), error, fmt="o-", color=color, label=f"α = {alpha:g}")
        ax.set(title=title, xlabel="step (the start at the left)", xscale="log")
        ax.spines[["top", "right"]].set_visible(False)
    fig.axes[0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
