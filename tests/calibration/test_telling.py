"""What a run of minutes tells: on standard error, and nothing where no progress is asked for."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

import llc
from llc.calibration.further_runs import tell_further_run
from llc.calibration.pipeline import calibrate_for
from llc.calibration.price import Price
from llc.calibration.record import Pilot, PilotResult
from llc.calibration.running import draw_cool_enough
from llc.calibration.telling import forecast, pilot_found, run_forecast, run_planned, say
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from tests.support.regression import regression


@pytest.mark.parametrize(("progress", "told"), [(None, True), (True, True), (False, False)])
def test_lines_are_on_standard_error(capsys, progress, told):
    say("h_max = 2", progress=progress)
    written = capsys.readouterr()
    assert not written.out
    assert ("h_max = 2" in written.err) == told


@pytest.mark.parametrize(("energies", "told"), [((1.0, 2.0, 3.0), "2.00"), ((1.0, float("nan")), None), ((), None)])
def test_the_first_estimate_is_that_of_the_last_pilot(energies, told):
    pilots = Pilot(1.0, 1e-3, 5.0, (40.0, 50.0)), Pilot(1.0, 5e-4, 1.0, energies)
    line = pilot_found(PilotResult(regression(num_data=10), llc.SGLD(5e-4), 5e-4, pilots))
    assert ("λ̂ = " in line) == (told is not None)
    assert told is None or told[:1] in line.split("λ̂ = ")[1]


def test_a_forecast_has_a_time():
    price = Price(1e12, costly=True)
    told = forecast(
        regression(num_data=10), price, RequestedLengths(num_chains=2, num_draws=1, budget=100), has_spectrum=False
    )
    assert re.search(r"about \d+(\.\d)? (s|min|h)\) in all", told)
    lengths = RunLengths(num_chains=2, num_warmup=0, num_draws=10, thinning=1)
    assert "run: 40 gradients" in run_planned(lengths, 10, doubled=False)
    assert "run: 60 gradients" in run_planned(lengths, 10, doubled=True)
    assert run_forecast(95.0).startswith("run: about 2 min")


def test_what_is_not_told_is_not_made():
    def forbidden():
        raise AssertionError

    say(forbidden, progress=False)
    with pytest.raises(AssertionError):
        say(forbidden, progress=True)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_run_of_minutes_tells_its_estimate_and_the_time_to_go(capsys, told):
    asked = RequestedLengths(num_chains=2, num_draws=20, num_warmup=10, thinning=2)
    posterior, price = regression(num_data=100), Price(1e9, costly=True)
    made = calibrate_for(jax.random.key(0), posterior, None, asked, price, progress=False)
    draw_cool_enough((jax.random.key(1),), replace(made, enough_draws=20 if told else None), None, progress=None)
    written = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llc")]
    assert ["pace of its first steps" in line for line in written] == [True, False, False, False, False][: len(written)]
    lines = [line for line in written if "λ̂ = " in line]
    assert len(lines) == (4 if told else 0)
    assert ["to go" in line for line in lines] == [True, True, True, False][: len(lines)]


@pytest.mark.slow
@pytest.mark.parametrize(("num_warmup", "told"), [(10, True), (0, False)])
def test_the_time_of_a_run_is_told_from_its_warmup_and_changes_no_draw(capsys, num_warmup, told):
    asked = RequestedLengths(num_chains=2, num_draws=12, num_warmup=num_warmup, thinning=2)
    posterior, price = regression(num_data=100), Price(1e9, costly=True)
    made = calibrate_for(jax.random.key(0), posterior, None, asked, price, progress=False)
    timed, silent = (
        draw_cool_enough((jax.random.key(1),), replace(made, enough_draws=enough), None, progress=None)
        for enough in (12, None)
    )
    assert ("pace of its first steps" in capsys.readouterr().err) == told
    for run in (timed, silent):
        tell_further_run(run, "a further run", progress=None)
    assert capsys.readouterr().err.count("a further run: about 10 s") == 1
    llc_of = [run.report.draws["posterior"]["llc"].to_numpy() for run in (timed, silent)]
    np.testing.assert_array_equal(*llc_of)
