"""The panel of a calibration, on one made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

import llc
from llc.plotting.calibration import bias_of

NBETA, CURVATURES = 100.0, np.array([2.0, 0.5, 0.0])


def _spectrum():
    def total(fn):
        return float(np.sum(fn(CURVATURES)))

    return SimpleNamespace(largest=2.0, sum=total)


def _calibration(sampler, pilots=()):
    posterior = SimpleNamespace(nbeta=NBETA, gamma=10.0, scale=SimpleNamespace(nbeta=NBETA, gamma=10.0))
    pilots = tuple(SimpleNamespace(gamma=g, step_size=s, stiffness=x) for g, s, x in pilots)
    return SimpleNamespace(sampler=sampler, posterior=posterior, pilots=pilots, spectrum=_spectrum())


def test_bias_is_that_of_the_stationary_law():
    gamma, step_size = 10.0, 0.005
    stiffness = NBETA * CURVATURES + gamma
    exact = 1 / (1 - step_size * stiffness / 4) / stiffness  # variance of SGLD, see tests/sampling/test_sgmcmc.py
    energies = [0.5 * NBETA * np.sum(CURVATURES * variance) for variance in (exact, 1 / stiffness)]
    assert bias_of(_spectrum(), NBETA, gamma, step_size) == pytest.approx(energies[0] / energies[1] - 1)
    assert np.isnan(bias_of(_spectrum(), NBETA, gamma, 4 / 210))
    assert bias_of(_spectrum(), NBETA, gamma, 3.99 / 210) > 10


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize("pilots", [((5.0, 4e-3, 3.0), (10.0, 2e-3, 1.5)), ((10.0, 4e-3, 3.0), (10.0, 2e-3, 0.4)), ()])
def test_settings_and_pilots_are_where_they_were(pilots):
    ax = llc.plot_calibration(_calibration(llc.SGLD(2e-3), pilots))
    chosen = next(line for line in ax.lines if line.get_label() == "chosen")
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (2e-3, 10.0)
    assert [text.get_text() for text in ax.texts if ": ×" in text.get_text()] == [
        f"{i}: ×{stiffness:.2g}" for i, (_, _, stiffness) in enumerate(pilots, start=1)
    ]
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for gamma, step_size, _ in pilots:
        assert low < step_size < high
        assert bottom < gamma < top
    ax.figure.draw_without_rendering()


def test_a_sampler_that_adapts_has_nothing_to_show():
    ax = llc.plot_calibration(_calibration(llc.NUTS()))
    assert ax.texts[0].get_text() == "NUTS adapts its step size in the warm-up"
