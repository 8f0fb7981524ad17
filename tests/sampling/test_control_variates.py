"""Control variates from Stein's identity: exact where the loss is quadratic, of mean zero if the chains are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import independent, log_grid, quadratic

import llc
from llc.analysis.pointwise import subset_stderr
from llc.analysis.series import constant, monte_carlo_error, variable
from llc.sampling.control_variates import make_control_variates
from tests.support.tiers import weekly_cases

CURVATURES = np.array([2.0, 0.5, 0.1, 0.0])
NBETA = 1000 / np.log(1000)


def quadratic_posterior(mask=None, **scale):
    """L = ½ Σ h w² + the noise of 40 examples that adds up to nothing."""
    data = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    data -= data.mean(axis=0)

    def losses(params, x):
        w = jnp.concatenate([params["a"], params["b"]])
        return 0.5 * jnp.sum(CURVATURES.astype(np.float32) * w**2) + 0.3 * x @ w

    center = {"a": jnp.zeros(1), "b": jnp.zeros(3)}
    return llc.LocalPosterior(losses, center, data, **({"nbeta": 50.0, "gamma": 2.0} | scale), mask=mask)


def sample(posterior, sampler, **settings):
    settings = {"num_warmup": 100, "num_draws": 200, "progress": False} | settings
    return llc.sample(jax.random.key(3), posterior, sampler, spectrum=llc.spectrum(posterior), **settings)


# Hot by 14 % (εa = .5), far too hot (εa = 2), and cold: what the sampler is does not matter on a quadratic.
SAMPLERS = {
    "hot": (llc.SGLD(0.5 / 102, integrator="euler_maruyama"), {}),
    "hotter": (llc.SGLD(2 / 102, integrator="euler_maruyama"), {}),
    "cold": (llc.SGLD(1e-5), {"num_warmup": 0, "num_draws": 20}),
    "minibatches": (llc.SGLD(0.5 / 102), {"batch_size": 4}),
    "NUTS": (llc.NUTS(), {"num_draws": 20}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "name"),
    weekly_cases(
        {f"{mask}-{name}": (mask, name) for mask in (None, "b") for name in SAMPLERS},
        but=("None-hot", "None-cold", "b-minibatches"),
    ),
)
def test_a_quadratic_has_no_variance(name, mask):
    sampler, settings = SAMPLERS[name]
    posterior = quadratic_posterior(mask)
    draws = sample(posterior, sampler, **settings)
    moving = 50 * (CURVATURES if mask is None else CURVATURES[1:])
    quad = 0.5 * np.sum(moving / (moving + 2))
    found = llc.zero_variance(draws, (1.0, 0.0))
    assert found is not None
    assert abs(constant(draws, "trace_curved") - quad) < 1e-5 * quad
    assert abs(found.value - quad) < 4 * found.mcse
    assert found.mcse < 1e-4 * quad
    assert abs(llc.mean_energy(draws).value - quad) > 10 * found.mcse, "negative control: without control variates"


def regression_posterior():
    """Linear regression on 400 rows with noise of variance 1, at its minimum: every example has a slope at w*."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x @ np.ones(3) + rng.normal(size=400)
    center = np.linalg.lstsq(x, y)[0].astype(np.float32)
    data = x.astype(np.float32), y.astype(np.float32)
    return llc.LocalPosterior(lambda w, xy: 0.5 * (xy[0] @ w - xy[1]) ** 2, center, data, gamma=1.0), x


@pytest.mark.slow
def test_of_a_subset():
    """On 40 of 400 rows the slope at w* is that of all rows: λ̂ lacks the noise of the labels, its error tells the rest.

    Without it λ̂ would be off by nβ (∇L_S − ∇L)(w*)·x a draw, and by what the slopes of the control variates are off.
    """
    posterior, x = regression_posterior()
    draws = sample(posterior, llc.SGLD(0.5 / float(posterior.nbeta * 2)), eval_size=40, num_draws=2000)
    nbeta = float(posterior.nbeta)
    h = np.linalg.eigvalsh(x.T @ x / 400)
    quad = 0.5 * np.sum(nbeta * h / (nbeta * h + 1))
    plain, better = llc.mean_energy(draws), llc.zero_variance(draws, (1.0, 0.0))
    assert better is not None
    for estimate in (plain, better):
        assert abs(estimate.value - quad) < 4 * estimate.mcse
    assert not abs(better.value - 1.5 * quad) < 4 * better.mcse, "negative control"
    group = draws["pointwise"]
    assert set(group.data_vars) >= {"slope_curved", "slope_flat", "paired", "paired_second"}
    noise = {name: float((group[second] - group[name] ** 2).mean()) for name, second in SECONDS.items()}
    assert noise["paired"] < 0.1 * noise["first"]  # ¼ E[(x_i·u)⁴] against E[(r_i x_i·u)²], u² ~ 1/nβ = 1/67
    assert subset_stderr(draws, (1.0, -1.0, -1.0)) < subset_stderr(draws)


SECONDS = {"first": "second", "paired": "paired_second"}


QUARTIC = log_grid(lambda w: w**4 / 2, 1, NBETA)
MIXED = independent(quadratic(np.array([1.0]), NBETA), QUARTIC)


def mixed(integrator="leimkuhler_matthews", step=0.5, thinning=10):
    """(w1² + w2⁴)/2: one curved direction, one flat."""
    data = np.zeros((2, 1), np.float32)
    posterior = llc.LocalPosterior(
        lambda w, x: 0.5 * (w[0] ** 2 + w[1] ** 4) + 0 * x[0, 0], jnp.zeros(2), data, NBETA, gamma=1.0
    )
    sampler = llc.SGLD(step / (NBETA + 1), integrator=integrator)
    return sample(posterior, sampler, num_draws=4000, num_warmup=1000, thinning=thinning)


@pytest.fixture(scope="module")
def good():
    return mixed()


def test_fitted_to_a_quartic(good):
    """x·∇U is 4 nβ L along w2 (but for the localization), so c = ¼ of the rest takes its variance away, too."""
    plain, curved, both = llc.mean_energy(good), llc.zero_variance(good, (1.0, 0.0)), llc.zero_variance(good)
    assert curved is not None
    assert both is not None
    for estimate in (plain, curved, both):
        assert abs(estimate.value - MIXED.mean) < 4 * estimate.mcse
    assert curved.mcse < 0.75 * plain.mcse
    assert both.mcse < 0.05 * plain.mcse
    assert not abs(both.value - 0.75) < 4 * both.mcse, "negative control: the asymptotic λ"
    assert len(both.per_chain) == 4


def test_means_are_zero_and_a_hot_sampler_shows(good):
    hot = mixed("euler_maruyama", step=1.0)
    for draws, right in ((good, True), (hot, False)):
        series = variable(draws, "sample_stats", "stein_curved")
        assert (abs(series.mean()) < 4 * monte_carlo_error(series)) == right
    flat = variable(good, "sample_stats", "stein_flat")
    assert abs(flat.mean()) < 4 * monte_carlo_error(flat)
    assert "virial_curved" not in {check.name for check in llc.report(good).failed}
    assert "virial_curved" in {check.name for check in llc.report(hot).failed}


def test_dead_chains_are_left_out(good):
    draws = good.copy(deep=True)
    energy = draws["posterior"]["llc"].to_numpy().copy()
    energy[1, 7] = np.nan
    draws["posterior"] = draws["posterior"].to_dataset().assign(llc=(("chain", "draw"), energy))
    found = llc.zero_variance(draws)
    assert found is not None
    assert np.isnan(found.per_chain[1])
    assert abs(found.value - MIXED.mean) < 4 * found.mcse


def test_directions_add_up():
    posterior = quadratic_posterior()
    spectrum = llc.spectrum(posterior)
    stein = make_control_variates(posterior, spectrum)
    assert stein is not None
    assert stein.vectors.shape == (16, 4)  # three directions, and zeros up to the least number of rows
    assert float(stein.rest) == 1
    offset = {"a": jnp.array([1.0]), "b": jnp.array([2.0, 3.0, 4.0])}
    pair = stein.directions(offset)
    x, (curved, rest) = np.arange(1.0, 5.0), np.concatenate([pair["a"], pair["b"]], axis=1)
    shares = np.where(CURVATURES > 0, 0.5 * 50 * CURVATURES / (50 * CURVATURES + 2), 0)
    np.testing.assert_allclose(curved, shares * x, atol=1e-6)
    np.testing.assert_allclose(rest, np.where(CURVATURES > 0, 0, x), atol=1e-6)


def test_without_eigenvectors_nothing_is_recorded():
    posterior = quadratic_posterior()
    spectrum = dataclasses.replace(llc.spectrum(posterior), vectors=None)
    assert make_control_variates(posterior, spectrum) is None
    assert make_control_variates(posterior, None) is None
    draws = llc.sample(
        jax.random.key(0), posterior, llc.SGLD(1e-3), num_warmup=0, num_draws=5, spectrum=spectrum, progress=False
    )
    assert llc.zero_variance(draws) is None
    assert "stein_curved" not in draws["sample_stats"]


def test_a_spectrum_of_something_else_is_refused():
    spectrum = llc.spectrum(quadratic_posterior("b"))
    with pytest.raises(ValueError, match=r"spectrum needs to be that of the parameters that move, d = 4, got d = 3"):
        make_control_variates(quadratic_posterior(), spectrum)
