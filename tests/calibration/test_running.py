"""How long a run goes on by itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llc
from llc.calibration.pipeline import calibrate
from llc.calibration.running import draw_cool_enough, extended


@pytest.mark.slow
@pytest.mark.parametrize(("target", "enough", "num_draws"), [(None, 30, 30), (1e-3, 30, 160), (None, None, 160)])
def test_a_run_of_minutes_goes_on_only_for_an_accuracy_that_was_asked_for(target, enough, num_draws):
    """Twenty draws of each chain on a quartic tell λ̂ to some 15 %; the most are eight times as many."""
    posterior = llc.LocalPosterior(lambda w, x: 0.5 * (x * w) ** 4, jnp.zeros(()), np.ones(500, np.float32), gamma=1.0)
    calibration = calibrate(jax.random.key(0), posterior, sampler=llc.SGLD(1e-2), num_draws=20, progress=False)
    calibration = replace(calibration, enough_draws=enough)
    run = draw_cool_enough((jax.random.key(1),), calibration, None, progress=False)
    report = extended(run, target, None, progress=False)
    assert report.draws["posterior"].sizes["draw"] == num_draws
