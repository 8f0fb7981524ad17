import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.programs import bytes_alive
from tests.support.tiers import weekly

INPUTS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "activation": jnp.tanh}


def _per_example(params, batch):
    return jnp.sum(params["activation"](batch @ params["w"]) ** 2, axis=-1)


def _mean(params, batch):
    return jnp.mean(_per_example(params, batch))


def _derivatives(loss_fn):
    """The loss, its gradient, and the derivative of that along a direction."""

    def mean(w):
        return jnp.mean(loss_fn(PARAMS | {"w": w}, INPUTS))

    w = PARAMS["w"]
    return loss_fn(PARAMS, INPUTS), jax.grad(mean)(w), jax.jvp(jax.grad(mean), (w,), (jnp.ones_like(w),))[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", weekly([1, 3, 5, 10, 20], but=(3, 20)))
@pytest.mark.parametrize("loss_fn", [_per_example, _mean])
def test_a_loss_in_pieces_has_the_same_derivatives(loss_fn, size):
    for one, other in zip(_derivatives(llc.microbatched(loss_fn, size)), _derivatives(loss_fn), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # some ten roundings of float32


def test_a_gradient_keeps_one_piece_in_memory():
    def deep(w, batch):
        x = batch
        for _ in range(8):
            x = jnp.tanh(x @ w)
        return jnp.sum(x**2, axis=-1)

    w = jnp.eye(16)

    def alive(loss_fn, rows):
        return bytes_alive(jax.grad(lambda w, x: jnp.mean(loss_fn(w, x))), w, jnp.ones((rows, 16)))

    whole, pieces = alive(deep, 512), alive(llc.microbatched(deep, 32), 512)
    assert whole > 8 * 512 * 16 * 4  # eight layers of activations
    # One piece, and the batch, its derivative and its copy in pieces, of one layer's size each.
    assert pieces < alive(deep, 32) + 4 * 512 * 16 * 4
    assert pieces < whole / 2


@pytest.mark.parametrize("loss_fn", [_per_example, _mean])
def test_a_posterior_takes_its_gradients_in_pieces(loss_fn):
    """The same up to rounding, in less memory of the compiled program."""

    def deep(params, batch):
        x = batch
        for _ in range(8):
            x = jnp.tanh(x @ params)
        return jnp.mean(x**2, axis=-1) if loss_fn is _per_example else jnp.mean(x**2)

    data, params = np.random.default_rng(0).normal(size=(1024, 16)).astype(np.float32), jnp.eye(16)
    gradients, sizes = [], []
    for microbatch_size in (None, 32):
        posterior = llc.LocalPosterior(deep, params, data, microbatch_size=microbatch_size)
        program = jax.jit(jax.grad(posterior.loss)).lower(params, data).compile()
        gradients.append(program(params, data))
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)  # some roundings of float32
    assert sizes[1] < sizes[0] / 2


def test_posteriors_share_their_programs():
    one, other = (llc.LocalPosterior(llc.microbatched(_per_example, 4), PARAMS, INPUTS) for _ in range(2))
    assert one.loss_fn == other.loss_fn
    assert one.loss_fn != llc.LocalPosterior(llc.microbatched(_per_example, 5), PARAMS, INPUTS).loss_fn
    assert one.per_example


@pytest.mark.slow
@pytest.mark.study
def test_chains_are_those_of_the_whole_batch():
    lengths = {"num_chains": 2, "num_warmup": 20, "num_draws": 20, "batch_size": 8}
    values = [
        llc.mean_energy(
            llc.sample(
                jax.random.key(0), llc.LocalPosterior(loss_fn, PARAMS, INPUTS, gamma=10.0), llc.SGLD(1e-3), **lengths
            )
        )
        for loss_fn in (_per_example, llc.microbatched(_per_example, 3))
    ]
    assert abs(values[0].value - values[1].value) < 0.01 * values[0].mcse


@pytest.mark.parametrize("size", [0, -1, True])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="microbatch_size"):
        llc.microbatched(_per_example, size)
