"""The error of evaluating losses on few rows, on exact draws of a quadratic posterior: its intervals cover."""

import functools

import numpy as np
import pytest
import xarray as xr
from arviz_base import from_dict

from llc.analysis.estimators import mean_energy
from llc.analysis.pointwise import small_sample_factor, subset_factor

NUM_DATA, NBETA, GAMMA = 1000, 145.0, 1.0
NUM_CHAINS, NUM_DRAWS = 4, 100
RNG = np.random.default_rng(0)
INPUTS = {
    "normal": RNG.normal(size=(NUM_DATA, 4)),
    "heavy-tailed": RNG.standard_t(6, size=(NUM_DATA, 4)),
    "of two sizes": RNG.normal(size=(NUM_DATA, 4)) * np.where(np.arange(NUM_DATA) % 5 == 0, 2.0, 0.7)[:, None],
}


@functools.cache
def _exact(name: str) -> tuple[np.ndarray, float]:
    """Root of the posterior's covariance, and λ."""
    hessian = INPUTS[name].T @ INPUTS[name] / NUM_DATA
    curvature = NBETA * hessian + GAMMA * np.eye(len(hessian))
    return np.linalg.cholesky(np.linalg.inv(curvature)), float(
        0.5 * np.trace(NBETA * hessian @ np.linalg.inv(curvature))
    )


def _draws(rng: np.random.Generator, name: str, eval_size: int, num_units: int) -> xr.DataTree:
    """Independent draws of ½ (x·w)² on a subset of the rows, as `llc.sample` records them; slopes at w* are zero."""
    root, _ = _exact(name)
    rows = rng.choice(NUM_DATA, eval_size, replace=False)
    moved = rng.normal(size=(NUM_CHAINS, NUM_DRAWS, len(root))) @ root.T
    losses = 0.5 * (moved @ INPUTS[name][rows].T) ** 2
    parts = np.array_split(np.arange(eval_size), num_units)
    units = np.stack([losses[..., part].mean(axis=-1) for part in parts], axis=-1)
    weights = np.array([len(part) for part in parts]) / eval_size
    delta = units @ weights
    stats = {key: np.ones_like(delta) for key in ("virial", "potential")}
    constants = {
        "init_loss": 0.0,
        "nbeta": NBETA,
        "gamma": GAMMA,
        "num_data": NUM_DATA,
        "num_params": 4,
        "eval_size": eval_size,
    }
    draws = from_dict(
        {
            "posterior": {"loss": delta, "llc": NBETA * delta},
            "sample_stats": stats | {"diverging": np.zeros(delta.shape, bool)},
            "constant_data": constants,
        }
    )
    draws.attrs["settings"] = '{"sampler": {"name": "NUTS"}}'
    means = {"first": units, "second": units**2, "exponential": np.exp(-units), "paired": units}
    pointwise = {key: (("block", "chain", "example"), x.mean(axis=1)[None]) for key, x in means.items()}
    pointwise["paired_second"] = pointwise["second"]
    pointwise |= {"weight": (("example",), weights), "num_draws": (("block",), [float(NUM_DRAWS)])}
    draws["pointwise"] = xr.DataTree(xr.Dataset(pointwise))
    return draws


def z_scores(name: str, eval_size: int, num_units: int, num_seeds: int) -> np.ndarray:
    """Errors of the mean energy in units of its standard error, from one run and one subset for each seed."""
    found = []
    for seed in range(num_seeds):
        estimate = mean_energy(_draws(np.random.default_rng([eval_size, seed]), name, eval_size, num_units))
        found.append((estimate.value - _exact(name)[1]) / estimate.mcse)
    return np.array(found)


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize(
    ("name", "eval_size"),
    [("normal", 15), ("normal", 30), ("normal", 100), ("of two sizes", 100)],
)
def test_intervals_of_few_rows_cover(name, eval_size):
    """95 % intervals in 95 ± 4 %."""
    covered = np.mean(np.abs(z_scores(name, eval_size, min(eval_size, 32), 200)) <= 1.96)
    assert 0.91 <= covered <= 0.99


def test_an_error_of_the_normal_law_would_not_cover():
    """The negative control: from the spread alone 15 rows are too sure of themselves."""
    covered = 0
    for seed in range(200):
        draws = _draws(np.random.default_rng([15, seed]), "heavy-tailed", 15, 15)
        means = draws["pointwise"]["paired"].to_numpy().mean(axis=(0, 1))
        error = NBETA * np.std(means, ddof=1) * np.sqrt((1 - 15 / NUM_DATA) / 15)
        covered += abs(NBETA * means.mean() - _exact("heavy-tailed")[1]) <= 1.96 * error
    assert covered / 200 < 0.88


def test_skewed_units_widen_the_error():
    even = np.linspace(-1, 1, 20)
    assert subset_factor(even) == pytest.approx(small_sample_factor(20))
    skewed = np.r_[np.zeros(19), 1.0]  # of skewness 18/√19
    assert subset_factor(skewed) == pytest.approx(small_sample_factor(20) * (1 + 3 * 18**2 / 19 / 20))
    assert subset_factor(np.ones(20)) == small_sample_factor(20)


@pytest.mark.parametrize(("num_units", "factor"), [(2, 6.483), (15, 1.0943), (100, 1.01237)])
def test_factors_are_those_of_students_law(num_units, factor):
    assert small_sample_factor(num_units) == pytest.approx(factor, rel=1e-3)
    assert small_sample_factor(1) == np.inf
