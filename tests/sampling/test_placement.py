"""Params and data wherever the user has put them: bound to one device, on several, or on a mesh with explicit axes."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.dispatch import num_cores
from llc.sampling.placement import choose_method, method_that_fits, most_at_once, programs_at_once
from llc.sampling.run_lengths import RunLengths

PLACES = """
import jax, jax.numpy as jnp, numpy as np, llc
from jax.sharding import NamedSharding, PartitionSpec as P
devices, mesh = jax.devices(), jax.make_mesh((4,), ("data",))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
data, params = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32), jnp.zeros(4)
def place(x, where):
    return x if where is None else jax.device_put(x, where)
def placed(w, x):
    return llc.LocalPosterior(lambda p, b: 0.5 * (b @ p) ** 2, place(params, w), place(data, x), gamma=1.0)
def run(posterior, **settings):
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-3), num_draws=8, num_warmup=4, progress=False,
                       **settings)
    return draws["posterior"]["llc"].values
right = run(placed(None, None), chain_method="vectorized")
for where in [(devices[2], None), (devices[2], devices[3]), (None, rows), (devices[2], rows), (everywhere, rows),
              (rows, None)]:
    posterior = placed(*where)
    for method in ("auto", "parallel", "sequential"):
        difference = np.abs(run(posterior, chain_method=method) - right).max()
        assert difference < 1e-4, (where, method, difference)
assert np.isfinite(run(placed(everywhere, rows), batch_size=10, eval_size=100)).all()
"""


@pytest.mark.slow
@pytest.mark.study
def test_all_places_give_the_same_draws():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", PLACES], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(llc.SGLD(1e-2), marks=pytest.mark.study),
        llc.SGHMC(1e-2),
        pytest.param(llc.SGNHT(1e-2), marks=pytest.mark.study),
        llc.HMC(num_steps=2),
    ],
)
def test_no_placeholder_is_nan(sampler):
    posterior = llc.LocalPosterior(lambda p, b: 0.5 * (b * p) ** 2, jnp.zeros(()), np.ones(50, np.float32), gamma=1.0)
    with jax.debug_nans(True):
        draws = llc.sample(jax.random.key(0), posterior, sampler, num_draws=8, num_warmup=4, progress=False)
    assert ("acceptance_rate" in draws["sample_stats"]) == isinstance(sampler, llc.HMC)


MESHES = """
import re
import jax, jax.numpy as jnp, numpy as np, llc
from jax.sharding import NamedSharding, PartitionSpec as P
from llc.sampling.chains import Chains
from llc.sampling.loop import Span, run_segment
from llc.sampling.run_lengths import RunLengths
data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
def loss_fn(params, batch):
    return 0.5 * jnp.sum(batch * params, axis=-1) ** 2
center = llc.LocalPosterior(loss_fn, jnp.zeros(4), data, gamma=1.0)
def run(mesh, sampler, posterior=center, **settings):
    lengths = RunLengths(num_chains=8, num_draws=12, num_warmup=4, thinning=1, **settings)
    chains = Chains(jax.random.key(0), posterior, sampler, lengths, mesh=mesh, keep_params=True,
                    chain_method="auto" if mesh else "vectorized")
    chains.draw(12, progress=False)
    return chains, chains.tree()["posterior"]["params.w"].values
def collectives(chains):
    span = Span(np.int32(0), np.int32(1), np.int32(1), fresh=np.bool_(True))
    arguments = (chains.keys[0], chains.posterior, chains.sampler, chains.measure, chains.states[0],
                 chains.moments[0], span, chains.settings)
    text = run_segment.lower(*arguments).compile().compiled.as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"({kinds})(?:-start)?[.0-9]*\\(.*?replica_groups=([^ ]*)", text)
sgld = llc.SGLD(1e-2)
_, right = run(None, sgld)
for mesh in (jax.make_mesh((8, 1), ("chain", "data")), jax.make_mesh((4,), ("chain",))):
    chains, draws = run(mesh, sgld)
    assert (draws == right).all(), mesh
    assert collectives(chains) == [], mesh
chains, draws = run(jax.make_mesh((8,), ("chain",)), llc.NUTS())  # whose trees end at different times
assert collectives(chains) == []
for settings, expected in (({}, right), ({"batch_size": 16}, run(None, sgld, batch_size=16)[1])):
    for mesh in (jax.make_mesh((4, 2), ("chain", "data")), jax.make_mesh((1, 8), ("chain", "data"))):
        chains, draws = run(mesh, sgld, **settings)
        assert np.abs(draws - expected).max() < 1e-5, (mesh, settings)
        found = collectives(chains)
        # One of the gradient, and on all rows one of a draw's loss; groups of the devices along "data" only.
        assert {kind for kind, _ in found} == {"all-reduce"} and len(found) == 2 - len(settings), found
mesh = jax.make_mesh((2, 1, 4), ("chain", "data", "model"))
params = jax.device_put(jnp.zeros(4), NamedSharding(mesh, P("model")))
chains, draws = run(mesh, sgld, llc.LocalPosterior(loss_fn, params, data, gamma=1.0))
assert chains.states[0].position.sharding.spec == P("chain", "model"), chains.states[0].position.sharding
assert chains.states[0].noise.sharding.spec == P("chain", "model"), chains.states[0].noise.sharding
assert np.abs(draws - right).max() < 1e-5
"""


@pytest.mark.slow
def test_chains_and_rows_over_a_mesh():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", MESHES], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


HOST = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp, numpy as np, llc
data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
posterior = llc.LocalPosterior(lambda p, b: 0.5 * jnp.sum(b * p, axis=-1) ** 2, jnp.zeros(4), data, gamma=1.0)
mesh = jax.make_mesh((2, 2), ("chain", "data"))
draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-2), num_chains=2, num_warmup=4, num_draws=12,
                   keep_params=True, progress=False, mesh=mesh)
np.save(sys.argv[3], draws["posterior"]["params.w"].values)
"""


@pytest.mark.study
def test_two_processes_are_one_run(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    files = [tmp_path / f"{i}.npy" for i in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", HOST, str(port), str(i), str(file)], env=environment)
        for i, file in enumerate(files)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    posterior = llc.LocalPosterior(lambda p, b: 0.5 * jnp.sum(b * p, axis=-1) ** 2, jnp.zeros(4), data, gamma=1.0)
    settings = {"num_chains": 2, "num_warmup": 4, "num_draws": 12, "keep_params": True, "progress": False}
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-2), **settings)
    first, second = (np.load(file) for file in files)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, draws["posterior"]["params.w"], atol=1e-5)


@pytest.mark.parametrize(
    ("fastest", "free", "method"),
    [
        ("vectorized", 281.0, "vectorized"),
        ("vectorized", 279.0, "sequential"),
        ("vectorized", 141.0, "sequential"),
        ("sequential", 1000.0, "sequential"),
    ],
)
def test_chains_run_one_after_the_other_where_they_do_not_fit_at_once(fastest, free, method):
    assert method_that_fits(fastest, 8, 4, free) == method


def recurrent(num_steps):
    """Few params, whose gradient keeps an array of (rows, 16) alive for each of `num_steps`."""

    def loss(w, x):
        def step(state, _):
            return jnp.tanh(state * w), None

        state, _ = jax.lax.scan(step, x, None, length=num_steps)
        return jnp.sum(state**2, axis=1)

    return llc.LocalPosterior(loss, jnp.ones(16), np.ones((256, 16), np.float32), gamma=1.0)


@pytest.mark.parametrize(
    ("num_steps", "batch_size", "method"), [(2, None, "vectorized"), (200, None, "sequential"), (200, 8, "vectorized")]
)
def test_chains_have_a_program_each_where_steps_are_costly(num_steps, batch_size, method):
    lengths = RunLengths(num_chains=4, num_warmup=0, num_draws=1, thinning=1, batch_size=batch_size)
    assert choose_method("auto", recurrent(num_steps), lengths) == method


def test_as_many_run_at_once_as_memory_allows():
    posterior, cores = recurrent(2), num_cores()
    assert programs_at_once("sequential", posterior, 4) == min(cores, 4)
    assert programs_at_once("sequential", posterior, 1) == 1
    assert programs_at_once("vectorized", posterior, 4) == 1


@pytest.mark.parametrize(("free", "number"), [(1e4, 4), (251.0, 2), (249.0, 1), (0.0, 1)])
def test_fewer_run_at_once_where_memory_is_short(free, number):
    """Four chains of 10 bytes: 2 copies of each wait, and those that run take 6 more, of 80 % of what is free."""
    assert most_at_once(10, 4, free, num_cores=4) == number


def test_what_does_not_fit_at_all_is_refused_by_the_setting():
    with pytest.raises(ValueError, match="num_chains = 4 need"):
        method_that_fits("vectorized", 10, 4, 174.0)


REFUSED = {
    "no axis of chains": (("data",), (1,), {}, "axis 'chain'"),
    "method": (("chain",), (1,), {"chain_method": "sequential"}, "chain_method"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mesh_that_does_not_fit_is_refused(name):
    axes, shape, settings, message = REFUSED[name]
    posterior = llc.LocalPosterior(lambda p, b: 0.5 * (b * p) ** 2, jnp.zeros(()), np.ones(50, np.float32), gamma=1.0)
    mesh = jax.make_mesh(shape, axes)
    with pytest.raises(ValueError, match=message):
        llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-2), mesh=mesh, progress=False, **settings)
