"""Walks over rows: sums, means and maps against the whole data, and how many rows go at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.posterior.precision import as_float64, float64
from llc.posterior.rows import batches, even_length, in_pieces, mean_loss, rows_that_fit

NUM_ROWS = 20
DATA = {"x": np.random.default_rng(0).normal(size=(NUM_ROWS, 3)), "y": np.arange(NUM_ROWS)}
LENGTHS = [20, 10, 7, 6, 1]  # one piece; pieces without a rest; rests shorter than a piece; single rows


def _of_rows(batch):
    return batch["x"].sum(axis=1) + batch["y"]


@pytest.mark.parametrize("length", LENGTHS)
def test_walks_agree_with_the_whole_data(length):
    with float64():
        rows = in_pieces(DATA, length)
        assert (rows.num_pieces, rows.length, rows.num_rows) == (NUM_ROWS // length, length, NUM_ROWS)
        assert (rows.rest is None) == (NUM_ROWS % length == 0)

        @eqx.filter_jit
        def walk(rows):
            zeros = jnp.zeros(3, jnp.float64)
            total = rows.sum(lambda batch: batch["x"].sum(axis=0), zeros)
            mean = rows.mean(lambda batch: {"mean": batch["x"].mean(axis=0)}, {"mean": zeros})["mean"]
            return total, mean, rows.map(_of_rows), rows.joined()

        total, mean, mapped, joined = jax.device_get(walk(rows))
    np.testing.assert_allclose(total, DATA["x"].sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(mean, DATA["x"].mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(mapped, _of_rows(DATA), rtol=1e-13)
    np.testing.assert_array_equal(joined["x"], DATA["x"])
    if NUM_ROWS % length:
        unweighted = np.mean([batch["x"].mean(axis=0) for batch in batches(DATA, length)], axis=0)
        assert np.abs(unweighted - mean).max() > 1e-4, "negative control: a rest that counts as a piece"


@pytest.mark.parametrize("length", LENGTHS)
def test_other_rows_beside_are_cut_in_the_same_way(length):
    others = np.arange(2 * NUM_ROWS).reshape(NUM_ROWS, 2)
    with float64():
        both = in_pieces(DATA, length).beside(others)
        differences = both.map(lambda batch: jnp.asarray(batch[0]["y"] - batch[1][:, 0] / 2))
    np.testing.assert_array_equal(differences, 0)


@pytest.mark.parametrize(
    ("total", "num_pieces", "length"), [(20, 1, 20), (20, 3, 5), (21, 2, 7), (23, 4, 5), (1000, 63, 10)]
)
def test_pieces_leave_no_rest_where_up_to_twice_as_many_divide_the_rows(total, num_pieces, length):
    assert even_length(total, num_pieces) == length


@pytest.mark.parametrize("per_example", [False, True], ids=["scalar", "per example"])
def test_the_mean_loss_weights_a_shorter_last_batch(per_example):
    def loss(w, batch):
        squares = (w * _of_rows(batch)) ** 2
        return squares if per_example else jnp.mean(squares)

    with float64():
        found = mean_loss(loss, jnp.ones(()), DATA, as_float64, most=9)
    np.testing.assert_allclose(found, np.mean(_of_rows(DATA) ** 2), rtol=1e-14)
    unweighted = np.mean([np.mean(_of_rows(batch) ** 2) for batch in batches(DATA, 9)])
    assert abs(unweighted - found) > 1e-3 * found, "negative control"


# ---- how many rows fit ------------------------------------------------------------------------------------------

WIDTH = 2**10  # float32 numbers alive for each row of the functions below: 4 KiB
MANY = {"x": np.zeros((1000, 1), np.float32)}


def _wide(batch):
    return jnp.sum(jnp.tanh(batch["x"] * jnp.arange(WIDTH, dtype=jnp.float32)), axis=1)


def _in_a_loop(batch):
    return jax.lax.fori_loop(0, 3, lambda _, x: x + _wide(batch), jnp.zeros(len(batch["x"])))


def _no_program(batch):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("fn", "settings", "rows"),
    [
        (_wide, {}, 1000),
        (_wide, {"budget": 2.0**20}, 128),  # 2 · 4 KiB a row: the product and its tanh
        (_in_a_loop, {"budget": 2.0**20}, 64),
        (_wide, {"budget": 2.0**20, "times": 2.0}, 64),
        (_wide, {"budget": 2.0**20, "least": 200}, 200),
        (_wide, {"budget": 1.0}, 1),
        (_no_program, {"budget": 1.0}, 1000),
    ],
    ids=["fits", "lowered", "in a loop", "of a product", "hint from below", "one by one", "not traceable"],
)
def test_rows_that_fit_are_never_more_than_the_default(fn, settings, rows):
    assert rows_that_fit(fn, MANY, 1000, **settings) == rows
    assert rows_that_fit(fn, MANY, 3, **settings) <= 3


def test_a_row_that_does_not_fit_is_an_error(monkeypatch):
    for name in ("rows", "memory"):
        monkeypatch.setattr(f"llc.posterior.{name}.free_memory", lambda: 1e3)
    with pytest.raises(ValueError, match="examples in data"):
        rows_that_fit(_wide, MANY, 1000)


def _large(params, batch):
    """A loss whose hidden layer is 2¹⁷ wide, 1 MiB in float64."""
    hidden = jnp.tanh(batch["x"] * params["a"] * jnp.ones(2**17, params["a"].dtype))
    return jnp.mean(hidden, axis=1) ** 2 * params["a"]


def test_a_large_model_is_walked_over_in_small_pieces():
    from llc.geometry.curvature.operators import curvature_operator
    from llc.sampling.energies import make_evaluation

    posterior = llc.LocalPosterior(_large, {"a": jnp.ones(())}, {"x": np.ones((1500, 1), np.float32)}, gamma=1.0)
    with float64():
        rows = curvature_operator(posterior).rows
    assert 8 <= rows.length <= 256
    assert rows.num_rows == 1500
    evaluation = make_evaluation(posterior)
    assert rows.length <= evaluation.rows.length <= 1024
    assert make_evaluation(posterior, batch_size=1000).rows.length >= 750, "a batch size is a hint from below"
