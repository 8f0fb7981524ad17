"""The shorter runs beside the first one: their γ, step and lengths."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.further_runs import half_step_draws, localized_draws


@pytest.fixture(scope="module")
def calibration():
    posterior = llc.LocalPosterior(
        lambda w, _: 0.5 * jnp.sum(w**2), jnp.ones(4), np.zeros((1000, 1), np.float32), gamma=3.0
    )
    return llc.calibrate(jax.random.key(0), posterior, sampler=llc.SGLD(1e-3), num_warmup=80, num_draws=160, thinning=2)


def test_the_localized_run_is_at_three_gamma_and_a_quarter_as_long(calibration):
    draws = localized_draws(jax.random.key(1), calibration, progress=False)
    assert float(draws["constant_data"]["gamma"]) == 9.0
    assert draws["posterior"].sizes == {"chain": 4, "draw": 40}


def test_the_run_at_half_the_step_costs_as_much(calibration):
    draws = half_step_of(calibration, calibration.sampler)
    settings = json.loads(draws.attrs["settings"])
    assert settings["sampler"]["step_size"] == pytest.approx(5e-4)
    assert settings["thinning"] == 4
    assert draws["posterior"].sizes == {"chain": 4, "draw": 20}
    assert float(draws["constant_data"]["gamma"]) == 3.0


def half_step_of(made, sampler):
    settings = made.posterior, sampler, made.lengths, made.spectrum
    return half_step_draws(jax.random.key(1), *settings, progress=False)


def test_momentum_has_a_half_step_with_its_friction(calibration):
    settings = json.loads(half_step_of(calibration, llc.SGHMC(1e-3, 2.0)).attrs["settings"])
    assert settings["sampler"]["step_size"] == pytest.approx(5e-4)
    assert settings["sampler"]["friction"] == 2.0


@pytest.mark.parametrize("sampler", [llc.NUTS(), llc.SGLD(1e-3, preconditioner=llc.RMSProp())], ids=["NUTS", "RMSProp"])
def test_other_dynamics_have_no_half_step(calibration, sampler):
    assert half_step_of(calibration, sampler) is None
