"""The difference of two λ̂: its value, its error with and without common random numbers, and the scales."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

import llc
from llc.analysis.compare import compare
from tests.support.runs import make_draws

PHI, NUM_CHAINS, NUM_DRAWS = 0.8, 4, 400


def series(rng):
    kicks = math.sqrt(1 - PHI**2) * rng.normal(size=(NUM_CHAINS, NUM_DRAWS))
    start = PHI * rng.normal(size=(NUM_CHAINS, 1))
    return lfilter([1], [1, -PHI], kicks, axis=1, zi=start)[0]


def pair(seed, *, own=0.3, shift=0.1, keys=("[0, 1]", "[0, 1]")):
    """Draws with most of their noise in common, whose means differ by `shift`."""
    rng = np.random.default_rng(seed)
    common = series(rng)
    first, second = (
        make_draws(NUM_CHAINS, NUM_DRAWS, 0, noise=common + own * series(rng) + offset) for offset in (0.0, shift)
    )
    for draws, key in zip((first, second), keys, strict=True):
        draws.attrs["seed"] = key
    return first, second


def test_value_is_second_less_first():
    first, second = pair(0)
    found = compare(first, second)
    expected = llc.mean_energy(second).value - llc.mean_energy(first).value
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert compare(second, first).value == pytest.approx(-expected, rel=1e-12)
    assert (found.paired, found.same_scale) == (True, True)


@pytest.mark.study
def test_paired_error_is_that_of_the_difference():
    """Over 60 pairs z has the standard deviation 1; with the errors of independent runs it would be a third."""
    found = [compare(*pair(seed)) for seed in range(60)]
    z = np.array([(x.value - 0.1) / x.mcse for x in found])
    assert abs(z.mean()) < 4 / math.sqrt(60)
    assert 0.7 < z.std() < 1.35  # ± 4 / √(2 · 60) of its error
    independent = np.array([(x.value - 0.1) / math.hypot(x.first.mcse, x.second.mcse) for x in found])
    assert independent.std() < 0.5
    exact = 1 / (1 + 0.3**2)
    correlations = [x.correlation for x in found]
    assert abs(np.mean(correlations) - exact) < 4 * np.std(correlations) / math.sqrt(60) + 0.01


def test_runs_by_different_keys_are_independent():
    found = compare(*pair(0, keys=("[0, 1]", "[0, 2]")))
    assert not found.paired
    assert found.mcse == pytest.approx(math.hypot(found.first.mcse, found.second.mcse))
    assert found.correlation == 0


def test_draws_without_a_key_are_not_paired():
    first, second = pair(0)
    for draws in (first, second):
        del draws.attrs["seed"]
    assert not compare(first, second).paired


def test_runs_of_different_lengths_are_not_paired():
    first, _ = pair(0)
    other = make_draws(NUM_CHAINS, NUM_DRAWS // 2, 0)
    other.attrs["seed"] = first.attrs["seed"]
    assert not compare(first, other).paired


def test_a_run_differs_from_itself_by_nothing():
    first, _ = pair(0)
    found = compare(first, first)
    assert (found.value, found.correlation) == (0.0, pytest.approx(1.0))
    assert found.mcse == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["nbeta", "gamma"])
def test_another_scale_is_told(name):
    first, second = pair(0)
    constants = second["constant_data"].to_dataset()
    second["constant_data"] = constants.assign({name: constants[name] * 1.01})
    found = compare(first, second)
    assert not found.same_scale
    assert found.scales[0] != found.scales[1]
    second["constant_data"] = constants.assign({name: constants[name] * (1 + 1e-9)})
    assert compare(first, second).same_scale


def test_a_dead_chain_is_left_out_and_not_paired():
    first, second = pair(0)
    second["posterior"]["llc"].values[1, 5] = np.nan
    found = compare(first, second)
    assert not found.paired
    assert math.isfinite(found.value)


@pytest.mark.slow
def test_energies_of_steps_are_paired_where_both_runs_have_them():
    """Ten steps a draw, of which it is the last: z of the difference has the standard deviation 1, its error falls."""
    found, of_draws = [], []
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        common = rng.normal(size=(NUM_CHAINS, 100, 10))
        runs = []
        for shift in (0.0, 0.1):
            steps = common + 0.3 * rng.normal(size=common.shape) + shift
            draws = make_draws(NUM_CHAINS, 100, 0, noise=steps[..., -1])
            offset = draws["posterior"]["llc"].values - steps[..., -1]
            stats = draws["sample_stats"].to_dataset().drop_vars(["stein_curved", "stein_flat"], errors="ignore")
            draws.attrs["seed"] = "[0, 1]"
            draws["sample_stats"] = stats
            of_draws.append(draws.copy(deep=True))
            draws["sample_stats"] = stats.assign(step_energy=(("chain", "draw"), steps.mean(axis=-1) + offset))
            runs.append(draws)
        found.append(compare(*runs))
    z = np.array([(x.value - 0.1) / x.mcse for x in found])
    assert abs(z.mean()) < 4 / math.sqrt(60)
    assert 0.7 < z.std() < 1.35
    alone = [compare(first, second).mcse for first, second in zip(of_draws[::2], of_draws[1::2], strict=True)]
    assert np.mean([x.mcse for x in found]) < 0.5 * np.mean(alone)
