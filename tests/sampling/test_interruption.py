"""Chains that are interrupted go on; where segments end shows in no bit."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.sampling.chains import Chains
from llc.sampling.loop import Kept, Span, run_segment_in_place
from llc.sampling.run_lengths import RunLengths
from llc.sampling.standing import Interrupted, held_back

X = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
LENGTHS = RunLengths(num_chains=2, num_warmup=4, num_draws=40, thinning=2, batch_size=10)


def make_chains(**settings):
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x @ w) ** 2, jnp.zeros(2), X, gamma=1.0)
    return Chains(jax.random.key(0), posterior, llc.SGLD(0.01), LENGTHS, keep_params=True, **settings)


def run(*parts, **settings):
    chains = make_chains(**settings)
    for part in parts:
        chains.draw(part, progress=False)
    return chains.tree()


@pytest.mark.slow
@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
@pytest.mark.parametrize("parts", [(1, 12, 27), pytest.param((39, 1), marks=pytest.mark.study)], ids=str)
def test_where_segments_end_shows_in_no_bit(parts, chain_method):
    """Of draws, statistics, moments of the losses and attributes. Negative control: other draws do."""
    whole = run(40, chain_method=chain_method)
    parted = run(*parts, chain_method=chain_method)
    assert parted.equals(whole)
    assert parted.attrs == whole.attrs
    assert not run(39, chain_method=chain_method).equals(whole)


def interrupted(chains):
    """What a Ctrl-C raises some time into a run of minutes, after its first draws (which compile)."""
    chains.draw(3, progress=False)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(Interrupted) as caught:
        chains.draw(50_000, progress=False)
    timer.join()
    return caught.value


def test_interrupted_chains_go_on_where_they_stood():
    chains = make_chains()
    stop = interrupted(chains)
    done = chains.done - chains.warmup
    assert 3 <= done < 50_000
    assert stop.partial["posterior"].equals(chains.tree()["posterior"])
    assert stop.partial["posterior"].sizes["draw"] == done
    chains.draw(5, progress=False)
    draws, whole = chains.tree(), run(done + 5)
    for group in ("posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats"):
        assert draws[group].equals(whole[group])
    llc.report(draws)


def test_a_segment_takes_the_memory_of_the_states():
    """What chains carry is replaced in place: position and noise of the compiled program alias its arguments."""
    chains = make_chains(chain_method="sequential")
    span = Span(np.int32(0), np.int32(1), np.int32(1), fresh=np.bool_(True))
    kept = Kept(chains.keys[0], chains.posterior, chains.sampler, chains.measure, span, chains.settings)
    states = chains.states[0]
    compiled = run_segment_in_place.lower(kept, states, chains.moments[0]).compile().compiled
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
    assert compiled.memory_analysis().alias_size_in_bytes >= carried
    chains.draw(1, progress=False)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((chains.states, chains.posterior)))


def test_signals_wait_until_states_are_whole():
    """Nothing is raised within, once at the end, and the handler is the old one again."""
    within = []

    def segment():
        with held_back():
            signal.raise_signal(signal.SIGINT)
            within.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        segment()
    assert within == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
