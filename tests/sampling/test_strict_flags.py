"""All samplers under JAX's strict flags, each of which is a process of its own: nothing raises, and λ̂ is right."""

import subprocess
import sys

import pytest

from tests.support.tiers import weekly

FLAGS = {
    "x64": 'jax.config.update("jax_enable_x64", True)',
    "debug_nans": 'jax.config.update("jax_debug_nans", True)',
    "rank_promotion": 'jax.config.update("jax_numpy_rank_promotion", "raise")',
    "dtype_promotion": 'jax.config.update("jax_numpy_dtype_promotion", "strict")',
    "transfer_guard": 'jax.config.update("jax_transfer_guard", "disallow")',
}
SCRIPT = """
import sys
import equinox as eqx, jax, jax.numpy as jnp, numpy as np

key = jax.random.key(0)

class Model(eqx.Module):
    w: jax.Array
    name: str = eqx.field(static=True, default="linear")

{flag}
import llc

dtype = np.float64 if jax.config.jax_enable_x64 else np.float32  # which samplers with an accept step ask for
inputs = np.random.default_rng(0).normal(size=(60, 2)).astype(dtype)
start = np.zeros(2, dtype)

KINDS = {{
    "dict": (lambda: {{"w": start}}, lambda p: p["w"]),
    "array": (lambda: start, lambda p: p),
    "module": (lambda: Model(start), lambda p: p.w),
}}

def per_example(of):
    return lambda p, x: jnp.square(x @ of(p)) * jnp.asarray(0.5, x.dtype)

def scalar(of):
    return lambda p, x: jnp.mean(per_example(of)(p, x))

lengths = dict(num_chains=2, num_warmup=300, num_draws=500, progress=False)
failed = []
kinds, *samplers = sys.argv[1:]
for sampler in samplers:
    for i, (kind, (params, of)) in enumerate(KINDS.items()):
        if kind not in kinds.split():
            continue
        loss = (per_example, scalar)[(i + len(sampler)) % 2](of)
        posterior = llc.LocalPosterior(loss, params(), inputs, gamma=1.0)
        spectrum = llc.spectrum(posterior)
        made = {{
            "SGLD": lambda: llc.SGLD(0.02),
            "SGHMC": lambda: llc.SGHMC(0.02, friction=10.0),
            "SGNHT": lambda: llc.SGNHT(0.02, friction=10.0),
            "MALA": lambda: llc.MALA(),
            "HMC": lambda: llc.HMC(),
            "NUTS": lambda: llc.NUTS(),
        }}[sampler]()
        stochastic = sampler.startswith("SG")
        # With minibatches and a subset only the dtypes are looked at: so few rows heat.
        for batch_size, eval_size in ((None, None), (20, 30))[: 1 + (stochastic and kind == "dict")]:
            rows = dict(batch_size=batch_size, eval_size=eval_size)
            try:
                draws = llc.sample(key, posterior, made, spectrum=spectrum, **rows, **lengths)
                found = llc.report(draws, spectrum=spectrum)
            except Exception as error:
                failed.append(f"{{sampler}} {{kind}} {{batch_size}}: {{type(error).__name__}}: {{error}}"[:600])
                continue
            exact = spectrum.quad(1.0 / float(posterior.nbeta))
            if batch_size is None and not abs(found.llc.value - exact) < 4 * found.llc.mcse + 0.02 * exact:
                failed.append(f"{{sampler}} {{kind}}: {{found.llc.value}} for {{exact}}")
assert not failed, "\\n".join(failed)
"""


def run(flag, kinds, samplers):
    script = SCRIPT.format(flag=FLAGS[flag])
    done = subprocess.run([sys.executable, "-c", script, kinds, *samplers], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("flag", weekly(FLAGS, but=("debug_nans", "rank_promotion")))
def test_a_run_under_strict_flags(flag):
    run(flag, "dict", ["SGHMC"])


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("samplers", [("SGLD", "SGHMC", "SGNHT"), ("MALA", "HMC", "NUTS")], ids="-".join)
@pytest.mark.parametrize("flag", FLAGS)
def test_samplers_run_under_strict_flags(flag, samplers):
    run(flag, "dict array module", samplers)
