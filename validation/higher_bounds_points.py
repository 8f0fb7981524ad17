"""The points of higher_bounds.py: strata of two-layer nets in one shape, and nets trained to loss zero."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array
from zoo_strata import stratum_weights

import llc
from llc.posterior.precision import float64

Activation = Callable[[Array], Array] | None

NETS = {  # widths, those of the net whose outputs are fitted, and what stands between the layers
    "linear 4-3-4": ((4, 3, 4), (4, 3, 4), None),
    "linear 3-4-4-3": ((3, 4, 4, 3), (3, 2, 3), None),
    "linear 4-4-4-4-4": ((4, 4, 4, 4, 4), (4, 2, 4), None),
    "tanh 2-3-1 of one unit": ((2, 3, 1), (2, 1, 1), jnp.tanh),
    "tanh 2-6-1 of three units": ((2, 6, 1), (2, 3, 1), jnp.tanh),
}


def stratum_posterior(point: tuple[int, ...], width: int) -> llc.LocalPosterior:
    """A two-layer net of one stratum in arrays of width × width; the mask is data, so that all are one program."""
    weights = stratum_weights(*point)  # pyright: ignore[reportArgumentType]
    masks = np.stack([_padded(np.ones_like(matrix), width) for matrix in weights])
    first, second = (_padded(matrix, width) for matrix in weights)
    data = np.eye(width), (second @ first).T, np.tile(masks, (width, 1, 1, 1))
    return llc.LocalPosterior(_linear_loss, [first, second], data, predict_fn=_linear_outputs)


def _padded(matrix: np.ndarray, width: int) -> np.ndarray:
    return np.pad(matrix, [(0, width - size) for size in matrix.shape])


def _linear_outputs(weights: list[Array], batch: tuple[Array, Array, Array]) -> Array:
    first, second = (mask * weight for mask, weight in zip(batch[2][0], weights, strict=True))
    return batch[0] @ first.T @ second.T


def _linear_loss(weights: list[Array], batch: tuple[Array, Array, Array]) -> Array:
    return 0.5 * jnp.sum((_linear_outputs(weights, batch) - batch[1]) ** 2, axis=-1)


def trained_posterior(name: str, *, seed: int, num_inputs: int) -> llc.LocalPosterior:
    """A net fitted to a smaller one by Levenberg–Marquardt in float64; the params are what is added to its weights.

    Params are float32 where JAX is: weights as data keep the residual at round-off.
    """
    widths, truth, activation = NETS[name]
    rng = np.random.default_rng([seed, list(NETS).index(name)])
    inputs = rng.normal(size=(num_inputs, widths[0]))
    targets = np.asarray(_net(_random(rng, truth), inputs, activation))
    start = _random(rng, widths)
    with float64():
        fitted = _fit(start, jnp.asarray(inputs), jnp.asarray(targets), activation)
        targets = np.asarray(_net(fitted, jnp.asarray(inputs), activation))  # its own outputs: the fit is exact
    predict_fn = functools.partial(_moved_net, activation)

    def loss_fn(params: list[Array], batch: dict[str, Any]) -> Array:
        return 0.5 * jnp.sum((predict_fn(params, batch) - batch["y"]) ** 2, axis=-1)

    repeated = [np.tile(w, (num_inputs, 1, 1)) for w in fitted]
    data = {"x": inputs, "y": targets, "weights": repeated}
    return llc.LocalPosterior(loss_fn, [np.zeros(w.shape) for w in start], data, predict_fn=predict_fn)


def _fit(start: list[np.ndarray], inputs: Array, targets: Array, activation: Activation) -> list[np.ndarray]:
    """Weights whose outputs are the targets, from a random start."""
    shapes, sizes = [w.shape for w in start], [w.size for w in start]

    def unflatten(vector: Array) -> list[Array]:
        parts = jnp.split(vector, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def residual(vector: Array) -> Array:
        return jnp.ravel(_net(unflatten(vector), inputs, activation) - targets)

    functions = jax.jit(residual), jax.jit(jax.jacfwd(residual))
    as_numpy = [lambda vector, fn=fn: np.asarray(fn(jnp.asarray(vector))) for fn in functions]
    flat = np.concatenate([w.ravel() for w in start])
    fit = scipy.optimize.least_squares(as_numpy[0], flat, as_numpy[1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    if fit.cost > 1e-12:
        raise ArithmeticError(f"the net did not fit: residuals of {fit.cost:.2g}")
    return [np.asarray(w) for w in unflatten(jnp.asarray(fit.x))]


def _random(rng: np.random.Generator, widths: Sequence[int]) -> list[np.ndarray]:
    return [rng.normal(size=shape) / np.sqrt(shape[0]) for shape in itertools.pairwise(widths)]


def _net(weights: Sequence[Any], x: Any, activation: Activation) -> Any:
    """Outputs, for arrays of NumPy or JAX."""
    for i, weight in enumerate(weights):
        x = x @ weight
        if activation is not None and i + 1 < len(weights):
            x = activation(x)
    return x


def _moved_net(activation: Activation, params: list[Array], batch: dict[str, Any]) -> Array:
    return _net([w[0] + p for w, p in zip(batch["weights"], params, strict=True)], batch["x"], activation)
