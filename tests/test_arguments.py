"""Wrong arguments of every public function are refused at the door, by a ValueError or TypeError that names them."""

import functools
import json
import subprocess
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np

import llc


@functools.cache
def given():
    """Right arguments by name."""
    posterior = llc.LocalPosterior(
        lambda p, b: 0.5 * (b * p[0]) ** 2 + 0.5 * p[1] ** 2, jnp.zeros(2), np.ones(50, np.float32), gamma=1.0
    )
    return {
        "key": jax.random.key(0),
        "posterior": posterior,
        "spectrum": llc.spectrum(posterior),
        "draws": llc.sample(
            jax.random.key(0), posterior, llc.SGLD(0.01), num_chains=2, num_draws=8, num_warmup=4, progress=False
        ),
    }


NO_KEY = (None, 0, "x", 1.5, [])
NO_RECORD = (None, 3, "x", -1.0, [], object())
NO_NUMBER = ("x", -1.0, float("nan"), float("inf"), [], object())
NO_COUNT = ("x", 0, -1, 1.5, float("nan"), [], object())
OPTIONAL_RECORD = NO_RECORD[1:]
NO_OBSERVABLES = (3, [max], {"a": 3}, {3: max}, {"loss": max}, {"a": None})
TABLE = {
    # function: (its right arguments by position, {keyword or position: bad values})
    "sample": (
        ("key", "posterior", llc.SGLD(0.01)),
        {
            0: NO_KEY,
            1: NO_RECORD,
            2: NO_RECORD,
            "num_chains": NO_COUNT,
            "num_draws": NO_COUNT,
            "thinning": NO_COUNT,
            "batch_size": NO_COUNT,
            "eval_size": NO_COUNT,
            "spectrum": OPTIONAL_RECORD,
            "chain_method": (None, 3, "x"),
            "observables": NO_OBSERVABLES,
        },
    ),
    "estimate": (
        ("key", "posterior"),
        {
            0: NO_KEY,
            1: NO_RECORD,
            "sampler": OPTIONAL_RECORD,
            "spectrum": OPTIONAL_RECORD,
            "bounds": OPTIONAL_RECORD,
            "like": OPTIONAL_RECORD,
            "nbeta": NO_NUMBER,
            "gamma": NO_NUMBER,
            "num_chains": NO_COUNT,
            "target_mcse": NO_NUMBER[:3],
            "observables": NO_OBSERVABLES,
            "budget": NO_COUNT,
        },
    ),
    "calibrate": (
        ("key", "posterior"),
        {
            0: NO_KEY,
            1: NO_RECORD,
            "sampler": OPTIONAL_RECORD,
            "spectrum": OPTIONAL_RECORD,
            "num_draws": NO_COUNT,
        },
    ),
    "spectrum": (
        ("posterior",),
        {
            0: NO_RECORD,
            "num_matvecs": NO_COUNT,
            "method": (3, "x"),
            "matrix": (3, "x"),
            "seed": ("x", -1, 1.5),
        },
    ),
    "top_eigenvalue": (("posterior",), {0: NO_RECORD, "num_matvecs": NO_COUNT, "seed": ("x", -1, 1.5)}),
    "polish": (("posterior",), {0: NO_RECORD, "max_steps": NO_COUNT}),
    "rank_bounds": (("spectrum",), {0: NO_RECORD, "nbeta": NO_NUMBER, "gamma": NO_NUMBER}),
    "higher_bounds": (("posterior",), {0: NO_RECORD, 1: OPTIONAL_RECORD, 2: OPTIONAL_RECORD, "key": NO_KEY}),
    "settings_from_curvature": (
        ("posterior", 1.0, 100),
        {0: NO_RECORD, 1: (None, "x", np.nan, np.inf), 2: (None, *NO_COUNT)},
    ),
    "report": (("draws",), {0: NO_RECORD, "bounds": OPTIONAL_RECORD, "spectrum": OPTIONAL_RECORD}),
    "hessian_identity": (("posterior",), {0: NO_RECORD}),
    "layer_ranks": ((), {0: NO_RECORD}),
    "best_of_slope": (("key", "posterior"), {0: NO_KEY, 1: NO_RECORD}),
    "sigma_ladder": (("key", "posterior"), {0: NO_KEY, 1: NO_RECORD}),
    "selected_covariance": (("key", "posterior"), {0: NO_KEY, 1: NO_RECORD}),
    "load": ((), {0: (None, 3, [], object())}),
    "Observable": (
        (max,),
        {0: (None, 3), "dims": (3, (1,), ("a", "a")), "moments": ("x", 1), "covariance_with": (3, (1,))},
    ),
    "influence": (("draws", "loss", "loss"), {0: NO_RECORD, 1: (None, 3, "x"), 2: (None, 3, "x")}),
    "loss_kernel": (("draws", "loss"), {0: NO_RECORD, 1: (None, 3, "x"), 2: (3, "x")}),
    "susceptibility": (
        ("draws", "loss"),
        {0: NO_RECORD, 1: (None, 3, "x"), "component": OPTIONAL_RECORD, "shifts": ("x", (0.0,), (None,))},
    ),
    "plot_influence": ((), {0: NO_RECORD}),
    "save": (("draws", "x.nc"), {0: NO_RECORD, 1: (None, 3, [], object())}),
    "SGLD": ((0.1,), {0: (None, *NO_NUMBER), "integrator": (None, "x"), "preconditioner": NO_RECORD}),
    "SGHMC": ((0.1,), {0: (None, *NO_NUMBER), "friction": NO_NUMBER, "noise": NO_NUMBER}),
    "SGNHT": ((0.1,), {0: (None, *NO_NUMBER), "friction": NO_NUMBER}),
    "NUTS": ((), {"step_size": NO_NUMBER, "target_accept": (None, *NO_NUMBER), "max_tree_depth": (None, *NO_COUNT)}),
    "HMC": ((), {"step_size": NO_NUMBER, "num_steps": NO_COUNT, "trajectory_length": (None, *NO_NUMBER)}),
    "MALA": ((), {"step_size": NO_NUMBER, "target_accept": (None, *NO_NUMBER)}),
}
TABLE |= {
    name: (("draws",), {0: NO_RECORD})
    for name in (
        *("mean_energy", "zero_variance", "best_energy", "energy_variance", "wbic", "waic", "singular_fluctuation"),
        "temperature_curve",
    )
}


def why_not_refused(name, where, value):
    """What a call with that value does, if it is not refused by the package itself; None if it is."""
    positional, _ = TABLE[name]
    arguments = [given().get(x, x) if isinstance(x, str) else x for x in positional]
    keywords = {"key": given()["key"]} if name == "higher_bounds" else {}
    if isinstance(where, int):
        arguments += [None] * (where + 1 - len(arguments))
        arguments[where] = value
    else:
        keywords[where] = value
    try:
        getattr(llc, name)(*arguments, **keywords)
    except (ValueError, TypeError) as error:
        source = traceback.extract_tb(error.__traceback__)[-1]
        raised = source.line is not None and source.line.startswith("raise ValueError") and "/llc/" in source.filename
        return None if raised else f"{type(error).__name__} in {source.filename}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def test_refused_at_the_door():
    """In another process, where nothing checks types but the package itself."""
    finished = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == []


if __name__ == "__main__":
    cases = [(name, where, x) for name, (_, wrong) in TABLE.items() for where, values in wrong.items() for x in values]
    found = [(name, where, repr(x)[:40], why_not_refused(name, where, x)) for name, where, x in cases]
    print(json.dumps([row for row in found if row[-1]], indent=1))  # noqa: T201
