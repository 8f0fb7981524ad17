"""Networks as people bring them: trained with Adam for a while, on real or generated data, not polished to a minimum.

- an MLP that reads enlarged digits with noise;
- a transformer on addition modulo a prime, all pairs;
- a language model, the same transformer with more layers, on sequences of a sparse Markov chain.

All losses come per example, in nats.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from sklearn.datasets import load_digits

LossFn = Callable[[PyTree, PyTree], Array]
SUCCESSORS = 8  # of a token of the Markov chain, with chances that halve


@dataclasses.dataclass(frozen=True)
class Training:
    """AdamW on minibatches drawn with replacement."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Network:
    """A loss with its untrained parameters, data and training."""

    loss_fn: LossFn
    start: PyTree
    data: PyTree
    training: Training


@dataclasses.dataclass(frozen=True)
class MLPSize:
    """Of the reader of digits."""

    widths: tuple[int, ...] = (784, 256, 256, 10)  # 784 = (3 · 8 + 2 · 2)²
    enlargement: int = 3  # of 8 × 8 pixels
    margin: int = 2  # pixels
    num_images: int = 10_000
    training: Training = Training(steps=400, batch_size=128)


@dataclasses.dataclass(frozen=True)
class TransformerSize:
    """Of the adder modulo `modulus`, which sees the two numbers and the sign of equality."""

    modulus: int = 29
    width: int = 64
    layers: int = 2
    heads: int = 4
    training: Training = Training(steps=1500, batch_size=256, weight_decay=0.1)


@dataclasses.dataclass(frozen=True)
class LanguageSize:
    """Of the language model: 2.8 million parameters."""

    vocabulary: int = 5000
    num_sequences: int = 1000
    length: int = 64
    width: int = 160
    layers: int = 4
    heads: int = 4
    training: Training = Training(steps=40, batch_size=16)


def mlp(key: PRNGKeyArray, size: MLPSize) -> Network:
    """ReLU units, He initialization, cross-entropy."""
    keys = jax.random.split(key, len(size.widths) - 1)
    pairs = zip(keys, size.widths[:-1], size.widths[1:], strict=True)
    start = [{"weight": jax.random.normal(k, (a, b)) * math.sqrt(2 / a), "bias": jnp.zeros(b)} for k, a, b in pairs]
    return Network(mlp_loss, start, enlarged_digits(size), size.training)


def transformer(key: PRNGKeyArray, size: TransformerSize) -> Network:
    """Addition modulo a prime; the loss is that of the last position."""
    p = size.modulus
    first, second = np.divmod(np.arange(p * p), p)
    tokens = np.stack([first, second, np.full(p * p, p)], axis=1).astype(np.int32)
    start = init_transformer(key, p + 1, 3, size.width, size.layers, size.heads)
    return Network(last_token_loss, start, (tokens, ((first + second) % p).astype(np.int32)), size.training)


def language(key: PRNGKeyArray, size: LanguageSize) -> Network:
    """The next token at every position, a mean over positions."""
    data = (markov_chain(size.num_sequences, size.length + 1, size.vocabulary),)
    start = init_transformer(key, size.vocabulary, size.length, size.width, size.layers, size.heads)
    return Network(next_token_loss, start, data, size.training)


# Data


def enlarged_digits(size: MLPSize, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 8 × 8 digits, enlarged, with a margin and with noise."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(images), size.num_images)
    large = np.kron(images[rows].reshape(-1, 8, 8) / 16, np.ones((1, size.enlargement, size.enlargement)))
    large = np.pad(large, ((0, 0), *[(size.margin, size.margin)] * 2))
    large = large + 0.1 * rng.normal(size=large.shape)
    return large.reshape(len(rows), -1).astype(np.float32), labels[rows].astype(np.int32)


def markov_chain(num_sequences: int, length: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Sequences in which every token has a few successors; an entropy of 1.4 nats a token."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, vocabulary, (vocabulary, SUCCESSORS))
    chances = 0.5 ** np.arange(1, SUCCESSORS + 1)
    tokens = np.empty((num_sequences, length), np.int32)
    tokens[:, 0] = rng.integers(0, vocabulary, num_sequences)
    for t in range(1, length):
        choice = rng.choice(SUCCESSORS, num_sequences, p=chances / chances.sum())
        tokens[:, t] = successors[tokens[:, t - 1], choice]
    return tokens


# Losses


def mlp_loss(params: list[dict[str, Array]], batch: tuple[Array, Array]) -> Array:
    """Cross-entropy of every image."""
    hidden, labels = batch
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["weight"] + layer["bias"])
    logits = hidden @ params[-1]["weight"] + params[-1]["bias"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def last_token_loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
    """Cross-entropy of what follows the last token."""
    tokens, targets = batch
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits_of(params, tokens)[:, -1], targets)


def next_token_loss(params: PyTree, batch: tuple[Array]) -> Array:
    """Mean cross-entropy of the next token, over the positions of a sequence."""
    (tokens,) = batch
    logits = logits_of(params, tokens[:, :-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(axis=-1)


# The transformer: pre-norm blocks with causal attention, learnt positions, no biases


def init_transformer(
    key: PRNGKeyArray, vocabulary: int, length: int, width: int, layers: int, heads: int
) -> dict[str, PyTree]:
    """Normal weights of variance 1 / fan-in."""
    keys = iter(jax.random.split(key, 3 + 4 * layers))
    blocks = [_init_block(keys, width, heads) for _ in range(layers)]
    return {
        "embedding": _normal(keys, (vocabulary, width), width),
        "positions": _normal(keys, (length, width), width),
        "blocks": blocks,
        "norm": jnp.ones(width),
        "unembedding": _normal(keys, (width, vocabulary), width),
    }


def _init_block(keys: Iterator[PRNGKeyArray], width: int, heads: int) -> dict[str, Array]:
    return {
        "attend": _normal(keys, (width, 3, heads, width // heads), width),
        "merge": _normal(keys, (heads, width // heads, width), width),
        "up": _normal(keys, (width, 4 * width), width),
        "down": _normal(keys, (4 * width, width), 4 * width),
        "first_norm": jnp.ones(width),
        "second_norm": jnp.ones(width),
    }


def _normal(keys: Iterator[PRNGKeyArray], shape: Sequence[int], fan_in: int) -> Array:
    return jax.random.normal(next(keys), shape) / math.sqrt(fan_in)


def logits_of(params: PyTree, tokens: Array) -> Array:
    """Logits of the next token at every position."""
    stream = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
    for block in params["blocks"]:
        stream = stream + _attention(block, _normalized(stream, block["first_norm"]))
        hidden = jax.nn.gelu(_normalized(stream, block["second_norm"]) @ block["up"])
        stream = stream + hidden @ block["down"]
    return _normalized(stream, params["norm"]) @ params["unembedding"]


def _attention(block: dict[str, Array], stream: Array) -> Array:
    query, key, value = jnp.einsum("btw,wjhd->jbthd", stream, block["attend"])
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    return jnp.einsum("bhts,bshd,hdw->btw", weights, value, block["merge"])


def _normalized(stream: Array, scale: Array) -> Array:
    stream = stream - stream.mean(axis=-1, keepdims=True)
    return scale * stream * jax.lax.rsqrt((stream**2).mean(axis=-1, keepdims=True) + 1e-5)


# Training


def train(key: PRNGKeyArray, network: Network, stops: Sequence[int] | None = None) -> dict[int, PyTree]:
    """Parameters after each number of steps in `stops` (by default the whole training), as one run.

    Args:
        key: of the minibatches.
        network: with how it is trained.
        stops: rising.
    """
    training = network.training
    optimizer = optax.adamw(training.learning_rate, weight_decay=training.weight_decay)
    data = jax.tree.map(jnp.asarray, network.data)
    num_data = len(jax.tree.leaves(data)[0])

    def step(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, index), (min(training.batch_size, num_data),), 0, num_data)
        batch = jax.tree.map(lambda x: x[rows], data)
        gradient = jax.grad(lambda p: network.loss_fn(p, batch).mean())(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda start, stop, carry: jax.lax.fori_loop(start, stop, step, carry))
    carry, done, found = (network.start, optimizer.init(network.start)), 0, {}
    for stop in stops or (training.steps,):
        carry, done = run(done, stop, carry), stop
        found[stop] = carry[0]
    return found
