"""Numbers of a run that contradict each other are refused by name, or leave the verdict open; right ones never are."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import robustness_files as damage
import xarray as xr
from arviz_base import from_dict

import llc
from llc.analysis import files
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import to_dataset
from tests.support.tiers import weekly

NBETA, GAMMA, INIT_LOSS, ROWS, DIM = 150.0, 6.0, 0.5, 40, 3
CHAINS, DRAWS, BLOCKS = 2, 400, 5
CURVATURES = np.array([2.0, 0.5, 0.0])


def exact_run(sampler="NUTS", *, thinning=1, batch_size=ROWS, subset=False, gamma=GAMMA, seed=0):
    """Independent draws of a linear regression whose rows have gradients ±√h along each axis at w*, and zero mean."""
    rng = np.random.default_rng(seed)
    precision = NBETA * CURVATURES + gamma
    offset = rng.normal(size=(CHAINS, DRAWS, DIM)) / np.sqrt(precision)
    signs = np.concatenate([rng.choice([-1.0, 1.0], (ROWS // 2, DIM))] * 2)
    residuals = np.repeat([1.0, -1.0], ROWS // 2)  # of each row and of one like it, so that the gradient is zero
    predicted = offset @ (signs * np.sqrt(CURVATURES)).T
    units = 0.5 * (predicted + residuals) ** 2 - 0.5
    delta = units.mean(axis=-1)
    features = signs * np.sqrt(CURVATURES)
    hessian = features.T @ features / ROWS
    grad = NBETA * offset @ hessian + gamma * offset
    distance = np.linalg.norm(offset, axis=-1)
    weights = 0.5 * NBETA * CURVATURES / precision
    along = offset * weights
    stein = np.sum(along * grad, axis=-1) - weights.sum()
    stats = {
        "potential": NBETA * (INIT_LOSS + delta) + 0.5 * gamma * distance**2,
        "virial": np.sum(offset * grad, axis=-1) / DIM,
        "grad_norm": np.linalg.norm(grad, axis=-1),
        "distance": distance,
        "diverging": np.zeros(distance.shape, bool),
        "stein_curved": stein,
        "stein_flat": np.zeros(distance.shape),
    }
    noise = rng.normal(0, 1, distance.shape) if batch_size < ROWS else 0.0
    if sampler == "SGLD":  # which shows U where its gradient was taken
        for name in ("potential", "virial", "grad_norm"):
            stats[name] = np.roll(stats[name], 1, axis=1)
    stats["potential"] = stats["potential"] + noise
    constants = {
        "init_loss": INIT_LOSS,
        "nbeta": NBETA,
        "gamma": gamma,
        "num_data": float(2 * ROWS if subset else ROWS),
    }
    constants |= {"num_params": DIM, "eval_size": float(ROWS), "trace_curved": weights.sum(), "reference_loss": 2.0}
    values = {"loss": INIT_LOSS + delta, "llc": NBETA * delta, "params.w": offset + 1.0}
    draws = from_dict({"posterior": values, "sample_stats": stats, "constant_data": constants})
    settings = {"name": sampler, "step_size": 0.001, "integrator": "leimkuhler_matthews"}
    settings["preconditioner"] = {"name": "Identity"}
    lengths = {"thinning": thinning, "num_draws": DRAWS, "eval_size": ROWS, "batch_size": batch_size}
    draws.attrs |= {"sampler": sampler, "settings": json.dumps({"sampler": settings, **lengths})}
    slopes = (predicted + residuals) * (along @ features.T)
    draws["pointwise"] = xr.DataTree(_moments(units, slopes, subset=subset))
    return draws


def _moments(units, slopes, *, subset):
    def blocks(values):
        return np.stack([part.mean(axis=1) for part in np.split(values, BLOCKS, axis=1)]).astype(np.float32)

    moments = {"first": units, "second": units**2, "exponential": np.exp(-units)}
    if subset:
        moments |= {"paired": units, "paired_second": units**2}
        moments |= {"slope_curved": slopes, "slope_flat": np.zeros_like(slopes)}
    variables = {name: (("block", "chain", "example"), blocks(values)) for name, values in moments.items()}
    variables["weight"] = (("example",), np.full(ROWS, 1 / ROWS))
    variables["num_draws"] = (("block",), np.full(BLOCKS, DRAWS / BLOCKS))
    return xr.Dataset(variables)


@functools.cache
def made(**settings):
    return exact_run(**settings)


RUNS = {
    "exact": {},
    "of the draw before": {"sampler": "SGLD"},
    "thinned": {"thinning": 4},
    "on a subset": {"subset": True},
    "minibatches": {"sampler": "SGLD", "batch_size": ROWS // 4},
}
TIMES = (0.3, 0.7, 1.3, 3.0)
REFUSED = {  # the run, group and variable that is multiplied, factors, what the message names
    "γ": ("exact", "constant_data", "gamma", TIMES, "potential"),
    "γ, of the draw before": ("of the draw before", "constant_data", "gamma", TIMES, "potential"),
    "distances": ("exact", "sample_stats", "distance", TIMES, "distance"),
    "distances beside parameters": ("thinned", "sample_stats", "distance", TIMES, "distance"),
    "gradients": ("exact", "sample_stats", "grad_norm", (0.3,), "virial"),
    "virial": ("exact", "sample_stats", "virial", (3.0,), "virial"),
    "means of rows": ("thinned", "pointwise", "first", TIMES, "first"),
    "means of rows of a subset": ("on a subset", "pointwise", "paired", TIMES, "paired"),
    "squares": ("exact", "pointwise", "second", (0.01,), "second"),
    "exponentials": ("exact", "pointwise", "exponential", (0.3,), "exponential"),
    "draws of blocks": ("exact", "pointwise", "num_draws", (0.5, 2.0), "num_draws"),
    "control variates": ("on a subset", "sample_stats", "stein_curved", (0.3, 3.0), "stein_curved"),
    "slopes": ("on a subset", "pointwise", "slope_curved", (0.3, 3.0), "slope_curved"),
    "trace": ("exact", "constant_data", "trace_curved", (3.0,), "trace_curved"),
    "trace of a subset": ("on a subset", "constant_data", "trace_curved", (0.3, 1.6), "trace_curved"),
    "rows": ("exact", "constant_data", "eval_size", (0.5,), "eval_size"),
    "data": ("exact", "constant_data", "num_data", (0.5,), "num_data|eval_size"),
}


def times(draws, group, name, factor):
    draws = draws.copy(deep=True)
    node = draws[group].to_dataset(inherit=False)
    draws[group].dataset = node.assign({name: factor * node[name].astype(float)})
    return draws


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_by_name(case):
    run, group, name, factors, named = REFUSED[case]
    for factor in factors:
        content = damage.foreign_bytes(times(made(**RUNS[run]), group, name, factor))
        with pytest.raises(ValueError, match=rf"^run\.nc: .*({named}).* got ") as refused:
            files.from_bytes(content, "run.nc")
        assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("run", weekly(RUNS, but=("exact", "minibatches")))
def test_what_no_one_changed_is_taken(run):
    """Negative control, also of float32, of draws that were taken out, of chains that are gone, and of other orders."""
    for seed in range(3):
        draws = exact_run(**RUNS[run], seed=seed)
        report = llc.report(files.from_bytes(damage.foreign_bytes(draws), "run.nc"))
        assert "potential" not in {check.name for check in report.checks}
    llc.report(draws.isel(draw=slice(100, None)))
    llc.report(draws.isel(draw=slice(None, None, 3)))
    llc.report(draws.isel(chain=[1]))
    gone = draws.copy(deep=True)
    for group, name in (("posterior", "loss"), ("posterior", "llc"), ("sample_stats", "distance")):
        gone[group][name].values[0, 50:] = np.nan
    assert llc.report(gone).verdict == "UNRESOLVED"
    single = draws.map_over_datasets(lambda data: data.map(lambda x: x.astype(np.float32) if x.ndim else x))
    single["sample_stats"] = single["sample_stats"].dataset.assign(diverging=draws["sample_stats"]["diverging"])
    llc.report(single)


@pytest.mark.parametrize("run", ["thinned", "minibatches"])
@pytest.mark.parametrize("name", ["gamma", "distance"])
def test_means_that_contradict_each_other_leave_the_verdict_open(run, name):
    """Of single draws nothing is known there, but of their mean."""
    draws = made(**RUNS[run]).copy(deep=True)
    draws["posterior"] = draws["posterior"].dataset.drop_vars("params.w")
    draws["sample_stats"] = draws["sample_stats"].dataset.drop_vars("grad_norm")
    group = "constant_data" if name == "gamma" else "sample_stats"
    for factor in (0.1, 10.0):
        report = llc.report(times(draws, group, name, factor))
        (check,) = (check for check in report.checks if check.name == "potential")
        assert not check.passed
        assert report.verdict == "UNRESOLVED"


def test_a_trace_above_that_of_the_hessian_is_refused():
    draws = exact_run()
    spectrum = Spectrum(
        CURVATURES[None], np.ones((1, DIM)), DIM, "hessian", "dense", np.zeros(1), np.zeros(1), smoothness=None
    )
    draws["curvature"] = xr.DataTree(to_dataset(spectrum, None))
    draws["curvature"].attrs["init_loss"] = INIT_LOSS
    llc.report(draws)
    with pytest.raises(ValueError, match="trace_curved needs to be from 0 to λ_quad"):
        llc.report(times(draws, "constant_data", "trace_curved", 1.02))
    negative = replace(spectrum, gradient_weights=np.full(1, -1e-9))
    draws["curvature"] = xr.DataTree(to_dataset(negative, None))
    with pytest.raises(ValueError, match=r"gradient_weights.* that no spectrum has"):
        llc.report(draws)


@pytest.mark.parametrize("name", ["reference_loss", "params_rounding", "center_norm"])
def test_a_run_at_another_point_beside_the_draws_is_refused(name):
    draws = exact_run()
    draws["localized"] = exact_run(gamma=3 * GAMMA, seed=1)
    for group in ("", "localized/"):
        draws[f"{group}constant_data"] = draws[f"{group}constant_data"].dataset.assign({name: 2.0})
    llc.report(draws)
    with pytest.raises(ValueError, match=f"{name} needs to be that of the run"):
        llc.report(times(draws, "localized/constant_data", name, 1.3))
