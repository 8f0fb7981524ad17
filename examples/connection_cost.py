"""Does a cost of connections make a network simpler, and does λ̂ see it?

Trains one tanh network on a task of two separate parts, with an L1 cost on its weights of growing strength, and looks
at the function that each learnt: the targets of the posterior are the network's own outputs. So each network is a
minimum of loss zero, and λ̂ is that of its function, without the cost. The study, with other costs and many starts, is
`validation/inductive_bias/connection_cost.py`, and what it found is told in docs/simplicity.md. Saves a figure; about
a minute on two cores.

    uv run python examples/connection_cost.py --hidden 12
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    strengths: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    hidden: int = 8
    num_data: int = 100
    train_steps: int = 3000  # of Adam with all data, its step falling to zero
    nbeta: float = 1e4
    gamma: float = 100.0
    num_draws: int = 400  # of NUTS, a chain
    seed: int = 0
    out: Path = Path("connection_cost.png")


Found = dict[float, tuple[llc.FeatureBasis, llc.Report]]  # by strength
Params = dict[str, jax.Array]


def main(settings: Settings) -> Found:
    rng = np.random.default_rng(settings.seed)
    inputs = np.float32(rng.uniform(-1, 1, size=(settings.num_data, 4)))
    targets = np.stack([np.sin(3 * inputs[:, 0]) + inputs[:, 1], np.sin(3 * inputs[:, 2]) + inputs[:, 3]], axis=1)
    start = {"in": rng.normal(size=(4, settings.hidden)) / 2, "out": rng.normal(size=(settings.hidden, 2)) / 3}
    found, scale = {}, settings.gamma / settings.nbeta
    keys = jax.random.split(jax.random.key(settings.seed), len(settings.strengths))
    for key, strength in zip(keys, settings.strengths, strict=True):
        params = train(jax.tree.map(np.float32, start), (inputs, targets), strength, settings.train_steps)
        learnt = inputs, predict(params, inputs)
        posterior = llc.LocalPosterior(loss_fn, params, learnt, nbeta=settings.nbeta, gamma=settings.gamma)
        report = llc.estimate(key, posterior, sampler=llc.NUTS(), num_warmup=200, num_draws=settings.num_draws)
        basis = llc.feature_basis(predict, params, inputs)
        found[strength] = basis, report
        print(
            f"cost {strength:g}: loss {loss_fn(params, (inputs, targets)).mean():.4f}, {np.sum(basis.sizes > scale)} "
            f"features above γ/nβ = {scale:g}, modularity {basis.modularity:.2f}, λ̂ {report.llc.value:.2f} ± "
            f"{report.llc.mcse:.2f}, λ_quad {report.quad:.2f}; {report.verdict}"
        )
    draw(found, scale).savefig(settings.out, dpi=150)
    return found


def predict(params: Params, inputs: jax.Array) -> jax.Array:
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return 0.5 * jnp.sum((predict(params, batch[0]) - batch[1]) ** 2, axis=1)


def train(params: Params, data: tuple[jax.Array, jax.Array], strength: float, num_steps: int) -> Params:
    def cost(params: Params) -> jax.Array:
        return loss_fn(params, data).mean() + strength * sum(jnp.sum(jnp.abs(w)) for w in params.values())

    def step(_: int, carry: tuple) -> tuple:
        updates, state = optimizer.update(jax.grad(cost)(carry[0]), carry[1])
        return optax.apply_updates(carry[0], updates), state

    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))
    return jax.jit(lambda p: jax.lax.fori_loop(0, num_steps, step, (p, optimizer.init(p)))[0])(params)


def draw(found: Found, scale: float) -> Figure:
    ax, llcs = (fig := Figure(figsize=(9, 4), layout="constrained")).subplots(1, 2)
    for strength, (basis, _) in found.items():
        ax.semilogy(np.arange(1, basis.rank + 1), basis.sizes, "o-", ms=3, label=f"cost {strength:g}")
    ax.axhline(scale, color="#6E6E6E", ls="--", label="γ/nβ, seen by the sampler")
    ax.set(title="Independent features", xlabel="index", ylabel="size σ", ylim=(1e-8, None))
    estimates = [report.llc for _, report in found.values()]
    errors = [2 * estimate.mcse for estimate in estimates]
    llcs.errorbar(range(len(found)), [x.value for x in estimates], errors, fmt="o", capsize=3, label="λ̂ ± 2 mcse")
    llcs.plot(range(len(found)), [report.quad for _, report in found.values()], "s", mfc="none", label="λ_quad")
    llcs.set_xticks(range(len(found)), [f"{strength:g}" for strength in found])
    llcs.set(title="Learning coefficient", xlabel="strength of the cost", ylim=(0, None))
    ax.legend(fontsize=9)
    llcs.legend(fontsize=9)
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        kind = {"type": float, "nargs": "+"} if field.name == "strengths" else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    main(Settings(**vars(parser.parse_args())))
