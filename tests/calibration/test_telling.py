"""What a run of minutes tells: on standard error, and nothing where no progress is asked for."""

import pytest

import llc
from llc.calibration.record import Pilot, PilotResult
from llc.calibration.telling import pilot_found, say
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
