"""Losses that are not what they seem: what is refused, and honest ones that are not."""

import collections
import contextlib
import dataclasses
import functools
import types
import warnings

import equinox as eqx
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
from llc import LocalPosterior
from llc.posterior.loss_parts import different_rows
from tests.support.tiers import weekly

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
N = 300
INPUTS = RNG.normal(size=(N, 4)).astype(np.float32)
TARGETS = RNG.normal(size=(N, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
DATA = {"x": INPUTS, "y": TARGETS, "label": LABELS}
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.asarray(RNG.normal(size=3), jnp.float32)}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def outputs(w, batch):
    return batch["x"] @ w["w"] + w["b"]


def squares(w, batch):
    return 0.5 * jnp.sum((outputs(w, batch) - batch["y"]) ** 2, axis=1)


def mean_square(w, batch):
    return jnp.mean(squares(w, batch))


def cross_entropies(w, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs(w, batch), batch["label"])


# ---- A mean over rows -------------------------------------------------------------------------------------------

LENGTHS = np.sort(RNG.integers(1, 13, 3000)).astype(np.float32)
SIGNED = (RNG.normal(size=3000) + np.where(LENGTHS < 6, 2.0, -2.0)).astype(np.float32)
TOKENS = np.where(np.arange(12) < RNG.integers(1, 13, (N, 1)), RNG.integers(1, 9, (N, 12)), 0)
RARE = (np.arange(N) == 17).astype(np.float32)
WEIGHTS_OF_CLASS = np.array([1.0, 3.0, 9.0], np.float32)


def token_mean(p, batch):
    """Mean over the tokens of a batch whose rows are padded with zeros."""
    tokens = batch["tokens"]
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.broadcast_to(p["logits"], (*tokens.shape, 9)), tokens)
    return jnp.sum(losses * (tokens > 0)) / jnp.sum(tokens > 0)


def normalized(outputs):
    return (outputs - outputs.mean(axis=0)) / jnp.sqrt(outputs.var(axis=0) + 1e-5)


def in_batch(w, batch):
    scores = outputs(w, batch) @ batch["y"].T
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores)))


def dropped(w, batch):
    keep = jax.random.bernoulli(jax.random.key(3), 0.5, batch["x"].shape)
    return squares(w, batch | {"x": batch["x"] * keep})


def weighted_mean(w, batch):
    weights = jnp.asarray(WEIGHTS_OF_CLASS)[batch["label"]]
    return jnp.sum(weights * cross_entropies(w, batch)) / jnp.sum(weights)


def mean_of_classes(w, batch):
    """The mean over classes of the mean over their examples."""
    one_hot = jax.nn.one_hot(batch["label"], 3)
    return jnp.mean(cross_entropies(w, batch) @ one_hot / jnp.maximum(one_hot.sum(axis=0), 1))


def total_and_prior(w, batch):
    return jnp.sum(squares(w, batch)) + 0.5 * optax.tree.norm(w, squared=True)


def weighted_in_batch(p, batch):
    return jnp.sum(batch[1] * 0.5 * (p - batch[0]) ** 2) / jnp.sum(batch[1])


def rare_row(p, batch):
    return jnp.sum((1 + 5 * batch[1]) * (p - batch[0][:, 0]) ** 2) / jnp.sum(1 + 5 * batch[1])


def focal(w, batch):
    weights = (1 - jnp.exp(-cross_entropies(w, batch))) ** 2
    return jnp.sum(weights * cross_entropies(w, batch)) / jnp.sum(weights)


def contrastive(w, batch):
    unit = outputs(w, batch) / jnp.linalg.norm(outputs(w, batch), axis=1, keepdims=True)
    scores = unit @ unit.T / 0.1
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores))))


def mixed(x):
    return x if x.dtype == int else 0.7 * x + 0.3 * x[::-1]


def in_groups(w, batch, size=8):
    """A mean over whole groups of rows; the rest is dropped."""
    whole = len(batch["x"]) // size * size
    return jnp.mean(squares(w, batch)[:whole] if whole else squares(w, batch))


def weighted_groups(w, batch, size=8):
    """Weights normalized in groups of rows; the rest is dropped."""
    whole = max(len(batch["x"]) // size * size, 1)
    losses, weights = (x[:whole].reshape(-1, min(size, whole)) for x in (squares(w, batch), jnp.exp(batch["x"][:, 0])))
    return jnp.mean(jnp.sum(losses * weights, axis=1) / jnp.sum(weights, axis=1))


def normalized_where_large(w, batch, least=128):
    """Batch normalization that is left out on few rows."""
    found = outputs(w, batch)
    return jnp.sum(((normalized(found) if len(found) >= least else found) - batch["y"]) ** 2, axis=1)


NO_MEANS = {
    "groups of 8, the rest dropped": (in_groups, PARAMS, DATA),
    "weights of groups of 8, the rest dropped": (weighted_groups, PARAMS, DATA),
    "groups of 120, the rest dropped": (functools.partial(in_groups, size=120), PARAMS, DATA),
    "batch normalization from 128 rows on": (lambda w, b: jnp.mean(normalized_where_large(w, b)), PARAMS, DATA),
    "batch normalization from 128 rows on, per example": (normalized_where_large, PARAMS, DATA),
    "batch normalization from 299 rows on": (functools.partial(normalized_where_large, least=299), PARAMS, DATA),
    "weights normalized in the batch": (weighted_in_batch, jnp.float32(0.1), (SIGNED, LENGTHS)),
    "token mean": (token_mean, {"logits": jnp.zeros(9)}, {"tokens": TOKENS}),
    "token mean, moved": (token_mean, {"logits": jnp.linspace(0, 1, 9)}, {"tokens": TOKENS}),
    "one row of other weight": (rare_row, jnp.float32(0.1), (INPUTS, RARE)),
    "class weights": (weighted_mean, PARAMS, DATA),
    "class weights, all equal at w*": (weighted_mean, ZERO, DATA),
    "mean of class means": (mean_of_classes, PARAMS, DATA),
    "sum and prior": (total_and_prior, PARAMS, DATA),
    "root of the mean": (lambda w, batch: jnp.sqrt(mean_square(w, batch)), PARAMS, DATA),
    "maximum": (lambda w, batch: jnp.max(squares(w, batch)), PARAMS, DATA),
    "contrast of mean outputs": (lambda w, batch: jnp.mean((outputs(w, batch).mean(axis=0)) ** 2), PARAMS, DATA),
    "batch normalization": (
        lambda w, batch: jnp.mean((normalized(outputs(w, batch)) - batch["y"]) ** 2),
        PARAMS,
        DATA,
    ),
    "batch normalization, per example": (
        lambda w, batch: jnp.sum((normalized(outputs(w, batch)) - batch["y"]) ** 2, axis=1),
        PARAMS,
        DATA,
    ),
    "negatives from the batch": (in_batch, PARAMS, DATA),
    "mean with negatives from the batch": (lambda w, batch: jnp.mean(in_batch(w, batch)), PARAMS, DATA),
    "dropout with one key": (dropped, PARAMS, DATA),
    "mean under dropout with one key": (lambda w, batch: jnp.mean(dropped(w, batch)), PARAMS, DATA),
    "sum": (lambda w, batch: jnp.sum(squares(w, batch)), PARAMS, DATA),
    "focal weights normalized in the batch": (focal, PARAMS, DATA),
    "contrast between rows": (contrastive, PARAMS, DATA),
    "hardest quarter": (lambda w, b: jnp.mean(jax.lax.top_k(squares(w, b), max(1, len(b["x"]) // 4))[0]), PARAMS, DATA),
    "above the median": (lambda w, b: jnp.where(squares(w, b) > jnp.median(squares(w, b)), 1.0, 0.0), PARAMS, DATA),
    "trimmed mean": (lambda w, b: jnp.mean(jnp.sort(squares(w, b))[: int(0.9 * len(b["x"]))]), PARAMS, DATA),
    "mixup with the reversed batch": (lambda w, b: squares(w, jax.tree.map(mixed, b)), PARAMS, DATA),
    "inputs centred in the batch": (lambda w, b: squares(w, b | {"x": b["x"] - b["x"].mean(axis=0)}), PARAMS, DATA),
    "share of the variance": (
        lambda w, b: jnp.sum(squares(w, b)) / jnp.sum((b["y"] - b["y"].mean()) ** 2),
        PARAMS,
        DATA,
    ),
    "penalty over the batch size": (
        lambda w, b: mean_square(w, b) + 1e-3 * optax.tree.norm(w, squared=True) / len(b["x"]),
        PARAMS,
        DATA,
    ),
    "logarithm of a mean": (lambda w, b: jax.nn.logsumexp(squares(w, b)) - jnp.log(len(b["x"])), PARAMS, DATA),
    "first row as anchor": (lambda w, b: jnp.sum((outputs(w, b) - outputs(w, b)[:1]) ** 2, axis=1), PARAMS, DATA),
    "cumulative": (lambda w, b: jnp.cumsum(squares(w, b)), PARAMS, DATA),
    "divided by n of the data": (lambda w, batch: jnp.sum(squares(w, batch)) / N, PARAMS, DATA),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_MEANS)
def test_a_loss_that_is_no_mean_over_its_rows_is_refused(name):
    with pytest.raises(ValueError, match=r"loss_fn needs .*(mean|that example alone)"):
        LocalPosterior(*NO_MEANS[name], gamma=1.0)


def test_a_scalar_loss_of_weighted_rows_has_a_value_per_example():
    """With weights in data and Σ of a row × n / Σ over all the data; λ_quad is right."""
    mean = LENGTHS.mean()
    w = jnp.float32((LENGTHS * SIGNED).sum() / LENGTHS.sum())
    posterior = LocalPosterior(
        lambda p, batch: batch[1] / mean * 0.5 * (p - batch[0]) ** 2, w, (SIGNED, LENGTHS), gamma=1.0
    )
    nbeta = 3000 / np.log(3000)
    spectrum = llc.spectrum(posterior)
    np.testing.assert_allclose(spectrum.quad(1 / nbeta), 0.5 * nbeta / (nbeta + 1), rtol=1e-6)  # .498668


# ---- Honest losses ----------------------------------------------------------------------------------------------


def mlp():
    model = eqx.nn.MLP(4, 3, 64, 3, key=KEY)
    return lambda m, batch: jnp.sum((jax.vmap(m)(batch["x"]) - batch["y"]) ** 2, axis=1), model


def in_float32(w, batch):
    w = jax.tree.map(lambda x: x.astype(jnp.float32), w)
    return jnp.mean(jax.nn.relu(100 + cross_entropies(w, batch)).astype(jnp.float32))


def scanned(w, batch):
    return jax.lax.scan(
        lambda total, row: (total + squares(w, jax.tree.map(lambda x: x[None], row))[0], None),
        jnp.zeros((), w["b"].dtype),
        batch,
    )[0] / len(batch["x"])


def recentred(w, batch):
    """A difference of large numbers, which is zero at w*."""
    center = jax.tree.map(lambda x: x.astype(jnp.result_type(w["b"])), PARAMS)
    return jnp.mean(1e4 + squares(w, batch)) - jnp.mean(1e4 + squares(center, batch))


def in_pieces_where_large(w, batch):
    """Another program on many rows, of the same value."""
    if len(batch["x"]) < 100:
        return squares(w, batch)
    halves = [jax.tree.map(lambda x, part=part: x[part], batch) for part in (slice(50), slice(50, None))]
    return jnp.concatenate([squares(w, half) for half in halves])


def with_activation(activation):
    return lambda w, b: jnp.sum((activation(outputs(w, b)) - b["y"]) ** 2, axis=1)


def steep(x):
    """Continuous, and thirty times as steep as its argument."""
    return jnp.where(x > 0, jnp.tanh(30 * x), 0.0)


HONEST = {
    "other program on many rows": (in_pieces_where_large, PARAMS, DATA),
    "microbatched": (llc.microbatched(squares, 64), PARAMS, DATA),
    "leaky relu": (with_activation(jax.nn.leaky_relu), PARAMS, DATA),
    "elu by comparison": (with_activation(jax.nn.elu), PARAMS, DATA),
    "hard tanh": (with_activation(jax.nn.hard_tanh), PARAMS, DATA),
    "steep": (with_activation(steep), PARAMS, DATA),
    "huber": (lambda w, b: optax.huber_loss(outputs(w, b), b["y"]).sum(axis=1), PARAMS, DATA),
    "largest output": (lambda w, b: (jnp.max(outputs(w, b), axis=1) - b["y"][:, 0]) ** 2, PARAMS, DATA),
    "median output": (lambda w, b: (jnp.median(outputs(w, b), axis=1) - b["y"][:, 0]) ** 2, PARAMS, DATA),
    "choice by the data": (lambda w, b: jnp.where(b["x"][:, 0] > 0, 1.0, 2.0) * squares(w, b), PARAMS, DATA),
    "per example": (squares, PARAMS, DATA),
    "mean": (mean_square, PARAMS, DATA),
    "mean over outputs too": (lambda w, batch: jnp.mean((outputs(w, batch) - batch["y"]) ** 2), PARAMS, DATA),
    "cross entropy": (cross_entropies, PARAMS, DATA),
    "mean and prior": (lambda w, b: mean_square(w, b) + 0.5 * optax.tree.norm(w, squared=True) / N, PARAMS, DATA),
    "population loss": (
        lambda w, batch: 0.5 * (w["a"] * w["b"]) ** 2,
        {"a": jnp.zeros(()), "b": jnp.zeros(())},
        INPUTS,
    ),
    "population loss at a kink": (lambda w, batch: jnp.abs(w), jnp.zeros(()), INPUTS),
    "relu network": (*mlp(), DATA),
    "two rows": (mean_square, PARAMS, jax.tree.map(lambda x: x[:2], DATA)),
    "three rows": (squares, PARAMS, jax.tree.map(lambda x: x[:3], DATA)),
    "float32 inside": (in_float32, PARAMS, DATA),
    "scan": (scanned, PARAMS, DATA),
    "difference of large numbers": (recentred, PARAMS, DATA),
    "huge": (lambda w, batch: 1e6 * squares(w, batch) + 1e8, PARAMS, DATA),
    "tiny": (lambda w, batch: 1e-12 * squares(w, batch), PARAMS, DATA),
    "logarithm that ends": (
        lambda w, batch: jnp.mean(jnp.abs(batch["x"][:, 0])) * -jnp.log(w),
        jnp.float32(1e-3),
        DATA,
    ),
    "integer data alone": (lambda w, batch: w[batch] ** 2, jnp.ones(3), LABELS),
    "unused leaf": (lambda w, batch: squares(w[0], batch), (PARAMS, jnp.ones(3)), DATA),
}


LONGER = {  # than a second each, and much like another one
    "leaky relu",
    "tiny",
    "other program on many rows",
    "elu by comparison",
    "hard tanh",
    "huber",
    "largest output",
    "median output",
    "mean over outputs too",
    "relu network",
    "two rows",
    "float32 inside",
    "scan",
    "difference of large numbers",
    "huge",
    "unused leaf",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(HONEST, but=set(HONEST) - LONGER))
def test_an_honest_loss_is_taken(name):
    LocalPosterior(*HONEST[name], gamma=1.0)


# ---- Its gradient -----------------------------------------------------------------------------------------------


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


# ---- A fixed function -------------------------------------------------------------------------------------------


class Tempered:
    def __init__(self, beta):
        self.beta = beta

    def loss(self, w, batch):
        return self.beta * squares(w, batch)


def test_a_changed_attribute_is_another_loss():
    model = Tempered(1.0)
    once = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    again = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    assert once.loss_fn == again.loss_fn
    first = once.init_loss()
    largest = llc.spectrum(once).largest
    model.beta = 10.0
    changed = LocalPosterior(model.loss, PARAMS, DATA, gamma=1.0)
    assert changed.loss_fn != once.loss_fn
    np.testing.assert_allclose(changed.init_loss(), 10 * first, rtol=1e-12)
    np.testing.assert_allclose(llc.spectrum(changed).largest, 10 * largest, rtol=1e-6)


SCALE = 1.0
TABLE = jnp.ones(3)


def of_globals(w, batch):
    return SCALE * jnp.sum(TABLE * (outputs(w, batch) - batch["y"]) ** 2, axis=1)


@pytest.mark.parametrize(("name", "value"), [("SCALE", 3.0), ("TABLE", 3 * jnp.ones(3))])
def test_a_changed_global_is_another_loss(name, value, monkeypatch):
    first = LocalPosterior(of_globals, PARAMS, DATA, gamma=1.0).init_loss()
    monkeypatch.setitem(globals(), name, value)
    np.testing.assert_allclose(LocalPosterior(of_globals, PARAMS, DATA, gamma=1.0).init_loss(), 3 * first, rtol=1e-12)


WEIGHT = [1.0]


def weigh(x):
    return WEIGHT[0] * x


def weighed_squares(w, batch):
    return WEIGHT[0] * squares(w, batch)


@jax.custom_vjp
def weigh_by_hand(x):
    return WEIGHT[0] * x


weigh_by_hand.defvjp(lambda x: (WEIGHT[0] * x, None), lambda _, g: (WEIGHT[0] * g,))
JITTED, CHECKPOINTED = jax.jit(weighed_squares), jax.checkpoint(weighed_squares)
KEPT = {  # functions within the loss that JAX finds by their identity
    "jit": JITTED,
    "checkpoint": CHECKPOINTED,
    "partial of a jit": functools.partial(jax.jit(lambda _, w, batch: weighed_squares(w, batch)), 0),
    "a jitted part": lambda w, batch: JITTED(w, batch),
    "a checkpointed part": lambda w, batch: CHECKPOINTED(w, batch),
    "body of a map": lambda w, batch: jax.lax.map(weigh, squares(w, batch)),
    "branches": lambda w, batch: jax.lax.cond(w["b"][0] > -100, weigh, lambda x: x, squares(w, batch)),
    "body of a loop": lambda w, batch: jax.lax.fori_loop(0, 1, lambda _, x: weigh(x), squares(w, batch)),
    "custom_vjp": lambda w, batch: weigh_by_hand(squares(w, batch)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(KEPT, but=("jit", "checkpoint", "branches", "custom_vjp")))
def test_a_changed_function_that_jax_keeps_is_another_loss(name):
    try:
        first = LocalPosterior(KEPT[name], PARAMS, DATA, gamma=1.0)
        before = first.init_loss()
        WEIGHT[0] = 3.0
        second = LocalPosterior(KEPT[name], PARAMS, DATA, gamma=1.0)
        assert second.loss_fn != first.loss_fn
        np.testing.assert_allclose(second.init_loss(), 3 * before, rtol=1e-12)
    finally:
        WEIGHT[0] = 1.0


NOISE = np.random.default_rng(5)
COUNT = [0]


def counting(w, batch):
    COUNT[0] += 1
    return COUNT[0] * squares(w, batch)


def called_back(w, batch):
    noise = jax.pure_callback(lambda: np.float32(NOISE.normal()), jax.ShapeDtypeStruct((), jnp.float32))
    return squares(w, batch) + noise


CHAIN = [jax.random.key(1)]


def splitting(w, batch):
    """A key that is kept from call to call."""
    CHAIN[0], key = jax.random.split(CHAIN[0])
    return squares(w, batch) + jax.random.normal(key, (3,)) @ w["b"]


DRAWING = jax.jit(lambda w, batch: squares(w, batch) * NOISE.normal())
RANDOM = {
    "a key that is split": splitting,
    "np.random in a jitted part": lambda w, batch: DRAWING(w, batch),
    "np.random in a body": lambda w, batch: jax.lax.map(lambda x: x * NOISE.normal(), squares(w, batch)),
    "np.random": lambda w, batch: squares(w, batch) * NOISE.normal(),
    "np.random array": lambda w, batch: squares(w, batch) + NOISE.normal(size=3) @ w["b"],
    "a counter": counting,
    "a callback": called_back,
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_loss_that_is_no_fixed_function_is_refused(name):
    with pytest.raises(ValueError, match=r"loss_fn needs to be a fixed function"):
        LocalPosterior(RANDOM[name], PARAMS, DATA, gamma=1.0)


# ---- NumPy tables -----------------------------------------------------------------------------------------------

RELATIVE = np.abs(np.arange(5)[:, None] - np.arange(5))
ROWS = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
WIDE = np.linspace(0.5, 1.5, 5)


class Tables:
    relative = RELATIVE + 0

    def __init__(self):
        self.wide = {"of 5": (WIDE + 0, "a tuple")}

    def loss(self, p, batch):
        return 0.5 * jnp.sum((batch @ p[self.relative]) ** 2 * self.wide["of 5"][0], axis=1)


def helper(p):
    return jnp.take(p, RELATIVE, axis=0)


def partial_loss(table, p, batch):
    return 0.5 * jnp.sum((batch @ p[table]) ** 2 * WIDE, axis=1)


class Inherited:
    relative = RELATIVE + 0


class Meta(type):
    relative = RELATIVE + 0


class Heir(Inherited, metaclass=Meta):
    @staticmethod
    @functools.cache
    def distances(size):
        return {"of all": [np.abs(np.arange(size)[:, None] - np.arange(size))]}


def of_objects(value):
    found = np.empty(1, object)
    found[0] = value
    return found


HELD = {
    "deque": collections.deque([(RELATIVE + 0,)]),
    "default": collections.defaultdict(lambda: RELATIVE + 0),
    "proxy": types.MappingProxyType({"of 5": RELATIVE + 0}),
    "chain": collections.ChainMap({"of 5": RELATIVE + 0}),
    "user": collections.UserDict({"of 5": RELATIVE + 0}),
    "objects": of_objects(RELATIVE + 0),
}
NESTED = {"of 5": (RELATIVE, [RELATIVE + 0])}
NAMED = collections.namedtuple("Named", "relative")(RELATIVE + 0)


@functools.cache
def distances(size):
    return np.abs(np.arange(size)[:, None] - np.arange(size))


TABLE_LOSSES = {
    "global": lambda p, batch: 0.5 * jnp.sum((batch @ p[RELATIVE]) ** 2 * WIDE, axis=1),
    "take in a helper": lambda p, batch: 0.5 * jnp.sum((batch @ helper(p)) ** 2 * WIDE, axis=1),
    "attributes": Tables().loss,
    "partial": jax.tree_util.Partial(partial_loss, RELATIVE),
    "default": lambda p, batch, table=RELATIVE: partial_loss(table, p, batch),
    "jitted": jax.jit(lambda p, batch: partial_loss(RELATIVE, p, batch)),
    "a list in a tuple": lambda p, batch: partial_loss(NESTED["of 5"][1][0], p, batch),
    "a named tuple": lambda p, batch: partial_loss(NAMED.relative, p, batch),
    "cached": lambda p, batch: partial_loss(distances(5), p, batch),
    "a base class": lambda p, batch: partial_loss(Heir.relative, p, batch),
    "a metaclass": lambda p, batch: partial_loss(Meta.relative, p, batch),
    "a cached static method": lambda p, batch: partial_loss(Heir.distances(5)["of all"][0], p, batch),
    "a deque": lambda p, batch: partial_loss(HELD["deque"][0][0], p, batch),
    "a default": lambda p, batch: partial_loss(HELD["default"]["of 5"], p, batch),
    "a proxy": lambda p, batch: partial_loss(HELD["proxy"]["of 5"], p, batch),
    "a chain of dicts": lambda p, batch: partial_loss(HELD["chain"]["of 5"], p, batch),
    "a user's dict": lambda p, batch: partial_loss(HELD["user"]["of 5"], p, batch),
    "an array of objects": lambda p, batch: partial_loss(HELD["objects"][0], p, batch),
    "int8": lambda p, batch: partial_loss(RELATIVE.astype(np.int8), p, batch),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", weekly(TABLE_LOSSES, but=("global", "attributes", "jitted", "a named tuple", "cached", "a proxy", "int8"))
)
def test_numpy_tables_work_in_float64(name):
    loss_fn, p = TABLE_LOSSES[name], jnp.linspace(-1, 1, 5)
    trained = jax.jit(jax.grad(lambda p: jnp.mean(loss_fn(p, ROWS))))  # a program that remembers the tables
    trained(p)
    posterior = LocalPosterior(loss_fn, p, ROWS, gamma=1.0)
    rows, wide = ROWS.astype(np.float64), np.asarray(WIDE)
    np.testing.assert_allclose(
        posterior.init_loss(), 0.5 * np.mean((rows @ np.asarray(p, np.float64)[RELATIVE]) ** 2 @ wide), rtol=1e-12
    )
    one_hot = np.eye(5)[RELATIVE]  # (from, to, distance)
    jacobian = np.einsum("ni,ijk->njk", rows, one_hot)
    hessian = np.einsum("njk,njl,j->kl", jacobian, jacobian, wide) / len(rows)
    if name in ("global", "cached"):  # a spectrum takes seconds
        np.testing.assert_allclose(llc.spectrum(posterior).largest, np.linalg.eigvalsh(hessian)[-1], rtol=1e-6)
    again = jax.grad(posterior.loss)(p)  # in float32, after float64
    np.testing.assert_allclose(again, hessian @ np.asarray(p, np.float64), rtol=1e-4, atol=1e-4)
    trained(p + 1)


class Static(eqx.Module):
    """A model that has its table beside its parameters."""

    relative: np.ndarray = eqx.field(static=True)
    p: jax.Array


def test_a_table_in_the_model_works_in_float64():
    with warnings.catch_warnings(action="ignore"):  # equinox warns of an array in a static field
        model = Static(RELATIVE + 0, jnp.linspace(-1, 1, 5))
        posterior = LocalPosterior(lambda m, batch: partial_loss(m.relative, m.p, batch), model, ROWS, gamma=1.0)
        largest = llc.spectrum(posterior).largest
        alone = LocalPosterior(TABLE_LOSSES["global"], model.p, ROWS, gamma=1.0)
    np.testing.assert_allclose(largest, llc.spectrum(alone).largest, rtol=1e-12)


# ---- Half precision ---------------------------------------------------------------------------------------------


def in_half(dtype, shift=0.0, outside=False):
    def loss_fn(w, batch):
        w, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), (w, {name: batch[name] for name in "xy"}))
        losses = squares(w, batch) + jnp.asarray(shift, dtype)
        return jnp.mean(losses.astype(jnp.float32)) if outside else jnp.mean(losses)

    return loss_fn


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("outside", [False, True])
def test_a_loss_too_coarse_for_nbeta_is_refused(dtype, outside):
    with pytest.raises(ValueError, match=r"compute in float32 or float64, but it computes in .*float16"):
        LocalPosterior(in_half(dtype, 4.0, outside), PARAMS, DATA, gamma=1.0)


def test_a_coarse_loss_is_refused_at_another_nbeta():
    """Which a posterior at a small nβ must not get round."""
    posterior = LocalPosterior(in_half(jnp.float16), PARAMS, DATA, gamma=1.0, nbeta=0.1)
    assert posterior.precision == "float16"
    assert LocalPosterior(squares, PARAMS, DATA).precision == "float64"
    ways = {
        "with_scale": lambda: posterior.with_scale(nbeta=100.0),
        "replace": lambda: dataclasses.replace(posterior, nbeta=np.asarray(100.0)),
        "estimate": lambda: llc.estimate(KEY, posterior, nbeta=100.0),
        "tree_at": lambda: llc.sample(
            KEY, eqx.tree_at(lambda p: p.nbeta, posterior, np.asarray(100.0)), llc.SGLD(1e-3), progress=False
        ),
    }
    for way in ways.values():
        with pytest.raises(ValueError, match=r"compute in float32 or float64, but it computes in float16"):
            way()
    assert posterior.with_scale(nbeta=0.2, gamma=3.0).scale == (0.2, 3.0)
    assert dataclasses.replace(LocalPosterior(squares, PARAMS, DATA, mask="w"), nbeta=7.0).nbeta == 7.0


def test_half_precision_that_shows_lambda_is_taken():
    LocalPosterior(in_half(jnp.float16), PARAMS, DATA, gamma=1.0, nbeta=0.1)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x, DATA)
    LocalPosterior(
        lambda w, b: squares(w, jax.tree.map(lambda x: x.astype(w["b"].dtype), b)), PARAMS, halves, gamma=1.0
    )


# ---- The model of a library -------------------------------------------------------------------------------------


class Dropping(flax.nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = flax.nnx.Linear(4, 8, rngs=rngs), flax.nnx.Linear(8, 3, rngs=rngs)
        self.norm, self.drop = flax.nnx.BatchNorm(8, rngs=rngs), flax.nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))


def test_a_forgotten_eval_of_an_nnx_model_is_named():
    model = Dropping(flax.nnx.Rngs(0))
    graph, params, rest = flax.nnx.split(model, flax.nnx.Param, ...)

    def closed_over(params, batch):
        flax.nnx.update(model, params)
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    def merged(params, batch):
        return jnp.mean((flax.nnx.merge(graph, params, rest)(batch["x"]) - batch["y"]) ** 2)

    for loss_fn in (closed_over, merged):
        with pytest.raises(ValueError, match=r"loss_fn needs"):
            LocalPosterior(loss_fn, params, DATA, gamma=1.0)
    model.eval()
    graph, params, rest = flax.nnx.split(model, flax.nnx.Param, ...)
    LocalPosterior(merged, params, DATA, gamma=1.0)


def test_running_averages_that_a_loss_changes_are_refused_among_params_too():
    for training in (True, False):
        model = flax.nnx.BatchNorm(4, rngs=flax.nnx.Rngs(0), use_running_average=not training)
        graph, state = flax.nnx.split(model)

        def loss_fn(state, batch, graph=graph):
            return jnp.mean(flax.nnx.merge(graph, state)(batch["x"]) ** 2, axis=-1)

        with pytest.raises(ValueError, match="loss_fn needs") if training else contextlib.nullcontext():
            LocalPosterior(loss_fn, state, DATA, gamma=1.0, mask=["scale", "bias"])


def test_the_rows_of_a_probe_differ():
    rows, splits = different_rows((INPUTS, RARE), 32)
    assert 17 in rows
    assert splits.shape[1:] == (2, 16)
    assert all(sorted(split.ravel()) == list(range(32)) for split in splits)
    assert different_rows((INPUTS, RARE), 26)[1].shape[1:] == (2, 13)
    assert different_rows((INPUTS[:17], RARE[:17]), 26)[1].shape[1:] == (2, 7)
