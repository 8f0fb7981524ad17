"""What a file of draws holds as a spectrum and as settings, looked through before a report relies on it."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from llc.analysis.text import one_line
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import read_beyond

_MOST = 1e100  # of a number, whose square still is one


def check_spectrum(group: xr.DataTree, where: str) -> None:
    """Raises ValueError, naming the variable, if no spectrum with finite numbers can be made of a group."""
    try:
        spectrum = Spectrum.from_dataset(group)
        read_beyond(str(group.attrs.get("beyond", "")))
        float(group.attrs.get("init_loss", math.nan))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{where} needs a spectrum as llc.bounds writes it, but that can not be read: {short(error)}."
        ) from error
    pairs = {
        "nodes and weights": (spectrum.nodes, spectrum.weights),
        "gradient_nodes and gradient_weights": (spectrum.gradient_nodes, spectrum.gradient_weights),
    }
    if spectrum.half_nodes is not None and spectrum.half_weights is not None:
        pairs["half_nodes and half_weights"] = spectrum.half_nodes, spectrum.half_weights
    wrong = [name for name, (x, w) in pairs.items() if x.shape != w.shape or not _are_numbers(x, w)]
    wrong += [name for name, (_, w) in pairs.items() if not wrong and (w < 0).any()]
    totals = spectrum.weights.sum(axis=-1)
    wrong += ["weights"] * (not wrong and not np.allclose(totals, spectrum.dim, rtol=1e-3))
    wrong += ["nodes"] * (not spectrum.nodes.size) + ["dim"] * (spectrum.dim < 1)
    wrong += ["noise"] * (not 0 <= spectrum.noise < _MOST)
    wrong += ["num_exact"] * (not 0 <= spectrum.num_exact <= spectrum.dim)
    wrong += ["matrix"] * (spectrum.matrix not in ("hessian", "ggn"))
    wrong += ["method"] * (re.fullmatch(r"[a-z_ ]+", spectrum.method) is None)
    if wrong:
        raise ValueError(
            f"{where} needs a spectrum as llc.bounds writes it, got values of {wrong} that no spectrum has."
        )


def _are_numbers(*arrays: np.ndarray) -> bool:
    return all(bool((np.abs(x) < _MOST).all()) for x in arrays)


def check_settings(settings: Mapping[str, Any], source: str) -> None:
    """Raises ValueError if the settings of a run are not such as the checks read."""
    sampler: Any = settings.get("sampler")
    good = isinstance(sampler, dict) and isinstance(sampler.get("name"), str)
    if good and sampler["name"] == "SGLD":
        preconditioner = sampler.get("preconditioner")
        good = isinstance(preconditioner, dict) and isinstance(preconditioner.get("name"), str)
        good = good and isinstance(sampler.get("integrator"), str)
    if good and sampler["name"] in ("SGLD", "SGHMC"):
        good = _is_number(sampler.get("step_size"))
    good = good and _is_number(settings.get("batch_size", 1))
    good = good and isinstance(thinning := settings.get("thinning", 1), int) and _is_number(thinning)
    if not good:
        raise ValueError(
            f"{source} needs in the attribute settings a sampler with its name (and step_size, integrator and "
            f"preconditioner of SGLD, and step_size of SGHMC), and a batch_size and a thinning >= 1 or none, got "
            f"{short(settings)}."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _MOST


def short(value: object) -> str:
    """A value as text for a message, in one line and without what a terminal acts on."""
    text = one_line(str(value).replace("\n", " "))
    return text if len(text) <= 200 else f"{text[:200]} …"
