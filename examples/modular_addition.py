"""A small transformer that groks: it knows its training pairs of modular addition by heart long before it can add.

One block reads (a, b, "=") and gives logits of a + b mod p. It is trained on a part of the pairs by AdamW, with weight
decay. As a script it prints the losses along the training; `training_run.py` follows λ̂ along it.

    uv run python examples/modular_addition.py
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network and its training."""

    p: int = 23  # the modulus, and the number of tokens beside "="
    width: int = 24  # of the residual stream
    hidden: int = 48  # units of the multilayer perceptron
    train_share: float = 0.7  # of all pairs
    learning_rate: float = 3e-3  # of AdamW on all training pairs
    weight_decay: float = 1.0
    epsilon: float = 1e-5  # of AdamW; with the usual 1e-8 the loss jumps up again and again once it is small
    seed: int = 0  # of the initial params and of which pairs are trained on


Params = dict[str, jax.Array]
Data = tuple[np.ndarray, np.ndarray]


def main(settings: Settings) -> None:
    data, others = split(settings)
    for step, params in trained(data, settings, (100, 300, 1000, 2000, 5000)).items():
        losses = ", ".join(f"{measured_loss(params, x):.2g} ({accuracy(params, x):.0%} right)" for x in (data, others))
        print(f"step {step}: loss on the training pairs and on the others {losses}")


def split(settings: Settings) -> tuple[Data, Data]:
    """The training pairs and the others, at random: (a, b, "=") and a + b mod p."""
    a, b = (x.ravel() for x in np.meshgrid(np.arange(settings.p), np.arange(settings.p), indexing="ij"))
    tokens, sums = np.stack([a, b, np.full_like(a, settings.p)], axis=1), (a + b) % settings.p
    order = np.asarray(jax.random.permutation(_keys(settings)[1], len(tokens)))
    train, others = np.split(order, [int(settings.train_share * len(order))])
    return (tokens[train], sums[train]), (tokens[others], sums[others])


def _keys(settings: Settings) -> jax.Array:
    """Of the params, and of the split."""
    return jax.random.split(jax.random.key(settings.seed), 3)


def init_params(key: jax.Array, settings: Settings) -> Params:
    w, h, p = settings.width, settings.hidden, settings.p
    shapes = {"embed": (p + 1, w), "position": (3, w), "query": (w, w), "key": (w, w), "value": (w, w), "mix": (w, w)}
    shapes |= {"in": (w, h), "out": (h, w), "unembed": (w, p)}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, s) / np.sqrt(s[0]) for k, (name, s) in zip(keys, shapes.items(), strict=True)}


def predict(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits of the sum, at the last position."""
    return logits(params, params["embed"][tokens])


def logits(params: Params, embedded: jax.Array) -> jax.Array:
    """The same of tokens that are embedded already."""
    x = embedded * np.sqrt(len(params["embed"])) * 0.5 + params["position"]
    scores = (x[:, -1:] @ params["query"]) @ jnp.swapaxes(x @ params["key"], 1, 2) / np.sqrt(x.shape[-1])
    x = x[:, -1] + (jax.nn.softmax(scores) @ (x @ params["value"] @ params["mix"]))[:, 0]
    return (x + jax.nn.gelu(x @ params["in"]) @ params["out"]) @ params["unembed"]


def loss_fn(params: Params, batch: Data) -> jax.Array:
    """Cross-entropy in nats, per pair."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(predict(params, batch[0]), batch[1])


def measured_loss(params: Params, batch: Data) -> float:
    return float(jnp.mean(loss_fn(params, batch)))


def accuracy(params: Params, batch: Data) -> float:
    return float(jnp.mean(predict(params, batch[0]).argmax(-1) == batch[1]))


def trained(data: Data, settings: Settings, steps: Sequence[int]) -> dict[int, Params]:
    """Params at some steps of the training, in rising order."""
    optimizer = optax.adamw(settings.learning_rate, b2=0.98, eps=settings.epsilon, weight_decay=settings.weight_decay)

    def step(_: jax.Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, state = carry
        gradient = jax.grad(lambda w: jnp.mean(loss_fn(w, data)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    advance = jax.jit(lambda carry, num: jax.lax.fori_loop(0, num, step, carry))
    params = init_params(_keys(settings)[0], settings)
    carry, done, run = (params, optimizer.init(params)), 0, {}
    for now in steps:
        carry, done = advance(carry, now - done), now
        run[now] = carry[0]
    return run


if __name__ == "__main__":
    main(Settings())
