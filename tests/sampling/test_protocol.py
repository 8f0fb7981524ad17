"""What every Sampler keeps: shapes and dtypes, jit, vmap, determinism, and no needless traces of the loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from llc.sampling.kernel import Info

DATA = {
    "x": np.random.default_rng(2).normal(size=(12, 2)).astype(np.float32),
    "y": np.random.default_rng(3).normal(size=12).astype(np.float32),
}
NUM_WARMUP = 4

# sampler, and the traces of loss_fn by one jit(init) and one jit(step)
SAMPLERS = {
    "SGLD": (llc.SGLD(1e-2), 1),
    "SGLD Euler–Maruyama": (llc.SGLD(1e-2, integrator="euler_maruyama"), 1),
    "SGLD RMSProp": (llc.SGLD(1e-2, preconditioner=llc.RMSProp()), 1),
    "MALA": (llc.MALA(), 2),
    "HMC": (llc.HMC(num_steps=3), 2),
    "NUTS": (llc.NUTS(max_tree_depth=3), 2),
}
# vmap and jit reorder float32 sums: a few roundings of 6e-8 a step, on numbers of order 1, grow over three steps
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loss(w, batch):
    return 0.5 * (batch["x"] @ w["w"] + w["b"] - batch["y"]) ** 2


def make_posterior(loss_fn=loss, gamma=1.0, nbeta=5.0, center=0.0):
    params = {"w": jnp.full(2, 0.3) + center, "b": jnp.zeros(()) + center}  # w: a weak type, as users have them
    return LocalPosterior(loss_fn, params, DATA, nbeta=nbeta, gamma=gamma)


@eqx.filter_jit
def init(sampler, key, posterior):
    return sampler.init(key, posterior, num_warmup=NUM_WARMUP)


@eqx.filter_jit
def step(sampler, key, posterior, state):
    return sampler.step(key, posterior, state, posterior.data)


def walk(sampler, key, posterior):
    """Position and Info after three steps."""
    state, info = init(sampler, key, posterior), None
    for i in range(3):
        state, info = step(sampler, jax.random.fold_in(key, i), posterior, state)
    return state.position, info


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), actual, expected)


@pytest.fixture(params=SAMPLERS)
def name(request):
    return request.param


@pytest.fixture
def sampler(name):
    return SAMPLERS[name][0]


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def test_step_keeps_structure_dtype_and_weak_type(sampler):
    posterior = make_posterior()
    key = jax.random.key(0)
    before = eqx.filter_eval_shape(init, sampler, key, posterior)
    after, info = eqx.filter_eval_shape(step, sampler, key, posterior, before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert avals(before) == avals(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(before))
    assert avals(after.position) == avals(eqx.filter_eval_shape(lambda: posterior.position))
    assert avals(info) == Info(*[((), jnp.float32, False)] * 4, diverging=((), jnp.bool_, False))


def test_the_same_key_gives_the_same_bits_and_another_one_does_not(sampler):
    posterior = make_posterior()
    first, again, other = (walk(sampler, jax.random.key(seed), posterior)[0] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert all((a != b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


def test_vmap_over_keys(sampler):
    posterior = make_posterior()
    keys = jax.random.split(jax.random.key(0), 3)
    positions, infos = eqx.filter_vmap(walk, in_axes=(None, 0, None))(sampler, keys, posterior)
    for i in range(3):
        assert_close(jax.tree.map(lambda x, i=i: x[i], (positions, infos)), walk(sampler, keys[i], posterior))


def test_vmap_over_posteriors(sampler):
    """A sweep: γ, nβ and w* differ, the data are shared."""
    gammas, nbetas, centers = jnp.array([0.5, 1.0, 4.0]), jnp.array([3.0, 5.0, 8.0]), jnp.array([-0.1, 0.0, 0.2])
    key = jax.random.key(0)
    build = eqx.filter_vmap(lambda *scales: make_posterior(loss, *scales), out_axes=eqx.if_array(0))
    positions, infos = eqx.filter_vmap(walk, in_axes=(None, None, eqx.if_array(0)))(
        sampler, key, build(gammas, nbetas, centers)
    )
    for i in range(3):
        single = make_posterior(loss, float(gammas[i]), float(nbetas[i]), float(centers[i]))
        assert_close(jax.tree.map(lambda x, i=i: x[i], (positions, infos)), walk(sampler, key, single))


def test_traces_of_the_loss(name, sampler):
    num_traces = 0

    def counting_loss(w, batch):
        nonlocal num_traces
        num_traces += 1
        return loss(w, batch)

    posterior = make_posterior(counting_loss)
    num_traces = 0
    walk(sampler, jax.random.key(0), posterior)
    assert num_traces == SAMPLERS[name][1]

    other = make_posterior(counting_loss, gamma=2.0, nbeta=3.0, center=0.1)
    num_traces = 0
    walk(sampler, jax.random.key(1), other)
    assert num_traces == 0


def test_sampling_twice_traces_the_loss_once(name, sampler):
    num_traces = 0

    def counting_loss(w, batch):
        nonlocal num_traces
        num_traces += 1
        return loss(w, batch)

    posterior = make_posterior(counting_loss)
    settings = {"num_chains": 2, "num_warmup": NUM_WARMUP, "num_draws": 6, "progress": False}
    first = llc.sample(jax.random.key(0), posterior, sampler, **settings)
    num_traces = 0
    again = llc.sample(jax.random.key(0), posterior, sampler, **settings)
    other = llc.sample(jax.random.key(1), posterior, sampler, **settings)
    assert num_traces == 0
    assert first["posterior"].identical(again["posterior"])
    assert not first["posterior"].equals(other["posterior"])
