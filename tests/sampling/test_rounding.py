"""What rounding does is in the standard error, and named by a check where it is too much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.analysis.schema import constant
from llc.posterior.precision import float64
from llc.sampling.chains import Chains
from llc.sampling.rounding import params_rounding
from llc.sampling.run_lengths import RunLengths
from tests.support.tiers import weekly

ONES = np.ones(1000, np.float32)
RNG = np.random.default_rng(0)
INPUTS, NORMAL = RNG.normal(size=(1000, 4)).astype(np.float32), RNG.normal(size=1000)


def offset_loss(offset):
    return lambda p, b: jnp.mean(0.5 * b**2 * ((p[0] * p[1]) ** 2 + p[2] ** 2) + offset)


def regression(sigma, *, per_example, nbeta=None):
    """A linear model in units in which the residuals are of size σ; λ̂ = λ_quad exactly."""
    targets = (sigma * NORMAL).astype(np.float32)
    center = np.linalg.lstsq(INPUTS.astype(float), targets.astype(float))[0]

    def losses(p, batch):
        values = 0.5 * (batch[0] @ p - batch[1]) ** 2
        return values if per_example else jnp.mean(values)

    return llc.LocalPosterior(losses, jnp.asarray(center, jnp.float32), (INPUTS, targets), nbeta=nbeta, gamma=1.0)


def quad(posterior):
    gram = INPUTS.astype(float).T @ INPUTS.astype(float) / len(INPUTS)
    curvature = np.linalg.eigvalsh(gram) * posterior.scale.nbeta
    return 0.5 * np.sum(curvature / (curvature + posterior.scale.gamma))


def report(posterior, sampler, *, num_draws=2000, **settings):
    run = {"num_warmup": 500, "num_draws": num_draws, "thinning": 5, "progress": False}
    return llc.report(llc.sample(jax.random.key(0), posterior, sampler, **(run | settings)))


def failed(result):
    return {check.name for check in result.failed}


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "fails"), [(0.0, False), (2e4, True)])
def test_a_constant_in_a_scalar_loss(offset, fails):
    result = report(llc.LocalPosterior(offset_loss(offset), jnp.zeros(3), ONES, gamma=2.1), llc.SGLD(3e-3))
    assert ("rounding" in failed(result)) == fails, str(result)
    assert (result.verdict == "UNRESOLVED") == fails
    assert abs(result.llc.value - 0.803) < 4 * result.llc.mcse
    assert (result.llc.mcse > 0.1) == fails


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sigma", "nbeta", "per_example", "fails"),
    [
        (100.0, None, False, True),
        pytest.param(100.0, None, True, False, marks=pytest.mark.study),
        pytest.param(1.0, 1e5, False, False, marks=pytest.mark.study),
        (1.0, None, False, False),
        pytest.param(1e4, None, True, True, marks=pytest.mark.study),
    ],
)
def test_the_size_of_the_loss_is_in_the_error(sigma, nbeta, per_example, fails):
    posterior = regression(sigma, per_example=per_example, nbeta=nbeta)
    spectrum = llc.spectrum(posterior)
    step = 0.5 / (posterior.scale.nbeta * spectrum.largest + 1)
    result = report(posterior, llc.SGLD(step), spectrum=spectrum)
    assert abs(result.llc.value - quad(posterior)) < 4 * result.llc.mcse, str(result)
    assert ("rounding" in failed(result)) == fails, str(result)


def test_float64_has_digits_enough():
    with float64():
        posterior = llc.LocalPosterior(offset_loss(2e4), jnp.zeros(3, jnp.float64), ONES.astype(np.float64), gamma=2.1)
        result = report(posterior, llc.SGLD(3e-3))
    assert "rounding" not in failed(result)
    assert abs(result.llc.value - 0.803) < 4 * result.llc.mcse
    assert result.llc.mcse < 0.02


def test_the_error_is_that_of_the_subset_where_one_is_evaluated():
    posterior = regression(100.0, per_example=True)
    draws = llc.sample(
        jax.random.key(0), posterior, llc.SGLD(1e-3), num_draws=20, num_warmup=5, eval_size=500, progress=False
    )
    rounding = constant(draws, "loss_rounding")
    assert 2**-24 * 5000 / np.sqrt(500) / 3 < rounding < 30 * 2**-24 * 5000 / np.sqrt(500)


def test_draws_that_are_off_show_in_the_error():
    posterior = regression(1.0, per_example=True)
    chains = Chains(
        jax.random.key(0),
        posterior,
        llc.SGLD(1e-3),
        RunLengths(num_chains=2, num_warmup=0, num_draws=4, thinning=1),
    )
    chains.draw(4, progress=False)
    right = chains.last_deltas
    chains.rounding.add(chains.positions, right)
    small = chains.rounding.error
    chains.rounding.add(chains.positions, right + 0.1)
    assert small < 1e-6
    assert chains.rounding.error == pytest.approx(0.1 / np.sqrt(2), rel=1e-3)
    chains.rounding.add(chains.positions, np.full(2, np.nan))
    assert chains.rounding.error == pytest.approx(0.1 / np.sqrt(2), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "fails"), [(2.0, True), (500.0, False)])
@pytest.mark.parametrize("sampler", weekly(["SGLD", "SGHMC"], but=("SGLD",)))
def test_parameters_as_wide_as_a_few_units_in_the_last_place(sampler, width, fails):
    """w* = 10⁵, where numbers are 2⁻⁷ apart, and a posterior of `width` times that."""
    stiffness = (width * 2.0**-7) ** -2
    scale = np.sqrt(stiffness / 144.76)
    posterior = llc.LocalPosterior(
        lambda p, b: jnp.mean(0.5 * b**2 * jnp.sum((scale * (p - 1e5)) ** 2)), jnp.full(3, 1e5), ONES, gamma=1e-3
    )
    made = {"SGLD": llc.SGLD(0.5 / stiffness), "SGHMC": llc.SGHMC(0.5 / stiffness, friction=np.sqrt(stiffness))}
    result = report(posterior, made[sampler], num_draws=500)
    assert ("rounding_of_params" in failed(result)) == fails, str(result)
    if not fails:
        assert abs(result.llc.value - 1.5) < 4 * result.llc.mcse


@pytest.mark.slow
@pytest.mark.parametrize(("center", "fails"), [(1e5, True), pytest.param(1.0, False, marks=pytest.mark.study)])
def test_parameters_of_a_sampler_with_trajectories(center, fails):
    posterior = llc.LocalPosterior(
        lambda p, b: jnp.mean(0.5 * b**2 * jnp.sum((5 * (p - center)) ** 2)), jnp.full(2, center), ONES, gamma=1e-3
    )
    result = report(posterior, llc.HMC(step_size=0.02, num_steps=3), num_draws=100, thinning=1)
    assert ("rounding_of_params" in failed(result)) == fails, str(result)


def test_units_of_the_parameters_that_move():
    params = {"a": jnp.full(2, 1e5), "b": jnp.ones(3)}

    def loss(p, batch):
        return jnp.mean(batch) * jnp.sum(p["a"]) * jnp.sum(p["b"])

    posterior = llc.LocalPosterior(loss, params, ONES, gamma=1.0)
    assert params_rounding(posterior) == pytest.approx((2 * 2.0**-14 + 3 * 2.0**-46) / 24)
    assert params_rounding(llc.LocalPosterior(loss, params, ONES, gamma=1.0, mask="b")) == 3 * 2.0**-46 / 24
