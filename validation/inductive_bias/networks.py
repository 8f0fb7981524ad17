"""What the studies share: small networks in plain arrays, descent on them, and λ̂ of what was learnt."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import llc

Params = dict[str, Array]
Data = tuple[Array, Array]
Interval = tuple[float, float, float]  # value, and the ends of its 95 % interval


def init(key: Array, widths: tuple[int, ...], scale: float = 1.0) -> Params:
    """Weights of variance scale² / fan-in, and zero biases."""
    keys = jax.random.split(key, len(widths) - 1)
    params: Params = {}
    for i, (k, fan_in, fan_out) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True)):
        params[f"w{i}"] = scale * jax.random.normal(k, (fan_in, fan_out)) / fan_in**0.5
        params[f"b{i}"] = jnp.zeros(fan_out, params[f"w{i}"].dtype)
    return params


def predict(params: Params, inputs: Array) -> Array:
    """Outputs of the network with tanh units, (n, k)."""
    depth = len(params) // 2
    for i in range(depth):
        inputs = inputs @ params[f"w{i}"] + params[f"b{i}"]
        inputs = jnp.tanh(inputs) if i < depth - 1 else inputs
    return inputs


def loss_fn(params: Params, batch: Data) -> Array:
    """½ ‖f − y‖² of each example."""
    inputs, labels = batch
    return 0.5 * jnp.sum((predict(params, inputs) - labels) ** 2, axis=-1)


def mean_loss(params: Params, batch: Data) -> Array:
    """Mean over the examples."""
    return jnp.mean(loss_fn(params, batch))


def step(loss: Callable[[Params], Array], params: Params, step_size: float | Array) -> Params:
    """One step of gradient descent."""
    return jax.tree.map(lambda w, g: w - step_size * g, params, jax.grad(loss)(params))


def adam(
    loss: Callable[[Params, Array], Array], params: Params, key: Array, num_steps: int, step_size: float
) -> Params:
    """After steps of Adam that fall to zero; `loss(params, key)` gets a new key at every step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(step_size, num_steps))

    def update(i: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        slope = jax.grad(loss)(carry[0], jax.random.fold_in(key, i))
        updates, state = optimizer.update(slope, carry[1])
        return jax.tree.map(jnp.add, carry[0], updates), state

    return jax.lax.fori_loop(0, num_steps, update, (params, optimizer.init(params)))[0]


class Measured(NamedTuple):
    """λ̂ ± mcse at one scale, and what the curvature says."""

    llc: float
    mcse: float
    quad: float
    sharpness: float
    trace: float


def measure(key: Array, posterior: llc.LocalPosterior, *, num_draws: int = 500, num_chains: int = 4) -> Measured:
    """λ̂ by SGLD with all the data and steps well below the limit of stability, at the posterior's own nβ and γ."""
    spectrum = llc.spectrum(posterior)
    scale = posterior.scale
    step_size = 0.2 / (scale.nbeta * spectrum.largest + scale.gamma)
    lengths = {"num_chains": num_chains, "num_warmup": num_draws, "num_draws": num_draws, "thinning": 4}
    draws = llc.sample(key, posterior, llc.SGLD(step_size), spectrum=spectrum, progress=False, **lengths)
    estimate = llc.mean_energy(draws)
    quad = llc.rank_bounds(spectrum, nbeta=scale.nbeta, gamma=scale.gamma).quad
    trace = float(spectrum.sum(lambda h: h))
    return Measured(float(estimate.value), float(estimate.mcse), float(quad), float(spectrum.largest), trace)


def paired_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean over the seeds with its 95 % interval, by the bootstrap."""
    rng = np.random.default_rng(seed)
    means = np.mean(values[rng.integers(0, len(values), (4000, len(values)))], axis=1)
    return float(np.mean(values)), *(float(q) for q in np.quantile(means, [0.025, 0.975]))
