"""Runs that go on from a store: the same bits as those that were left alone, for every kind of state."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.store import Store
from llc.sampling.chains import Chains
from llc.sampling.run_lengths import RunLengths
from tests.support.tiers import weekly

RNG = np.random.default_rng(3)
DATA = RNG.normal(size=(24, 3)).astype(np.float32)
CENTER = {"a": jnp.array([0.1, -0.2, 0.3]), "b": jnp.array(0.2)}


def example_losses(params, batch):
    return 0.5 * (batch @ params["a"] + params["b"] - 1.0) ** 2


def mean_loss(params, batch):
    return jnp.mean(example_losses(params, batch))


def make_posterior(loss_fn=mean_loss, **settings):
    return llc.LocalPosterior(loss_fn, CENTER, DATA, **({"gamma": 1.0} | settings))


RUNS = {
    "SGLD, moments of a subset, params": (
        example_losses,
        llc.SGLD(0.02),
        {"batch_size": 8, "eval_size": 12, "keep_params": True},
    ),
    "SGLD, one after the other": (example_losses, llc.SGLD(0.02), {"chain_method": "sequential", "batch_size": 8}),
    "SGLD with a preconditioner that adapts": (mean_loss, llc.SGLD(0.02, preconditioner=llc.RMSProp()), {}),
    "SGNHT": (mean_loss, llc.SGNHT(0.02), {"thinning": 3}),
    "NUTS, which adapts and keeps a key": (mean_loss, llc.NUTS(), {}),
}
LENGTHS = {"num_chains": 2, "num_warmup": 10, "num_draws": 40}


def bits(draws):
    return {
        (group, name): variable.to_numpy().tobytes()
        for group, node in draws.children.items()
        for name, variable in node.data_vars.items()
    }


def stop_at(num_draws, store, posterior, sampler, **settings):
    """A run that ends without a word, its last checkpoint after `num_draws` draws (of the warm-up, where negative)."""
    names = ("spectrum", "chain_method", "keep_params")
    others = {name: settings.pop(name) for name in names if name in settings}
    lengths = RunLengths(**({"thinning": 1} | LENGTHS | settings))
    with store as folder:
        chains = Chains(jax.random.key(0), posterior, sampler, lengths, store=folder.run(), **others)
        chains.draw_until(num_draws, asked=LENGTHS["num_draws"], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", weekly(RUNS, but=("SGLD, moments of a subset, params", "NUTS, which adapts and keeps a key"))
)
def test_a_resumed_run_has_the_same_bits(name, tmp_path):
    loss_fn, sampler, settings = RUNS[name]
    posterior, path = make_posterior(loss_fn), tmp_path / "run.zarr"
    arguments = jax.random.key(0), posterior, sampler
    whole = llc.sample(*arguments, progress=False, **LENGTHS, **settings)
    in_warmup = 4 - -(-LENGTHS["num_warmup"] // settings.get("thinning", 1))
    for stop in (in_warmup, 7):
        stop_at(stop, Store(path, seconds=1000.0), posterior, sampler, **settings)
    resumed = llc.sample(*arguments, progress=False, store=path, **LENGTHS, **settings)
    again = llc.sample(*arguments, progress=False, store=path, **LENGTHS, **settings)
    for draws in (resumed, again, llc.load(path)):
        assert bits(draws) == bits(whole)
        assert draws.attrs == whole.attrs


@pytest.mark.slow
def test_more_draws_go_on_from_the_end(tmp_path):
    """Also where the longer run has a program of its own, as its segments hold more draws."""
    arguments = jax.random.key(0), make_posterior(), llc.SGLD(0.02)
    settings = {"num_chains": 2, "num_warmup": 10, "progress": False}
    whole = llc.sample(*arguments, num_draws=3000, **settings)
    for num_draws in (20, 3000):
        extended = llc.sample(*arguments, num_draws=num_draws, store=tmp_path / "run.zarr", **settings)
    assert bits(extended) == bits(whole)
    with pytest.raises(ValueError, match="num_draws needs at least the 3000 draws"):
        llc.sample(*arguments, num_draws=20, store=tmp_path / "run.zarr", **settings)


OTHER = {
    "gamma": {"posterior": lambda: make_posterior(gamma=2.0)},
    "nbeta": {"posterior": lambda: make_posterior(nbeta=3.0)},
    "params": {"posterior": lambda: llc.LocalPosterior(mean_loss, CENTER | {"b": jnp.array(0.25)}, DATA, gamma=1.0)},
    "data": {"posterior": lambda: llc.LocalPosterior(mean_loss, CENTER, DATA[::-1].copy(), gamma=1.0)},
    "num_data": {"posterior": lambda: llc.LocalPosterior(mean_loss, CENTER, DATA[:20], gamma=1.0)},
    "mask": {"posterior": lambda: make_posterior(mask="a")},
    "key": {"key": jax.random.key(1)},
    r"sampler\.step_size": {"sampler": llc.SGLD(0.03)},
    r"sampler\.name": {"sampler": llc.SGHMC(0.02)},
    "num_chains": {"num_chains": 3},
    "num_warmup": {"num_warmup": 11},
    "thinning": {"thinning": 2},
    "batch_size": {"batch_size": 8},
    "eval_size": {"eval_size": 8},
    "keep_params": {"keep_params": True},
    "chain_method": {"chain_method": "sequential"},
}


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    llc.sample(jax.random.key(0), make_posterior(), llc.SGLD(0.02), progress=False, store=path, **LENGTHS)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    weekly(
        OTHER,
        but=("gamma", "params", "data", "key", "sampler\\.step_size", "sampler\\.name", "keep_params", "chain_method"),
    ),
)
def test_another_run_is_refused_by_name(name, short_run):
    settings = {"key": jax.random.key(0), "posterior": make_posterior, "sampler": llc.SGLD(0.02), **OTHER[name]}
    key, make, sampler = (settings.pop(argument) for argument in ("key", "posterior", "sampler"))
    before = bits(llc.load(short_run))
    with pytest.raises(ValueError, match=rf"is of another run, with .*\b{name} = "):
        llc.sample(key, make(), sampler, progress=False, store=short_run, **(LENGTHS | settings))
    assert bits(llc.load(short_run)) == before


@pytest.mark.slow
def test_another_loss_that_is_the_same_at_the_minimum_is_refused(short_run):
    def other(params, batch):
        return mean_loss(params, batch) + jnp.sum((params["a"] - CENTER["a"]) ** 2)

    with pytest.raises(ValueError, match=r"with loss near w\* = "):
        llc.sample(jax.random.key(0), make_posterior(other), llc.SGLD(0.02), progress=False, store=short_run, **LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("number", weekly([signal.SIGINT, signal.SIGTERM], but=[signal.SIGTERM]))
def test_a_signal_ends_with_what_there_is_written(number, tmp_path):
    path, handler = tmp_path / "run.zarr", signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    lengths = RunLengths(num_chains=2, num_warmup=0, num_draws=10**6, thinning=1)
    with Store(path, seconds=1000.0) as folder:
        chains = Chains(jax.random.key(0), make_posterior(), llc.SGLD(0.02), lengths, store=folder.run())
        chains.draw_until(5, progress=False)
        timer.start()
        with pytest.raises(KeyboardInterrupt, match=r"draws of every chain .*run\.zarr: the same call goes on"):
            chains.draw_until(10**6, progress=False)
    assert llc.load(path)["posterior"].sizes["draw"] == chains.num_drawn > 5
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_store_in_use_is_refused_and_given_back(tmp_path):
    path = tmp_path / "run.zarr"
    arguments = jax.random.key(0), make_posterior(), llc.SGLD(0.02)
    with Store(path), pytest.raises(ValueError, match="another process"):
        llc.sample(*arguments, progress=False, store=path, **LENGTHS)
    assert "posterior" in llc.sample(*arguments, progress=False, store=path, **LENGTHS).children
