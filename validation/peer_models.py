"""The models on which peer_accuracy.py compares: a loss of peers/losses.py with its arrays, w*, γ and exact value."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import exact
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from peers.losses import LOSSES

import llc

Moments = Callable[[float, float], exact.Moments]  # of nβ and γ


class Model(NamedTuple):
    """A loss with its arrays, w* and γ."""

    name: str
    center: np.ndarray
    arrays: tuple[np.ndarray, ...]
    population: bool  # the arrays are constants of K, not data
    gamma: float | None = 1.0  # None: llc's choice, which the others take over
    moments: Moments | None = None
    minibatches: bool = False  # for the peer

    def posterior(self, num_data: int) -> llc.LocalPosterior:
        """The posterior at nβ = n / log n; a population loss takes no more than n from its rows."""
        loss = LOSSES[self.name]
        center = np.asarray(self.center, np.float32)
        if self.population:

            def population_loss(
                w: Array, _: PyTree
            ) -> Array:  # asarray in here: the constants follow the precision in which llc calls
                return loss(jnp, w, *map(jnp.asarray, self.arrays))

            return llc.LocalPosterior(population_loss, center, np.zeros((num_data, 0)), gamma=self.gamma)
        return llc.LocalPosterior(lambda w, batch: loss(jnp, w, *batch), center, self.arrays, gamma=self.gamma)


def model(name: str, *, seed: int, num_data: int) -> Model:
    """One model by its name in validation/peers/losses.py."""
    if name.startswith("polynomial net"):
        power, depth = (int(part.split("=")[1]) for part in name.removeprefix("polynomial net ").split(", "))
        return polynomial_net(name, power, depth)
    return {
        "w²/2 in 10 d": lambda: _population(name, 10, lambda t, g: exact.quadratic([1.0] * 10, t, g)),
        "w⁴/2": lambda: _population(name, 1, lambda t, g: exact.log_grid(lambda w: 0.5 * w**4, 1, t, g)),
        "(w₁w₂)²/2": lambda: _population(
            name, 2, lambda t, g: exact.log_grid(lambda v, w: 0.5 * (v * w) ** 2, 2, t, g)
        ),
        "(w₁²+w₂²)²/2": lambda: _population(
            name, 2, lambda t, g: exact.log_grid(lambda v, w: 0.5 * (v**2 + w**2) ** 2, 2, t, g)
        ),
        "reduced rank 2-2-2": lambda: _population(name, 8, lambda t, g: exact.reduced_rank(2, 2, t, g)),
        "deep linear net": lambda: deep_linear(name, np.random.default_rng(seed), num_data),
        "tanh net on digits": lambda: digits(name, seed),
    }[name]()


def _population(name: str, dim: int, moments: Moments, constants: tuple[np.ndarray, ...] = ()) -> Model:
    """A loss K(w) at zero."""
    return Model(name, np.zeros(dim), constants, population=True, moments=moments)


def polynomial_net(name: str, power: int, depth: int) -> Model:
    """Two parameters at zero; the exact value by adaptive cubature, e^−40 of the localization left out."""
    roots = np.exp(2j * np.pi * np.arange(power ** (depth - 1) + 1) / (power ** (depth - 1) + 1))
    inputs = np.stack([np.ones_like(roots), roots])

    def moments(nbeta: float, gamma: float) -> exact.Moments:
        loss = functools.partial(LOSSES[name], np)
        half = math.sqrt(2 * 40 / gamma)
        return exact.cubature(
            lambda *w: loss(np.stack(w, -1), inputs.real, inputs.imag), [-half] * 2, [half] * 2, nbeta, gamma
        )

    return _population(name, 2, moments, (inputs.real, inputs.imag))


def deep_linear(name: str, rng: np.random.Generator, num_data: int, width: int = 5, depth: int = 4) -> Model:
    """100 parameters: all matrices and their product have rank 3 and singular values 1. No noise; γ = 10."""
    rank = 3
    frames = [np.linalg.qr(rng.normal(size=(width, width)))[0][:, :rank] for _ in range(depth + 1)]
    matrices = [(left @ right.T).astype(np.float32) for left, right in itertools.pairwise(frames)]
    x = rng.normal(size=(num_data, width)).astype(np.float32)
    y = functools.reduce(np.matmul, matrices, x)
    return Model(name, np.stack(matrices).ravel(), (x, y), population=False, gamma=10.0)


def digits(name: str, seed: int) -> Model:
    """460 parameters trained to a minimum: the net of `llc demo`."""
    trained = llc.demo.digits_posterior(jax.random.key(seed))
    center = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trained.center)])
    return Model(name, center, tuple(map(np.asarray, trained.data)), population=False, gamma=None, minibatches=True)
