"""Whether energies that are not Gamma-distributed come of the step, the mixing or the shape of the posterior."""

import json

import numpy as np
import pytest

import llc
from llc.analysis import schema
from llc.analysis.cause import cause_of, virial_at_half_step
from llc.analysis.estimators import energy_variance, mean_energy
from tests.analysis.test_estimators import make_draws

SHAPE = 20.0


def energies(scale=1.0, spread=1.0, seed=0):
    """Independent draws of mean 20 · scale, whose variance is 20 · scale² · spread²: no Gamma law unless both are 1."""
    values = np.random.default_rng(seed).gamma(SHAPE, size=(4, 1000))
    return scale * (SHAPE + spread * (values - SHAPE))


def with_half(values, half=None):
    """Draws with these energies, and those of a run at half the step."""
    draws = make_draws(values)
    if half is not None:
        draws["half_step"] = make_draws(half)
    return draws


def apart(values):
    """Chains that disagree by a standard deviation."""
    return values + np.sqrt(SHAPE) * np.arange(len(values))[:, None]


NARROW = energies(spread=0.3)
CASES = {  # energies, those at half the step, cause, and whether `mean_variance` refuses
    "a Gamma law": (energies(), energies(seed=1), "shape", False),
    "a narrow law, and the same at half the step": (NARROW, energies(spread=0.3, seed=1), "shape", False),
    "a wide law, and the same at half the step": (
        energies(spread=1.8),
        energies(spread=1.8, seed=1),
        "shape",
        False,
    ),
    "a narrow law, without such a run": (NARROW, None, None, True),
    "a wide law that is less hot at half the step": (energies(1.1, 1.8), energies(seed=1), "step", True),
    "a wide law that is hotter at half the step": (energies(spread=1.8), energies(1.1, 1.8, seed=1), "mixing", True),
    "a wide law that is narrow at half the step": (energies(spread=1.8), energies(seed=1), None, True),
    "chains apart": (apart(energies()), energies(seed=1), "mixing", True),
    "chains apart at half the step": (NARROW, apart(NARROW), "mixing", True),
}


def _cause(draws):
    return cause_of(draws, mean_energy(draws), energy_variance(draws))


@pytest.mark.parametrize(("values", "half", "name", "refused"), CASES.values(), ids=CASES)
def test_the_cause_and_what_the_check_makes_of_it(values, half, name, refused):
    draws = with_half(values, half)
    assert _cause(draws).name == name, _cause(draws).seen
    spectrum = llc.Spectrum(np.full((1, 4), 1.0), np.ones((1, 4)), 4, "hessian", "dense", *[np.zeros(0)] * 2)
    report = llc.report(draws, spectrum=spectrum)  # with it, γ explains no more than it does
    (check,) = (check for check in report.checks if check.name == "mean_variance")
    if name != "mixing":  # the chains are judged by other checks
        assert check.passed != refused, check.message
    assert check.told_by_half_step == (not check.passed)


@pytest.mark.parametrize(
    ("virial", "half", "word"),
    [
        (1.5, 1.25, "lower step_size"),
        (1.5, 1.5, "batch_size = 40"),
        (1.5, None, "lower step_size, or take batch_size = 40"),
    ],
)
def test_what_to_do_about_a_virial_ratio_that_is_too_high(virial, half, word):
    noise = np.random.default_rng(0).normal(size=(4, 1000))

    def set_virial(draws, value):
        draws["sample_stats"] = draws["sample_stats"].dataset.assign(virial=(("chain", "draw"), value + 0.1 * noise))
        return draws

    draws = set_virial(with_half(energies(), None if half is None else energies(seed=1)), virial)
    draws.attrs["settings"] = json.dumps(schema.settings_of(draws) | {"batch_size": 10})
    if half is not None:
        draws["half_step"] = set_virial(draws["half_step"].copy(), half)
    assert np.isnan(virial_at_half_step(draws)) == (half is None)
    (check,) = (check for check in llc.report(draws).failed if check.name == "virial")
    assert check.message.endswith(word)
    assert check.told_by_half_step


def test_a_run_at_half_the_step_is_saved_and_read_back(tmp_path):
    draws = with_half(NARROW, energies(spread=0.3, seed=1))
    llc.save(draws, tmp_path / "run.nc")
    assert _cause(llc.load(tmp_path / "run.nc")) == _cause(draws)
    report = llc.report(draws)
    assert report.character.evidence.half_step == pytest.approx(1 - energies(spread=0.3, seed=1).mean() / NARROW.mean())
