"""What people give instead of data, params and losses: each is named, with its type and the cure."""

import dataclasses
import datetime
import pickle
import warnings

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
ZERO = jnp.zeros(3)


def squares(w, batch):
    return 0.5 * (batch @ w) ** 2


class DataLoader:
    def __iter__(self):
        yield ROWS


NO_DATA = {
    "text": ({"x": ROWS, "name": "abc"}, r"data\['name'\].*got str"),
    "array of text": ({"x": ROWS, "name": np.array(["a"] * 50)}, r"data\['name'\].*dtype <U1"),
    "objects": ((ROWS, np.array([[1], [2, 3]] * 25, dtype=object)), r"data\[1\].*dtype object"),
    "dates": ({"t": np.array(["2020-01-01"] * 50, "datetime64[D]")}, r"data\['t'\].*datetime64"),
    "a date": ((ROWS, datetime.datetime(2020, 1, 1)), r"data\[1\].*got datetime"),
    "structured": (np.zeros(50, [("a", "f4")]), r"dtype \[\('a'"),
    "lists": (np.zeros((2000, 64)).tolist(), r"got 128000 numbers.*np\.asarray"),
    "list beside an array": ((ROWS, [1] * 50), r"got 50 numbers.*data\[1\]\[0\].*np\.asarray"),
    "NumPy scalars": ([np.float32(1)] * 50, r"got 50 numbers.*np\.asarray"),
    "rows in a list": (list(ROWS), r"42 more.*np\.stack"),
    "masked": (np.ma.masked_array(ROWS), r"masked array.*filled"),
    "loader": (DataLoader(), r"got DataLoader.*no array"),
    "iterator": (iter([ROWS]), r"got list_iterator.*no array"),
    "zip": ({"x": zip(ROWS, ROWS, strict=True)}, r"data\['x'\].*got zip.*no array"),
    "range": (range(50), "got range.*no array"),
    "keys": ((ROWS, jax.random.split(jax.random.key(0), 50)), r"data\[1\].*key_data"),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_data_that_are_no_arrays_are_named(name):
    data, message = NO_DATA[name]
    with pytest.raises(ValueError, match=message) as error:
        LocalPosterior(squares, ZERO, data)
    assert len(str(error.value)) < 1000


LOSSES = {
    "integer": lambda w, batch: jnp.sum(batch @ w > 0),
    "boolean": lambda w, batch: batch @ w > 0,
    "complex": lambda w, batch: jnp.mean(batch @ w) + 0j,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_is_no_real_number_is_refused(name):
    with pytest.raises(ValueError, match="real floating-point numbers, got"):
        LocalPosterior(LOSSES[name], ZERO, ROWS)


def fixed_carry(w, batch):
    total = jax.lax.scan(lambda total, row: (total + squares(w, row), None), jnp.zeros((), jnp.float32), batch)[0]
    return total / len(batch)


class Dropping(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dropout(0.5, deterministic=False)(x)


AVERAGES = {"mean": jnp.zeros(3), "var": jnp.ones(3)}


def normalized(w, batch, state):
    model = flax.linen.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    return jnp.mean(model.apply(state, batch) @ w)


WRONG_LOSSES = {
    "a tuple": (lambda w, batch: (jnp.mean(squares(w, batch)), {}), "got a tuple.*auxiliary"),
    "with its gradient": (jax.value_and_grad(lambda w, batch: jnp.mean(squares(w, batch))), "no value_and_grad"),
    "a dict": (lambda w, batch: {"loss": jnp.mean(squares(w, batch))}, "got a dict"),
    "no return": (lambda w, batch: None, "got None.*return"),
    "shape (n, 1)": (lambda w, batch: squares(w, batch)[:, None], r"got \(50, 1\)"),
    "shape (1,)": (lambda w, batch: jnp.mean(squares(w, batch))[None], r"got \(1,\)"),
    "arguments swapped": (lambda batch, w: jnp.mean(jnp.reshape(batch, (-1, 3)) @ w), "the other way round"),
    "in NumPy": (lambda w, batch: np.mean(np.asarray(batch) @ np.asarray(w)), r"jax\.numpy"),
    "a condition": (lambda w, batch: jnp.mean(squares(w, batch)) if w[0] > 0 else 0.0, r"jnp\.where"),
    "a float of params": (lambda w, batch: float(w[0]) * squares(w, batch), r"jnp\.where"),
    "random numbers": (lambda w, batch: squares(w, Dropping().apply({}, batch)), r"deterministic=True"),
    "averages that change": (lambda w, batch: normalized(w, batch, {"batch_stats": AVERAGES}), "use_running_average"),
    "no averages": (lambda w, batch: flax.linen.Dense(1).apply({}, batch)[:, 0], "collections"),
    "a named axis": (lambda w, batch: jnp.mean(jax.lax.pmean(batch @ w, "batch")), "running averages"),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_what_is_no_loss_is_named_with_its_cure(name):
    loss_fn, message = WRONG_LOSSES[name]
    with pytest.raises(ValueError, match=rf"(?s)loss_fn needs.*{message}"):
        LocalPosterior(loss_fn, ZERO, ROWS)


FLOAT32_ALONE = {
    "a carry of float32": fixed_carry,
    "a product in float32": lambda w, batch: (
        jnp.mean(0.5 * jnp.square(batch @ w)) if w.dtype == np.float32 else jnp.zeros(())[0]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT32_ALONE)
def test_a_loss_that_fails_in_float64_is_computed_in_float32(name):
    """L(w*), λ_quad and the rank are those of the same loss in float64, to the accuracy of float32."""
    center = np.full(3, 0.5, np.float32)
    with pytest.warns(UserWarning, match="works in float32 alone"):
        posterior = LocalPosterior(FLOAT32_ALONE[name], center, ROWS, gamma=1.0)
    same = LocalPosterior(squares, center, ROWS, gamma=1.0)
    assert posterior.init_loss() == pytest.approx(same.init_loss(), rel=1e-6)
    spectra = llc.spectrum(posterior), llc.spectrum(same)
    assert spectra[0].quad(1.0) == pytest.approx(spectra[1].quad(1.0), rel=1e-5)
    assert posterior.precision == "float32"


def test_a_loss_that_fails_in_both_precisions_is_refused():
    def loss(w, batch):
        return jnp.mean(batch @ w) if isinstance(w, np.ndarray) else jnp.zeros(())[0]

    with pytest.raises(ValueError, match="loss_fn needs"):
        LocalPosterior(loss, ZERO, ROWS)


@pytest.mark.parametrize("size", [64, 100])
def test_a_loss_for_batches_of_one_size_is_refused(size):
    rows = np.ones((100, 3), np.float32)
    with pytest.raises(ValueError, match="batches are of any size"):
        LocalPosterior(lambda w, batch: jnp.sum(squares(w, batch).reshape(size, -1), axis=1), ZERO, rows)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, ">i2"])
def test_arrays_of_other_byte_orders_and_widths(dtype):
    rows = np.round(ROWS * 100).astype(np.float32)
    posterior = LocalPosterior(squares, np.ones(3, dtype if np.dtype(dtype).kind == "f" else ">f4"), rows.astype(dtype))
    np.testing.assert_allclose(posterior.init_loss(), np.mean(0.5 * rows.astype(float).sum(axis=1) ** 2), rtol=1e-12)


PARAMS = {
    "key": ({"w": ZERO, "key": jax.random.key(0)}, r"'key': 'key<fry>'.*nnx\.state\(model, nnx\.Param\)"),
    "numbers": ([0.0, 0.0, 0.0], r"\['float'\].*jnp\.asarray"),
    "iterator": (iter([ZERO]), r"\['list_iterator'\]"),
    "objects": (np.array([None]), "object"),
    "keys of two types": ({"w": ZERO, 1: ZERO}, "keys can be sorted"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_params_that_are_none_are_named(name):
    params, message = PARAMS[name]
    with pytest.raises(ValueError, match=message):
        LocalPosterior(lambda w, batch: jnp.mean(batch**2), params, ROWS)


@pytest.mark.parametrize("mask", ["empty", {"w": False, "empty": True}])
def test_a_mask_on_empty_leaves_only_is_refused(mask):
    params = {"w": ZERO, "empty": jnp.zeros((0, 3))}
    with pytest.raises(ValueError, match="mask needs to let at least one parameter move"):
        LocalPosterior(lambda p, batch: squares(p["w"], batch), params, ROWS, mask=mask)
    assert LocalPosterior(lambda p, batch: squares(p["w"], batch), params, ROWS).num_params == 3


class Normalized(flax.nnx.Module):
    def __init__(self):
        self.linear, self.norm = (
            flax.nnx.Linear(3, 1, rngs=flax.nnx.Rngs(0)),
            flax.nnx.BatchNorm(1, rngs=flax.nnx.Rngs(0)),
        )
        self.drop = flax.nnx.Dropout(0.5, rngs=flax.nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.drop(self.linear(x)))


def test_the_parts_of_an_nnx_model():
    model = Normalized()
    model.eval()
    graph, state = flax.nnx.split(model)
    with pytest.raises(ValueError, match=r"nnx\.state\(model, nnx\.Param\)"):
        LocalPosterior(lambda s, batch: jnp.mean(flax.nnx.merge(graph, s)(batch) ** 2), state, ROWS)

    graph, params, averages, rest = flax.nnx.split(model, flax.nnx.Param, flax.nnx.BatchStat, ...)
    both = flax.nnx.state(model, (flax.nnx.Param, flax.nnx.BatchStat))

    def loss_fn(s, batch):
        return jnp.mean(flax.nnx.merge(graph, s, rest)(batch) ** 2)

    with pytest.warns(UserWarning, match=r"running averages.*norm\.mean"):
        LocalPosterior(loss_fn, both, ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked = LocalPosterior(loss_fn, both, ROWS, mask=["linear", "norm.scale", "norm.bias"])
        alone = LocalPosterior(
            lambda s, batch: jnp.mean(flax.nnx.merge(graph, s, averages, rest)(batch) ** 2), params, ROWS
        )
    assert masked.num_params == alone.num_params == 6


@dataclasses.dataclass
class Scaled:
    """Unhashable, as a dataclass that may change is."""

    factor: float

    def __call__(self, w, batch):
        return self.factor * squares(w, batch)


def test_a_loss_without_a_hash():
    loss_fn = Scaled(2.0)
    posterior = LocalPosterior(loss_fn, jnp.ones(3), ROWS, gamma=1.0)
    first = posterior.init_loss()
    loss_fn.factor = 6.0
    assert LocalPosterior(loss_fn, jnp.ones(3), ROWS, gamma=1.0).init_loss() == pytest.approx(3 * first)


def test_a_pickled_posterior_shares_the_programs():
    posterior = LocalPosterior(squares, jnp.ones(3), ROWS, gamma=1.0)
    again = pickle.loads(pickle.dumps(posterior))
    assert again.loss_fn == posterior.loss_fn
    assert hash(again.loss_fn) == hash(posterior.loss_fn)
    assert posterior.with_scale(nbeta=3.0).loss_fn is posterior.loss_fn


@pytest.mark.slow
@pytest.mark.parametrize(
    "strict",
    [
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.transfer_guard("disallow"),
    ],
    ids=["dtype promotion", "rank promotion", "transfer guard"],
)
def test_strict_flags_of_jax_do_not_matter(strict):
    key, w = jax.random.key(0), jnp.asarray([0.1, 0.2, 0.3])
    with strict():
        posterior = LocalPosterior(squares, w, ROWS, gamma=1.0, predict_fn=lambda w, batch: batch @ w)
        spectrum = llc.spectrum(posterior)
        draws = llc.sample(
            key, posterior, llc.SGLD(1e-3), num_chains=2, num_warmup=2, num_draws=4, spectrum=spectrum, progress=False
        )
        controls = llc.influence_controls(posterior, spectrum, {"rows": None})
        curved = llc.SGLD(1e-3, control_variates=True)
        llc.sample(key, posterior, curved, num_chains=2, num_warmup=2, num_draws=4, batch_size=5, progress=False)
    assert set(controls.observables) == {"rows_linear", "rows_stein"}
    hessian = ROWS.astype(np.float64).T @ ROWS.astype(np.float64) / len(ROWS)
    np.testing.assert_allclose(spectrum.largest, np.linalg.eigvalsh(hessian)[-1], rtol=1e-6)
    assert np.isfinite(draws["posterior"]["llc"]).all()
