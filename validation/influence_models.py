"""Two small models of digits, trained to a minimum by Newton's method, with their derivatives and retraining."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

Loss = Callable[[Any, Any], jax.Array]


class Sizes(Protocol):
    """What a model needs of the study's settings."""

    seed: int
    num_train: int
    num_queries: int
    num_features: int
    hidden: int
    decay: float
    gamma: float
    newton_steps: int


class Model(NamedTuple):
    """A loss per image with its decay, params at the minimum of the training images, and both sets of images."""

    loss_fn: Loss
    center: Any
    train: tuple[np.ndarray, np.ndarray]
    queries: tuple[np.ndarray, np.ndarray]
    components: dict[str, str]


def make_model(case: str, settings: Sizes) -> Model:
    images, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    total = settings.num_train + settings.num_queries
    chosen = np.random.default_rng(settings.seed).permutation(len(images))[:total]
    centered = images[chosen] - images.mean(0)
    _, _, axes = np.linalg.svd(images - images.mean(0), full_matrices=False)
    inputs = (centered @ axes[: settings.num_features].T).astype(np.float32)
    inputs = inputs / inputs.std(0)
    first, rest = slice(settings.num_train), slice(settings.num_train, None)
    sets = [(inputs[part], labels[chosen][part]) for part in (first, rest)]
    rng, width = np.random.default_rng(settings.seed), settings.num_features

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    if case == "network":
        start = {"first": {"w": normal(width, settings.hidden), "b": jnp.zeros(settings.hidden)}}
        start["second"] = {"w": normal(settings.hidden, 10), "b": jnp.zeros(10)}
        components = {"first layer": "first", "second layer": "second"}
    else:
        start = {"first": {"w": normal(width, 10), "b": jnp.zeros(10)}}
        components = {"weights": "first.w", "biases": "first.b"}

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        hidden = batch[0] @ params["first"]["w"] + params["first"]["b"]
        logits = hidden if "second" not in params else jnp.tanh(hidden) @ params["second"]["w"] + params["second"]["b"]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1)[:, 0]
        return losses + 0.5 * settings.decay * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    model = Model(loss_fn, start, sets[0], sets[1], components)
    center = retrained(model, np.ones(settings.num_train), 100 * settings.newton_steps)
    return model._replace(center=center)


def retrained(model: Model, weights: np.ndarray, num_steps: int) -> Any:
    """The minimum of the weighted mean loss, by damped Newton steps from the center, in float64."""
    with jax.enable_x64(True):
        center = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.center)
        found = _newton(model.loss_fn, center, model.train, jnp.asarray(weights), jnp.asarray(num_steps))
        return jax.tree.map(lambda x: np.asarray(x, np.float32), found)


@functools.partial(jax.jit, static_argnums=0)
def _newton(loss_fn: Loss, center: Any, data: Any, weights: jax.Array, num_steps: jax.Array) -> Any:
    flat, unravel = jax.flatten_util.ravel_pytree(center)

    def mean(w: jax.Array) -> jax.Array:
        return jnp.sum(weights * loss_fn(unravel(w), data)) / jnp.sum(weights)

    def step(_: int, w: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(jax.hessian(mean)(w))
        direction = vectors @ ((vectors.T @ jax.grad(mean)(w)) / jnp.maximum(jnp.abs(values), 1e-4))
        sizes = 0.5 ** jnp.arange(8.0)
        losses = jax.vmap(lambda s: mean(w - s * direction))(sizes)
        return w - sizes[jnp.nanargmin(losses)] * direction

    return unravel(jax.lax.fori_loop(0, num_steps, step, flat))


class Derivatives(NamedTuple):
    """At w* in float64: the Hessian of the mean loss, gradients of rows, and Hessians of rows."""

    hessian: np.ndarray
    train: np.ndarray
    queries: np.ndarray
    train_hessians: np.ndarray
    query_hessians: np.ndarray


def derivatives(model: Model) -> Derivatives:
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.center))

        def of(data: Any) -> tuple[np.ndarray, np.ndarray]:
            rows = jax.tree.map(lambda x: jnp.asarray(x)[:, None], data)

            def one(row: Any) -> tuple[jax.Array, jax.Array]:
                def loss(w: jax.Array) -> jax.Array:
                    return model.loss_fn(unravel(w), row)[0]

                return jax.grad(loss)(flat), jax.hessian(loss)(flat)

            gradients, hessians = jax.jit(lambda rows: jax.lax.map(one, rows))(rows)
            return np.asarray(gradients), np.asarray(hessians)

        (train, train_hessians), (queries, query_hessians) = of(model.train), of(model.queries)
    return Derivatives(train_hessians.mean(axis=0), train, queries, train_hessians, query_hessians)


def gaussian_covariances(exact: Derivatives, settings: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """gᵀΣg + ½ tr(ΣHΣH), and its first term."""
    dim = len(exact.hessian)
    sigma = np.linalg.inv(settings.num_train * exact.hessian + settings.gamma * np.eye(dim))
    first = exact.train @ sigma @ exact.queries.T
    left, right = (h @ sigma for h in (exact.train_hessians, exact.query_hessians))
    second = left.reshape(len(left), -1) @ right.transpose(0, 2, 1).reshape(len(right), -1).T
    return first + 0.5 * second, first
