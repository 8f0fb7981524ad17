"""A file of draws with everything that one can have."""

import numpy as np
import xarray as xr

from llc.bounds.assumptions import Assumption
from llc.bounds.bound import Bound
from llc.bounds.rank import extend, rank_bounds
from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import to_dataset
from tests.support.runs import GAMMA, INIT_LOSS, NBETA, make_draws

NUM_CHAINS, NUM_DRAWS, NUM_ROWS, DIM = 2, 30, 6, 12


def full_draws(seed=0):
    """Draws with warm-up, moments of losses, a spectrum with bounds beyond the rank, and a run at 3γ."""
    draws = make_draws(NUM_CHAINS, NUM_DRAWS, 5, seed=seed)
    draws["curvature"] = xr.DataTree(_curvature())
    draws["pointwise"] = xr.DataTree(_pointwise(np.random.default_rng(seed), draws["posterior"]["llc"].to_numpy()))
    draws.attrs |= {"seed": "[0, 0]", "versions": '{"llc": "0.2"}', "calibration": "gamma 1.5  chosen"}
    draws["localized"] = make_draws(NUM_CHAINS, 20, 5, seed=seed + 1)
    draws["localized"]["constant_data"]["gamma"] = 3 * GAMMA
    return draws


def _curvature():
    nodes = np.concatenate([np.geomspace(3.0, 0.1, 8), np.zeros(4)])[None]
    gradient = np.array([1.0]), np.array([1e-12])
    smoothness = Smoothness("smooth", 2.0, 3.0)
    spectrum = Spectrum(nodes, np.ones_like(nodes), DIM, "hessian", "dense", *gradient, smoothness=smoothness)
    bounds = rank_bounds(spectrum, nbeta=NBETA, gamma=GAMMA)
    record = Bound("certificate", "established", "seen", lower=4.0, upper=4.5, evaluations=7, seconds=0.5)
    assumption = Assumption("analytic", holds=True, message="the loss is analytic")
    dataset = to_dataset(spectrum, extend(bounds, (record,), (assumption,)))
    dataset.attrs["init_loss"] = INIT_LOSS
    return dataset


def _pointwise(rng, energy):
    """Of losses of pieces whose means over each block are those of the energies."""
    blocks = np.stack(np.split(energy, 5, axis=1)) / NBETA
    dims, noise = ("block", "chain", "piece"), rng.normal(0, 0.01, (5, NUM_CHAINS, NUM_ROWS))
    first = (blocks.mean(axis=-1)[..., None] + noise - noise.mean(axis=-1, keepdims=True)).astype(np.float32)
    means = {"first": first, "second": first**2 + 0.01, "exponential": 1.1 * np.exp(-first)}
    variables = {name: (dims, value.astype(np.float32)) for name, value in means.items()}
    variables["weight"] = (("piece",), np.full(NUM_ROWS, 1 / NUM_ROWS))
    variables["num_draws"] = (("block",), np.full(5, NUM_DRAWS / 5))
    return xr.Dataset(variables)
