"""Draws made by hand for figures: healthy, dead, stuck and exploding chains, and what is read off a figure."""

import dataclasses
import itertools
import json

import numpy as np
from arviz_base import from_dict
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.signal import lfilter

from llc.analysis.check import Check
from llc.analysis.estimators import energy_variance, mean_energy
from llc.analysis.report import Report

NBETA, GAMMA, INIT_LOSS = 150.0, 1.5, 1.3


def make_draws(num_chains=4, num_draws=300, num_warmup=60, *, phi=0.8, noise=None, seed=0):
    """Draws of llc that are a stationary autoregression of mean 5 and variance 1, or 5 + `noise`."""
    rng = np.random.default_rng(seed)
    shape = num_chains, num_warmup + num_draws
    if noise is None:
        start = rng.normal(size=(num_chains, 1))
        kicks = np.sqrt(1 - phi**2) * rng.normal(size=shape)
        noise = lfilter([1], [1, -phi], kicks, axis=1, zi=phi * start)[0]
    values = 5 + np.broadcast_to(noise, shape)
    stats = {name: values.copy() for name in ("potential", "virial", "grad_norm")}
    stats |= {"distance": 1 + 0.1 * np.abs(values), "diverging": np.zeros(shape, bool)}
    groups = {"posterior": {"loss": INIT_LOSS + values / NBETA, "llc": values.copy()}, "sample_stats": stats}
    split = {name: {k: v[:, num_warmup:] for k, v in group.items()} for name, group in groups.items()}
    if num_warmup:
        split |= {f"warmup_{n}": {k: v[:, :num_warmup] for k, v in group.items()} for n, group in groups.items()}
    split["constant_data"] = {
        "init_loss": INIT_LOSS,
        "nbeta": NBETA,
        "gamma": GAMMA,
        "num_data": 1000,
        "num_params": 12,
        "eval_size": 1000,
    }
    draws = from_dict(split, save_warmup=True)
    sampler = {"name": "NUTS"}
    draws.attrs |= {"sampler": "NUTS", "settings": json.dumps({"sampler": sampler, "thinning": 5})}
    return draws


def with_energies(draws, energies):
    """`draws` with other energies (chain, draw), what belongs to them, and no moments of other ones."""
    if "pointwise" in draws.children:
        del draws["pointwise"]
    constants = draws["constant_data"].dataset
    losses = constants["init_loss"].item() + energies / constants["nbeta"].item()
    potential = draws["sample_stats"]["potential"] + (energies - draws["posterior"]["llc"])
    draws["sample_stats"] = draws["sample_stats"].dataset.assign(potential=potential)
    draws["posterior"] = draws["posterior"].dataset.assign(llc=energies, loss=losses)
    return draws


def kill(draws, chain, start):
    """`draws` with a chain that is NaN from draw `start` on; a negative start is in the warm-up."""
    draws = draws.copy(deep=True)
    num_warmup = draws["warmup_posterior"].sizes["draw"]
    for group, name in itertools.product(("posterior", "sample_stats"), ("loss", "llc", "distance", "virial")):
        if name in draws[group]:
            draws[group][name].values[chain, max(start, 0) :] = np.nan
            if start < 0:
                draws[f"warmup_{group}"][name].values[chain, num_warmup + start :] = np.nan
    return draws


def stick(draws, chain):
    """`draws` with a chain that does not move."""
    draws = draws.copy(deep=True)
    draws["posterior"]["llc"].values[chain] = 5.0
    return draws


def explode(draws, chain):
    """`draws` with a chain that grows to the largest floating-point numbers from draw 40 to 60, and dies."""
    draws = draws.copy(deep=True)
    for group, name in (("posterior", "loss"), ("posterior", "llc"), ("sample_stats", "distance")):
        draws[group][name].values[chain, 40:60] *= 10.0 ** np.linspace(0, 307, 20)
    return kill(draws, chain, 60)


HEALTHY = make_draws()


CAUCHY = np.random.default_rng(1).standard_cauchy(size=(2, 100_000))


DRAWS = {
    "healthy": HEALTHY,
    "one chain": make_draws(num_chains=1),
    "many chains": make_draws(num_chains=16, num_draws=50),
    "no warm-up": make_draws(num_warmup=0),
    "a dead chain": kill(HEALTHY, 2, 100),
    "dead from the start": kill(HEALTHY, 2, -60),
    "dead at draw 0": kill(HEALTHY, 2, 0),
    "one live chain": kill(kill(kill(HEALTHY, 0, 10), 1, 1), 2, -5),
    "exploding": explode(HEALTHY, 2),
    "all exploding": explode(HEALTHY, slice(None)),
    "all dead": kill(HEALTHY, slice(None), 40),
    "infinite": kill(HEALTHY, 1, 7).map_over_datasets(lambda data: data.fillna(np.inf)),
    "stuck": make_draws(noise=np.zeros((4, 360))),
    "one stuck": stick(HEALTHY, 1),
    "one draw": HEALTHY.isel(draw=slice(1)),
    "three draws": make_draws(num_warmup=0).isel(draw=slice(3)),
    "long and heavy-tailed": make_draws(num_chains=2, num_draws=100_000, num_warmup=0, noise=CAUCHY),
}


def make_report(draws, bounds=None, spectrum=None):
    """A report whose checks all passed, with λ_corr 0.25 above λ̂."""
    mean = mean_energy(draws)
    checks = tuple(Check(f"check_{i}", "chains", True, 1.0, 0.0, f"{i} is as it should be") for i in range(15))
    return Report(
        estimates=(mean, energy_variance(draws)),
        corrected=None if bounds is None else dataclasses.replace(mean, method="corrected", value=mean.value + 0.25),
        bounds=bounds,
        checks=checks,
        settings=json.loads(draws.attrs["settings"]),
        verdict="UNRESOLVED" if bounds is None else "CONSISTENT",
        draws=draws,
        spectrum=spectrum,
    )


def render(figure):
    """Draws the figure once, as a file would, but without the layout, which is slow and tested with whole reports."""
    figure.set_layout_engine("none")
    figure.set_dpi(40)
    FigureCanvasAgg(figure).draw()


def line(ax, label):
    """The line whose label starts with `label`."""
    (found,) = [x for x in ax.lines if str(x.get_label()).startswith(label)]
    return found


def patch(ax, label):
    (found,) = [x for x in ax.patches if str(x.get_label()).startswith(label)]
    return found


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)
