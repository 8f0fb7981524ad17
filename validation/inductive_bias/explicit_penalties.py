r"""Explicit penalties: does every penalty that lowers the geometric complexity lower λ̂ and the number of features?

A tanh network learns a noisy function of two inputs, from the same starts without a penalty and with each of six at
growing strength s:

* L2, $\tfrac s2 \sum w^2$, and spectral norm, $\tfrac s2 \sum_l \sigma_\max(W_l)^2$;
* gradient penalty, $\tfrac s2$ of the geometric complexity itself, mean $\lVert \partial f / \partial x \rVert^2$;
* flatness, $\tfrac s2$ of the mean of $\lVert \partial f / \partial w \rVert^2$, which is tr H at an exact fit;
* label noise of standard deviation s, drawn anew at each step, and dropout of hidden units with probability s.

Many penalties lower the geometric complexity (Dherin et al. 2022, arXiv 2209.13083). If all of them make networks
simple in one sense, those that lower it lower λ̂, too. It is taken over the training inputs, as published, and over
fresh ones beside them. The targets of the posterior are the network's own outputs, so that it is at an exact minimum
and λ̂ is that of its function, without the penalty. Changes are those by the strongest strength with which all starts
fit. Correlations are of ranks; their intervals are bootstrapped over the starts.

    uv run --directory validation python -m inductive_bias.explicit_penalties --quick
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.penalized import change, rank_correlation, strongest
from inductive_bias.verdict import headline, interval, sign_part, verdict
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(6))
    seed: int = 0  # of the data
    widths: tuple[int, ...] = (2, 16, 16, 1)
    num_data: int = 80
    num_test: int = 2000
    noise: float = 0.1  # of the labels, a standard deviation
    num_steps: int = 4000  # of Adam with all the data, its step falling to zero
    step_size: float = 0.02
    fits: float = 0.02  # largest test loss of a network that has learnt the task
    nbeta: float = 1000.0
    gamma: float = 10.0
    num_draws: int = 1500  # of SGLD, a chain
    num_strengths: int = 3  # of those below, the first


QUICK = Settings(seeds=(0, 1), num_steps=500, num_draws=100, fits=10.0, num_strengths=1)
PENALTIES = {
    "L2": (1e-4, 1e-3, 3e-3),
    "spectral norm": (1e-4, 1e-3, 3e-3),
    "gradient": (1e-3, 3e-3, 1e-2),
    "flatness": (1e-4, 1e-3, 3e-3),
    "label noise": (0.1, 0.3, 1.0),
    "dropout": (0.02, 0.05, 0.1),
}
COLORS = {
    "none": "#6E6E6E",
    "L2": "#E69F00",
    "spectral norm": "#D55E00",
    "gradient": "#0072B2",
    "flatness": "#56B4E9",
    "label noise": "#009E73",
    "dropout": "#CC79A7",
}
MEASURES = {
    "log_complexity": "log GC",
    "log_fresh": "log GC on fresh inputs",
    "llc": "λ̂",
    "quad": "λ_quad",
    "features": "features",
}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("explicit_penalties", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    kinds = [f"{penalty} | {x:g}" for penalty, all_of in PENALTIES.items() for x in all_of[: settings.num_strengths]]
    rows = study.rows(run, [f"{kind} | {seed}" for kind in ("none | 0", *kinds) for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    fitting = [row for row in good if row["test"] < settings.fits]
    changes, parts, apart = {}, [], []
    found = "Strongest penalty with which all starts fit, less none, with 95 % intervals over starts:"
    for penalty, all_of in PENALTIES.items():
        strengths = all_of[: settings.num_strengths]
        strength = strongest(good, penalty, strengths, fits=settings.fits, num_starts=len(settings.seeds))
        own = {name: change(good, penalty, strength, name) for name in MEASURES}
        changes[penalty] = own
        found += f"\n  {penalty}, {strength:g}: " + ", ".join(f"{t} {interval(own[n])}" for n, t in MEASURES.items())
        if sign_part(own["log_complexity"], -1):
            parts += (outcome := [sign_part(own[name], -1) for name in ("llc", "features")])
            found += f"; {verdict(outcome)}"
            apart += [penalty] if False in outcome else []
        else:
            found += "; does not lower the geometric complexity"
    correlations = {
        f"{name} {kind}": rank_correlation(fitting, "complexity", name, within=within)
        for name in ("llc", "features", "test")
        for kind, within in (("all", ()), ("within penalties", ("penalty",)))
    }
    found += f"\nThey part at: {', '.join(apart) or 'none'}.\nRank correlations of geometric complexity over the "
    found += f"{len(fitting)} of {len(good)} networks that fit (test loss < {settings.fits:g}), and within penalties:"
    for name, title in (("llc", "λ̂"), ("features", "features"), ("test", "test loss")):
        pooled, within = (correlations[f"{name} {kind}"] for kind in ("all", "within penalties"))
        found += f"\n  {title}: {interval(pooled)}, {interval(within)}"
    claim = "every penalty that lowers the geometric complexity lowers λ̂ and the number of features"
    text = f"{headline(parts, claim, found)}\n{table(rows, COLUMNS)}"
    print(text)
    summary = {"changes": changes, "correlations": correlations}
    study.save(rows, summary=summary, text=text, figure=figure(good, settings, correlations["llc all"]))


def run(case: str, settings: Settings) -> Row:
    """One network."""
    penalty, strength, seed = case.split(" | ")
    key = jax.random.key(int(seed))
    data, test = (_data(settings, num, i) for i, num in enumerate((settings.num_data, settings.num_test)))
    trained = _train(networks.init(key, settings.widths), data, float(strength), key, penalty, settings)
    params = jax.device_get(trained)
    labels = np.asarray(networks.predict(params, data[0]))
    posterior = llc.LocalPosterior(
        networks.loss_fn, params, (data[0], labels), nbeta=settings.nbeta, gamma=settings.gamma
    )
    complexity, fresh = (llc.geometric_complexity(networks.predict, params, x[0]).value for x in (data, test))
    gradients = llc.behavioral_gradients(networks.predict, params, data[0])
    return {
        "penalty": penalty,
        "strength": float(strength),
        "seed": int(seed),
        "train": float(networks.mean_loss(params, data)),
        "test": float(networks.mean_loss(params, test)),
        "complexity": complexity,
        "fresh": fresh,
        "log_complexity": float(np.log(complexity)),
        "log_fresh": float(np.log(fresh)),
        "rank": gradients.rank,
        "features": gradients.num_features(settings.gamma / settings.nbeta),
    } | networks.measure(key, posterior, num_draws=settings.num_draws)._asdict()


def _data(settings: Settings, num: int, number: int) -> Data:
    """Noise in the labels of the training data, number 0."""
    rng = np.random.default_rng([settings.seed, number])
    inputs = rng.uniform(-1, 1, size=(num, 2))
    labels = np.sin(3 * inputs[:, :1]) * np.cos(2 * inputs[:, 1:])
    if number == 0:
        labels += settings.noise * rng.normal(size=labels.shape)
    return np.float32(inputs), np.float32(labels)


@functools.partial(jax.jit, static_argnames=("penalty", "settings"))
def _train(params: Params, data: Data, strength: float, key: Array, penalty: str, settings: Settings) -> Params:
    def loss(params: Params, key: Array) -> Array:
        return penalized(params, data, strength, key, penalty)

    return networks.adam(loss, params, key, settings.num_steps, settings.step_size)


def penalized(params: Params, data: Data, strength: float | Array, key: Array, penalty: str) -> Array:
    """What is minimized: the mean loss under one penalty."""
    inputs, labels = data
    weights = [w for w in params.values() if w.ndim == 2]
    if penalty == "label noise":
        labels = labels + strength * jax.random.normal(key, labels.shape)
    if penalty == "dropout":
        return 0.5 * jnp.mean((_dropped(params, inputs, strength, key) - labels) ** 2)
    loss = networks.mean_loss(params, (inputs, labels))
    if penalty == "L2":
        return loss + 0.5 * strength * sum(jnp.sum(w**2) for w in weights)
    if penalty == "spectral norm":
        return loss + 0.5 * strength * sum(jnp.linalg.norm(w, 2) ** 2 for w in weights)
    if penalty == "gradient":
        return loss + 0.5 * strength * _mean_square(lambda x: _scalar(params, x), inputs)
    if penalty == "flatness":
        return loss + 0.5 * strength * _flatness(params, inputs)
    return loss


def _scalar(params: Params, row: Array) -> Array:
    return networks.predict(params, row[None])[0, 0]


def _mean_square(function: Callable[[Array], Array], inputs: Array) -> Array:
    """Mean over the rows of the squared norm of a function's gradient in them."""
    return jnp.mean(jnp.sum(jax.vmap(jax.grad(function))(inputs) ** 2, axis=1))


def _flatness(params: Params, inputs: Array) -> Array:
    """Mean ‖∂f/∂w‖² of one output."""
    gradients = jax.vmap(jax.grad(_scalar), (None, 0))(params, inputs)
    return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients)) / len(inputs)


def _dropped(params: Params, inputs: Array, share: float | Array, key: Array) -> Array:
    """Outputs with a share of the hidden units left out, the others made larger for it."""
    depth = len(params) // 2
    for i, own in enumerate(jax.random.split(key, depth)):
        inputs = inputs @ params[f"w{i}"] + params[f"b{i}"]
        if i < depth - 1:
            stays = jax.random.bernoulli(own, 1 - share, inputs.shape)
            inputs = jnp.where(stays, jnp.tanh(inputs) / (1 - share), 0.0)
    return inputs


COLUMNS = [
    Column("penalty | strength | start", "case"),
    Column("train", "train", "{:.4f}"),
    Column("test", "test", "{:.4f}"),
    Column("GC", "complexity", "{:.3f}"),
    Column("on fresh inputs", "fresh", "{:.3f}"),
    Column("rank", "rank"),
    Column("features above γ/nβ", "features"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("h_max", "sharpness", "{:.1f}"),
]


def figure(rows: list[Row], settings: Settings, correlation: networks.Interval) -> Figure:
    """Means over starts along the strengths: λ̂, features and test loss over the geometric complexity."""
    fig = Figure(figsize=(12, 3.8), layout="constrained")
    titles = {"llc": f"λ̂; rank correlation\n{interval(correlation)}", "features": "features above γ/nβ"}
    for ax, name in zip(fig.subplots(1, 3), (*titles, "test"), strict=True):
        for penalty, color in COLORS.items():
            strengths = PENALTIES.get(penalty, (0.0,))[: settings.num_strengths]
            own = [[r for r in rows if (r["penalty"], r["strength"]) == (penalty, x)] for x in strengths]
            points = [[[row[key] for row in cell] for cell in own] for key in ("complexity", name)]
            means = [[np.mean(cell) for cell in axis] for axis in points]
            errors = [[2 * np.std(cell, ddof=1) / len(cell) ** 0.5 for cell in axis] for axis in points]
            marker = "s" if penalty == "none" else "o-"
            ax.errorbar(*means, errors[1], errors[0], fmt=marker, ms=4, lw=1, color=color, label=penalty)
        ax.set(xlabel="geometric complexity", title=titles.get(name, "test loss; dotted: counted as a fit"))
        ax.spines[["top", "right"]].set_visible(False)
    ax = fig.axes[-1]
    ax.set(yscale="log")
    ax.axhline(settings.fits, color="#6E6E6E", ls=":")
    fig.axes[0].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
