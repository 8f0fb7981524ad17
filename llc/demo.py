"""A small real problem for `llc demo`: a tanh network on scikit-learn's digits, trained to a minimum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior

_HIDDEN, _CLASSES, _SMOOTHING = 6, 10, 0.1  # smoothed labels keep the minimum at finite parameters
_STEPS = 3000


class Layer(NamedTuple):
    """Weights and biases of one affine map."""

    weight: Float[Array, "in out"]
    bias: Float[Array, "out"]


def digits_posterior(key: PRNGKeyArray) -> LocalPosterior:
    """The posterior at a trained network with 6 hidden units: 1,797 images of 8×8 pixels, cross-entropy.

    Raises:
        ImportError: if scikit-learn, which holds the images, is not installed.
    """
    data = _digits()
    params = _train(_init(key, data[0].shape[1]), data)
    return LocalPosterior(cross_entropy, params, data, predict_fn=lambda params, batch: logits(params, batch[0]))


def logits(params: tuple[Layer, ...], inputs: Float[Array, "batch pixel"]) -> Float[Array, "batch digit"]:
    """Outputs of the network, before the softmax."""
    *hidden, last = params
    for layer in hidden:
        inputs = jnp.tanh(inputs @ layer.weight + layer.bias)
    return inputs @ last.weight + last.bias


def cross_entropy(params: tuple[Layer, ...], batch: tuple[ArrayLike, ArrayLike]) -> Float[Array, "batch"]:
    """Negative log likelihood of the smoothed labels, per image, in nats."""
    inputs, targets = batch
    return optax.losses.softmax_cross_entropy(logits(params, jnp.asarray(inputs)), jnp.asarray(targets))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn's digits; install llc[demo].") from error
    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    inputs = ((images - images.mean(0)) / (images.std(0) + 1.0)).astype(np.float32)
    targets = optax.losses.smooth_labels(jax.nn.one_hot(labels, _CLASSES), _SMOOTHING)
    return inputs, np.asarray(targets)


def _init(key: PRNGKeyArray, num_inputs: int) -> tuple[Layer, ...]:
    sizes = (num_inputs, _HIDDEN, _CLASSES)
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(
        Layer(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )


def _train(params: PyTree, data: tuple[np.ndarray, np.ndarray]) -> PyTree:
    """Full-batch L-BFGS: the bounds need a minimum, not a small loss."""

    def loss_fn(params: PyTree) -> jax.Array:
        return jnp.mean(cross_entropy(params, data))

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss_fn)

    def step(_: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    return jax.jit(lambda p: jax.lax.fori_loop(0, _STEPS, step, (p, optimizer.init(p)))[0])(params)
