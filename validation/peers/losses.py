"""Losses of validation/peer_accuracy.py, each written once for JAX, PyTorch and NumPy.

A loss is `loss(xp, w, *arrays)`: `xp` is the array module (jax.numpy, torch or numpy) and w the flat vector of
parameters. The arrays are the rows of a minibatch where there are data, and constants where the loss is a population
loss K(w). The peer's Python 3.11 runs this file as well.
"""

# ruff: noqa: ARG001 - all losses take the array module, most need only operators

from collections.abc import Callable
from typing import Any

HIDDEN = 6  # units of the tanh net


def quadratic(xp: Any, w: Any) -> Any:
    """½ Σ wᵢ²."""
    return 0.5 * (w * w).sum()


def quartic(xp: Any, w: Any) -> Any:
    """½ Σ wᵢ⁴."""
    return 0.5 * (w**4).sum()


def normal_crossing(xp: Any, w: Any) -> Any:
    """½ (w₁w₂)²."""
    return 0.5 * (w[0] * w[1]) ** 2


def norm_quartic(xp: Any, w: Any) -> Any:
    """½ (Σ wᵢ²)²."""
    return 0.5 * (w * w).sum() ** 2


def reduced_rank(xp: Any, w: Any) -> Any:
    """½ ‖BA‖², A and B 2×2."""
    return 0.5 * ((w[4:].reshape(2, 2) @ w[:4].reshape(2, 2)) ** 2).sum()


def polynomial_net(power: int, depth: int) -> Callable[..., Any]:
    """The sum of squared coefficients of both outputs of Wσ(W…σ(Wx)), `depth` times W = [[a+b, a²], [a², b²]].

    σ(t) = t^power, so the outputs are forms in x₁ and x₂. At x = (1, ω), ω all N-th roots of unity and N above the
    degree, the mean of the squared modulus is the sum of the squared coefficients (Parseval). `real` and `imag` are
    the 2×N parts of those x. w may have leading axes.
    """

    def loss(xp: Any, w: Any, real: Any, imag: Any) -> Any:
        a, b = w[..., 0], w[..., 1]
        matrix = xp.stack([a + b, a * a, a * a, b * b], -1).reshape((*w.shape[:-1], 2, 2))
        re, im = matrix @ real, matrix @ imag
        for _ in range(depth - 1):
            power_re, power_im = re, im
            for _ in range(power - 1):
                power_re, power_im = power_re * re - power_im * im, power_re * im + power_im * re
            re, im = matrix @ power_re, matrix @ power_im
        return (re * re + im * im).sum((-2, -1)) / real.shape[-1]

    return loss


def deep_linear(xp: Any, w: Any, x: Any, y: Any) -> Any:
    """½ E‖xW₁…W_L − y‖², square matrices of the width of x."""
    outputs = x
    for matrix in w.reshape(-1, x.shape[1], x.shape[1]):
        outputs = outputs @ matrix
    return 0.5 * ((outputs - y) ** 2).sum(1).mean()


def tanh_net(xp: Any, w: Any, x: Any, y: Any) -> Any:
    """Cross-entropy of one layer of `HIDDEN` tanh units, y the probabilities of the classes."""
    split, classes = x.shape[1] * HIDDEN, y.shape[1]
    hidden = xp.tanh(x @ w[:split].reshape(-1, HIDDEN) + w[split : split + HIDDEN])
    outputs = hidden @ w[split + HIDDEN : -classes].reshape(HIDDEN, classes) + w[-classes:]
    outputs = outputs - outputs.max()  # a shift that no softmax sees; keeps exp finite
    return (xp.log(xp.exp(outputs).sum(1)) - (y * outputs).sum(1)).mean()


LOSSES: dict[str, Callable[..., Any]] = {
    "w²/2 in 10 d": quadratic,
    "w⁴/2": quartic,
    "(w₁w₂)²/2": normal_crossing,
    "(w₁²+w₂²)²/2": norm_quartic,
    "reduced rank 2-2-2": reduced_rank,
    "polynomial net k=2, L=1": polynomial_net(2, 1),
    "polynomial net k=2, L=2": polynomial_net(2, 2),
    "polynomial net k=2, L=3": polynomial_net(2, 3),
    "polynomial net k=2, L=4": polynomial_net(2, 4),
    "polynomial net k=3, L=2": polynomial_net(3, 2),
    "polynomial net k=3, L=3": polynomial_net(3, 3),
    "deep linear net": deep_linear,
    "tanh net on digits": tanh_net,
}
