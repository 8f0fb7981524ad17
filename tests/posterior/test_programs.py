"""What is read from a traced program: bytes that are alive, primitives."""

import jax
import jax.numpy as jnp
import pytest

from llc.posterior.programs import bytes_alive, uses_primitive

SIZE = 1000
ONE = 4 * SIZE  # bytes of a float32 vector


def _chain(x):
    for _ in range(5):
        x = jnp.sin(x)
    return x


def _kept(x):
    parts = [jnp.sin(x) for _ in range(5)]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize(
    ("fn", "alive"),
    [
        (_chain, 2 * ONE),  # a value and the one that is made from it
        (_kept, 6 * ONE),  # five values, and the sum of the first two
        (jax.jit(_chain), 2 * ONE),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: _chain(y), x), 2 * ONE),
        (lambda x: jax.vmap(_chain)(jnp.stack([x, x])), None),
    ],
    ids=["chain", "kept", "call", "loop", "batch"],
)
def test_bytes_are_those_that_are_alive_at_one_time(fn, alive):
    found = bytes_alive(fn, jax.ShapeDtypeStruct((SIZE,), jnp.float32))
    if alive is None:
        assert 4 * ONE <= found <= 6 * ONE
    else:
        assert alive <= found <= alive + 100  # counters of the loop


def test_a_gradient_keeps_what_a_value_does_not():
    x = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    value = bytes_alive(lambda x: jnp.sum(_chain(x)), x)
    assert bytes_alive(jax.grad(lambda x: jnp.sum(_chain(x))), x) >= value + 3 * ONE


def test_primitives_are_found_within_loops_and_calls():
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x))
    assert uses_primitive("sin", looped, 1.0)
    assert not uses_primitive("cos", looped, 1.0)
