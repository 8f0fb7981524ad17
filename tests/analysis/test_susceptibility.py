"""Susceptibilities of components: closed forms of a Gaussian, at first order and at finite shifts; refusals."""

import numpy as np
import pytest

import llc
from tests.support.gaussian import NBETA, Regression, in_blocks

CASE = Regression()
WHOLE = CASE.draws(num_draws=4000)
COMPONENTS = {"first two": slice(0, 2), "last two": slice(2, 4), "all": slice(None)}


def component(name, **settings):
    return None if name == "all" else CASE.draws(COMPONENTS[name], seed=7, **({"num_draws": 4000} | settings))


@pytest.mark.parametrize("name", COMPONENTS)
def test_susceptibility_is_that_of_the_closed_form(name):
    found = llc.susceptibility(WHOLE, "ood", component=component(name))
    exact = CASE.susceptibility(COMPONENTS[name])
    assert abs(float(found["value"]) - exact) < 4 * float(found["mcse"])
    assert float(found["mcse"]) < 0.2 * abs(exact)


def test_the_run_of_the_whole_is_needed():
    """The negative control: a component normalized by its own run has another susceptibility."""
    draws = component("first two")
    alone = llc.susceptibility(draws, "ood")
    assert abs(float(alone["value"]) - CASE.susceptibility(slice(0, 2))) > 5 * float(alone["mcse"])


def test_of_the_whole_is_minus_the_covariance():
    found = llc.susceptibility(WHOLE, "probe", reference=None)
    expected = llc.influence(WHOLE, "loss", "probe")
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-6)
    np.testing.assert_allclose(found["mcse"], expected["mcse"], rtol=1e-6)


@pytest.mark.parametrize("name", COMPONENTS)
def test_response_is_exact_at_finite_shifts(name):
    shifts = (-0.05, 0.05, 0.2)
    moves = COMPONENTS[name]
    found = llc.susceptibility(WHOLE, "ood", component=component(name), shifts=shifts)
    chi, start = CASE.susceptibility(moves), CASE.response(moves, 0)
    exact = [CASE.response(moves, h) - start - NBETA * h * chi for h in shifts]
    z = (found["departure"].to_numpy() - exact) / found["departure_mcse"].to_numpy()
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(found["shift"], shifts)


def test_linearity_holds_for_a_small_shift_and_not_for_a_large_one():
    found = llc.susceptibility(WHOLE, "ood", component=component("first two"), shifts=(0.003, 1.0))
    moves = COMPONENTS["first two"]
    chi, start = CASE.susceptibility(moves), CASE.response(moves, 0)
    assert abs(CASE.response(moves, 1.0) - start - NBETA * chi) > 0.2 * abs(NBETA * chi)
    assert found["linear"].to_numpy().tolist() == [True, False]


def test_few_draws_behind_a_shift_are_not_called_linear():
    found = llc.susceptibility(WHOLE, "ood", shifts=(30.0,))
    assert found["effective_share"].item() < 0.1
    assert not found["linear"].item()


def test_moments_in_blocks_give_what_the_draws_give():
    whole, part = WHOLE, component("first two")
    kept = llc.susceptibility(whole, "probe", component=part)
    found = llc.susceptibility(
        *(in_blocks(whole, "probe", "train"),), "probe", component=in_blocks(part, "probe", "train")
    )
    np.testing.assert_allclose(found["value"], kept["value"], rtol=1e-4)
    assert 0.6 < float((found["mcse"] / kept["mcse"]).mean()) < 1.5
    assert "response" not in found


def test_rows_average_to_the_mean_loss():
    rows, mean = (llc.susceptibility(WHOLE, name)["value"] for name in ("probe", "ood"))
    np.testing.assert_allclose(rows.mean(), mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shift": "unknown"}, "unknown"),
        ({"reference": "probe"}, "reference"),
        ({"shifts": (0.0,)}, "shifts"),
        ({"component": Regression(num_probes=3).draws(slice(0, 2), num_draws=20)}, "probe"),
        ({"whole": "component", "component": "whole"}, "num_params"),
    ],
    ids=["unknown shift", "reference of many", "no shift", "other probes", "whole and component exchanged"],
)
def test_what_does_not_fit_is_refused(settings, named):
    runs = {"whole": WHOLE, "component": component("first two", num_draws=20)}
    chosen = {"whole": WHOLE, "shift": "probe"} | settings
    chosen = {key: runs[x] if isinstance(x, str) and x in runs else x for key, x in chosen.items()}
    with pytest.raises(ValueError, match=named):
        llc.susceptibility(chosen.pop("whole"), chosen.pop("shift"), **chosen)


def test_runs_at_another_scale_are_refused():
    other = component("first two", num_draws=20)
    other["constant_data"]["nbeta"].to_numpy()[...] = 2 * NBETA
    with pytest.raises(ValueError, match="nbeta"):
        llc.susceptibility(WHOLE, "ood", component=other)
