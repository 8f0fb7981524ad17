"""Chains from several threads: the same bits as one after the other, in the order of the items, with their errors."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.chains import Chains
from llc.sampling.dispatch import Workers, run_at_once
from llc.sampling.loop import Span, run_segment
from llc.sampling.run_lengths import RunLengths

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(64, 8)).astype(np.float32), RNG.normal(size=64).astype(np.float32)


def loss(w, batch):
    x, y = batch
    return 0.5 * jnp.mean((jnp.tanh(x @ w["in"]) @ w["out"] - y) ** 2)


@pytest.fixture(scope="module")
def segment():
    """A segment of one chain, as a function of the chain's key and state, and those of four chains."""
    params = {"in": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32), "out": jnp.zeros(16)}
    posterior = llc.LocalPosterior(loss, params, DATA, gamma=10.0)
    chains = Chains(
        jax.random.key(0),
        posterior,
        llc.SGLD(1e-4),
        RunLengths(num_chains=4, num_warmup=0, num_draws=20, thinning=5, batch_size=16),
        chain_method="sequential",
    )
    span = Span(np.int32(0), np.int32(20), np.int32(5), np.bool_(True))

    def run(item):
        key, state = item
        moments = chains.moments[0]
        return run_segment(key, chains.posterior, chains.sampler, chains.measure, state, moments, span, chains.settings)

    return run, list(zip(chains.keys, chains.states, strict=True))


@pytest.mark.parametrize(
    "settings", [{"num_threads": 2}, {"num_threads": 4}, {"num_threads": 3, "first_alone": True}, {}], ids=str
)
def test_the_same_bits_as_one_after_the_other(segment, settings):
    run, items = segment
    alone = run_at_once(run, items, num_threads=1)
    together = run_at_once(run, items, **settings)
    jax.tree.map(np.testing.assert_array_equal, together, alone)
    first, second = (jax.tree.leaves(result[0].position) for result in alone[:2])
    assert all((a != b).any() for a, b in zip(first, second, strict=True)), "negative control: chains differ"


def test_threads_keep_the_settings_of_the_caller():
    """They belong to a thread, and another value is another program: it would be compiled again, with other bits."""

    def settings(_):
        return jax.config.jax_default_matmul_precision, jnp.zeros(()).dtype == jnp.asarray(np.zeros(())).dtype

    def wide(_):
        return jax.config.jax_enable_x64

    with jax.default_matmul_precision("highest"), jax.enable_x64(True):
        assert [found[0] for found in run_at_once(settings, range(3), num_threads=2)] == ["highest"] * 3
        assert run_at_once(wide, range(3), num_threads=2) == [True] * 3
    assert run_at_once(wide, range(3), num_threads=2) == [False] * 3


def test_runs_with_threads_have_the_same_draws_to_the_last_bit():
    params = {"in": jnp.asarray(RNG.normal(size=(8, 16)), jnp.float32), "out": jnp.zeros(16)}
    posterior = llc.LocalPosterior(loss, params, DATA, gamma=10.0)
    lengths = RunLengths(num_chains=4, num_warmup=4, num_draws=40, thinning=2, batch_size=16)
    draws = []
    for most in (1, 3):
        chains = Chains(jax.random.key(0), posterior, llc.SGLD(1e-4), lengths, chain_method="sequential")
        chains.workers.most = most
        chains.draw(40, progress=False)
        assert set(chains.workers.seconds) == {1, most}
        draws.append(chains.tree()["posterior"])
    jax.tree.map(np.testing.assert_array_equal, *({k: v.to_numpy() for k, v in x.items()} for x in draws))


@pytest.mark.parametrize(("together", "best"), [(1.0, 4), (3.0, 1)])
def test_the_faster_way_is_taken_and_the_other_one_tried_again(together, best):
    workers, taken = Workers(4), []
    for _ in range(40):
        taken.append(workers.at_once())
        workers.saw(taken[-1], together if taken[-1] == 4 else 2.0)
    assert taken[:4] == [4, 4, 4, 1], "the first one compiles"
    others = [i for i, number in enumerate(taken[4:], start=4) if number != best]
    assert others == [8, 24]
    assert Workers(1).at_once() == 1


def test_another_load_changes_the_way():
    workers = Workers(2)
    for i in range(42):
        number = workers.at_once()
        workers.saw(number, {1: 2.0, 2: 1.0 if i < 20 else 4.0}[number])
    assert workers.at_once() == 1


def test_items_run_at_once_and_come_back_in_order():
    meeting = threading.Barrier(3, timeout=30)  # all three have to be under way

    def meet(i):
        meeting.wait()
        time.sleep(0.01 * (2 - i))
        return i

    assert run_at_once(meet, [0, 1, 2], num_threads=3) == [0, 1, 2]
    assert run_at_once(lambda i: i, [], num_threads=3) == []


def test_the_first_item_can_run_before_the_others():
    done = []

    def note(i):
        done.append((i, threading.current_thread() is threading.main_thread()))
        return i

    assert run_at_once(note, [0, 1, 2], num_threads=2, first_alone=True) == [0, 1, 2]
    assert done[0] == (0, True)
    assert {is_main for _, is_main in done[1:]} == {False}


def test_errors_come_through():
    def fail(i):
        if i == 1:
            raise RuntimeError("chain 1")
        return i

    with pytest.raises(RuntimeError, match="chain 1"):
        run_at_once(fail, [0, 1, 2], num_threads=2)
    with pytest.raises(ValueError, match="num_threads"):
        run_at_once(fail, [0], num_threads=0)
