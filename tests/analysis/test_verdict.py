"""The verdict as a function of fields: every row of the table, and numbers that are not finite."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from llc.analysis.check import Check
from llc.analysis.estimators import Estimate
from llc.analysis.verdict import Findings, judge
from llc.bounds.assumptions import Assumption
from llc.bounds.rank import Bounds

PASSED = Check("passed", "chains", passed=True, value=0.0, threshold=1.0, message="fine")


def number(value, mcse=0.01):
    return Estimate("mean energy", value, mcse, (value,), 1000.0, 1.0)


def bounds(lower=1.0, upper=2.0, *, holds=True, kind="minimum", rank=(2.0, 2.0)):
    """Bounds with one assumption, of 4 parameters."""
    return Bounds(
        lower=lower if holds else math.nan,
        upper=upper if holds else math.nan,
        rank=rank[0],
        rank_interval=rank,
        quad=0.9,
        quad_stderr=0.0,
        dim=4,
        threshold=1e-9,
        gap=8.0,
        localization_scale=0.1,
        source="",
        assumptions=(Assumption("assumed", holds, "seen", kind),),
    )


def failed(kind, direction=None, *, cured_by_draws=False):
    return Check(
        "broken", kind, False, 1.0, 0.0, "what was seen: why it matters, and what to change", cured_by_draws, direction
    )


def findings(llc=1.4, corrected=1.5, of=None, *checks, moved=None):
    """λ̂, λ_corr, bounds, failed checks, and the change of λ_corr with γ."""
    return Findings(
        number(llc),
        None if corrected is None else number(corrected),
        of,
        (PASSED, *checks),
        None if moved is None else number(moved, 0.001),
    )


MEET = bounds(1.5, 1.5)
SADDLE = bounds(holds=False)
KINK = bounds(holds=False, kind="bounds")
CASES = {
    "bounds meet": (findings(1.4, 1.5, MEET), "CONSISTENT"),
    "bounds meet, and it still moves": (findings(1.4, 1.5, MEET, moved=0.2), "CONSISTENT"),
    "the same at another γ": (findings(1.4, 1.5, bounds(), moved=0.001), "CONSISTENT"),
    "outside by what is allowed": (findings(1.4, 2.03, bounds(), moved=0.001), "CONSISTENT"),
    "still moves": (findings(1.4, 1.5, bounds(), moved=0.2), "SCALE_DEPENDENT"),
    "no second run": (findings(1.4, 1.5, bounds()), "SCALE_DEPENDENT"),
    "all of it is r/2": (findings(0.9, 1.0, bounds(), moved=0.0), "SCALE_DEPENDENT"),
    "beside bounds that meet, excused by its move": (findings(1.2, 1.3, MEET, moved=0.3), "SCALE_DEPENDENT"),
    "no bounds": (findings(1.4, None, None), "SCALE_DEPENDENT"),
    "saddle": (findings(1.4, 1.5, SADDLE, failed("minimum")), "SCALE_DEPENDENT"),
    "saddle, draws below L(w*)": (
        findings(1.4, 1.5, SADDLE, failed("minimum"), failed("minimum", "cold")),
        "SCALE_DEPENDENT",
    ),
    "kink": (findings(1.4, 1.5, KINK, failed("bounds")), "SCALE_DEPENDENT"),
    "bounds of another scale": (findings(1.4, None, bounds()), "SCALE_DEPENDENT"),
    "spectrum not resolved": (findings(1.4, 1.5, MEET, failed("bounds")), "SCALE_DEPENDENT"),
    "spectrum not resolved, outside": (
        findings(1.4, 3.0, MEET, failed("bounds"), failed("bounds", "hot")),
        "SCALE_DEPENDENT",
    ),
    "localization": (findings(1.4, 1.5, MEET, failed("scale")), "SCALE_DEPENDENT"),
    "below, and still moves": (findings(0.5, 0.6, bounds(), failed("bounds", "cold"), moved=0.2), "SCALE_DEPENDENT"),
    "below": (findings(0.5, 0.6, bounds(), failed("bounds", "cold")), "BELOW"),
    "above": (findings(2.9, 3.0, bounds(), failed("bounds", "hot")), "ABOVE"),
    "above, still moves": (findings(2.9, 3.0, bounds(), failed("bounds", "hot"), moved=0.2), "ABOVE"),
    "above, wrong L(w*)": (findings(2.9, 3.0, bounds(), failed("bounds", "hot"), failed("minimum")), "ABOVE"),
    "above by upper side only": (findings(2.9, None, bounds(), failed("bounds", "hot")), "ABOVE"),
    "chains": (findings(1.4, 1.5, MEET, failed("chains")), "UNRESOLVED"),
    "chains, no bounds": (findings(1.4, None, None, failed("chains")), "UNRESOLVED"),
    "chains, outside": (findings(2.9, 3.0, MEET, failed("chains"), failed("bounds", "hot")), "UNRESOLVED"),
    "rare high energies": (findings(1.4, 1.5, MEET, failed("minimum", "hot")), "UNRESOLVED"),
    "below, L(w*) too high": (
        findings(0.5, 0.6, bounds(), failed("bounds", "cold"), failed("minimum", "hot"), failed("minimum", "cold")),
        "BELOW",
    ),
    "draws below L(w*) at a minimum": (findings(1.4, 1.5, MEET, failed("minimum", "cold")), "UNRESOLVED"),
    "draws below L(w*), no geometry": (findings(1.4, None, None, failed("minimum", "cold")), "UNRESOLVED"),
    "negative at a saddle": (findings(-1.0, -1.0, SADDLE, failed("minimum")), "UNRESOLVED"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_and_a_reason(case):
    found, verdict = CASES[case]
    judgement = judge(found)
    assert judgement.verdict == verdict, judgement.reason
    assert len(judgement.reason) > 20
    assert "\n" not in judgement.reason


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "mcse"])
def test_what_is_not_finite_is_unresolved_always(case, field, bad):
    found, _ = CASES[case]
    for name in ("llc", "corrected"):
        estimate = getattr(found, name)
        if estimate is not None:
            broken = dataclasses.replace(found, **{name: dataclasses.replace(estimate, **{field: bad})})
            assert judge(broken).verdict == "UNRESOLVED"


def test_names_and_messages_decide_nothing():
    for found, verdict in CASES.values():
        renamed = tuple(dataclasses.replace(check, name="other", message="other") for check in found.checks)
        assert judge(dataclasses.replace(found, checks=renamed)).verdict == verdict


def test_no_consistent_number_is_far_from_bounds_that_meet():
    """Whatever λ_corr moves with γ, it is within 2 % and three errors of a λ that is known."""
    for value, moved in itertools.product(np.linspace(1.0, 2.0, 41), (None, 0.0, 0.1, 0.4)):
        found = findings(1.0, float(value), MEET, moved=moved)
        if judge(found).verdict == "CONSISTENT" and found.gamma_converged is not True:
            assert abs(value - 1.5) <= 0.02 * 1.5 + 3 * 0.01 + 1e-12


def test_what_is_not_corrected_is_not_called_so():
    assert findings(1.4, 1.5, MEET).symbol == "λ_corr"
    assert findings(1.5, 1.5, MEET).symbol == "λ̂"
    assert findings(1.5, None, None).symbol == "λ̂"


@pytest.mark.parametrize(
    ("of", "nothing"),
    [
        (bounds(0.0, 2.0, rank=(0.0, 4.0)), True),
        (bounds(0.0, 1.0, rank=(0.0, 0.0)), False),
        (bounds(0.5, 2.0, rank=(1.0, 4.0)), False),
        (KINK, False),
    ],
)
def test_bounds_that_any_model_of_four_parameters_has_say_nothing(of, nothing):
    assert of.is_vacuous == nothing
    interval = f"[{of.lower:.4g}, {of.upper:.4g}]"
    assert (interval in judge(findings(of=of, moved=0.0)).reason) == (of.valid and not nothing)
