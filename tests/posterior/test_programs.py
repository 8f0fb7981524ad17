"""What is read from a traced program: bytes that are alive, primitives, steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llc.posterior.programs import bytes_alive, has_steps, uses_primitive

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


LABELS = np.array([0, 1, 2])
X, IMAGE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.ones((2, 1, 4, 4), np.float32)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def pooled(w):
    return jax.lax.reduce_window(IMAGE * w[0, 0], -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").sum()


SMOOTH_LOSSES = {
    "GELU, cross-entropy": lambda w: cross_entropy(jax.nn.gelu(X @ w)),
    "SiLU and gate": lambda w: cross_entropy(jax.nn.silu(X @ w) * (X @ w)),
    "softplus": lambda w: jax.nn.softplus(X @ w).sum(),
    "binary cross-entropy": lambda w: optax.sigmoid_binary_cross_entropy(X @ w, np.ones((3, 5))).sum(),
    "causal softmax": lambda w: jnp.sum(jax.nn.softmax(jnp.where(X[:, :1] > 0, X @ w, -1e9)) ** 2),
    "norm of layers": lambda w: ((X @ w)[:, 0] / jnp.sqrt((X @ w).var(axis=1) + 1e-5)).sum(),
    "recurrent": lambda w: jax.lax.scan(lambda h, x: (jnp.tanh(h + x @ w), None), jnp.zeros(5), X)[0].sum(),
}
KINKED_LOSSES = {
    "ReLU": lambda w: cross_entropy(jax.nn.relu(X @ w)),
    "ELU": lambda w: jax.nn.elu(X @ w).sum(),
    "ReLU in a loop": lambda w: jax.lax.scan(lambda h, x: (jax.nn.relu(h + x @ w), None), jnp.zeros(5), X)[0].sum(),
    "absolute value": lambda w: jnp.abs(X @ w).sum(),
    "clipped": lambda w: jnp.clip(X @ w, -1, 1).sum(),
    "Huber": lambda w: optax.huber_loss(X @ w).sum(),
    "max-pooling": pooled,
    "largest": lambda w: jnp.max(X @ w, axis=1).sum(),
    "exponential against a half": lambda w: jnp.maximum(jnp.exp(X @ w), 0.5).sum(),
    "one less an exponential": lambda w: jnp.abs(1 - jnp.exp(X @ w)).sum(),
}


@pytest.mark.parametrize("name", [*SMOOTH_LOSSES, *KINKED_LOSSES])
def test_the_gradient_takes_a_step_where_a_loss_has_a_kink(name):
    loss = {**SMOOTH_LOSSES, **KINKED_LOSSES}[name]
    assert has_steps(lambda w, _: jax.grad(loss)(w), jnp.ones((4, 5)), jnp.ones(1)) == (name in KINKED_LOSSES)
