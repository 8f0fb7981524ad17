"""The settings of speed.py, and the models whose steps it times."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import llc

NUM_IN_PARTS = 2  # of the models whose step is taken apart, too
LossFn = Callable[[PyTree, PyTree], Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    repeats: int = 3
    tries: int = 1  # of one measurement, until others leave the machine alone; the quietest counts
    num_chains: int = 4
    num_threads: int = os.cpu_count() or 1  # of the scan on all cores
    num_data: int = 10_000
    batch_size: int = 512
    num_steps: int = 1000  # of a chain, in every variant of the deep linear net
    mlp_steps: int = 300  # of the MLP, whose step takes 50 times as long, and of the convolutional net
    transformer_steps: int = 20
    transformer_data: int = 2000
    transformer_batch: int = 64  # sequences
    thinning: int = 10  # of the variant that does not draw at every step
    step_size: float = 1e-7  # small enough that no chain leaves
    gamma: float = 10.0
    part_seconds: float = 0.3  # length of one timed loop of the table of parts
    widths: tuple[int, ...] = (20, 47, 97, 138, 197, 280, 364)  # MLPs with 1k, 5k, 20k, 40k, 80k, 160k, 270k parameters
    sweep_steps: int = 200
    mcmc_widths: tuple[int, ...] = (1, 8, 20)  # 24, 234 and 1,050 parameters
    mcmc_data: int = 500
    mcmc_warmup: int = 100
    mcmc_draws: int = 100


QUICK = Settings(
    repeats=1,
    num_steps=50,
    mlp_steps=10,
    transformer_steps=10,
    transformer_data=100,
    transformer_batch=10,
    part_seconds=0.02,
    widths=(20, 97),
    sweep_steps=20,
    mcmc_widths=(8,),
    mcmc_draws=20,
)


class Problem(NamedTuple):
    """A model with its data, and whether draws at every step are timed, too: of a costly one they take minutes."""

    name: str
    posterior: llc.LocalPosterior
    count: "Counter"
    often: bool = True


class Counter:
    """A loss function that counts how often it is traced or called."""

    def __init__(self, loss_fn: LossFn) -> None:
        self.loss_fn, self.calls = loss_fn, 0

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        """The loss."""
        self.calls += 1
        return self.loss_fn(params, batch)


def deep_linear(settings: Settings) -> Problem:
    """Four 20×20 matrices, squared error: 1,600 parameters."""
    rng = np.random.default_rng(settings.seed)
    matrices = [rng.normal(size=(20, 20)) / math.sqrt(20) for _ in range(4)]
    x = rng.normal(size=(settings.num_data, 20))
    y = functools.reduce(np.matmul, matrices, x) + rng.normal(size=x.shape)

    def loss_fn(params: list[Array], batch: tuple[Array, Array]) -> Array:
        x, y = batch
        return 0.5 * jnp.sum((functools.reduce(jnp.matmul, params, x) - y) ** 2, axis=1)

    return _problem("deep linear", loss_fn, matrices, (x, y), settings)


def mlp(settings: Settings, sizes: tuple[int, ...], num_data: int, name: str) -> Problem:
    """ReLU network with cross-entropy, on generated data."""
    rng = np.random.default_rng(settings.seed)
    params = [(rng.normal(size=shape) / math.sqrt(shape[0]), np.zeros(shape[1])) for shape in itertools.pairwise(sizes)]
    data = rng.normal(size=(num_data, sizes[0])), rng.integers(sizes[-1], size=num_data)

    def loss_fn(params: list[tuple[Array, Array]], batch: tuple[Array, Array]) -> Array:
        hidden, labels = batch
        for weight, bias in params[:-1]:
            hidden = jax.nn.relu(hidden @ weight + bias)
        weight, bias = params[-1]
        return optax.losses.softmax_cross_entropy_with_integer_labels(hidden @ weight + bias, labels)

    return _problem(name, loss_fn, params, data, settings)


def convolutional(settings: Settings) -> Problem:
    """Two 3×3 convolutions of stride 2 and a linear layer on 28×28 images, cross-entropy: 20,490 parameters."""
    rng = np.random.default_rng(settings.seed)
    shapes = (16, 1, 3, 3), (32, 16, 3, 3)
    kernels = [(rng.normal(size=shape) / math.sqrt(9 * shape[1]), np.zeros(shape[0])) for shape in shapes]
    params = kernels, (rng.normal(size=(32 * 7 * 7, 10)) / 40, np.zeros(10))
    data = rng.normal(size=(settings.num_data, 1, 28, 28)), rng.integers(10, size=settings.num_data)

    def loss_fn(params: PyTree, batch: tuple[Array, Array]) -> Array:
        images, labels = batch
        kernels, (weight, bias) = params
        for kernel, shift in kernels:
            images = jax.lax.conv(images, kernel, (2, 2), "SAME") + shift[:, None, None]
            images = jax.nn.relu(images)
        logits = images.reshape(len(images), -1) @ weight + bias
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    return _problem("conv net", loss_fn, params, data, settings)


def transformer(settings: Settings) -> Problem:
    """Four pre-norm layers of width 128 on sequences of 32 tokens, next-token loss: about 800,000 parameters."""
    vocab, length, width, heads, layers = 64, 32, 128, 4, 4
    rng = np.random.default_rng(settings.seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / math.sqrt(shape[0])

    block = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    blocks = [{name: normal(*shape) for name, shape in block.items()} for _ in range(layers)]
    params = {"embed": normal(vocab, width), "place": normal(length, width), "blocks": blocks}
    params["unembed"] = normal(width, vocab)
    tokens = rng.integers(vocab, size=(settings.num_data, length + 1))

    def norm(x: Array) -> Array:
        return jax.nn.standardize(x, axis=-1)

    def loss_fn(params: PyTree, batch: tuple[Array]) -> Array:
        (tokens,) = batch
        x = params["embed"][tokens[:, :-1]] + params["place"]
        for layer in params["blocks"]:
            q, k, v = jnp.split(norm(x) @ layer["qkv"], 3, axis=-1)
            q, k, v = (part.reshape(*x.shape[:2], heads, -1) for part in (q, k, v))
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.reshape(x.shape) @ layer["out"]
            x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
        logits = norm(x) @ params["unembed"]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses, axis=1)

    return _problem("transformer", loss_fn, params, (tokens,), settings)


def problems(settings: Settings) -> list[tuple[Problem, Settings]]:
    """The models of the throughput table, each with the settings that its runs take."""
    with_mlp_steps = dataclasses.replace(settings, num_steps=min(settings.num_steps, settings.mlp_steps))
    of_sequences = dataclasses.replace(
        settings,
        num_steps=settings.transformer_steps,
        num_data=settings.transformer_data,
        batch_size=settings.transformer_batch,
    )
    return [
        (deep_linear(settings), settings),
        (mlp(settings, (784, 256, 256, 10), settings.num_data, "MLP"), with_mlp_steps),
        (convolutional(settings), with_mlp_steps),
        (transformer(of_sequences)._replace(often=False), of_sequences),
    ]


def _problem(name: str, loss_fn: LossFn, params: PyTree, data: PyTree, settings: Settings) -> Problem:
    counter = Counter(loss_fn)
    params, data = jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype == float else np.int32), (params, data))
    return Problem(name, llc.LocalPosterior(counter, params, data, gamma=settings.gamma), counter)
