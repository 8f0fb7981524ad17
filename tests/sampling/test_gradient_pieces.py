"""Gradients of a step that do not fit: pieces where they help, an error where nothing does."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.memory import free_memory
from llc.sampling.gradient_pieces import check_gradient, in_fitting_pieces, in_pieces_of
from llc.sampling.run_lengths import RunLengths

GIB = 2**30


def of_size(gib_a_row, num_data=1024):
    """A posterior whose gradient keeps about so much alive in each row; nothing of this size is computed."""
    width = int(gib_a_row * GIB / 4 / 10)

    def wide(w, batch):
        return jnp.mean(jnp.tanh(w * batch * jnp.ones(width)) ** 2, axis=-1)

    few = llc.LocalPosterior(lambda w, batch: (w * batch[:, 0]) ** 2, jnp.zeros(()), np.ones((2, 1), np.float32))
    posterior = eqx.tree_at(lambda p: p.data, few, np.ones((num_data, 1), np.float32))
    object.__setattr__(posterior, "loss_fn", wide)
    return posterior


def lengths(batch_size=None, num_chains=2):
    return RunLengths(num_chains=num_chains, num_warmup=0, num_draws=1, thinning=1, batch_size=batch_size)


@pytest.mark.parametrize(
    ("batch_size", "method", "in_pieces"),
    [
        (None, "vectorized", True),  # 10 GiB a chain
        (None, "sequential", True),
        (None, "parallel", False),  # rows are spread over devices
        (8, "vectorized", False),  # 80 MiB
    ],
)
def test_a_step_takes_pieces_where_its_gradients_take_more_than_two_gib(batch_size, method, in_pieces):
    posterior = of_size(0.01)
    found = in_fitting_pieces(posterior, lengths(batch_size), method=method)
    assert (found.loss_fn != posterior.loss_fn) == in_pieces


def test_pieces_keep_what_they_should():
    """A chain's piece is a power of two of rows, smaller with more chains side by side."""
    posterior = of_size(0.01)
    sizes = [in_fitting_pieces(posterior, lengths(num_chains=n), method="vectorized").loss_fn.size for n in (1, 2, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 2 * sizes[2]
    assert all(size & (size - 1) == 0 for size in sizes)


def test_a_gradient_beyond_the_memory_names_microbatch_size():
    """And the same one in pieces is no error: the negative control."""
    posterior = of_size(10 * free_memory() / GIB / 1000, 1000)
    for given, refused in ((posterior, True), (in_pieces_of(posterior, 1), False)):
        with pytest.raises(ValueError, match="microbatch_size") if refused else contextlib.nullcontext():
            check_gradient(given, lengths(), side_by_side=True)


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="smaller model"):
        in_fitting_pieces(of_size(20 * free_memory() / GIB), lengths(), method="vectorized")


@pytest.mark.slow
def test_chains_in_pieces_are_those_of_the_whole_batch():
    """The same draws up to rounding."""
    data = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    posterior = llc.LocalPosterior(lambda w, x: jnp.tanh(x @ w) ** 2, jnp.zeros(3), data, gamma=10.0)
    settings = {"num_chains": 2, "num_warmup": 10, "num_draws": 10}
    energies = [
        llc.sample(jax.random.key(0), p, llc.SGLD(1e-2), **settings)["posterior"]["llc"].to_numpy()
        for p in (posterior, in_pieces_of(posterior, 16))
    ]
    np.testing.assert_allclose(energies[0], energies[1], rtol=1e-3, atol=1e-4)  # some hundred roundings of float32
