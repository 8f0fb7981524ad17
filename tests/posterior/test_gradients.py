"""Losses of which JAX has no gradient are refused by what needs one, before it does anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

DATA = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
KEY = jax.random.key(0)


def looped(w, batch):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, 0.9 * c[1]), (0, (batch @ w) ** 2))[1]


def on_the_host(w, batch):
    out = jax.ShapeDtypeStruct((len(batch),), w.dtype)
    return jax.pure_callback(lambda x: np.asarray(x) ** 2, out, batch @ w)


@functools.cache
def posterior(loss_fn, *, weighted=False):
    return llc.LocalPosterior(loss_fn, jnp.ones(2), DATA, gamma=1.0, weights=np.ones(len(DATA)) if weighted else None)


LOSSES = {"while_loop": looped, "callback": on_the_host}
DOORS = {
    "spectrum": llc.spectrum,
    "top_eigenvalue": llc.top_eigenvalue,
    "polish": llc.polish,
    "hessian_identity": llc.hessian_identity,
    "sample": lambda p: llc.sample(KEY, p, llc.SGLD(0.01)),
    "NUTS": lambda p: llc.sample(KEY, p, llc.NUTS()),
    "calibrate": lambda p: llc.calibrate(KEY, p),
    "estimate": lambda p: llc.estimate(KEY, p),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_without_gradient_is_refused_at_the_door(loss, door):
    with pytest.raises(ValueError, match=r"loss_fn needs a gradient"):
        DOORS[door](posterior(LOSSES[loss]))


def test_with_weights_too():
    with pytest.raises(ValueError, match=r"loss_fn needs a gradient"):
        llc.spectrum(posterior(looped, weighted=True))


def test_losses_alone_can_be_had():
    """Negative control: the posterior itself needs no gradient."""
    scale = 0.9**3
    assert posterior(looped).init_loss() == pytest.approx(scale * np.mean((DATA.astype(float) @ np.ones(2)) ** 2))
    assert llc.LocalPosterior(lambda w, batch: (batch @ w) ** 2, jnp.ones(2), DATA).loss_fn.no_gradient is None
