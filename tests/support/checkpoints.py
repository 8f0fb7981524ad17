"""A small network along a made-up training run, in a module: worker processes find its loss here."""

import jax.numpy as jnp
import numpy as np

import llc

NUM_DATA = 200
LENGTHS = {"num_chains": 2, "num_warmup": 200, "num_draws": 200, "thinning": 5}


def loss_fn(params, batch):
    inputs, targets = batch
    return 0.5 * jnp.sum((jnp.tanh(inputs @ params["first"]) @ params["second"] - targets) ** 2, axis=-1)


def params_at(distance):
    """Away from the minimum by `distance`, along one direction."""
    rng = np.random.default_rng(0)
    shapes = {"first": (3, 2), "second": (2, 2)}
    center = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return {
        name: (center[name] + distance * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }


def posterior(**keywords):
    inputs = np.random.default_rng(1).normal(size=(NUM_DATA, 3)).astype(np.float32)
    center = params_at(0.0)
    targets = np.tanh(inputs @ center["first"]) @ center["second"]
    return llc.LocalPosterior(loss_fn, center, (inputs, targets), **keywords)


def checkpoints(number=3):
    """Params by name: nearer and nearer to the minimum, which is the last."""
    return {f"step_{10 * i}": params_at(0.1 * (number - 1 - i)) for i in range(number)}


def write(folder, number=3):
    """The same as files."""
    for name, params in checkpoints(number).items():
        llc.save_params(folder / f"{name}.npz", params)
    return [folder / f"step_{10 * i}.npz" for i in range(number)]
