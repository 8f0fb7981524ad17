"""Wrong arguments: every public function, each argument in turn replaced by something that it can't be.

The functions and their arguments are read from `llc` itself, so that a new one is tried on the day it comes. A value is
either one that the argument may have, and then the call has to return, or it has to be refused by a `ValueError` of
`llc` whose message names the argument.
"""

import contextlib
import functools
import inspect
import re
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from robustness_outcome import Outcome

import llc

WRONG: Mapping[str, Any] = {
    "None": None,
    "nan": float("nan"),
    "inf": float("inf"),
    "-1.5": -1.5,
    "-3": -3,
    "0": 0,
    "1.5": 1.5,
    "10**400": 10**400,
    "1j": 1j,
    "True": True,
    "text": "x",
    "bytes": b"x",
    "object": object(),
    "empty list": [],
    "ragged lists": [[1.0, 2.0], [3.0]],
    "dict": {"x": 1.0},
    "array of another shape": np.ones((2, 3, 4)),
    "array of objects": np.array([object(), None]),
    "array of text": np.array(["x", "y"]),
    "array of nan": np.full(2, np.nan),
    "function": lambda *_: None,
}

# Made by the library, and nothing that a user constructs.
RECORDS = {
    *("BehavioralGradients", "BestOf", "Bound", "Bounds", "Calibration", "Check", "Estimate", "Info", "Polished"),
    *("Report", "Sampler", "SelectedSamples", "SigmaLadder", "Spectrum", "TemperatureCurve", "demo", "interop"),
    *("Character", "Comparison", "Evidence", "InfluenceControls", "FeatureBasis", "FrequencyContent", "Stream"),
    *("GeometricComplexity", "ImplicitGradientPenalty", "LayerInformation", "TangentKernel"),
    *("OrderSpectrum", "ScaleSpectrum"),
}
_NUMBER = {"1.5"}
_FLAG = {"True"}
# Values that are right; None is where it is the default.
RIGHT: Mapping[str, set[str]] = {
    "Diagonal.scales": {"1.5", "array of another shape", "dict", "ragged lists"},  # a pytree, as the params are
    "Observable.covariance_with": {"text", "empty list"},
    "Observable.data": {"array of another shape", "array of nan"},
    "Observable.dims": {"text", "empty list"},
    "Observable.fn": {"function"},
    "Observable.moments": _FLAG,
    "Store.seconds": {"0", "1.5"},
    "adapt_mass": _FLAG,
    "center": {"array of another shape"},  # the loss sums over whatever it gets
    "control_variates": _FLAG,
    "data": {"array of another shape"},
    "correlation": _FLAG,
    "decay": {"0"},
    "dense_mass": _FLAG,
    "eps": _NUMBER,
    "folder": {"text"},
    "friction": _NUMBER,
    "gamma": {"0", "1.5"},
    "generators": {"empty list"},
    "inputs": {"array of another shape"},
    "frequency_content.inputs": set(),  # those of a line or of space
    "layer_information.tolerance": _NUMBER,
    "unit_axis": {"0"},
    "keep_params": _FLAG,
    "largest": {"-1.5", "-3", "0", "1.5"},
    "mask": {"True"},
    "microbatched.loss_fn": {"function"},
    "memory": _NUMBER,
    "nbeta": _NUMBER,
    "noise": {"0", "1.5"},
    "num_warmup": {"0"},
    "out": {"text"},
    "output_loss": {"function"},  # not called for the Hessian
    "axis": {"0"},
    "head": {"0"},
    "head_mask.params": set(),  # the path that is asked for is not in it
    "params": {"array of another shape"},
    "path": {"text"},
    "prefix": {"text"},  # of files, where the params of a sweep lie in memory
    "progress": _FLAG,
    "reference_loss": {"-1.5", "-3", "0", "1.5"},
    "relaxations": _NUMBER,
    "relative_error": _NUMBER,
    "relative_scale": _NUMBER,
    "reach": _NUMBER,
    "runs": {"empty list"},
    "seed": {"0"},
    "save_params.params": {"array of another shape", "array of nan"},
    "save_params.path": set(),  # it ends in .npz
    "shifts": {"-1.5", "-3", "1.5", "empty list", "array of another shape"},
    "sigma": _NUMBER,
    "step_energies": _FLAG,
    "step_size": _NUMBER,
    "store": {"text"},
    "target_mcse": _NUMBER,
    "trajectory_length": _NUMBER,
}

CALLED = {  # by another name in messages
    "center": "params",
    "observables": "observables?",
    "masks": "masks?",
    "first": "(first|observable)",
    "second": "(second|observable)",
    "shift": "(shift|observable)",
    "reference": "(reference|observable)",
    "like": "(like|params)",
    "head_mask.params": "(params|parameter)",
    "pattern": "(pattern|mask)",
}


class Call(NamedTuple):
    """One argument of one function, and what it is given."""

    function: str
    argument: str
    value: str

    def __str__(self) -> str:
        return f"llc.{self.function}({self.argument} = {self.value})"


def calls() -> Iterator[Call]:
    """All of them."""
    for name in sorted(set(llc.__all__) - RECORDS):
        for argument in inspect.signature(getattr(llc, name)).parameters:
            yield from (Call(name, argument, value) for value in WRONG)


def outcome(call: Call) -> Outcome:
    """What the call does."""
    keywords = dict(_right_arguments()[call.function]) | {call.argument: WRONG[call.value]}
    function = getattr(llc, call.function)
    argument = inspect.signature(function, eval_str=True).parameters[call.argument]
    none = argument.default is None or type(None) in typing.get_args(argument.annotation)
    right = RIGHT.get(f"{call.function}.{call.argument}", RIGHT.get(call.argument, set()))
    may = none if call.value == "None" else call.value in right
    try:
        with contextlib.chdir(tempfile.mkdtemp(dir=_folder())):
            function(**keywords)
    except FileNotFoundError as error:
        return Outcome("refused" if may and "x" in str(error) else "other", f"{error!r}")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ValueError) or "/llc/" not in last.filename:
            return Outcome("other", f"{type(error).__name__} in {last.filename}:{last.lineno}: {error}"[:300])
        if may and call.value != "None":
            return Outcome("other", f"a right value was refused: {error}"[:300])
        called = CALLED.get(f"{call.function}.{call.argument}", CALLED.get(call.argument, call.argument))
        named = re.search(rf"\b{called}\b", str(error)) is not None
        return Outcome("refused" if named else "other", f"{'' if named else 'unnamed: '}{error}"[:300])
    return Outcome("right") if may else Outcome("other", "it was taken")


def _sum_of_squares(params: Any, batch: Any) -> jax.Array:
    return 0.5 * jnp.sum((params - 1) ** 2) * jnp.mean(batch.reshape(len(batch), -1) ** 2, axis=-1)


def _outputs(params: Any, inputs: Any) -> jax.Array:
    return jnp.sum(params) * inputs.reshape(len(inputs), -1)[:, :1]


def _product(params: Any, inputs: Any) -> jax.Array:
    return jnp.sum(params["a"] * params["b"]) * inputs[:, None]


@functools.cache
def _right_arguments() -> dict[str, dict[str, Any]]:
    """Right arguments of every function, the least that it takes."""
    key, data = jax.random.key(0), np.ones(50, np.float32)
    posterior = llc.LocalPosterior(_sum_of_squares, jnp.ones(2), data, gamma=1.0)
    spectrum = llc.spectrum(posterior)
    lengths = {"num_chains": 2, "num_draws": 16, "num_warmup": 4, "progress": False}
    draws, cold = (
        llc.sample(key, p, llc.SGLD(0.01), spectrum=spectrum, **lengths)
        for p in (posterior, posterior.with_scale(nbeta=2.0))
    )
    report = llc.report(draws, spectrum=spectrum)
    run = {"key": key, "posterior": posterior}
    at_door: dict[str, dict[str, Any]] = _arguments_of_models(key, data) | {
        "LocalPosterior": {"loss_fn": _sum_of_squares, "center": jnp.ones(2), "data": data},
        "sample": run | {"sampler": llc.SGLD(0.01)} | lengths,
        "estimate": run | lengths,
        "calibrate": run | lengths,
        "spectrum": {"posterior": posterior},
        "top_eigenvalue": {"posterior": posterior},
        "polish": {"posterior": posterior, "progress": False},
        "hessian_identity": {"posterior": posterior},
        "rank_bounds": {"spectrum": spectrum, "nbeta": 1.0, "gamma": 1.0},
        "higher_bounds": run | {"spectrum": spectrum, "progress": False},
        "scale_spectrum": run | {"spectrum": spectrum, "num_directions": 2, "progress": False},
        "plot_scales": {"scales": llc.scale_spectrum(**run, spectrum=spectrum, num_directions=2, progress=False)},
        "settings_from_curvature": {"posterior": posterior, "largest": 1.0, "num_steps": 100},
        "best_of_slope": run | {"num_candidates": 256, "num_groups": 2, "progress": False},
        "selected_covariance": run | {"progress": False},
        "sigma_ladder": run | {"progress": False},
        "implicit_gradient_penalty": {"posterior": posterior, "step_size": 0.1},
        "two_temperatures": {"hot": draws, "cold": cold},
        "save": {"draws": draws, "path": _folder() / "run.nc"},
        "load": {"path": _saved(draws)},
        "save_figure": {"figure": Figure(), "path": _folder() / "figure.png"},
        "save_figures": {"report": report, "folder": _folder()},
        "save_html": {"report": report, "path": _folder() / "page.html"},
        "plot_report": {"report": report},
        "plot_calibration": {"calibration": llc.calibrate(**run, **lengths)},
        "plot_selected": {"selected": llc.selected_covariance(**run, progress=False)},
        "plot_sigma_ladder": {"ladder": llc.sigma_ladder(**run, progress=False)},
        "SGLD": {"step_size": 0.1},
        "SGHMC": {"step_size": 0.1},
        "SGNHT": {"step_size": 0.1},
        "Curvature": {"vectors": np.eye(2, dtype=np.float32), "scales": np.ones(2, np.float32)},
        "Diagonal": {"scales": np.ones(2, np.float32)},
    }
    at_door |= _of_observables(key)
    at_door |= {name: {"spectrum": spectrum} for name in ("plot_spectrum", "plot_effective_dimension", "plot_curve")}
    rest = sorted(set(llc.__all__) - RECORDS - set(at_door))
    return at_door | {name: _of_draws(getattr(llc, name), draws) for name in rest}


def _of_observables(key: jax.Array) -> dict[str, dict[str, Any]]:
    """Right arguments of what looks at many runs, at observables, heads, batches and checkpoints."""
    data, params = np.ones(50, np.float32), {"w": jnp.ones((2, 2))}
    posterior = llc.LocalPosterior(_of_dict, params, data, gamma=1.0)
    sets = {"train": data[:12], "probe": data[:10]}
    observables = {name: llc.Observable(_of_dict, data=rows) for name, rows in sets.items()}
    lengths = {"num_chains": 2, "num_draws": 16, "num_warmup": 4, "progress": False}
    draws = llc.sample(key, posterior, llc.SGLD(0.01), observables=observables, **lengths)
    llc.save_params(_folder() / "params.npz", params)
    run = {"key": key, "posteriors": {"a": posterior, "b": posterior}, "sampler": llc.SGLD(0.01)}
    swept = llc.sweep(**run, **lengths)
    return {
        "Observable": {"fn": _of_dict},
        "Store": {"path": _folder() / "store.zarr"},
        "compare": {"first": draws, "second": draws},
        "head_mask": {"params": params, "pattern": "w", "head": 0, "num_heads": 2, "axis": 0},
        "influence": {"draws": draws, "first": "train", "second": "probe"},
        "influence_controls": {"posterior": posterior, "spectrum": llc.spectrum(posterior), "sets": sets},
        "load_params": {"path": _folder() / "params.npz", "like": params},
        "loss_kernel": {"draws": draws, "first": "train"},
        "microbatched": {"loss_fn": _of_dict, "microbatch_size": 4},
        "plot_influence": {"found": llc.influence(draws, "train", "probe")},
        "plot_sweep": {"source": swept},
        "read_batches": {"source": [data, data]},
        "save_params": {"path": _folder() / "other.npz", "params": params},
        "stream": {"source": [data, data], "n": 100},
        "susceptibility": {"whole": draws, "shift": "probe"},
        "sweep": run | lengths,
    }


def _of_dict(params: Any, batch: Any) -> jax.Array:
    return _sum_of_squares(params["w"], batch)


def _arguments_of_models(key: jax.Array, data: np.ndarray) -> dict[str, dict[str, Any]]:
    """Those of functions that take the outputs of a model."""
    gradients = llc.behavioral_gradients(_product, {"a": jnp.ones(2), "b": jnp.ones(2)}, data)
    model: dict[str, Any] = {"predict_fn": _outputs, "params": jnp.ones(2), "inputs": data}
    spread = np.linspace(0, 1, len(data), dtype=np.float32) * data
    return {
        "behavioral_gradients": model,
        "layer_ranks": {"gradients": gradients},
        "geometric_complexity": model,
        "tangent_kernel": model,
        "feature_basis": model,
        "frequency_content": model | {"inputs": spread},
        "segment_frequency_content": model | {"key": key, "inputs": spread},
        "layer_information": {"activations_fn": _outputs, "params": jnp.ones(2), "inputs": data},
        "unit_states": {"gradients": gradients, "incoming": {"a": 0}, "outgoing": {"b": 0}},
        "plot_frequency_content": {"content": llc.frequency_content(_outputs, jnp.ones(2), spread)},
        "plot_tangent_kernel": {"kernel": llc.tangent_kernel(**model)},
        "plot_feature_basis": {"basis": llc.feature_basis(**model)},
    }


def _of_draws(function: Callable[..., Any], draws: Any) -> dict[str, Any]:
    """The draws, where a function takes them, and nothing else."""
    return {name: draws for name in ("draws", "source") if name in inspect.signature(function).parameters}


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="llc-robustness-"))


def _saved(draws: Any) -> Path:
    llc.save(draws, _folder() / "there.nc")
    return _folder() / "there.nc"
