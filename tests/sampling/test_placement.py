"""Params and data wherever the user has put them: bound to one device, on several, or on a mesh with explicit axes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc

PLACES = """
import jax, jax.numpy as jnp, numpy as np, llc
from jax.sharding import NamedSharding, PartitionSpec as P
devices, mesh = jax.devices(), jax.make_mesh((4,), ("data",))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
data, params = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32), jnp.zeros(4)
def place(x, where):
    return x if where is None else jax.device_put(x, where)
def run(w, x, **settings):
    posterior = llc.LocalPosterior(lambda p, b: 0.5 * (b @ p) ** 2, place(params, w), place(data, x), gamma=1.0)
    draws = llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-3), num_draws=8, num_warmup=4, progress=False,
                       **settings)
    return draws["posterior"]["llc"].values
right = run(None, None, chain_method="vectorized")
for where in [(devices[2], None), (devices[2], devices[3]), (None, rows), (devices[2], rows), (everywhere, rows),
              (rows, None)]:
    for method in ("auto", "parallel", "sequential"):
        difference = np.abs(run(*where, chain_method=method) - right).max()
        assert difference < 1e-4, (where, method, difference)
assert np.isfinite(run(everywhere, rows, batch_size=10, eval_size=100)).all()
"""


def test_all_places_give_the_same_draws():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", PLACES], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("sampler", [llc.SGLD(1e-2), llc.SGHMC(1e-2), llc.SGNHT(1e-2), llc.HMC(num_steps=2)])
def test_no_placeholder_is_nan(sampler):
    posterior = llc.LocalPosterior(lambda p, b: 0.5 * (b * p) ** 2, jnp.zeros(()), np.ones(50, np.float32), gamma=1.0)
    with jax.debug_nans(True):
        draws = llc.sample(jax.random.key(0), posterior, sampler, num_draws=8, num_warmup=4, progress=False)
    assert ("acceptance_rate" in draws["sample_stats"]) == isinstance(sampler, llc.HMC)
