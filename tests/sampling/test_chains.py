"""`sample`: the schema of draws, chains and their minibatches, chain methods, evaluation, and what it refuses."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import llc
import llc.sampling.energies
from llc import LocalPosterior
from llc.posterior.reference import reference_loss
from llc.sampling.chains import Chains
from llc.sampling.run_lengths import RunLengths

NUM_DATA = 12
RNG = np.random.default_rng(8)
DATA = {
    "x": RNG.normal(size=(NUM_DATA, 2)).astype(np.float32),
    "y": RNG.normal(size=NUM_DATA).astype(np.float32),
    "code": 2.0 ** np.arange(NUM_DATA, dtype=np.float32),  # a sum of some of them tells which
}
CENTER = {"layer": {"w": jnp.array([0.1, 0.2])}, "b": jnp.array(0.3)}
SGLD = llc.SGLD(0.05)


def example_losses(params, batch):
    return 0.5 * (batch["x"] @ params["layer"]["w"] + params["b"] - batch["y"]) ** 2


def mean_loss(params, batch):
    return jnp.mean(example_losses(params, batch))


def losses_in_numpy(w, b, data=DATA):
    """Per-example losses in float64, for draws with leading axes."""
    data = jax.tree.map(lambda x: x.astype(np.float64), data)
    outputs = np.asarray(w, np.float64) @ data["x"].T + np.asarray(b, np.float64)[..., None]
    return 0.5 * (outputs - data["y"]) ** 2


def outputs_in_numpy(w, b):
    """Change of the outputs from w* on, in float64."""
    change = np.asarray(w, np.float64) - np.asarray(CENTER["layer"]["w"], np.float64)
    return change @ DATA["x"].astype(np.float64).T + (np.asarray(b, np.float64) - float(CENTER["b"]))[..., None]


def make_posterior(loss_fn=mean_loss, data=DATA, **settings):
    return LocalPosterior(loss_fn, CENTER, data, **({"gamma": 1.0} | settings))


def sample(posterior=None, sampler=SGLD, seed=0, **settings):
    """A short run: up to 40 draws share one compiled program."""
    defaults = {"num_chains": 4, "num_warmup": 4, "num_draws": 20, "keep_params": True, "progress": False}
    return llc.sample(jax.random.key(seed), posterior or make_posterior(), sampler, **(defaults | settings))


def kept(draws):
    """Parameters of the draws as one array (chain, draw, 3)."""
    group = draws["posterior"]
    return np.concatenate([group["params.layer.w"], group["params.b"].to_numpy()[..., None]], axis=-1)


# ---- Schema -----------------------------------------------------------------------------------------------------

PARAMS = {"params.layer.w": np.float32, "params.b": np.float32}
POSTERIOR = {"loss": np.float64, "llc": np.float64}
STATS = dict.fromkeys(("potential", "virial", "grad_norm", "distance", "num_gradients"), np.float64) | {
    "diverging": np.bool_
}


def dtypes(group):
    return {name: variable.dtype.type for name, variable in group.data_vars.items()}


def test_schema():
    draws = sample()
    assert set(draws.children) == {
        *("posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats", "constant_data")
    }
    for prefix, num_draws in (("", 20), ("warmup_", 4)):
        assert dtypes(draws[f"{prefix}posterior"]) == POSTERIOR | PARAMS
        assert dtypes(draws[f"{prefix}sample_stats"]) == STATS
        for name in ("loss", "llc"):
            assert draws[f"{prefix}posterior"][name].dims == ("chain", "draw")
            assert draws[f"{prefix}posterior"][name].shape == (4, num_draws)
    assert draws["posterior"]["params.layer.w"].shape == (4, 20, 2)
    constants = {name: value.item() for name, value in draws["constant_data"].data_vars.items()}
    assert 0 < constants.pop("loss_rounding") < 1e-6
    assert 0 < constants.pop("params_rounding") < 1e-15
    slope = optax.tree.norm(jax.grad(lambda params: mean_loss(params, DATA))(CENTER))
    assert constants.pop("center_gradient") == pytest.approx(float(slope), rel=1e-5)
    assert constants.pop("reference_loss") == reference_loss(make_posterior())
    assert constants == {
        "init_loss": make_posterior().init_loss(),
        "nbeta": float(np.float32(NUM_DATA / np.log(NUM_DATA))),
        "gamma": 1.0,
        "num_data": NUM_DATA,
        "num_params": 3,
        "eval_size": NUM_DATA,
    }


def test_attributes_tell_how_the_draws_were_made():
    attributes = sample(seed=5, batch_size=5).attrs
    assert attributes["sampler"] == "SGLD"
    settings = json.loads(attributes["settings"])
    assert settings.pop("sampler") == {
        "name": "SGLD",
        "step_size": 0.05,
        "integrator": "leimkuhler_matthews",
        "preconditioner": {"name": "Identity"},
        "control_variates": False,
    }
    assert settings == {
        "num_chains": 4,
        "num_warmup": 4,
        "num_draws": 20,
        "thinning": 1,
        "batch_size": 5,
        "eval_size": NUM_DATA,
        "chain_method": "vectorized",
    }
    assert json.loads(attributes["seed"]) == [0, 5]
    assert set(json.loads(attributes["versions"])) == {"llc", "jax", "numpyro", "arviz"}


def test_params_are_kept_on_request():
    assert dtypes(sample(keep_params=False)["posterior"]) == POSTERIOR


def test_no_warmup():
    draws = sample(num_warmup=0)
    assert set(draws.children) == {"posterior", "sample_stats", "constant_data"}
    assert draws["posterior"].sizes["draw"] == 20


@pytest.mark.slow
def test_netcdf_round_trip(tmp_path):
    draws = sample(make_posterior(example_losses), eval_size=5)
    assert "pointwise" in draws.children
    draws.to_netcdf(tmp_path / "draws.nc")
    with xr.open_datatree(tmp_path / "draws.nc") as file:
        assert file.load().identical(draws)
        assert file.attrs == draws.attrs


# ---- Draws ------------------------------------------------------------------------------------------------------


def test_draws_are_of_their_parameters():
    """loss, llc, distance and potential of a draw, recomputed in float64 from its parameters."""
    draws = sample()
    group, stats = draws["posterior"], draws["sample_stats"]
    losses = losses_in_numpy(group["params.layer.w"], group["params.b"]).mean(axis=-1)
    init_loss = losses_in_numpy(CENTER["layer"]["w"], CENTER["b"]).mean()
    nbeta = NUM_DATA / np.log(NUM_DATA)
    np.testing.assert_allclose(group["loss"], losses, atol=1e-6)  # a few float32 roundings of losses of order 1
    np.testing.assert_allclose(group["llc"], nbeta * (losses - init_loss), atol=1e-6 * nbeta)
    distance = np.linalg.norm(kept(draws) - [0.1, 0.2, 0.3], axis=-1)
    np.testing.assert_allclose(stats["distance"], distance, rtol=1e-5)
    # SGLD takes its gradient where the step began
    potential = nbeta * losses + 0.5 * distance**2
    np.testing.assert_allclose(stats["potential"][:, 1:], potential[:, :-1], rtol=1e-5)


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_ends_of_the_chains(chain_method):
    lengths = RunLengths(num_chains=4, num_warmup=3, num_draws=5, thinning=2)
    settings = {"chain_method": chain_method, "keep_params": True}
    run = Chains(jax.random.key(0), make_posterior(), llc.SGLD(0.01), lengths, **settings)
    run.draw(5, progress=False)
    draws, ends = run.tree(), run.positions
    assert len(ends) == 4
    for end, expected in zip(ends, kept(draws)[:, -1], strict=True):
        np.testing.assert_array_equal([*end["layer"]["w"], end["b"]], expected)


def test_keys_decide():
    first, again, other = sample(seed=0), sample(seed=0), sample(seed=1)
    assert first["posterior"].to_dataset().equals(again["posterior"].to_dataset())
    everything = np.concatenate([kept(first), kept(other)])[:, -1]  # no two chains of two runs share anything
    assert len(np.unique(everything, axis=0)) == 8


@pytest.mark.parametrize("num_draws", [1, 7, 83])
def test_segments_do_not_show(num_draws):
    """The first draws of a run are the same however long it is."""
    longest = kept(sample(num_warmup=0, num_draws=40))
    draws = kept(sample(num_warmup=0, num_draws=num_draws))
    assert draws.shape == (4, num_draws, 3)
    shared = min(num_draws, 40)
    np.testing.assert_allclose(draws[:, :shared], longest[:, :shared], rtol=1e-4, atol=1e-5)


def test_warmup_comes_first():
    together, apart = sample(num_warmup=0, num_draws=24), sample(num_warmup=4, num_draws=20)
    np.testing.assert_allclose(kept(together)[:, 4:], kept(apart), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together["posterior"]["llc"][:, :4], apart["warmup_posterior"]["llc"])


def test_thinning_takes_every_third_step():
    every = sample(num_warmup=0, num_draws=36, batch_size=5)
    third = sample(num_warmup=0, num_draws=12, thinning=3, batch_size=5)
    np.testing.assert_allclose(kept(third), kept(every)[:, 2::3], rtol=1e-4, atol=1e-5)
    for name in ("virial", "potential", "grad_norm"):
        steps = every["sample_stats"][name].to_numpy().reshape(4, 12, 3)
        np.testing.assert_allclose(third["sample_stats"][name], steps.mean(axis=-1), rtol=1e-4, atol=1e-5)


def test_warmup_is_rounded_up_to_whole_draws():
    assert sample(num_warmup=4, num_draws=6, thinning=3, batch_size=5)["warmup_posterior"].sizes["draw"] == 2


# ---- Minibatches ------------------------------------------------------------------------------------------------


def code_loss(w, batch):
    return jnp.mean(batch["code"]) + 0 * w


def reveal(batch_size, num_draws):
    """Which rows each step took: (chain, step, row), read off a loss that is the mean of the rows' codes."""
    posterior = LocalPosterior(code_loss, jnp.zeros(()), DATA, nbeta=1.0, gamma=0.0)
    draws = sample(posterior, num_warmup=0, num_draws=num_draws, batch_size=batch_size)
    assert draws["posterior"]["params.w"].dims == ("chain", "draw")  # a bare array is called w
    codes = np.rint(draws["sample_stats"]["potential"].to_numpy() * batch_size).astype(int)
    return codes[..., None] >> np.arange(NUM_DATA) & 1


@pytest.mark.parametrize("batch_size", [4, 5])
def test_minibatches_are_drawn_without_replacement(batch_size):
    per_epoch = NUM_DATA // batch_size
    steps = reveal(batch_size, num_draws=500 * per_epoch)
    assert (steps.sum(axis=-1) == batch_size).all()
    epochs = steps.reshape(4, 500, per_epoch, NUM_DATA)
    taken = epochs.sum(axis=2)
    assert taken.max() == 1  # no row twice in an epoch
    assert (taken.sum(axis=-1) == per_epoch * batch_size).all()

    # Every row is as likely in every place: 2000 Bernoulli trials each, four standard errors.
    share = batch_size / NUM_DATA
    error = np.sqrt(share * (1 - share) / 2000)
    assert (np.abs(epochs.mean(axis=(0, 1)) - share) < 4 * error).all()

    # Chains and epochs have their own order.
    batches = [frozenset(map(tuple, epoch.tolist())) for epoch in epochs.reshape(-1, per_epoch, NUM_DATA)]
    assert len(set(batches)) > 1000
    assert (steps[0] == steps[1]).all(axis=-1).mean() < 0.05


def test_full_batch_is_all_data_in_one_go():
    np.testing.assert_array_equal(kept(sample(batch_size=NUM_DATA)), kept(sample(batch_size=None)))


# ---- Chain methods ----------------------------------------------------------------------------------------------


def test_sequential_chains_are_the_vectorized_ones():
    """Up to rounding: the compiler may order sums differently."""
    vectorized, sequential = (sample(chain_method=method) for method in ("vectorized", "sequential"))
    assert json.loads(sequential.attrs["settings"])["chain_method"] == "sequential"
    np.testing.assert_allclose(kept(vectorized), kept(sequential), rtol=1e-4, atol=1e-5)
    for name in ("posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats"):
        assert dtypes(vectorized[name]) == dtypes(sequential[name])
        assert vectorized[name].sizes == sequential[name].sizes


PARALLEL = """
import json, jax, numpy as np
import test_chains as t
runs = {m: t.sample(chain_method=m, batch_size=5) for m in ("parallel", "auto", "vectorized")}
try:
    t.sample(chain_method="parallel", num_chains=3)
except ValueError as error:
    message = str(error)
print(json.dumps({
    "devices": jax.device_count(),
    "methods": {m: json.loads(run.attrs["settings"])["chain_method"] for m, run in runs.items()},
    "difference": {m: float(np.abs(t.kept(run) - t.kept(runs["vectorized"])).max()) for m, run in runs.items()},
    "message": message,
}))
"""


@pytest.mark.slow
def test_parallel_chains_on_two_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = [sys.executable, "-W", "error", "-c", PARALLEL]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["devices"] == 2
    assert result["methods"] == {"parallel": "parallel", "auto": "parallel", "vectorized": "vectorized"}
    assert max(result["difference"].values()) < 1e-4
    assert (
        "'parallel' needs at least 2 devices and num_chains a multiple of them, got 2 devices and 3"
        in result["message"]
    )


# ---- Evaluation -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss_fn", [pytest.param(mean_loss, marks=pytest.mark.study), example_losses], ids=["scalar", "per example"]
)
def test_losses_in_ragged_pieces_are_exact(loss_fn, monkeypatch):
    """Eleven rows in passes of at most four: three pieces of three rows and a rest of two."""
    monkeypatch.setattr(llc.sampling.energies, "_EVAL_ROWS", 4)
    data = jax.tree.map(lambda x: x[:11], DATA)
    draws = sample(make_posterior(loss_fn, data, nbeta=5.0))
    group = draws["posterior"]
    differences = losses_in_numpy(group["params.layer.w"], group["params.b"], data)
    differences -= losses_in_numpy(CENTER["layer"]["w"], CENTER["b"], data)
    np.testing.assert_allclose(group["llc"], 5 * differences.mean(axis=-1), atol=5e-6)
    assert ("pointwise" in draws.children) == (loss_fn is example_losses)
    if loss_fn is example_losses:
        pointwise = draws["pointwise"]
        assert pointwise["first"].dims == ("block", "chain", "example")
        assert int(pointwise["num_draws"].sum()) == 20
        for name, value in (("first", differences), ("second", differences**2), ("exponential", np.exp(-differences))):
            mean = (pointwise[name] * pointwise["num_draws"]).sum("block") / 20
            np.testing.assert_allclose(mean, value.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_unweighted_pieces_would_show():
    """Negative control of the tolerance above."""
    losses = losses_in_numpy(CENTER["layer"]["w"], CENTER["b"])[:11]
    pieces = [losses[i : i + 3].mean() for i in (0, 3, 6, 9)]
    assert abs(np.mean(pieces) - losses.mean()) > 1e-3


@pytest.mark.parametrize("loss_fn", [mean_loss, example_losses], ids=["scalar", "per example"])
def test_subset_serves_draw_and_center_alike(loss_fn):
    """L(w) − L(w*) is of five rows, found by trying all subsets, their slope at w* that of all; L(w*) is of all."""
    draws = sample(make_posterior(loss_fn), eval_size=5)
    group, constants = draws["posterior"], draws["constant_data"]
    assert int(constants["eval_size"]) == 5
    centers = losses_in_numpy(CENTER["layer"]["w"], CENTER["b"])
    subsets = np.array([[i >> j & 1 for j in range(NUM_DATA)] for i in range(2**NUM_DATA)], bool)
    subsets = subsets[subsets.sum(axis=1) == 5]
    np.testing.assert_allclose(float(constants["init_loss"]), centers.mean(), rtol=1e-14)
    differences = losses_in_numpy(group["params.layer.w"], group["params.b"]) - centers
    # ℓ_i(w) − ℓ_i(w*) = ½ (x_i·u)² + (x_i·w* + b* − y_i) x_i·u with u = w − w*
    squares = np.square(outputs_in_numpy(group["params.layer.w"], group["params.b"])) / 2
    slopes = (differences - squares).mean(axis=-1)
    nbeta = NUM_DATA / np.log(NUM_DATA)
    expected = nbeta * (squares @ subsets.T / 5 + slopes[..., None])
    off = np.abs(group["llc"].to_numpy()[..., None] - expected).max(axis=(0, 1))
    assert np.sort(off)[0] < 1e-6 * nbeta < np.sort(off)[1]
    rows = subsets[off.argmin()]
    np.testing.assert_allclose(group["loss"], centers.mean() + group["llc"] / nbeta, rtol=1e-6)
    for others in (differences, differences[..., rows]):
        assert np.abs(group["llc"] - nbeta * others.mean(axis=-1)).max() > 1e-2, "negative control"
    assert draws["pointwise"]["first"].dims[-1] == ("example" if loss_fn is example_losses else "piece")


def test_subset_of_all_rows_is_the_full_data():
    draws = sample(eval_size=NUM_DATA)
    assert float(draws["constant_data"]["init_loss"]) == make_posterior().init_loss()


# ---- Chains that leave ------------------------------------------------------------------------------------------


def test_a_chain_that_leaves_stays_nan_and_alone():
    """A wall of NaN at `limit`, which only some of the chains reach."""

    def walled_loss(params, batch):
        return jnp.where(params["b"] > batch["limit"][0], jnp.nan, 1.0) * mean_loss(params, batch)

    def draw(limit):
        data = DATA | {"limit": np.full(NUM_DATA, limit, np.float32)}
        return sample(make_posterior(walled_loss, data), num_warmup=0, num_draws=40)

    free = draw(np.inf)
    reached = kept(free)[..., 2].max(axis=1)
    walled = draw(np.sort(reached)[-2:].mean())  # between the two chains that go furthest
    dead = reached == reached.max()
    np.testing.assert_array_equal(kept(walled)[~dead], kept(free)[~dead])
    assert np.isfinite(walled["posterior"]["llc"].to_numpy()[~dead]).all()
    assert not walled["sample_stats"]["diverging"].to_numpy()[~dead].any()

    (llc_values,) = walled["posterior"]["llc"].to_numpy()[dead]
    (diverging,) = walled["sample_stats"]["diverging"].to_numpy()[dead]
    first = int(np.isnan(llc_values).argmax())
    assert np.isnan(llc_values[first:]).all()
    assert np.isfinite(llc_values[:first]).all()
    assert diverging[first + 1 :].all()


# ---- Dtypes and progress ----------------------------------------------------------------------------------------


def test_sampling_is_in_the_dtype_of_the_params():
    with jax.enable_x64(True):
        posterior = LocalPosterior(mean_loss, jax.tree.map(lambda x: x.astype(jnp.float64), CENTER), DATA, gamma=1.0)
        assert sample(posterior)["posterior"]["params.b"].dtype == np.float64
        wide = jax.tree.map(lambda x: x.astype(np.float64), DATA)
        assert sample(make_posterior(data=wide))["posterior"]["params.b"].dtype == np.float32
        with pytest.raises(ValueError, match=r"HMC needs params in JAX's default dtype float64, got \['float32'\]"):
            sample(sampler=llc.HMC())


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
def test_products_are_of_float32_unless_the_user_chose(chosen):
    """JAX's default would be TF32 on a GPU, which has no digits for L(w) − L(w*)."""
    seen, before = set(), jax.config.jax_default_matmul_precision

    def loss_fn(params, batch):
        seen.add(jax.config.jax_default_matmul_precision)
        return mean_loss(params, batch)

    posterior = make_posterior(loss_fn)
    seen.clear()
    with jax.default_matmul_precision(chosen):
        lengths = RunLengths(num_chains=2, num_warmup=0, num_draws=2, thinning=1)
        drawing = Chains(jax.random.key(0), posterior, SGLD, lengths)
        drawing.draw(2, progress=False)
    assert seen == {chosen or "highest"}
    assert jax.config.jax_default_matmul_precision == before, "the user's own setting stays"


def test_progress_bar(capfd):
    sample(progress=False)
    assert capfd.readouterr().err == ""
    sample(progress=True)
    assert "96/96" in capfd.readouterr().err  # 24 draws of 4 chains


# ---- What is refused --------------------------------------------------------------------------------------------

REFUSED = {
    "num_chains": ({"num_chains": 0}, "num_chains needs an integer >= 1, got 0"),
    "num_warmup": ({"num_warmup": -1}, "num_warmup needs an integer >= 0, got -1"),
    "num_draws": ({"num_draws": 0}, "num_draws needs an integer >= 1, got 0"),
    "thinning": ({"thinning": 0}, "thinning needs an integer >= 1, got 0"),
    "batch_size small": ({"batch_size": 0}, "batch_size needs an integer from 1 to n = 12, got 0; None takes all"),
    "batch_size large": ({"batch_size": 13}, "batch_size needs an integer from 1 to n = 12, got 13"),
    "eval_size small": ({"eval_size": 0}, "eval_size needs an integer from 1 to n = 12, got 0"),
    "eval_size large": ({"eval_size": 13}, "eval_size needs an integer from 1 to n = 12, got 13"),
    "MALA": ({"sampler": llc.MALA(), "batch_size": 5}, "MALA needs the full data, got batch_size = 5"),
    "HMC": ({"sampler": llc.HMC(), "batch_size": 5}, "HMC needs the full data, got batch_size = 5"),
    "NUTS": ({"sampler": llc.NUTS(), "batch_size": 5}, "NUTS needs the full data, got batch_size = 5"),
    "gamma": ({"posterior": lambda: make_posterior(gamma=None)}, "sampling needs gamma, got None"),
    "half precision": (
        {"posterior": lambda: LocalPosterior(mean_loss, optax.tree.cast(CENTER, jnp.bfloat16), DATA)},
        r"params in float32 or float64, got \['bfloat16'\]",
    ),
    "chain_method": ({"chain_method": "threads"}, "chain_method needs one of .*'sequential'.*, got 'threads'"),
    "one device": ({"chain_method": "parallel"}, "'parallel' needs at least 2 devices .*got 1 devices and 4 chains"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    settings, message = REFUSED[name]
    posterior = settings.get("posterior", make_posterior)()
    with pytest.raises(ValueError, match=message):
        sample(**settings | {"posterior": posterior})
