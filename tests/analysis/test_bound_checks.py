"""At small n the bounds, which are those of n → ∞, leave room for terms of order 1/log nβ."""

import dataclasses

import pytest

from llc.analysis.bound_checks import bound_checks
from llc.analysis.verdict import Findings, judge
from tests.analysis.test_verdict import bounds, number
from tests.support.runs import make_draws


@pytest.mark.parametrize(("num_data", "verdict"), [(15, "SCALE_DEPENDENT"), (1000, "ABOVE")])
def test_terms_of_finite_n_are_not_above(num_data, verdict):
    draws = make_draws()
    nbeta = {15: 5.54, 1000: 144.8}[num_data]
    draws["constant_data"] = draws["constant_data"].dataset.assign(num_data=num_data, nbeta=nbeta)
    found, llc = bounds(0.75, 0.75), number(0.9589, 0.0038)
    checks = bound_checks(draws, llc, found, None, llc, corrected=True, sensitivity=None)
    (above,) = (check for check in checks if check.name == "above_bounds")
    assert above.passed == (num_data == 15)
    assert judge(Findings(llc, llc, found, (above,))).verdict == verdict


def test_small_n_excuses_no_more_than_its_terms():
    draws = make_draws()
    draws["constant_data"] = draws["constant_data"].dataset.assign(num_data=15, nbeta=5.54)
    llc = dataclasses.replace(number(3.0, 0.0038), value=3.0)
    checks = bound_checks(draws, llc, bounds(0.75, 0.75), None, llc, corrected=True, sensitivity=None)
    assert "above_bounds" in {check.name for check in checks if not check.passed}
