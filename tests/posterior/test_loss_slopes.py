"""The gradient of a loss is its derivative, and what has none or another one is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from tests.support.losses import DATA, PARAMS, cross_entropies, in_float32, outputs, squares


class Buffered(eqx.Module):
    offset: jax.Array
    w: jax.Array

    def __call__(self, x):
        return x @ self.w + jax.lax.stop_gradient(self.offset)


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e-4, 1e-4),))


@jax.custom_vjp
def flipped(x):
    return x


flipped.defvjp(lambda x: (x, None), lambda _, g: (0.9 * g,))


def straight_through(w):
    return w + jax.lax.stop_gradient(jnp.round(8 * w) / 8 - w)


def buffered(m, batch):
    return jnp.mean((m(batch["x"]) - batch["y"][:, 0]) ** 2)


def through(change):
    return lambda w, batch: squares(w | {"w": change(w["w"])}, batch)


BUFFERED = Buffered(jnp.float32(0.3), jnp.ones(4))


@jax.custom_jvp
def mistaken(x):
    return jnp.tanh(x)


mistaken.defjvp(lambda x, t: (jnp.tanh(x[0]), t[0]))


@jax.custom_vjp
def norm_clipped(x):
    return x


norm_clipped.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.maximum(1.0, jnp.linalg.norm(g) / 1e-2),))


def half_stopped(w):
    return jnp.concatenate([jax.lax.stop_gradient(w[:2]), w[2:]])


def routed(w, batch):
    """The choice of an expert has no gradient."""
    chosen = w["w"][jnp.argmax(batch["x"] @ w["gate"], axis=1)]
    return 0.5 * jnp.sum((jnp.einsum("ni,nio->no", batch["x"], chosen) - batch["y"]) ** 2, axis=1)


RNG = np.random.default_rng(1)
GATED = {
    "w": jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32),
    "gate": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32),
}
UNDEFINED = {  # finite losses whose gradient is none
    "norm at 0": lambda w, b: squares(w, b) + jnp.linalg.norm(w["z"]),
    "root at 0": lambda w, b: squares(w, b) + jnp.sum(jnp.sqrt(w["z"])),
    "other branch": lambda w, b: squares(w, b) + jnp.sum(jnp.where(w["z"] > 0, jnp.log(w["z"]), 0.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNDEFINED)
def test_a_gradient_that_is_not_finite_is_named(name):
    params = PARAMS | {"z": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"finite gradient at w\*, but that of \['z'\]"):
        LocalPosterior(UNDEFINED[name], params, DATA, gamma=1.0)
    LocalPosterior(UNDEFINED[name], params, DATA, gamma=1.0, mask=["w", "b"])
    LocalPosterior(UNDEFINED[name], params | {"z": jnp.ones(2)}, DATA, gamma=1.0)


STEPS = {
    "coarse rounding": (through(lambda w: jnp.round(4 * w) / 4), PARAMS, "'w'"),
    "sign": (through(jnp.sign), PARAMS, "'w'"),
    "argmax": (routed, GATED, "'gate'"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_loss_in_steps_is_refused(name):
    loss_fn, params, leaf = STEPS[name]
    with pytest.raises(ValueError, match=rf"along {leaf} the loss is piecewise constant"):
        LocalPosterior(loss_fn, params, DATA, gamma=1.0)
    LocalPosterior(loss_fn, params, DATA, gamma=1.0, mask="b" if "b" in params else "w")


JUMPS = {  # beside a part with a gradient
    "heaviside": lambda x: 0.1 * jnp.heaviside(x - 0.3, 0.0),
    "comparison": lambda x: jnp.where(x > 0.3, 0.1, 0.0),
    "sign": lambda x: 0.01 * jnp.sign(x),
    "rounding": lambda x: jnp.round(4 * x) / 4,
    "floor": lambda x: x - jnp.floor(x),
    "errors": lambda x: 1.0 * (jnp.argmax(x, axis=1, keepdims=True) == 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JUMPS)
def test_a_loss_that_jumps_is_refused(name):
    def loss_fn(w, batch):
        return squares(w, batch) + jnp.sum(JUMPS[name](outputs(w, batch)), axis=1)

    with pytest.raises(ValueError, match="loss_fn needs to be continuous"):
        LocalPosterior(loss_fn, PARAMS, DATA, gamma=1.0)


NO_GRADIENTS = {
    "custom_jvp of another function": (through(mistaken), PARAMS, "'w'"),
    "clipped by its norm": (through(norm_clipped), PARAMS, "'w'"),
    "half of a leaf": (through(half_stopped), PARAMS, "'w'"),
    "a target of its own": (
        lambda w, b: jnp.sum((outputs(w, b) - jax.lax.stop_gradient(2 * outputs(w, b))) ** 2, axis=1),
        PARAMS,
        "'[bw]'",
    ),
    "weights without gradient": (
        lambda w, b: jax.lax.stop_gradient(1 - jnp.exp(-cross_entropies(w, b))) * cross_entropies(w, b),
        PARAMS,
        "'[bw]'",
    ),
    "buffer": (buffered, BUFFERED, "offset"),
    "straight-through": (through(straight_through), PARAMS, "'w'"),
    "clipped": (through(clipped), PARAMS, "'w'"),
    "scaled": (through(flipped), PARAMS, "'w'"),
    "stop_gradient on one leaf": (lambda w, b: squares(w | {"b": jax.lax.stop_gradient(w["b"])}, b), PARAMS, "'b'"),
    "float32, stop_gradient": (
        lambda w, b: in_float32(w | {"b": jax.lax.stop_gradient(w["b"])}, b),
        {"w": 3 * PARAMS["w"], "b": 40 * PARAMS["b"]},
        "'b'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_GRADIENTS)
def test_a_gradient_that_is_not_the_derivative_is_refused(name):
    loss_fn, params, leaf = NO_GRADIENTS[name]
    with pytest.raises(ValueError, match=rf"derivative of the loss.*{leaf}"):
        LocalPosterior(loss_fn, params, DATA, gamma=1.0)


def test_the_gradient_of_a_large_model_is_probed_too():
    """Its loss alone is a program of its own, and directions of its large leaves are in float32."""
    params = {"w": np.full((1100, 1000), 0.01, np.float32), "b": np.ones(1000, np.float32)}
    data = np.random.default_rng(0).normal(size=(20, 1100)).astype(np.float32)

    def loss(params, x, keep=jax.lax.stop_gradient):
        return 0.5 * jnp.mean((x @ params["w"] + keep(params["b"])) ** 2, axis=1)

    llc.LocalPosterior(lambda params, x: loss(params, x, keep=jnp.asarray), params, data)
    with pytest.raises(ValueError, match="depends on 'b'"):
        llc.LocalPosterior(loss, params, data)


def test_a_buffer_that_is_masked_is_taken():
    posterior = LocalPosterior(buffered, BUFFERED, DATA, gamma=1.0, mask="w")
    assert posterior.num_params == 4
