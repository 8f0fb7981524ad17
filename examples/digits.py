"""How many effective parameters has a network that reads digits?

Trains a small equinox network on scikit-learn's digits to a minimum with optax, estimates its local learning
coefficient with SGLD, prints the report and saves the dashboard. About a minute on two cores.

    uv run python examples/digits.py --hidden 12
"""

import argparse
import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    num_images: int = 1797  # of the data set, the first ones
    hidden: int = 12  # units of the hidden layer; 64 × 12 + 12 + 12 × 10 + 10 = 910 parameters
    smoothing: float = 0.1  # of the labels, so that cross-entropy has a minimum at finite parameters
    train_steps: int = 3000  # of L-BFGS on all images
    num_draws: int = 2000  # a chain, ten SGLD steps apart
    seed: int = 0
    out: Path = Path("digits.png")


def main(settings: Settings) -> llc.Report:
    model_key, key = jax.random.split(jax.random.key(settings.seed))
    images, labels = (array[: settings.num_images] for array in load_digits(return_X_y=True))
    inputs = ((images - images.mean(0)) / (images.std(0) + 1.0)).astype(np.float32)
    data = inputs, np.asarray(optax.losses.smooth_labels(jax.nn.one_hot(labels, 10), settings.smoothing))

    model = eqx.nn.MLP(64, 10, settings.hidden, depth=1, activation=jnp.tanh, key=model_key)
    model = train(model, data, settings.train_steps)
    print(f"trained: loss {loss_fn(model, data).mean():.5f}, gradient norm {gradient_norm(model, data):.1e}")

    posterior = llc.LocalPosterior(loss_fn, model, data)
    report = llc.estimate(key, posterior, num_draws=settings.num_draws)
    print(report)
    llc.plot_report(report).savefig(settings.out)
    print(f"dashboard: {settings.out}")
    return report


def loss_fn(model: eqx.nn.MLP, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross-entropy of every image, in nats."""
    inputs, targets = batch
    return optax.losses.softmax_cross_entropy(jax.vmap(model)(inputs), targets)


def train(model: eqx.nn.MLP, data: tuple[np.ndarray, np.ndarray], num_steps: int) -> eqx.nn.MLP:
    """Full-batch L-BFGS to a minimum."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def mean_loss(params: eqx.nn.MLP) -> jax.Array:
        return loss_fn(eqx.combine(params, static), data).mean()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(mean_loss)

    def step(_: int, carry: tuple[eqx.nn.MLP, optax.OptState]) -> tuple[eqx.nn.MLP, optax.OptState]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=mean_loss)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda params: jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0])
    return eqx.combine(run(params), static)


def gradient_norm(model: eqx.nn.MLP, data: tuple[np.ndarray, np.ndarray]) -> float:
    gradient = eqx.filter_grad(lambda model: loss_fn(model, data).mean())(model)
    return float(optax.tree.norm(eqx.filter(gradient, eqx.is_inexact_array)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    main(Settings(**vars(parser.parse_args())))
