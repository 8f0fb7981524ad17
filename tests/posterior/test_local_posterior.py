"""LocalPosterior: models of every library, data, masks, L(w*) and what construction refuses."""

import math

import equinox as eqx
import flax.linen
import flax.nnx
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llc
import llc.posterior.local_posterior
from llc import LocalPosterior
from tests.support.tiers import weekly

RNG = np.random.default_rng(1)
INPUTS = RNG.normal(size=(20, 2)).astype(np.float32)
TARGETS = RNG.normal(size=(20, 1)).astype(np.float32)
DATA = {"x": INPUTS, "y": TARGETS}
KEY = jax.random.key(0)
ZERO = {"w": jnp.zeros((2, 1))}


def regression(w, batch):
    """Mean squared loss of y = x·w + b, half of it."""
    outputs = batch["x"] @ w["w"] + w["b"]
    return 0.5 * jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1))


def regression_in_numpy(w, batch):
    outputs = batch["x"].astype(np.float64) @ np.asarray(w["w"], np.float64) + np.asarray(w["b"], np.float64)
    return 0.5 * np.mean(np.sum((outputs - batch["y"]) ** 2, axis=1))


def center():
    return {"w": jnp.array([[0.5], [-1.0]]), "b": jnp.array([0.25])}


# ---- Models of every library ------------------------------------------------------------------------------------


def plain():
    return regression, center(), lambda w: DATA["x"] @ w["w"] + w["b"]


def equinox():
    model = eqx.nn.MLP(2, 1, 3, 1, key=KEY)
    return (lambda m, batch: squared(jax.vmap(m)(batch["x"]), batch)), model, lambda m: jax.vmap(m)(INPUTS)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(1)(jnp.tanh(flax.linen.Dense(3)(x)))


def linen():
    model = Linen()
    params = model.init(KEY, INPUTS)
    return (lambda p, batch: squared(model.apply(p, batch["x"]), batch)), params, lambda p: model.apply(p, INPUTS)


class Nnx(flax.nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = flax.nnx.Linear(2, 3, rngs=rngs), flax.nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def nnx_state():
    graph, state = flax.nnx.split(Nnx(flax.nnx.Rngs(0)), flax.nnx.Param)

    def predict(state, inputs):
        return flax.nnx.merge(graph, state)(inputs)

    return (lambda s, batch: squared(predict(s, batch["x"]), batch)), state, lambda s: predict(s, INPUTS)


def nnx_module():
    model = Nnx(flax.nnx.Rngs(0))
    return (lambda m, batch: squared(m(batch["x"]), batch)), model, lambda m: m(INPUTS)


def haiku_model():
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([3, 1], activation=jnp.tanh)(x)))
    params = model.init(KEY, INPUTS)
    return (lambda p, batch: squared(model.apply(p, batch["x"]), batch)), params, lambda p: model.apply(p, INPUTS)


def squared(outputs, batch):
    return 0.5 * jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1))


MODELS = {
    "dict": (plain, 3),
    "equinox": (equinox, 13),
    "linen": (linen, 13),
    "nnx.State": (nnx_state, 13),
    "nnx.Module": (nnx_module, 13),
    "haiku": (haiku_model, 13),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", weekly(MODELS, but=("dict", "nnx.Module")))
def test_models_of_every_library(name):
    make, num_params = MODELS[name]
    loss_fn, params, predict = make()
    posterior = LocalPosterior(loss_fn, params, DATA, nbeta=5.0, gamma=2.0)
    assert (posterior.num_data, posterior.num_params) == (20, num_params)
    assert jax.tree.structure(posterior.params_at(posterior.position)) == jax.tree.structure(params)

    outputs = np.asarray(predict(params), np.float64)
    loss = 0.5 * np.mean(np.sum((outputs - TARGETS) ** 2, axis=1))
    np.testing.assert_allclose(posterior.loss(params), loss, rtol=1e-5)  # float32: 20 rows, a few roundings each
    np.testing.assert_allclose(posterior.init_loss(), loss, rtol=1e-5)

    moved = jax.tree.map(lambda x: x + 0.1, posterior.position)
    outputs = np.asarray(predict(posterior.params_at(moved)), np.float64)
    expected = 5.0 * 0.5 * np.mean(np.sum((outputs - TARGETS) ** 2, axis=1)) + 0.5 * 2.0 * num_params * 0.1**2
    np.testing.assert_allclose(posterior.potential(posterior.params_at(moved)), expected, rtol=1e-5)

    draws = llc.sample(
        KEY,
        posterior,
        llc.SGLD(1e-2),
        num_chains=2,
        num_warmup=2,
        num_draws=8,
        keep_params=True,
        progress=False,
    )
    assert np.isfinite(draws["posterior"]["llc"]).all()
    assert draws["sample_stats"]["distance"].min() > 0
    leaves = [v.size // 16 for name, v in draws["posterior"].data_vars.items() if name.startswith("params.")]
    assert sorted(leaves) == sorted(leaf.size for leaf in jax.tree.leaves(posterior.position))


def test_nothing_but_floating_point_arrays_moves():
    loss_fn, model, _ = equinox()
    posterior = LocalPosterior(loss_fn, model, DATA, gamma=1.0)
    params = posterior.params_at(jax.tree.map(jnp.zeros_like, posterior.position))
    assert params.activation is model.activation
    assert all(not leaf.any() for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_array)))


@pytest.mark.parametrize("kind", ["dict", "tuple", "array"])
def test_data_pytrees(kind):
    data = {"dict": DATA, "tuple": (INPUTS, TARGETS), "array": np.hstack([INPUTS, TARGETS])}[kind]

    def loss_fn(w, batch):
        if kind == "array":
            batch = {"x": batch[:, :2], "y": batch[:, 2:]}
        elif kind == "tuple":
            batch = dict(zip("xy", batch, strict=True))
        return regression(w, batch)

    posterior = LocalPosterior(loss_fn, center(), data)
    assert posterior.num_data == 20
    np.testing.assert_allclose(posterior.init_loss(), regression_in_numpy(center(), DATA), rtol=1e-14)


def test_integer_data_stay_integer():
    labels = np.arange(20) % 2

    def loss_fn(w, batch):
        inputs, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(inputs * w, labels)

    posterior = LocalPosterior(loss_fn, jnp.array([1.0, -1.0]), (INPUTS, labels))
    logits = INPUTS.astype(np.float64) * [1.0, -1.0]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(20), labels])
    np.testing.assert_allclose(posterior.init_loss(), expected, rtol=1e-14)
    assert posterior.per_example


# ---- Scale ------------------------------------------------------------------------------------------------------


def test_nbeta_is_n_over_log_n():
    posterior = LocalPosterior(regression, center(), DATA)
    assert float(posterior.nbeta) == 20 / math.log(20)
    assert posterior.gamma is None


def test_scales_may_be_integers():
    posterior = LocalPosterior(regression, center(), DATA, nbeta=5, gamma=1)
    assert (float(posterior.nbeta), float(posterior.gamma)) == (5.0, 1.0)


@pytest.mark.parametrize("scale", [2e-38, 1e-30, 1.0, 1e30, 3e38])
def test_scales_that_float32_can_hold_are_taken(scale):
    """Negative control of the ones that are refused below."""
    posterior = LocalPosterior(regression, center(), DATA, nbeta=scale, gamma=scale)
    assert (float(posterior.nbeta), float(posterior.gamma)) == (scale, scale)
    assert float(posterior.with_scale(gamma=0.0).gamma) == 0


def test_with_scale_changes_only_what_it_is_given():
    posterior = LocalPosterior(regression, center(), DATA)
    scaled = posterior.with_scale(gamma=3.0)
    assert (float(scaled.gamma), float(scaled.nbeta)) == (3.0, float(posterior.nbeta))
    again = scaled.with_scale(nbeta=7.0)
    assert (float(again.gamma), float(again.nbeta)) == (3.0, 7.0)
    assert posterior.gamma is None
    with pytest.raises(ValueError, match="gamma needs a finite number >= 0"):
        posterior.with_scale(gamma=-1.0)


def test_potential_needs_gamma():
    with pytest.raises(ValueError, match="potential needs gamma, got None"):
        LocalPosterior(regression, center(), DATA).potential(center())


# ---- Masks ------------------------------------------------------------------------------------------------------

ENTRIES = np.array([[True], [False]])
MASKS = {
    "path": ("w", {"w": True, "b": False}),
    "list": (["w", "b"], {"w": True, "b": True}),
    "glob": ("*b*", {"w": False, "b": True}),
    "bool": (True, {"w": True, "b": True}),
    "prefix": ({"w": False, "b": True}, {"w": False, "b": True}),
    "entries": ({"w": ENTRIES, "b": False}, {"w": ENTRIES, "b": False}),
    "entries and leaf": ({"w": ENTRIES, "b": True}, {"w": ENTRIES, "b": True}),
}


@pytest.mark.parametrize("name", MASKS)
def test_only_masked_entries_move(name):
    mask, moves = MASKS[name]
    moves = jax.tree.map(lambda m, w: np.broadcast_to(m, w.shape), moves, center())
    posterior = LocalPosterior(regression, center(), DATA, gamma=2.0, mask=mask)
    assert posterior.num_params == sum(m.sum() for m in moves.values())

    moved = posterior.params_at(jax.tree.map(lambda x: x + 0.5, posterior.position))
    for leaf in moves:
        np.testing.assert_array_equal(moved[leaf], np.where(moves[leaf], center()[leaf] + 0.5, center()[leaf]))
    localization = 0.5 * 2.0 * 0.5**2 * posterior.num_params
    expected = float(posterior.nbeta) * regression_in_numpy(moved, DATA) + localization
    np.testing.assert_allclose(posterior.potential(moved), expected, rtol=1e-5)


def test_fixed_parameters_do_not_enter_the_tether():
    posterior = LocalPosterior(regression, center(), DATA, nbeta=1e-30, gamma=2.0, mask="b")
    assert float(posterior.potential({"w": center()["w"] + 9.0, "b": center()["b"]})) < 1e-20


def test_draws_of_a_restricted_posterior():
    mask, moves = MASKS["entries"]
    posterior = LocalPosterior(regression, center(), DATA, gamma=2.0, mask=mask)
    draws = llc.sample(
        KEY,
        posterior,
        llc.SGLD(1e-2),
        num_chains=2,
        num_warmup=0,
        num_draws=4,
        keep_params=True,
        progress=False,
    )
    kept = draws["posterior"]["params.w"].to_numpy()
    assert [v for v in draws["posterior"].data_vars if v.startswith("params")] == ["params.w"]
    for chain in range(2):
        for draw in range(4):
            params = posterior.params_at({"w": jnp.asarray(kept[chain, draw]), "b": None})
            for leaf, mask_leaf in moves.items():
                still = ~np.broadcast_to(mask_leaf, center()[leaf].shape)
                np.testing.assert_array_equal(params[leaf][still], center()[leaf][still])
                assert (params[leaf][~still] != center()[leaf][~still]).all()
            loss = draws["posterior"]["loss"].to_numpy()[chain, draw]
            np.testing.assert_allclose(regression_in_numpy(params, DATA), loss, rtol=1e-5)


def test_mask_of_a_model_with_functions_in_it():
    loss_fn, model, _ = equinox()
    posterior = LocalPosterior(loss_fn, model, DATA, gamma=1.0, mask="layers.1")
    assert posterior.num_params == 4
    assert LocalPosterior(loss_fn, model, DATA, mask="layers.*.bias").num_params == 4
    draws = llc.sample(KEY, posterior, llc.SGLD(1e-2), num_chains=1, num_warmup=0, num_draws=2, progress=False)
    assert np.isfinite(draws["posterior"]["llc"]).all()


# ---- L(w*) ------------------------------------------------------------------------------------------------------


def test_init_loss_on_some_rows():
    rows = np.array([1, 4, 5])
    expected = regression_in_numpy(center(), jax.tree.map(lambda x: x[rows], DATA))
    np.testing.assert_allclose(LocalPosterior(regression, center(), DATA).init_loss(rows), expected, rtol=1e-14)


def test_init_loss_is_in_float64():
    """Float32 would lose the difference of 1e-9 between the two losses."""
    data = np.zeros((4, 1))
    losses = [
        LocalPosterior(lambda w, batch: 1 + w + 0 * batch[0, 0], jnp.asarray(c), data).init_loss() for c in (0.0, 1e-9)
    ]
    np.testing.assert_allclose(losses[1] - losses[0], 1e-9, rtol=1e-6)


def test_the_global_jax_configuration_is_untouched():
    assert not jax.config.jax_enable_x64
    posterior = LocalPosterior(regression, center(), DATA, gamma=1.0)
    posterior.init_loss()
    assert not jax.config.jax_enable_x64
    assert jnp.zeros(()).dtype == jnp.float32
    assert posterior.loss(center()).dtype == jnp.float32


# ---- What construction refuses ----------------------------------------------------------------------------------


def refused(loss_fn=regression, params=None, data=DATA, **settings):
    return {"loss_fn": loss_fn, "center": center() if params is None else params, "data": data} | settings


def constant(w, batch):
    return jnp.zeros(())


REFUSED = {
    "no data": (refused(data={}), "at least one array with a leading axis"),
    "one example": (refused(data=jax.tree.map(lambda x: x[:1], DATA)), "n >= 2 examples .* got n = 1"),
    "no example": (refused(data=jax.tree.map(lambda x: x[:0], DATA)), "n >= 2 examples .* got n = 0"),
    "leading axes": (refused(data={"x": INPUTS, "y": TARGETS[:10]}), r"same leading axis.*\(20, 2\).*\(10, 1\)"),
    "scalar data": (refused(data={"x": INPUTS, "y": 3.0}), "same leading axis"),
    "no params": (refused(constant, params={}), "at least one floating-point array with elements"),
    "no float params": (refused(constant, params={"name": "a"}), "at least one floating-point array with elements"),
    "empty params": (refused(constant, params={"w": jnp.zeros((0, 3))}), "at least one floating-point array"),
    "integer params": (refused(constant, params={"w": jnp.arange(3)}), "real floating-point.*'w': 'int32'"),
    "complex params": (refused(constant, params={"w": 1j * jnp.ones(3)}), "real floating-point.*'w': 'complex64'"),
    "loss shape": (refused(lambda w, batch: (batch["x"] @ w["w"]) ** 2), r"shape \(batch,\) = \(20,\), got \(20, 1\)"),
    "loss tuple": (refused(lambda w, batch: (regression(w, batch), 0)), r"scalar \(the mean loss\)"),
    "nan loss": (refused(lambda w, batch: regression(w, batch) * jnp.nan), "loss at w.* needs to be finite, got nan"),
    "infinite loss": (refused(lambda w, batch: jnp.inf + regression(w, batch)), "needs to be finite, got inf"),
    "summed loss": (refused(lambda w, batch: 20 * regression(w, batch) * len(batch["x"])), "mean loss.*got a sum"),
    "negative gamma": (refused(gamma=-1.0), "gamma needs a finite number >= 0, got -1"),
    "nan gamma": (refused(gamma=math.nan), "gamma needs a finite number >= 0, got nan"),
    "negative nbeta": (refused(nbeta=-2.0), "nbeta needs a finite number > 0, got -2"),
    "nan nbeta": (refused(nbeta=math.nan), "nbeta needs a finite number > 0, got nan"),
    "infinite nbeta": (refused(nbeta=math.inf), "nbeta needs a finite number > 0, got inf"),
    "nbeta above float32": (refused(nbeta=1e39), "nbeta needs a number that float32 can hold"),
    "nbeta below float32": (refused(nbeta=1e-50), "nbeta needs a number that float32 can hold"),
    "gamma above float32": (refused(gamma=1e39), "gamma needs a number that float32 can hold"),
    "gamma below float32": (refused(gamma=1e-50), "gamma needs a number that float32 can hold"),
    "zero nbeta": (refused(nbeta=0.0), "nbeta needs a finite number > 0, got 0"),
    "nan params": (refused(constant, params={"w": jnp.array([1.0, jnp.nan])}), r"finite values, got nan.*\['w'\]"),
    "params and loss": (
        refused(params={"w": jnp.ones((7, 1)), "b": jnp.ones(1)}),
        r"params \{.*\(7, 1\).*raises TypeE",
    ),
    "summed loss, 0 at w*": (refused(lambda w, batch: jnp.sum((batch["x"] @ w["w"]) ** 2), params=ZERO), "got a sum"),
    "mask without match": (refused(mask="v"), r"match a parameter, got 'v'; the paths are \['b', 'w'\]"),
    "mask with one match": (refused(mask=["w", "v"]), "match a parameter, got 'v'"),
    "mask shape": (refused(mask={"w": np.ones((2, 2), bool), "b": True}), r"mask at 'w'.*shape \(2, 1\).*\(2, 2\)"),
    "mask dtype": (refused(mask={"w": 1, "b": True}), "mask at 'w' needs a boolean"),
    "mask structure": (refused(mask={"w": True}), "pytree prefix"),
    "mask all False": (refused(mask={"w": False, "b": np.zeros(1, bool)}), "at least one parameter move"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        LocalPosterior(**arguments)


def test_what_stays_may_be_infinite():
    """A causal mask of −∞ among the params, which does not move; and a posterior made inside of jit."""
    params = {"w": jnp.ones((2, 1)), "causal": jnp.array([0.0, -jnp.inf])}

    def loss_fn(w, batch):
        return jnp.mean((batch["x"] @ (w["w"] * jnp.exp(w["causal"])[:, None]) - batch["y"]) ** 2)

    posterior = LocalPosterior(loss_fn, params, DATA, gamma=1.0, mask="w")
    assert posterior.num_params == 2
    with pytest.raises(ValueError, match=r"finite values, got nan or infinity in \['causal'\]"):
        LocalPosterior(loss_fn, params, DATA, gamma=1.0)
    inside = jax.jit(lambda data: LocalPosterior(loss_fn, params, data, gamma=1.0, mask="w").loss(params))
    assert float(inside(DATA)) == pytest.approx(posterior.init_loss(), rel=1e-5)
