"""Chains on a stream: λ̂ as on arrays, each row once in a window, the same bits when resumed, threads that end."""

import json
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.chains import Chains
from llc.sampling.run_lengths import RunLengths
from llc.sampling.standing import Interrupted
from llc.sampling.windows import Windows
from tests.support import sources
from tests.support.sources import NUM_DATA, X, Y
from tests.support.tiers import weekly_cases

LENGTHS = {"num_chains": 2, "num_warmup": 40, "num_draws": 60, "thinning": 4, "batch_size": 50, "progress": False}
SHORT = {"num_chains": 2, "num_warmup": 4, "num_draws": 30, "thinning": 2, "batch_size": 300, "progress": False}


def stream(source=None, **settings):
    return llc.stream(source or sources.Loader(), **({"resident": 200} | settings))


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def sampled(data, key=0, sampler=None, loss_fn=None, **settings):
    posterior = sources.regression(data) if loss_fn is None else loss_fn(data)
    return llc.sample(jax.random.key(key), posterior, sampler or llc.SGLD(2e-4), **(LENGTHS | settings))


def assert_same(one, other):
    for name, variable in one["posterior"].data_vars.items():
        assert variable.to_numpy().tobytes() == other["posterior"][name].to_numpy().tobytes(), name


def difference(one, other):
    """In standard errors."""
    return (one.value - other.value) / np.hypot(one.mcse, other.mcse)


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.optimized
@pytest.mark.parametrize("control_variates", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_llc_is_that_of_arrays(control_variates):
    """And the exact one, with the heating of minibatches from the arrays' run in both."""
    sampler = llc.SGLD(3e-4, control_variates=control_variates)
    settings = {"num_warmup": 500, "num_draws": 1000, "num_chains": 4, "batch_size": 200, "sampler": sampler}
    streamed, arrays = (llc.mean_energy(sampled(data, **settings)) for data in (stream(resident=500), [X, Y]))
    assert abs(difference(streamed, arrays)) < 4
    if control_variates:  # no heating but that of the curvature
        exact = sources.exact_llc(sources.regression([X, Y]))
        assert abs(streamed.value - exact) < 4 * streamed.mcse


@pytest.mark.optimized
def test_the_wrong_slope_shows():
    """Negative control: the resident rows alone, whose minimum is another, give another λ̂."""
    posterior = sources.regression(stream(resident=100))
    settings = LENGTHS | {"num_warmup": 500, "num_draws": 1000, "num_chains": 4, "batch_size": None}
    alone = llc.mean_energy(llc.sample(jax.random.key(0), posterior.resident(), llc.SGLD(3e-4), **settings))
    assert abs(alone.value - sources.exact_llc(posterior)) > 4 * alone.mcse


def mlp(data):
    hidden, output = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 4), (4,)]))

    def loss_fn(params, batch):
        return 0.5 * (jnp.tanh(batch[0] @ params["hidden"]) @ params["output"] - batch[1]) ** 2

    params = {"hidden": hidden, "output": output}
    posterior = llc.LocalPosterior(loss_fn, params, [X, Y], gamma=100.0)
    center = llc.polish(posterior, max_steps=30, progress=False).posterior.center
    return llc.LocalPosterior(loss_fn, jax.tree.map(jnp.float32, center), data, gamma=100.0)


@pytest.mark.study
@pytest.mark.optimized
def test_the_llc_of_a_network_is_that_of_arrays():
    settings = {"num_warmup": 500, "num_draws": 800, "num_chains": 4, "batch_size": 200, "loss_fn": mlp}
    streamed, arrays = (llc.mean_energy(sampled(data, **settings)) for data in (stream(resident=1000), [X, Y]))
    assert abs(difference(streamed, arrays)) < 4


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_a_source_that_fits_gives_the_bits_of_arrays(chain_method):
    assert_same(sampled(stream(resident=4096), chain_method=chain_method), sampled([X, Y], chain_method=chain_method))


def test_chains_side_by_side_take_the_rows_that_they_take_alone():
    together, alone = (sampled(stream(), chain_method=method) for method in ("vectorized", "sequential"))
    np.testing.assert_allclose(together["posterior"]["llc"], alone["posterior"]["llc"], rtol=1e-3, atol=1e-3)


def windows(source, key=0, **settings):
    lengths = RunLengths(num_chains=3, num_warmup=0, num_draws=10, thinning=5, batch_size=100)
    data = stream(source)
    return Windows(jax.random.key(key), data, lengths, data.resident, **settings)


def test_each_row_of_a_window_is_in_one_minibatch():
    """Of consecutive passes; another key deals them differently."""
    here = windows(sources.Loader())
    size = here.num_draws * 5 * 3 * 100
    with here.reading():
        for number in (0, 1):
            (window,) = here.holding(number * here.num_draws)
            assert int(window.first) == number * here.num_draws * 5
            rows = np.asarray(window.batches[0]).reshape(-1, 3)
            expected = X[np.arange(number * size, (number + 1) * size) % NUM_DATA]
            np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(expected, axis=0))


def test_another_key_deals_rows_differently():
    first = []
    for key in (0, 0, 1):
        here = windows(sources.Loader(), key=key)
        with here.reading():
            first.append(np.asarray(here.holding(0)[0].batches[0][0, 0]))
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


@pytest.mark.parametrize("source", [sources.Loader(), sources.shuffled, sources.EpochLoader()])
def test_the_same_key_gives_the_same_bits(source):
    assert_same(sampled(stream(source), **SHORT), sampled(stream(source), **SHORT))


ORDERS = {
    "same": sources.Loader(),
    "numbered": sources.shuffled,
    "varies": sources.ShufflingLoader(),
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_draws_say_what_they_rest_on(order):
    draws = sampled(stream(ORDERS[order]), **SHORT)
    settings = json.loads(draws.attrs["settings"])
    assert settings["stream"]["order"] == order
    assert settings["stream"]["resident"] == settings["eval_size"] == 200
    constants = draws["constant_data"]
    assert int(constants["num_data"]) == NUM_DATA
    assert float(constants["init_loss"]) == pytest.approx(sources.regression([X, Y]).init_loss(), rel=1e-10)
    assert not reading()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "chain_method"),
    weekly_cases(
        {
            f"{name}-{method}": (source, method)
            for name, source in (("same", sources.Loader()), ("numbered", sources.shuffled))
            for method in ("vectorized", "sequential")
        },
        but=("same-vectorized",),
    ),
)
def test_a_resumed_run_has_the_same_bits(source, chain_method, tmp_path):
    """The second part begins in the middle of a window, and in the middle of a pass."""
    settings = SHORT | {"chain_method": chain_method}
    whole = sampled(stream(source), **settings)
    for num_draws in (13, 30):
        resumed = sampled(stream(source), **(settings | {"num_draws": num_draws, "store": tmp_path / "run.zarr"}))
    np.testing.assert_array_equal(resumed["posterior"]["llc"], whole["posterior"]["llc"])
    with pytest.raises(ValueError, match="data"):
        sampled(stream(source, resident=100), **settings, store=tmp_path / "run.zarr")


def test_batches_of_the_source_are_the_minibatches_by_default():
    draws = sampled(stream(), **(SHORT | {"batch_size": None}))
    assert json.loads(draws.attrs["settings"])["batch_size"] == 70


def test_where_segments_end_shows_in_no_bit():
    lengths = RunLengths(num_chains=2, num_warmup=4, num_draws=30, thinning=2, batch_size=300)
    trees = []
    for parts in ((30,), (1, 20, 9)):
        chains = Chains(jax.random.key(0), sources.regression(stream()), llc.SGLD(1e-4), lengths)
        for part in parts:
            chains.draw(part, progress=False)
        trees.append(chains.tree())
    assert trees[0].equals(trees[1])


class Breaking:
    """Passes that end in an error after some rows, once it is switched on."""

    after = None

    def __iter__(self):
        for i, batch in enumerate(sources.Loader()):
            if self.after == i:
                raise OSError("the disk is gone")
            yield batch


def test_an_error_of_the_source_is_told():
    source = Breaking()
    posterior = sources.regression(stream(source))
    llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-4), **SHORT)  # the pass over all rows is made
    source.after = 30
    with pytest.raises(RuntimeError, match="the disk is gone") as caught:
        llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-4), **SHORT)
    assert isinstance(caught.value.__cause__, OSError)
    assert not reading()


class Shrinking:
    """A source that loses rows."""

    rows = NUM_DATA

    def __iter__(self):
        return ([X[i : i + 70], Y[i : i + 70]] for i in range(0, self.rows, 70))


def test_rows_that_are_missing_are_told():
    source = Shrinking()
    posterior = sources.regression(stream(source))
    source.rows = 2000
    with pytest.raises(ValueError, match=f"n = {NUM_DATA} rows"):
        llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-4), **SHORT)


def test_an_interrupted_run_goes_on():
    lengths = RunLengths(num_chains=2, num_warmup=4, num_draws=30, thinning=2, batch_size=300)
    chains = Chains(jax.random.key(0), sources.regression(stream()), llc.SGLD(1e-4), lengths)
    chains.draw(3, progress=False)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(Interrupted):
        chains.draw(50_000, progress=False)
    timer.join()
    assert not reading()
    done = chains.num_drawn
    assert done >= 3
    chains.draw(2, progress=False)
    assert chains.num_drawn == done + 2


REFUSED = {
    "an accept step": ({"sampler": llc.MALA(1e-4)}, "full data"),
    "more rows than there are": ({"eval_size": 201}, "resident=201"),
    "energies of steps": ({"step_energies": True}, "step_energies"),
    "a batch beyond the data": ({"batch_size": NUM_DATA + 1}, "batch_size"),
    "windows beyond the memory": ({"thinning": 10**9}, "thinning"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_what_a_stream_can_not_do_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        sampled(stream(), **(SHORT | settings))
