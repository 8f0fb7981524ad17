"""How does λ̂ move while a small transformer learns modular addition?

Trains a transformer of one block on half of the pairs (a, b) → a + b mod p with weight decay, keeps checkpoints along
the way, and follows λ̂ of the loss on the training pairs, with bounds and errors, at one scale. Saves a figure.

    uv run python examples/training_run.py --steps 20000
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import llc
from llc.analysis.sweep_table import table_text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    p: int = 13  # the modulus, and the number of tokens beside "="
    width: int = 12  # of the residual stream
    hidden: int = 24  # units of the multilayer perceptron
    train_share: float = 0.7  # of all pairs
    steps: int = 20_000  # of AdamW on all training pairs
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    num_checkpoints: int = 8  # the first and the last step among them, and the others at even ratios
    nbeta: float | None = None  # None: n / log n
    num_draws: int = 300
    seed: int = 0
    out: Path = Path("training_run.png")
    folder: Path | None = None  # for checkpoints and draws; a rerun goes on where it was stopped


Params = dict[str, jax.Array]


def main(settings: Settings) -> tuple[xr.DataTree, dict[int, float]]:
    init_key, split_key, key = jax.random.split(jax.random.key(settings.seed), 3)
    tokens, sums = pairs(settings.p)
    order = np.asarray(jax.random.permutation(split_key, len(tokens)))
    train, test = np.split(order, [int(settings.train_share * len(order))])
    data = tokens[train], sums[train]
    run = trained(init_params(init_key, settings), data, settings)
    accuracy = {step: float(jnp.mean(predict(w, tokens[test]).argmax(-1) == sums[test])) for step, w in run.items()}
    print("accuracy on the other pairs:", ", ".join(f"{step}: {x:.0%}" for step, x in accuracy.items()))
    checkpoints = {f"step_{step}": params for step, params in run.items()}
    posterior = llc.LocalPosterior(loss_fn, run[settings.steps], data, nbeta=settings.nbeta)
    out = None if settings.folder is None else settings.folder / "sweep"
    tree = llc.sweep(key, posterior, checkpoints=checkpoints, num_draws=settings.num_draws, out=out)
    print(table_text(tree.to_dataset()))
    llc.plot_sweep(tree).savefig(settings.out, dpi=110)
    return tree, accuracy


def pairs(p: int) -> tuple[np.ndarray, np.ndarray]:
    """All (a, b, "=") and a + b mod p."""
    a, b = (x.ravel() for x in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
    return np.stack([a, b, np.full_like(a, p)], axis=1), (a + b) % p


def init_params(key: jax.Array, settings: Settings) -> Params:
    w, h, p = settings.width, settings.hidden, settings.p
    shapes = {"embed": (p + 1, w), "position": (3, w), "query": (w, w), "key": (w, w), "value": (w, w), "mix": (w, w)}
    shapes |= {"in": (w, h), "out": (h, w), "unembed": (w, p)}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, s) / np.sqrt(s[0]) for k, (name, s) in zip(keys, shapes.items(), strict=True)}


def predict(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits of the sum, at the last position."""
    x = params["embed"][tokens] * np.sqrt(len(params["embed"])) * 0.5 + params["position"]
    scores = (x[:, -1:] @ params["query"]) @ jnp.swapaxes(x @ params["key"], 1, 2) / np.sqrt(x.shape[-1])
    x = x[:, -1] + (jax.nn.softmax(scores) @ (x @ params["value"] @ params["mix"]))[:, 0]
    return (x + jax.nn.gelu(x @ params["in"]) @ params["out"]) @ params["unembed"]


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy in nats, per pair."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(predict(params, batch[0]), batch[1])


def trained(params: Params, data: tuple[np.ndarray, np.ndarray], settings: Settings) -> dict[int, Params]:
    """Params at some steps of AdamW."""
    optimizer = optax.adamw(settings.learning_rate, b2=0.98, weight_decay=settings.weight_decay)

    def step(_: jax.Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        gradient = jax.grad(lambda w: jnp.mean(loss_fn(w, data)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    advance = jax.jit(lambda carry, num: jax.lax.fori_loop(0, num, step, carry))
    steps = np.unique(np.geomspace(10, settings.steps, settings.num_checkpoints - 1).astype(int)).tolist()
    carry, run = (params, optimizer.init(params)), {0: params}
    for before, now in zip([0, *steps], steps, strict=False):
        carry = advance(carry, now - before)
        run[now] = carry[0]
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        kind = Path if field.name in ("out", "folder") else float if field.name == "nbeta" else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    main(Settings(**vars(parser.parse_args())))
