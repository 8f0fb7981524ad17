"""Control variates of influence: nothing left to sampling on a quadratic loss, no bias on a singular one, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc import LocalPosterior
from tests.support.gaussian import GAMMA, NBETA, Regression

CASE = Regression(num_data=20)


def losses(w, batch):
    return 0.5 * (batch[0] @ w - batch[1]) ** 2


def sample(posterior, key, queries, **settings):
    controls = llc.influence_controls(posterior, llc.spectrum(posterior), {"train": None, "query": queries})
    observables = {"train": posterior.loss_fn.fn, "query": llc.Observable(posterior.loss_fn.fn, data=queries)}
    draws = llc.sample(
        jax.random.key(key),
        posterior,
        llc.NUTS(),
        observables=observables | controls.observables,
        progress=False,
        **settings,
    )
    return draws, controls.forms


@pytest.mark.slow
def test_of_a_quadratic_loss_the_covariances_are_known_from_a_few_draws():
    sets = (CASE.x, CASE.y), (CASE.probe_x, CASE.probe_y)
    data, queries = ((x.astype(np.float32), y.astype(np.float32)) for x, y in sets)
    posterior = LocalPosterior(losses, jnp.asarray(CASE.center, jnp.float32), data, nbeta=NBETA, gamma=GAMMA)
    draws, forms = sample(posterior, 0, queries, num_warmup=50, num_draws=40)
    exact, scale = CASE.loss_covariances(), np.abs(CASE.loss_covariances()).max()
    plain, found = llc.influence(draws, "train", "query"), llc.influence(draws, "train", "query", controls=forms)
    np.testing.assert_allclose(found["value"], -exact, atol=2e-5 * scale)
    assert float(found["mcse"].max()) < 1e-4 * float(plain["mcse"].max())
    broken = forms.assign(train_root=1.1 * forms["train_root"])  # the negative control: another mean
    wrong = llc.influence(draws, "train", "query", controls=broken)
    assert np.abs(wrong["value"] + exact).max() > 0.02 * scale


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.optimized
def test_no_bias_on_a_singular_loss():
    """ℓᵢ = ½ (xᵢ ab − yᵢ)² at ab = 0, against quadrature; both estimates hold, with different errors."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=6), 0.5 * rng.normal(size=6)
    y -= x * (x @ y) / (x @ x)

    def loss_fn(params, batch):
        return 0.5 * (batch[0] * params["a"] * params["b"] - batch[1]) ** 2

    data = (x.astype(np.float32), y.astype(np.float32))
    posterior = LocalPosterior(loss_fn, {"a": jnp.array(1.0), "b": jnp.array(0.0)}, data, nbeta=30.0, gamma=5.0)
    draws, forms = sample(posterior, 1, data, num_warmup=300, num_draws=3000)
    grid = np.linspace(-4, 4, 801)
    a, b = np.meshgrid(grid + 1.0, grid, indexing="ij")
    energy = 15.0 * np.mean(x**2) * (a * b) ** 2 + 2.5 * ((a - 1.0) ** 2 + b**2)
    weights = np.exp(-energy) / np.sum(np.exp(-energy))
    change = 0.5 * ((a * b)[..., None] * x - y) ** 2
    mean = np.einsum("ij,ijk->k", weights, change)
    exact = np.einsum("ij,ijk,ijl->kl", weights, change, change) - np.outer(mean, mean)
    plain, found = llc.influence(draws, "train", "query"), llc.influence(draws, "train", "query", controls=forms)
    for estimate in (plain, found):
        assert np.abs((estimate["value"] + exact) / estimate["mcse"]).max() < 4
    assert float((found["mcse"] / plain["mcse"]).mean()) < 0.95
    gaussian = _gaussian(x, y, 30.0 * np.mean(x**2) + 5.0)
    assert np.abs((found["value"] + gaussian) / found["mcse"]).max() > 4, "the Gaussian part is not all"


def _gaussian(x, y, curvature):
    return np.outer(x * y, x * y) / curvature + 0.5 * np.outer(x, x) ** 2 / curvature**2


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"gamma": 0.0}, "gamma"), ({"loss_fn": lambda w, batch: jnp.mean(losses(w, batch))}, "loss per example")],
)
def test_what_has_no_controls_is_refused(settings, named):
    chosen = {"loss_fn": losses, "gamma": 1.0} | settings
    data = (CASE.x.astype(np.float32), CASE.y.astype(np.float32))
    posterior = LocalPosterior(chosen["loss_fn"], jnp.asarray(CASE.center, jnp.float32), data, gamma=chosen["gamma"])
    with pytest.raises(ValueError, match=named):
        llc.influence_controls(posterior, llc.spectrum(posterior), {"train": None})


def test_draws_without_controls_are_refused():
    draws = CASE.draws(num_draws=20)
    other = LocalPosterior(losses, jnp.asarray(CASE.center, jnp.float32), (CASE.x, CASE.y), gamma=1.0)
    forms = llc.influence_controls(other, llc.spectrum(other), {"train": None}).forms
    with pytest.raises(ValueError, match="train_linear"):
        llc.influence(draws, "train", "train", controls=forms)
