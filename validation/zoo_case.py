"""The record of a point with known λ, and the posterior of a population loss."""

from collections.abc import Callable
from typing import NamedTuple

import exact
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree
from theory import Coefficient

import llc

Build = Callable[[PRNGKeyArray, int], llc.LocalPosterior]
MomentsFn = Callable[[float, float], exact.Moments]


class Case(NamedTuple):
    """A point with known λ.

    Attributes:
        name: unique.
        family: kind of model.
        build: `build(key, n)`, the posterior at w* with nβ = n / log n and γ = 1.
        learning_coefficient: λ(w*), local.
        multiplicity: m.
        rank: of the Hessian of the population loss at w*.
        dim: d.
        moments: `moments(nbeta, gamma)`, exact mean and variance of nβK, where they can be integrated.
        reference: where λ comes from.
    """

    name: str
    family: str
    build: Build
    learning_coefficient: float
    multiplicity: int | None
    rank: int
    dim: int
    moments: MomentsFn | None
    reference: str


def case_of(
    name: str,
    family: str,
    build: Build,
    coefficient: Coefficient,
    rank: int,
    dim: int,
    reference: str,
    moments: MomentsFn | None = None,
) -> Case:
    """The record, with λ as a float."""
    value, multiplicity = coefficient
    return Case(name, family, build, float(value), multiplicity, rank, dim, moments, reference)


def population(loss: Callable[[PyTree], Array], center: PyTree) -> Build:
    """The posterior of K = `loss(params)` at `center`, whatever the key."""

    def build(_key: PRNGKeyArray, n: int) -> llc.LocalPosterior:
        return llc.LocalPosterior(lambda params, _batch: loss(params), center, np.zeros((n, 0)), gamma=1.0)

    return build
