"""The settings of speed.py, and the models whose steps it times."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import llc

LossFn = Callable[[PyTree, PyTree], Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    repeats: int = 3
    tries: int = 1  # of one measurement, until others leave the machine alone; the quietest counts
    num_chains: int = 4
    num_data: int = 10_000
    batch_size: int = 512
    num_steps: int = 1000  # of a chain, in every variant of the deep linear net
    mlp_steps: int = 100  # of the MLP, whose step takes 50 times as long
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
    repeats=1, num_steps=50, part_seconds=0.02, widths=(20, 97), sweep_steps=20, mcmc_widths=(8,), mcmc_draws=20
)


class Problem(NamedTuple):
    """A model with its data."""

    name: str
    posterior: llc.LocalPosterior
    count: "Counter"


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
        return 0.5 * jnp.mean(jnp.sum((functools.reduce(jnp.matmul, params, x) - y) ** 2, axis=1))

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
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(hidden @ weight + bias, labels))

    return _problem(name, loss_fn, params, data, settings)


def _problem(name: str, loss_fn: LossFn, params: PyTree, data: PyTree, settings: Settings) -> Problem:
    counter = Counter(loss_fn)
    params, data = jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype == float else np.int32), (params, data))
    return Problem(name, llc.LocalPosterior(counter, params, data, gamma=settings.gamma), counter)
