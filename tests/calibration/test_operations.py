"""Operations of a gradient, counted without running it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.operations import gradient_operations

WIDTH, NUM_ROWS = 40, 100


def of(loss, num_params=WIDTH, num_rows=NUM_ROWS):
    x = np.random.default_rng(0).normal(size=(num_rows, num_params)).astype(np.float32)
    return gradient_operations(llc.LocalPosterior(loss, jnp.full(num_params, 0.1), x, gamma=1.0))


@pytest.mark.parametrize(("num_params", "num_rows"), [(200, 100), (200, 10_000), (2000, 1000)])
def test_a_linear_model_multiplies_and_reads_its_data_twice(num_params, num_rows):
    """The scores and the gradient: 4 d n operations, and 8 d n bytes at 1.5 each."""
    found = of(lambda w, x: 0.5 * (x @ w) ** 2, num_params, num_rows)
    assert 16 <= found / (num_params * num_rows) < 18


def test_a_loop_counts_as_often_as_it_runs():
    def layer(h, _):
        return jnp.tanh(h @ jnp.ones((WIDTH, WIDTH))), None

    def looped(w, x):
        return jnp.sum(jax.lax.scan(layer, x * w, length=20)[0], axis=1)

    def unrolled(w, x):
        h = x * w
        for _ in range(20):
            h = layer(h, None)[0]
        return jnp.sum(h, axis=1)

    once = of(lambda w, x: jnp.sum(layer(x * w, None)[0], axis=1))
    # The loop also writes what the gradient keeps of a step, and reads it: 5 % more (7 % at five steps).
    assert of(looped) == pytest.approx(of(unrolled), rel=0.1)
    assert of(looped) > 10 * once, "control: the body counted once"


def test_what_is_elementwise_costs_the_memory_that_it_moves():
    def deep(w, x):
        h = x * w
        for _ in range(30):
            h = jnp.maximum(h, 0.5 * h)
        return jnp.sum(h, axis=1)

    arithmetic = 4 * 30 * NUM_ROWS * WIDTH  # a product and a maximum, and their gradients
    moved = 4 * 30 * 4 * NUM_ROWS * WIDTH  # at least h read and written, and its gradient, of four bytes each
    assert of(deep) > 1.5 * moved > arithmetic
