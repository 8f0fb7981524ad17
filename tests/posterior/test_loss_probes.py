"""What a loss has to be: its precision, and the models of libraries."""

import contextlib
import dataclasses

import equinox as eqx
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from tests.support.losses import DATA, KEY, PARAMS, squares


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
