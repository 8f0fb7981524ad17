"""What every Sampler keeps: shapes and dtypes, jit, vmap, determinism, and no needless traces of the loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from llc.sampling.chains import Chains
from llc.sampling.kernel import Info
from llc.sampling.loop import Span, run_segment
from llc.sampling.run_lengths import RunLengths
from tests.support.tiers import weekly

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
    "SGHMC": (llc.SGHMC(1e-2, friction=1.0), 1),
    "SGNHT": (llc.SGNHT(1e-2, friction=1.0), 1),
    "MALA": (llc.MALA(), 2),
    "HMC": (llc.HMC(num_steps=3), 2),
    "NUTS": (llc.NUTS(max_tree_depth=3), 2),
}
RELATED = ("SGLD Euler–Maruyama", "MALA")  # in all but a line the code of SGLD and of HMC
# vmap and jit reorder float32 sums: a few roundings of 6e-8 a step, on numbers of order 1, grow over three steps
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loss(w, batch):
    return 0.5 * (batch["x"] @ w["w"] + w["b"] - batch["y"]) ** 2


def make_posterior(loss_fn, gamma=1.0, nbeta=5.0, shift=0.0):
    params = {"w": jnp.full(2, 0.3), "b": jnp.zeros(()) + shift}  # w: a weak type, as users have them
    return LocalPosterior(loss_fn, params, DATA, nbeta=nbeta, gamma=gamma)


class Kernel:
    """A sampler's compiled `init` and `step`, and a count of the traces of the loss."""

    def __init__(self, name):
        self.sampler, self.expected_traces = SAMPLERS[name]
        self.num_traces = 0
        self.init = eqx.filter_jit(lambda key, posterior: self.sampler.init(key, posterior, num_warmup=NUM_WARMUP))
        self.step = eqx.filter_jit(lambda *args: self.sampler.step(*args, batch=DATA))
        posterior = make_posterior(self.loss)
        self.first_traces = self.traces(lambda: self.walk(jax.random.key(9), posterior))

    def loss(self, w, batch):
        self.num_traces += 1
        return loss(w, batch)

    def traces(self, call):
        before = self.num_traces
        call()
        return self.num_traces - before

    def walk(self, key, posterior):
        """Position and Info after three steps."""
        state, info = self.init(key, posterior), None
        for i in range(3):
            state, info = self.step(jax.random.fold_in(key, i), posterior, state)
        return state.position, info


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in RELATED)) for name in SAMPLERS]
)
def kernel(request):
    return Kernel(request.param)


def in_ci(*names):
    """A test of these samplers, and of the others once a week."""
    return pytest.mark.parametrize("kernel", weekly(SAMPLERS, but=names), indirect=True)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.slow
@in_ci("SGLD", "SGHMC", "HMC", "NUTS")
def test_step_keeps_structure_dtype_and_weak_type(kernel):
    posterior = make_posterior(kernel.loss)
    key = jax.random.key(0)
    before = eqx.filter_eval_shape(kernel.init, key, posterior)
    after, info = eqx.filter_eval_shape(kernel.step, key, posterior, before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert avals(before) == avals(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(before))
    assert avals(after.position) == {"w": ((2,), jnp.float32, False), "b": ((), jnp.float32, False)}
    number = ((), jnp.float32, False)
    loss = None if kernel.sampler.needs_full_batch else number
    assert avals(info) == Info(*[number] * 5, diverging=((), jnp.bool_, False), loss=loss)


def test_the_same_key_gives_the_same_bits_and_another_one_does_not(kernel):
    posterior = make_posterior(kernel.loss)
    first, again, other = (kernel.walk(jax.random.key(seed), posterior)[0] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((a != b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
@in_ci("SGLD", "SGHMC", "HMC")
def test_vmap_over_keys_and_posteriors(kernel):
    """A sweep of chains: the keys, γ, nβ and w* differ, the data are shared."""
    keys = jax.random.split(jax.random.key(0), 3)
    scales = jnp.array([0.5, 1.0, 4.0]), jnp.array([3.0, 5.0, 8.0]), jnp.array([-0.1, 0.0, 0.2])

    def walk(key, *scales):
        posterior = make_posterior(kernel.loss, *scales)
        state = kernel.sampler.init(key, posterior, num_warmup=NUM_WARMUP)

        def step(state, i):
            return kernel.sampler.step(jax.random.fold_in(key, i), posterior, state, DATA)

        state, infos = jax.lax.scan(step, state, jnp.arange(3))
        return state.position, jax.tree.map(lambda x: x[-1], infos)

    together = jax.jit(jax.vmap(walk))(keys, *scales)
    for i in range(3):
        single = kernel.walk(keys[i], make_posterior(kernel.loss, *[float(scale[i]) for scale in scales]))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, **CLOSE)


def test_traces_of_the_loss(kernel):
    assert kernel.first_traces == kernel.expected_traces
    other = make_posterior(kernel.loss, gamma=2.0, nbeta=3.0, shift=0.1)
    assert kernel.traces(lambda: kernel.walk(jax.random.key(1), other)) == 0


@pytest.mark.slow
@in_ci("SGLD", "HMC")
def test_a_compiled_segment_never_leaves_the_device(kernel):
    """No callback to the host in the program of a segment, whose one result is read when it ends."""
    posterior = make_posterior(kernel.loss)
    lengths = RunLengths(num_chains=2, num_warmup=NUM_WARMUP, num_draws=6, thinning=1)
    chains = Chains(jax.random.key(0), posterior, kernel.sampler, lengths)
    arguments = chains.keys[0], chains.posterior, kernel.sampler, chains.measure, chains.states[0], chains.moments[0]
    span = Span(np.int32(0), np.int32(4), np.int32(2), np.bool_(True))
    program = str(eqx.filter_make_jaxpr(run_segment)(*arguments, span, chains.settings)[0])
    assert "while" in program
    assert "callback" not in program
    spied = str(jax.make_jaxpr(lambda x: jax.debug.print("{}", x))(1.0))
    assert "callback" in spied or "debug" in spied, "negative control"


@pytest.mark.slow
@in_ci("SGLD", "HMC")
def test_sampling_again_does_not_trace_the_loss(kernel):
    settings = {"num_chains": 2, "num_warmup": NUM_WARMUP, "num_draws": 6, "progress": False}

    def draw(seed):
        return llc.sample(jax.random.key(seed), posterior, kernel.sampler, **settings)["posterior"].to_dataset()

    posterior = make_posterior(kernel.loss)
    first, others = draw(0), []
    assert kernel.traces(lambda: others.extend([draw(0), draw(1)])) == 0
    settings["eval_size"] = 7
    draw(0)
    assert kernel.traces(lambda: draw(1)) == 0, "on a subset of the data"
    assert first.equals(others[0])
    assert (first["llc"] != others[1]["llc"]).any()
    assert not first["llc"].isel(chain=0).equals(first["llc"].isel(chain=1))
