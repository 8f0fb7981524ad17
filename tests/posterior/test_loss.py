"""A loss as a fixed function: what shares compiled programs, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.loss import fixed

PARAMS, DATA = jnp.ones(2), np.ones((4, 2), np.float32)


def _of(scale):
    def loss(params, batch):
        return scale * 0.5 * (batch @ params - 1) ** 2

    return loss


def _on_the_host(scale):
    def loss(params, batch):
        column = batch[:, 0]
        return jax.pure_callback(lambda x: np.float32(scale) * x, column, column) + 0 * (batch @ params)

    return loss


def _behind(fn):
    return lambda params, batch: fn(params, batch)


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        pytest.param(_of(2.0), _of(2.0), True, id="a def in a loop"),
        pytest.param(_of(2.0), _of(3.0), False, id="another number caught"),
        pytest.param(_of(np.float32([2.0])), _of(np.float32([3.0])), False, id="another array caught"),
        pytest.param(_on_the_host(2.0), _on_the_host(3.0), False, id="a callback, which no program shows"),
        pytest.param(_behind(_of(2.0)), _behind(_of(2.0)), True, id="one function"),
        pytest.param(_behind(_of(2.0)), _behind(lambda p, b: jnp.sum(p) * b[:, 0]), False, id="another function"),
    ],
)
def test_losses_of_one_code_and_one_program_share_what_was_compiled(first, second, equal):
    first, second = (fixed(fn, PARAMS, DATA) for fn in (first, second))
    assert (first == second) is equal
    assert not equal or hash(first) == hash(second)


def test_posteriors_of_a_def_in_a_loop_have_the_value_of_their_own():
    losses = [float(llc.LocalPosterior(_of(scale), PARAMS, DATA, gamma=1.0).init_loss()) for scale in (1.0, 2.0, 1.0)]
    assert losses == [0.5, 1.0, 0.5]
