r"""Connection cost: do costs of wiring make networks modular, and do modular networks have less λ̂?

A tanh network learns a task of two parts: each of its two outputs is a function of three of the six inputs. It is
trained from the same starts without a cost, and with costs of growing strength on its weights:

* L1, $\sum |w|$, and L2, $\tfrac12 \sum w^2$;
* distance, $\sum d |w|$ with d the length of the connection between units that lie evenly on a line in each layer, the
  layers one apart (Liu et al. 2023, arXiv 2305.08746).

Connection costs are said to make networks modular (Clune et al. 2013, arXiv 1207.2743). Modular networks have
independent parts, hence fewer features and broader basins, so that modularity should go along with a *smaller* λ̂.

Modularity is measured twice (Newman & Girvan 2004): of the graph of the weights, $|w|$ between units, and of the graph
of `llc.feature_basis`, where units are joined as far as they move the outputs in the same way. The targets of the
posterior are the network's own outputs, so that it is at an exact minimum and λ̂ is that of its function, without the
cost. Connections that the cost has all but removed are set to zero first. Correlations are of ranks; their intervals
are bootstrapped over the starts. "At one cost and strength" takes the mean of each off the ranks.

    uv run --directory validation python -m inductive_bias.connection_cost --quick
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.penalized import change, rank_correlation, strongest
from inductive_bias.verdict import headline, interval, sign_part, verdict
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(8))
    seed: int = 0  # of the data
    widths: tuple[int, ...] = (6, 12, 2)
    num_data: int = 150
    num_test: int = 2000
    noise: float = 0.1  # of the labels, a standard deviation
    strengths: tuple[float, ...] = (3e-4, 1e-3, 2e-3)
    num_steps: int = 4000  # of Adam with all the data, its step falling to zero
    step_size: float = 0.02
    removed: float = 2e-3  # weights below are set to zero
    fits: float = 0.03  # largest test loss of a network that has learnt the task: 5 % of that of zero outputs
    nbeta: float = 1000.0
    gamma: float = 10.0
    num_draws: int = 4000  # of SGLD, a chain


QUICK = Settings(seeds=(0, 1), strengths=(1e-3,), num_steps=1000, num_draws=200, fits=10.0)
COSTS = {"L1": "#0072B2", "L2": "#E69F00", "distance": "#009E73"}
MEASURES = {
    "weights_modularity": "modularity of weights",
    "modularity": "modularity of features",
    "features": "features",
    "llc": "λ̂",
}
SIGNS = {"weights_modularity": 1, "modularity": 1, "features": -1, "llc": -1}  # of the changes that are claimed
CLAIMED = (("weights_modularity", "llc", -1), ("modularity", "llc", -1), ("features", "llc", 1))  # correlations


def main() -> None:
    """Runs, prints, writes."""
    study = Study("connection_cost", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    kinds = ["none | 0", *(f"{cost} | {strength:g}" for cost in COSTS for strength in settings.strengths)]
    rows = study.rows(run, [f"{kind} | {seed}" for kind in kinds for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    fitting = [row for row in good if row["test"] < settings.fits]
    changes, correlations, parts = {}, {}, []
    found = "Strongest cost with which all starts fit, less none, with 95 % intervals over starts:"
    for cost in COSTS:
        strength = strongest(good, cost, settings.strengths, fits=settings.fits, num_starts=len(settings.seeds))
        found += f"\n  {cost}, strength {strength:g}:"
        for name, title in MEASURES.items():
            moved = changes[f"{cost} {name}"] = change(good, cost, strength, name)
            parts.append(sign_part(moved, SIGNS[name]))
            found += f" {title} {interval(moved)} {verdict(parts[-1:])}" + ("," if name != "llc" else "")
    found += (
        f"\nRank correlations over the {len(fitting)} of {len(good)} networks that fit (test loss < {settings.fits:g}):"
    )
    for first, second, sign in CLAIMED:
        pooled, within = (rank_correlation(fitting, first, second, within=x) for x in ((), ("penalty", "strength")))
        correlations[f"{first} {second}"] = {"all": pooled, "at one cost and strength": within}
        parts.append(sign_part(pooled, sign))
        found += (
            f"\n  {MEASURES[first]} and {MEASURES[second]}: {interval(pooled)} {verdict(parts[-1:])}; "
            f"at one cost and strength {interval(within)}"
        )
    claim = "costs of connections make networks modular, of fewer features and less λ̂; the more modular, the less λ̂"
    text = f"{headline(parts, claim, found)}\n{table(rows, COLUMNS)}"
    print(text)
    summary = {"changes": changes, "correlations": correlations}
    study.save(rows, summary=summary, text=text, figure=figure(good, settings, correlations))


def run(case: str, settings: Settings) -> Row:
    """One network."""
    cost, strength, seed = case.split(" | ")
    key = jax.random.key(int(seed))
    data, test = (_data(settings, num, i) for i, num in enumerate((settings.num_data, settings.num_test)))
    trained = _train(networks.init(key, settings.widths), data, float(strength), key, cost, settings)
    params = {name: np.where(np.abs(w) < settings.removed, 0, w) for name, w in jax.device_get(trained).items()}
    labels = np.asarray(networks.predict(params, data[0]))
    posterior = llc.LocalPosterior(
        networks.loss_fn, params, (data[0], labels), nbeta=settings.nbeta, gamma=settings.gamma
    )
    basis = llc.feature_basis(networks.predict, params, data[0])
    return {
        "penalty": cost,
        "strength": float(strength),
        "seed": int(seed),
        "train": float(networks.mean_loss(params, data)),
        "test": float(networks.mean_loss(params, test)),
        "connections": int(sum(np.count_nonzero(w) for w in params.values() if w.ndim == 2)),
        "weights_modularity": weights_modularity(params),
        "modularity": basis.modularity,
        "rank": basis.rank,
        "features": int(np.sum(basis.sizes > settings.gamma / settings.nbeta)),
    } | networks.measure(key, posterior, num_draws=settings.num_draws)._asdict()


def _data(settings: Settings, num: int, number: int) -> Data:
    """Two outputs, each of three inputs of its own; noise in the labels of the training data, number 0."""
    rng = np.random.default_rng([settings.seed, number])
    inputs = rng.uniform(-1, 1, size=(num, 6))
    labels = np.stack([np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] for x in (inputs[:, :3], inputs[:, 3:])], axis=1)
    if number == 0:
        labels += settings.noise * rng.normal(size=labels.shape)
    return np.float32(inputs), np.float32(labels)


@functools.partial(jax.jit, static_argnames=("cost", "settings"))
def _train(params: Params, data: Data, strength: float, key: Array, cost: str, settings: Settings) -> Params:
    def loss(params: Params, _: Array) -> Array:
        return networks.mean_loss(params, data) + strength * connection_cost(params, cost)

    return networks.adam(loss, params, key, settings.num_steps, settings.step_size)


def connection_cost(params: Params, kind: str) -> Array:
    """Of the weights; biases are free."""
    weights = [w for w in params.values() if w.ndim == 2]
    if kind == "L1":
        return sum(jnp.sum(jnp.abs(w)) for w in weights)
    if kind == "L2":
        return 0.5 * sum(jnp.sum(w**2) for w in weights)
    if kind == "distance":
        return sum(jnp.sum(_lengths(w.shape) * jnp.abs(w)) for w in weights)
    return jnp.zeros(())


def _lengths(shape: tuple[int, int]) -> Float[np.ndarray, "in out"]:
    """Of connections between units that lie in the middles of equal parts of [0, 2], the layers one apart."""
    sources, targets = (2 * (np.arange(num) + 0.5) / num for num in shape)
    return np.hypot(sources[:, None] - targets, 1.0)


def weights_modularity(params: Params) -> float:
    """Of the graph whose nodes are inputs and units, and whose edges are |w|."""
    weights = [np.abs(w) for w in params.values() if w.ndim == 2]
    ends = np.cumsum([0, len(weights[0]), *(w.shape[1] for w in weights)])
    edges = np.zeros((ends[-1], ends[-1]))
    for i, w in enumerate(weights):
        edges[ends[i] : ends[i + 1], ends[i + 1] : ends[i + 2]] = w
    graph = networkx.from_numpy_array(edges + edges.T)
    found = [networkx.community.louvain_communities(graph, seed=seed) for seed in range(5)]
    return max(float(networkx.community.modularity(graph, groups)) for groups in found)


COLUMNS = [
    Column("cost | strength | start", "case"),
    Column("train", "train", "{:.4f}"),
    Column("test", "test", "{:.4f}"),
    Column("weights left", "connections"),
    Column("Q of weights", "weights_modularity", "{:.3f}"),
    Column("Q of features", "modularity", "{:.3f}"),
    Column("rank", "rank"),
    Column("features above γ/nβ", "features"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings, correlations: dict[str, dict[str, networks.Interval]]) -> Figure:
    """Measures over the strength of each cost, and λ̂ over both modularities."""
    fig = Figure(figsize=(13, 3.6), layout="constrained")
    axes = fig.subplots(1, 4)
    weakest = min(settings.strengths) / 4  # where the networks without a cost are drawn
    for ax, name in zip(axes[:2], ("weights_modularity", "llc"), strict=True):
        for cost, color in COSTS.items():
            own = [[r[name] for r in rows if (r["penalty"], r["strength"]) == (cost, x)] for x in settings.strengths]
            values = [[row[name] for row in rows if row["penalty"] == "none"], *own]
            error = [2 * np.std(v, ddof=1) / len(v) ** 0.5 for v in values]
            means = [np.mean(v) for v in values]
            ax.errorbar([weakest, *settings.strengths], means, error, fmt="o-", ms=4, color=color, label=cost)
        ax.set(xscale="log", title=MEASURES[name], xlabel="strength (no cost at the left)")
    for ax, name in zip(axes[2:], ("weights_modularity", "modularity"), strict=True):
        for cost, color in {"none": "#6E6E6E", **COSTS}.items():
            own = [row for row in rows if row["penalty"] == cost and row["test"] < settings.fits]
            ax.errorbar(
                [r[name] for r in own],
                [r["llc"] for r in own],
                [2 * r["mcse"] for r in own],
                fmt="o",
                ms=4,
                lw=1,
                color=color,
                label=cost,
            )
        pooled = correlations[f"{name} llc"]["all"]
        ax.set(xlabel=MEASURES[name], title=f"λ̂ ± 2 mcse; rank correlation\n{interval(pooled)}")
    axes[0].legend(fontsize=8)
    axes[2].legend(fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
