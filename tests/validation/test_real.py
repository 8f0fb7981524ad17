"""The study of real networks: its networks, its training, and its quick size."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import real
import real_networks as networks

from tests.support.tiers import weekly

KEY = jax.random.key(0)
SMALL = {
    "mlp": networks.mlp(KEY, real.QUICK.mlp),
    "transformer": networks.transformer(KEY, real.QUICK.transformer),
    "language": networks.language(KEY, real.QUICK.language),
}


@pytest.mark.parametrize(("name", "num_params"), [("mlp", 269_322), ("transformer", 102_656), ("language", 2_840_480)])
def test_full_size(name, num_params):
    network = jax.eval_shape(lambda: real.make_network(name, real.Settings()).start)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network)) == num_params


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(SMALL, but=("mlp",)))
def test_losses_come_per_example(name):
    network = SMALL[name]
    losses = network.loss_fn(network.start, network.data)
    assert losses.shape == (len(jax.tree.leaves(network.data)[0]),)
    some = network.loss_fn(network.start, jax.tree.map(lambda x: x[:3], network.data))
    np.testing.assert_allclose(some, losses[:3], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.study
def test_attention_is_causal():
    size = networks.LanguageSize(vocabulary=8, length=6, width=4, layers=2, heads=2)
    params = networks.init_transformer(KEY, size.vocabulary, size.length, size.width, size.layers, size.heads)
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    before, after = (networks.logits_of(params, t) for t in (tokens, tokens.at[0, 3].set(7)))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(np.asarray(before[:, 3:]) - np.asarray(after[:, 3:])).min() > 0, "negative control"


def test_every_token_has_few_successors():
    tokens = networks.markov_chain(num_sequences=400, length=9, vocabulary=20)
    pairs = np.stack([tokens[:, :-1].ravel(), tokens[:, 1:].ravel()], axis=1)
    followers = [len(set(pairs[pairs[:, 0] == token, 1])) for token in range(20)]
    assert max(followers) <= networks.SUCCESSORS
    assert tokens.min() >= 0
    assert tokens.max() < 20


@pytest.mark.study
def test_training_stops_on_one_path():
    network = SMALL["transformer"]
    stops = networks.train(KEY, network, (20, 50))
    again = networks.train(KEY, network, (50,))
    assert list(stops) == [20, 50]
    for a, b in zip(jax.tree.leaves(stops[50]), jax.tree.leaves(again[50]), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [float(network.loss_fn(params, network.data).mean()) for params in (network.start, stops[50])]
    assert losses[1] < losses[0]


def test_seconds_and_verdicts_are_counted():
    row = {"case": "mlp", "verdict": "SCALE_DEPENDENT", "seconds": 1.04}
    rows = [
        row,
        row | {"case": "transformer", "verdict": "UNRESOLVED"},
        {"case": "language", "error": "ValueError: no"},
    ]
    summary = real.summarize(rows)
    assert summary["seconds"] == {"mlp": 1.0, "transformer": 1.0}
    assert summary["verdicts"] == {"SCALE_DEPENDENT": 1, "UNRESOLVED": 1}
    assert summary["errors"] == 1


@pytest.mark.study
@pytest.mark.optimized
def test_quick_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["real.py", "--quick", "--out", str(tmp_path)])
    real.main()
    record = json.loads((tmp_path / "real.json").read_text())
    assert not [row["error"] for row in record["rows"] if "error" in row]
    assert [row["case"] for row in record["rows"]] == list(real.QUICK.cases)
    assert all(row["seconds"] > 0 and row["gib"] > 0 and row["gflops"] > 0 for row in record["rows"])
    assert (tmp_path / "real.png").exists()
