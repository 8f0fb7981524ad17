"""A loss is the mean over its rows, and what is none is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
from llc import LocalPosterior
from tests.support.losses import (
    DATA,
    INPUTS,
    KEY,
    LABELS,
    PARAMS,
    ZERO,
    N,
    cross_entropies,
    in_float32,
    mean_square,
    outputs,
    squares,
)
from tests.support.tiers import weekly

RNG = np.random.default_rng(1)
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


def mlp():
    model = eqx.nn.MLP(4, 3, 64, 3, key=KEY)
    return lambda m, batch: jnp.sum((jax.vmap(m)(batch["x"]) - batch["y"]) ** 2, axis=1), model


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
