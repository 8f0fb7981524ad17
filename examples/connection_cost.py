"""Does a cost of connections make a network simpler, and does λ̂ see it?

Trains one tanh network on a small noisy regression under L2 regularization of growing strength, and looks at the
function that each learnt: the targets of the posterior are the network's own outputs. So each network is a minimum of
loss zero, and λ̂ is that of its function, without the regularizer. Saves a figure; about a minute on two cores.

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

    hidden: int = 8
    num_data: int = 200
    train_steps: int = 2000  # of L-BFGS on all data, to a minimum of the regularized loss
    nbeta: float = 1e5  # far above n / log n, for a look from near the zero set; the same for all
    gamma: float = 100.0  # localization; the same for all
    num_draws: int = 400  # of NUTS, a chain
    seed: int = 0
    strengths: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)  # of (strength / 2) ‖w‖², in the unit of the loss
    out: Path = Path("connection_cost.png")


Found = dict[float, tuple[llc.BehavioralGradients, llc.Report]]  # by strength
Params = dict[str, jax.Array]


def main(settings: Settings) -> Found:
    rng = np.random.default_rng(settings.seed)
    inputs = rng.normal(size=(settings.num_data, 3)).astype(np.float32)
    targets = np.tanh(2 * inputs[:, 0]) - np.tanh(inputs[:, 1] + inputs[:, 2]) + 0.1 * rng.normal(size=len(inputs))
    shapes = {"in": (3, settings.hidden), "shift": (settings.hidden,), "out": (settings.hidden,), "bias": ()}
    start = {name: (rng.normal(size=shape) / np.sqrt(3)).astype(np.float32) for name, shape in shapes.items()}
    found, scale = {}, settings.gamma / settings.nbeta
    print(f"γ/nβ = {scale:.2g}; features: rank G, of them above γ/nβ, sum of their sizes σ²/n")
    print("strength  data loss  units  features            λ̂  λ_quad         bounds")
    keys = jax.random.split(jax.random.key(settings.seed), len(settings.strengths))
    for key, strength in zip(keys, settings.strengths, strict=True):
        params = train(start, (inputs, targets), strength, settings.train_steps)
        gradients = llc.behavioral_gradients(predict, params, inputs)
        learnt = inputs, predict(params, inputs)
        posterior = llc.LocalPosterior(loss_fn, params, learnt, nbeta=settings.nbeta, gamma=settings.gamma)
        report = llc.estimate(key, posterior, sampler=llc.NUTS(), num_warmup=200, num_draws=settings.num_draws)
        found[strength] = gradients, report
        units = llc.unit_states(gradients, {"in": 1, "shift": 0}, {"out": 0}, tolerance=1e-2).num_distinct
        features = f"{gradients.rank:4} {gradients.num_features(scale):4} {gradients.feature_sizes.sum():7.3f}"
        print(
            f"{strength:8.0e} {loss_fn(params, (inputs, targets)).mean():10.5f} {units:6} {features} "
            f"{report.llc.value:6.2f} ± {report.llc.mcse:.2f} "
            f"{report.quad:6.2f}  [{report.bounds.lower:5.4g}, {report.bounds.upper:5.4g}]  {report.verdict} "
            f"{', '.join(check.name for check in report.failed)}"
        )
    trends = zip(*[(g.rank, g.feature_sizes.sum(), r.llc.value) for g, r in found.values()], strict=True)
    for name, values in zip(("rank G", "the size of the features", "λ̂"), trends, strict=True):
        print(f"{name}: from {values[0]:.4g} to {values[-1]:.4g}; falls at every step: {(np.diff(values) < 0).all()}")
    draw(found, scale).savefig(settings.out, dpi=150)
    return found


def predict(params: Params, inputs: jax.Array) -> jax.Array:
    return jnp.tanh(inputs @ params["in"] + params["shift"]) @ params["out"] + params["bias"]


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return 0.5 * (predict(params, batch[0]) - batch[1]) ** 2


def train(params: Params, data: tuple[jax.Array, jax.Array], strength: float, num_steps: int) -> Params:
    def cost(params: Params) -> jax.Array:
        return loss_fn(params, data).mean() + 0.5 * strength * optax.tree.norm(params, squared=True)

    def step(_: int, carry: tuple) -> tuple:
        params, state = carry
        value, grad = optax.value_and_grad_from_state(cost)(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=cost)
        return optax.apply_updates(params, updates), state

    optimizer = optax.lbfgs()
    return jax.jit(lambda p: jax.lax.fori_loop(0, num_steps, step, (p, optimizer.init(p)))[0])(params)


def draw(found: Found, scale: float) -> Figure:
    left, right = (fig := Figure(figsize=(10, 4.2), layout="constrained")).subplots(1, 2)
    strengths, (gradients, reports) = list(found), zip(*found.values(), strict=True)
    for strength, (g, _) in found.items():
        sizes = g.feature_sizes[: g.rank]
        left.semilogy(np.arange(1, len(sizes) + 1), sizes, "o-", ms=4, label=f"{strength:g}: {len(sizes)}")
    left.axhline(scale, color="#6E6E6E", ls="--", label="γ/nβ, seen by the sampler")
    left.set(title="Independent features", xlabel="index", ylabel="size σ²/n")
    left.legend(title="strength: rank G", fontsize=9)
    errors = [2 * report.llc.mcse for report in reports]
    right.errorbar(strengths, [report.llc.value for report in reports], errors, fmt="o-", capsize=3, label="λ̂ ± 2 mcse")
    right.plot(strengths, [report.quad for report in reports], "s--", label=r"$\lambda_\mathrm{quad}$")
    right.plot(strengths, [g.rank / 2 for g in gradients], "^:", color="#6E6E6E", label="rank G / 2")
    right.set(xscale="log", ylim=(0, None), title="Learning coefficient", xlabel="strength of the regularizer")
    right.legend(fontsize=9)
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        kind = {"type": float, "nargs": "+"} if field.name == "strengths" else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    main(Settings(**vars(parser.parse_args())))
