"""Tables of NumPy in a loss work in float32 and in float64."""

import collections
import functools
import types
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from tests.support.tiers import weekly

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
