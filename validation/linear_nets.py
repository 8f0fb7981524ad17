r"""Deep linear networks in the published setting, and the posterior at their own parameters.

A network $f(x) = x W_1 \cdots W_L$ is drawn as in Furman & Lau 2024 (arXiv 2402.03698): weights from a normal law cut
at two standard deviations of $1 / \sqrt{d_{i-1}}$; some matrices keep their largest singular values only.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import llc


@dataclass(frozen=True)
class Law:
    """What networks and inputs are drawn from."""

    seed: int = 0
    layers: tuple[int, int] = (2, 19)
    widths: tuple[int, int] = (2, 29)
    reduced: float = 0.5  # share of matrices whose rank is drawn
    num_data: int = 10_000
    half_range: float = 10.0  # of the inputs


class Net(NamedTuple):
    """Matrices W₁ … W_L (d₀×d₁, d₁×d₂, …), and their ranks."""

    weights: list[Float[np.ndarray, "inputs outputs"]]
    ranks: list[int]

    @property
    def widths(self) -> tuple[int, ...]:
        """d₀ … d_L."""
        return len(self.weights[0]), *(matrix.shape[1] for matrix in self.weights)


def generate(law: Law, index: int, *, widths: tuple[int, ...] | None = None) -> Net:
    """Network number `index`; with `widths` given, one of full rank."""
    rng = np.random.default_rng([law.seed, index])
    reduced = law.reduced if widths is None else 0.0
    if widths is None:
        num_layers = rng.integers(*law.layers, endpoint=True)
        widths = tuple(rng.integers(*law.widths, size=num_layers + 1, endpoint=True).tolist())
    weights, ranks = [], []
    for rows, columns in itertools.pairwise(widths):
        matrix = _truncated_normal(rng, (rows, columns)) / np.sqrt(rows)
        rank = min(rows, columns)
        if rng.random() < reduced:
            rank = int(rng.integers(1, rank, endpoint=True))
            left, values, right = np.linalg.svd(matrix, full_matrices=False)
            if rank < len(values):
                matrix = _rounded(left[:, :rank] * values[:rank]) @ _rounded(right[:rank])
        weights.append(matrix.astype(np.float32))
        ranks.append(rank)
    return Net(weights, ranks)


def _rounded(matrix: np.ndarray) -> np.ndarray:
    """Multiples of 2⁻¹¹: products below 4 then fit in float32's 24 bits, and their rank is exact."""
    return np.round(matrix * 2.0**11) / 2.0**11


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Standard normal numbers within two standard deviations, by rejection."""
    values = rng.normal(size=shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.normal(size=outside.sum())
    return values


def loss(widths: tuple[int, ...], vector: Array, batch: tuple[Array, Array]) -> Float[Array, "batch"]:
    """½‖f(x) − y‖².

    The matrices lie in one vector, which halves the compilation, and their product comes first, a tenth of the work of
    x layer by layer.
    """
    x, y = batch
    return 0.5 * jnp.sum((x @ functools.reduce(jnp.matmul, matrices(vector, widths)) - y) ** 2, axis=1)


def matrices[Vector: (Array, np.ndarray)](vector: Vector, widths: Sequence[int]) -> list[Vector]:
    """W₁ … W_L from one vector of all entries."""
    shapes = list(itertools.pairwise(widths))
    ends = itertools.accumulate(rows * columns for rows, columns in shapes)
    return [vector[end - a * b : end].reshape(a, b) for (a, b), end in zip(shapes, ends, strict=True)]


def make_posterior(net: Net, law: Law, index: int) -> llc.LocalPosterior:
    """The posterior at w*, with n inputs and the network's outputs."""
    rng = np.random.default_rng([law.seed, index, 1])
    shape = law.num_data, len(net.weights[0])
    inputs = rng.uniform(-law.half_range, law.half_range, shape).astype(np.float32)
    return posterior_at(net, inputs)


def sufficient(net: Net, posterior: llc.LocalPosterior) -> llc.LocalPosterior:
    """The same density from d₀ rows √d₀ Rᵀ with XᵀX / n = R Rᵀ."""
    inputs = np.asarray(posterior.data[0], np.float64)
    root = np.linalg.cholesky(inputs.T @ inputs / len(inputs))
    return posterior_at(net, np.sqrt(len(root)) * root.T, nbeta=float(posterior.nbeta))


def posterior_at(net: Net, inputs: np.ndarray, *, nbeta: float | None = None) -> llc.LocalPosterior:
    """The posterior at the network's own weights, with its outputs as targets, without γ."""
    targets = functools.reduce(np.matmul, net.weights, inputs.astype(np.float64))
    data = inputs.astype(np.float32), targets.astype(np.float32)
    center = np.concatenate([matrix.ravel() for matrix in net.weights])
    return llc.LocalPosterior(functools.partial(loss, net.widths), center, data, nbeta=nbeta)
