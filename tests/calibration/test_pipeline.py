"""Settings: each with its reason, and none that was given is changed."""

import jax
import jax.numpy as jnp
import pytest

import llc
from tests.support.regression import regression

NAMES = ("sampler", "step_size", "gamma", "nbeta")
LENGTHS = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "eval_size", "step_energies")


@pytest.mark.slow
def test_what_is_given_is_kept():
    posterior = regression().with_scale(gamma=7.0)
    given = {"num_chains": 2, "num_warmup": 30, "num_draws": 40, "thinning": 3, "batch_size": 100, "eval_size": 200}
    given |= {"step_energies": True}
    calibration = llc.calibrate(jax.random.key(0), posterior, **given)
    assert calibration.lengths.keywords() == given
    assert {name: calibration.choices[name].value for name in given} == given
    assert {calibration.choices[name].origin for name in given} == {"given"}
    assert float(calibration.posterior.gamma) == calibration.choices["gamma"].value == 7.0
    assert calibration.choices["gamma"].origin == "posterior"
    assert calibration.choices["step_size"].origin == "chosen"


@pytest.mark.parametrize("sampler", [llc.NUTS(), llc.MALA(1e-3), llc.SGHMC(1e-3, 1.0)])
def test_a_sampler_that_is_given_is_kept(sampler):
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100), sampler=sampler, num_draws=40)
    assert calibration.sampler is sampler
    assert calibration.choices["sampler"].value is sampler
    assert calibration.choices["sampler"].origin == calibration.choices["step_size"].origin == "given"
    assert calibration.choices["step_size"].value == sampler.step_size


@pytest.mark.slow
def test_every_setting_has_a_reason():
    calibration = llc.calibrate(jax.random.key(0), regression(num_data=100))
    assert tuple(calibration.choices) == (*NAMES, *LENGTHS)
    assert all(choice.reason for choice in calibration.choices.values())
    assert {choice.origin for choice in calibration.choices.values()} == {"given", "posterior", "chosen"}
    assert len(calibration.pilots) >= 1
    assert calibration.choices["step_size"].value == calibration.sampler.step_size
    lines = str(calibration).splitlines()
    for line, (name, choice) in zip(lines, calibration.choices.items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(choice.reason)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget needs an integer >= 1, got 0"),
        ({"budget": 100, "num_draws": 0}, "num_draws needs an integer >= 1, got 0"),
        (
            {"budget": 100, "num_warmup": 100},
            r"budget needs to suffice for a draw .* num_warmup \+ thinning = 101 steps, got 100",
        ),
        ({"thinning": 0}, "thinning needs an integer >= 1, got 0"),
        ({"eval_size": 101}, "eval_size needs an integer from 1 to n = 100, got 101"),
        ({"target_mcse": 0.0}, "target_mcse needs a finite number > 0 or None, got 0.0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        llc.estimate(jax.random.key(0), regression(num_data=100), **settings)


def test_params_whose_rounding_swallows_a_step_are_refused_before_the_spectrum():
    def loss(params, rows):
        return 0.5 * jnp.square(rows * params.astype(jnp.float32))

    posterior = llc.LocalPosterior(loss, jnp.zeros((), jnp.bfloat16), jnp.linspace(-1.0, 1.0, 20), gamma=1.0)
    for function in (llc.calibrate, llc.estimate):
        with pytest.raises(ValueError, match=r"params in float32 or float64, got \['bfloat16'\]"):
            function(jax.random.key(0), posterior)
