"""Points at which the bounds of the rank do not hold, and the assumption that fails at each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from zoo_case import Build

import llc

FAILS = "an assumption fails"
INPUTS = np.random.default_rng(0).normal(size=(64, 2)).tolist()  # of the ReLU unit


class Failing(NamedTuple):
    """A point where the bounds do not hold.

    Attributes:
        name: unique.
        build: as in the zoo.
        assumption: that fails.
        learning_coefficient: λ, where the point has one.
        dim: d.
    """

    name: str
    build: Build
    assumption: str
    learning_coefficient: float | None
    dim: int
    family: str = FAILS


def _at(loss: Callable[..., Array], center: Sequence[float]) -> Build:
    def build(_key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
        return llc.LocalPosterior(lambda w, _batch: loss(*w), np.asarray(center, float), np.zeros((n, 0)), gamma=1.0)

    return build


def _relu_unit(u: Array, v: Array) -> Array:
    return 0.5 * jnp.mean(jax.nn.relu(jnp.asarray(INPUTS) @ jnp.stack([u, v])) ** 2)


def _cube(a: Array, b: Array) -> Array:
    return 0.5 * a**2 + jnp.abs(b) ** 3 / 6


def _half_plane(a: Array, b: Array) -> Array:
    return jnp.where(b < 0, jnp.inf, 0.5 * a**2 + jnp.abs(b) * b**2)


def _saddle(a: Array, b: Array) -> Array:
    return 0.5 * a**2 - 0.5 * b**2 + b**4


FAILING = (
    Failing("|b|^3 beside a regular direction", _at(_cube, (0, 0)), "smooth", 5 / 6, 2),
    Failing("|a b|", _at(lambda a, b: jnp.abs(a * b), (0, 0)), "smooth", 1.0, 2),
    Failing("ReLU unit of zero weights", _at(_relu_unit, (0, 0)), "smooth", 1.0, 2),
    Failing("boundary, b^3 for b >= 0", _at(_half_plane, (0, 0)), "smooth", 5 / 6, 2),
    Failing("saddle", _at(_saddle, (0, 0)), "no negative curvature", None, 2),
    Failing("0.3 off a regular minimum", _at(lambda a, b: 0.5 * (a**2 + b**2), (0.3, 0.3)), "stationary", None, 2),
)
