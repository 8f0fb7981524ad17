"""Observables: what is recorded of every draw, moments like draws, exact covariances by NUTS, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior, Observable

NUM_DATA = 12
RNG = np.random.default_rng(8)
DATA = {"x": RNG.normal(size=(NUM_DATA, 2)).astype(np.float32), "y": RNG.normal(size=NUM_DATA).astype(np.float32)}
PROBE = {"x": RNG.normal(size=(5, 2)).astype(np.float32), "y": RNG.normal(size=5).astype(np.float32)}
CENTER = {"layer": {"w": jnp.array([0.1, 0.2])}, "b": jnp.array(0.3), "name": "linear"}
SGLD = llc.SGLD(0.05)


def losses(params, batch):
    return 0.5 * (batch["x"] @ params["layer"]["w"] + params["b"] - batch["y"]) ** 2


def norm(params):
    return jnp.sum(params["layer"]["w"] ** 2) + params["b"]


def tokens(params, batch):
    return losses(params, batch)[:, None] * jnp.arange(1.0, 4.0)


def make_posterior(**settings):
    return LocalPosterior(losses, CENTER, DATA, **({"gamma": 1.0} | settings))


def sample(observables, posterior=None, sampler=SGLD, **settings):
    defaults = {"num_chains": 3, "num_warmup": 4, "num_draws": 20, "keep_params": True, "progress": False}
    posterior = make_posterior() if posterior is None else posterior
    return llc.sample(jax.random.key(0), posterior, sampler, observables=observables, **(defaults | settings))


def losses_in_numpy(w, b, data):
    outputs = np.asarray(w, np.float64) @ data["x"].astype(np.float64).T + np.asarray(b, np.float64)[..., None]
    return 0.5 * (outputs - data["y"]) ** 2


def params_of(draws, group="posterior"):
    return draws[group]["params.layer.w"].to_numpy(), draws[group]["params.b"].to_numpy()


OBSERVABLES = {
    "train": losses,
    "mean": lambda params, batch: jnp.mean(losses(params, batch)),
    "norm": norm,
    "probe": Observable(losses, data=PROBE, dims=("query",)),
    "tokens": Observable(tokens, data=PROBE),
    "correct": Observable(lambda params, batch: losses(params, batch) < 0.1, data=PROBE),
    "rounded": lambda params: jnp.asarray([params["b"] * 10, 3.0]).astype(jnp.int32),
    "half": lambda params: params["b"].astype(jnp.bfloat16),
}


@pytest.mark.slow
def test_values_are_those_of_the_kept_params_less_those_of_the_center():
    draws = sample(OBSERVABLES)
    for prefix in ("", "warmup_"):
        w, b = params_of(draws, f"{prefix}posterior")
        train, probe = (losses_in_numpy(w, b, data) for data in (DATA, PROBE))
        first, second = (losses_in_numpy(CENTER["layer"]["w"], CENTER["b"], data) for data in (DATA, PROBE))
        expected = {
            "train": train - first,
            "mean": (train - first).mean(axis=-1),
            "norm": np.sum(w**2, axis=-1) + b - 0.35,
            "probe": probe - second,
            "tokens": (probe - second)[..., None] * np.arange(1.0, 4.0),
            "correct": (probe < 0.1).astype(float) - (second < 0.1),
            "rounded": np.stack([np.trunc(b * 10) - 3, 0 * b], axis=-1),
        }
        found = draws[f"{prefix}observables"]
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=2e-6, err_msg=name)
        assert found["half"].dtype == np.float32


def test_dimensions_and_values_at_the_center():
    draws = sample(OBSERVABLES)
    dims = {name: draws["observables"][name].dims[2:] for name in OBSERVABLES}
    assert dims["train"] == ("train_row",)
    assert dims["mean"] == dims["norm"] == ()
    assert dims["probe"] == ("query",)
    assert dims["tokens"] == ("tokens_row", "tokens_dim_1")
    assert dims["rounded"] == ("rounded_dim_0",)
    assert list(json.loads(draws.attrs["settings"])["observables"]) == list(OBSERVABLES)
    constants = draws["constant_data"]
    np.testing.assert_allclose(constants["init_mean"], constants["init_loss"], rtol=1e-6)
    assert constants["init_tokens"].dims == dims["tokens"]


def test_recording_changes_no_draw():
    plain, recorded = sample(None), sample(OBSERVABLES)
    np.testing.assert_array_equal(plain["posterior"]["loss"], recorded["posterior"]["loss"])
    assert "observables" not in plain


def test_function_sees_all_params_of_a_mask_and_those_that_stay():
    draws = sample({"all": lambda p: jnp.append(p["layer"]["w"], p["b"])}, make_posterior(mask="b"))
    moved = draws["observables"]["all"].to_numpy()
    assert (moved[..., :2] == 0).all()
    np.testing.assert_allclose(moved[..., 2], draws["posterior"]["params.b"] - 0.3, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"chain_method": "sequential"}, pytest.param({"batch_size": 4}, marks=pytest.mark.study), {"eval_size": 6}],
)
def test_chain_methods_and_batches_record_alike(settings):
    draws = sample({"probe": Observable(losses, data=PROBE)}, **settings)
    w, b = params_of(draws)
    expected = losses_in_numpy(w, b, PROBE) - losses_in_numpy(CENTER["layer"]["w"], CENTER["b"], PROBE)
    np.testing.assert_allclose(draws["observables"]["probe"], expected, rtol=1e-4, atol=2e-6)


def test_rows_in_pieces_are_the_rows_in_their_order():
    x = np.arange(5000, dtype=np.float32)  # three pieces of 2,048 rows at most
    draws = sample({"rows": Observable(lambda p, batch: p["b"] * batch, data=x), "b": lambda p: p["b"]}, num_draws=3)
    moved = draws["observables"]["b"].to_numpy()[..., None]
    np.testing.assert_allclose(draws["observables"]["rows"], moved * x, rtol=1e-4, atol=1e-3)


def test_moments_are_those_of_the_draws():
    kept = sample({"a": losses, "b": Observable(tokens, data=PROBE)}, num_draws=50)
    records = {
        "a": Observable(losses, moments=True),
        "b": Observable(tokens, data=PROBE, covariance_with=("a", "b")),
    }
    found, draws = sample(records, num_draws=50)["observables"], kept["observables"]
    assert found.sizes["block"] == 5
    loss = kept["posterior"]["loss"].to_numpy() - float(kept["constant_data"]["init_loss"])
    for block, part in enumerate(np.split(np.arange(50), 5)):
        a, b = (draws[name].to_numpy()[:, part].astype(np.float64) for name in ("a", "b"))
        a_off, b_off = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        l_off = loss[:, part] - loss[:, part].mean(axis=1, keepdims=True)
        expected = {
            "a.mean": a.mean(axis=1),
            "b.variance": np.mean(b_off**2, axis=1),
            "a.cov.loss": np.einsum("cdi,cd->ci", a_off, l_off) / 10,
            "b.cov.a": np.einsum("cdjk,cdi->cjki", b_off, a_off) / 10,
            "b.cov.b": np.einsum("cdjk,cdlm->cjklm", b_off, b_off) / 10,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][block], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_blocks_become_fewer_when_draws_are_added():
    from llc.sampling.chains import Chains
    from llc.sampling.run_lengths import RunLengths

    lengths = RunLengths(num_chains=2, num_warmup=0, num_draws=10, thinning=1)
    records = {"a": Observable(losses, covariance_with=("a",)), "b": norm}
    chains = Chains(jax.random.key(0), make_posterior(), SGLD, lengths, observables=records)
    chains.draw(10, progress=False)
    chains.draw(30, progress=False)
    once = sample({"a": losses}, num_chains=2, num_warmup=0, num_draws=40)
    draws = chains.tree()
    assert 5 <= draws["observables"].sizes["block"] <= 10
    assert float(draws["observables"]["num_draws"].sum()) == 40
    found = llc.loss_kernel(draws, "a")["value"]
    np.testing.assert_allclose(found, llc.loss_kernel(once, "a")["value"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_many_numbers_of_a_draw_are_kept_as_moments():
    x = np.zeros((10**6, 1), np.float32)
    many = {"many": Observable(lambda p, batch: batch[:, 0] + p["b"], data=x)}
    draws = sample(many, num_chains=2, num_draws=140, num_warmup=0, keep_params=False)
    found = draws["observables"]
    assert found["many.mean"].sizes["many_row"] == 10**6
    assert "many" not in found
    assert draws["posterior"].sizes["draw"] == 140


@pytest.mark.slow
@pytest.mark.study
def test_means_far_above_their_fluctuation_lose_nothing():
    """In float32 a sum of squares would be lost: here the mean is 10⁴ times the standard deviation."""
    posterior = LocalPosterior(lambda w, x: 0.5 * w**2 + 0 * x, jnp.zeros(()), np.zeros(10, np.float32), gamma=1.0)
    far = Observable(lambda w: jnp.where(w == 0, 0.0, 1e4 + w), moments=True)
    observables = {"far": far, "near": lambda w: w}
    lengths = {"num_warmup": 100, "num_draws": 500, "progress": False}
    draws = llc.sample(jax.random.key(1), posterior, llc.NUTS(), observables=observables, **lengths)
    variance = draws["observables"]["near"].to_numpy().var()
    found = draws["observables"]
    within = float((found["far.variance"] + (found["far.mean"] - found["far.mean"].mean()) ** 2).mean())
    assert abs(within / variance - 1) < 0.02


@pytest.mark.slow
@pytest.mark.study
def test_covariances_of_a_singular_model_are_those_of_quadrature():
    """ℓᵢ = ½ (xᵢ ab − yᵢ)² at ab = 0, far from Gaussian, by NUTS; the Gaussian's covariances are the control."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=30), 0.5 * rng.normal(size=30)
    y -= x * (x @ y) / (x @ x)  # the minimum is at ab = 0

    def loss_fn(params, batch):
        return 0.5 * (batch[0] * params["a"] * params["b"] - batch[1]) ** 2

    center = {"a": jnp.array(0.5), "b": jnp.array(0.0)}
    data = (x.astype(np.float32), y.astype(np.float32))
    posterior = LocalPosterior(loss_fn, center, data, nbeta=20.0, gamma=2.0)
    draws = llc.sample(
        jax.random.key(3),
        posterior,
        llc.NUTS(),
        num_warmup=300,
        num_draws=3000,
        observables={"rows": loss_fn},
        progress=False,
    )
    grid = np.linspace(-5, 5, 801)
    a, b = np.meshgrid(grid + 0.5, grid, indexing="ij")
    energy = 20.0 * 0.5 * np.mean(x**2) * (a * b) ** 2 + 1.0 * ((a - 0.5) ** 2 + b**2)
    weights = np.exp(-energy) / np.sum(np.exp(-energy))
    product = (a * b)[..., None]
    change = 0.5 * (product * x[:4] - y[:4]) ** 2 - 0.5 * y[:4] ** 2
    mean = np.einsum("ij,ijk->k", weights, change)
    exact = np.einsum("ij,ijk,ijl->kl", weights, change, change) - np.outer(mean, mean)
    found = llc.loss_kernel(draws, "rows").isel(rows_row=slice(4), rows_row_2=slice(4))
    z = (found["value"] - exact) / found["mcse"]
    assert np.abs(z).max() < 4
    curvature = 20.0 * np.mean(x**2) * 0.25 + 2.0  # of b; a has no gradient here
    jacobian = 0.5 * x[:4]
    first, second = np.outer(jacobian * y[:4], jacobian * y[:4]), np.outer(jacobian, jacobian) ** 2
    gaussian = first / curvature + 0.5 * second / curvature**2
    assert np.abs((found["value"] - gaussian) / found["mcse"]).max() > 6


def changing(params, batch):
    return losses(params, batch)[batch["y"] > 0]


@pytest.mark.parametrize(
    ("observables", "named"),
    [
        ({"a b": norm}, "identifiers"),
        ({"loss": norm}, "loss"),
        ({"a": lambda p: "text"}, "real numbers"),
        ({"a": lambda p: p["b"] * 1j}, "complex64"),
        ({"a": lambda p: {"x": p["b"]}}, "dict"),
        ({"a": lambda p: jnp.log(p["b"] - 1)}, "finite"),
        ({"a": changing}, "fixed shape"),
        ({"a": lambda p, batch: jnp.outer(batch["y"], batch["y"])}, "fixed shape"),
        ({"a": lambda p: p["missing"]}, "KeyError"),
        ({"a": lambda p: float(np.random.rand()) * p["b"]}, "fixed function"),  # noqa: NPY002
        ({"a": Observable(losses, data=PROBE, dims=("i", "j"))}, "dims"),
        ({"a": Observable(losses, data=PROBE, dims=("draw",))}, "dims"),
        ({"a": Observable(losses, data=PROBE, dims=("b",)), "b": norm}, "dims"),
        ({"a": Observable(losses, data=PROBE, dims=("i",)), "b": Observable(losses, dims=("i",))}, "dims"),
        ({"a": Observable(norm, covariance_with=("b",))}, "covariance_with"),
        ({"a": Observable(norm, covariance_with=("b",)), "b": Observable(norm, moments=False)}, "moments"),
        ({"a": Observable(lambda p: jnp.zeros(10**9) + p["b"], moments=False)}, "moments=True"),
        ({"a": Observable(lambda p: jnp.zeros(10**5) + p["b"], covariance_with=("a",))}, "covariance_with"),
    ],
)
def test_what_can_not_be_recorded_is_refused(observables, named):
    with pytest.raises(ValueError, match=named):
        sample(observables)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fn": losses, "data": {"x": PROBE["x"], "y": PROBE["y"][:3]}}, "leading axis"),
        ({"fn": losses, "data": {"x": "text", "y": PROBE["y"]}}, r"data\['x'\]"),
        ({"fn": norm, "dims": ("a", "a")}, "dims"),
        ({"fn": norm, "covariance_with": ("a", "a")}, "covariance_with"),
    ],
)
def test_observable_refuses_what_it_can_not_be(settings, named):
    with pytest.raises(ValueError, match=named):
        Observable(**settings)
