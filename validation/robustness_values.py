"""Numbers: posteriors of many kinds whose E[nβ(L(w) − L(w*))] is known exactly, at ordinary and at extreme scales.

- `quadratic`: least squares in params of any tree, with masks. With g and H the gradient and the Hessian at w* as it is
  rounded, the posterior is Gaussian in every eigendirection, of mean m = −nβ g / (nβ h + γ) and variance
  v = 1 / (nβ h + γ), and the value is the sum of nβ g m + ½ nβ h (m² + v).
- `singular`: ½ c f(w)² with a monomial or a sum of them, integrated on a grid (exact.py).

All arithmetic of the exact values is in float64, from data and w* in the precision that `llc` gets. The outcome is
right where a number with a definite verdict is within 4 of its errors, refused where a `ValueError` of `llc` or failed
checks say why there is none, and other elsewhere.
"""

import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
from robustness_outcome import Outcome

import llc

NUM_ROWS = 200
CHAIN = {"num_chains": 4, "num_warmup": 500, "num_draws": 500, "progress": False}
DTYPES = ("float32", "float32", "float32", "float64", "bfloat16")
DEFINITE = ("CONSISTENT", "SCALE_DEPENDENT", "BELOW", "ABOVE")
WIDTH = 1.959964  # of a 95 % interval, in standard errors


class Layer(eqx.Module):
    """Params of a tree that is a module, with a leaf that is none."""

    weight: jax.Array
    bias: jax.Array
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh


TREES: Mapping[str, Callable[[Any], Any]] = {  # of six numbers
    "array": lambda w: w,
    "matrix": lambda w: w.reshape(2, 3),
    "dict": lambda w: {"a": w[:2], "b": w[2:]},
    "scalars": lambda w: {"a": w[0], "b": [w[1], (w[2], w[3:])]},
    "module": lambda w: [Layer(w[:4].reshape(2, 2), w[4:])],
    "empty leaf": lambda w: (w[:0], w[:5], w[5:]),
    "None": lambda w: {"a": w, "b": None, "c": "name", "d": 3},
}
MASKS: Mapping[str, tuple[str, ...]] = {  # a tree, and what its masks let move: the first so many numbers
    "dict": ("a",),
    "scalars": ("b.0", "b"),
    "module": ("*.weight",),
}
_MOVES = {("dict", "a"): [0, 1], ("scalars", "b.0"): [1], ("scalars", "b"): [1, 2, 3, 4, 5]}
_MOVES |= {("module", "*.weight"): [0, 1, 2, 3]}
SINGULAR: Mapping[str, tuple[Callable[..., Any], int]] = {
    "w^4": (lambda w: w**2, 1),
    "w^6": (lambda w: w**3, 1),
    "(w1 w2)^2": (lambda a, b: a * b, 2),
    "w1^2 + w2^4": (lambda a, b: (a**2 + b**4) ** 0.5, 2),
    "(w1 w2^2)^2": (lambda a, b: a * b**2, 2),
}


class Problem(NamedTuple):
    """A posterior that is known: what it is called, how it is made, and its exact value at (nβ, γ)."""

    name: str
    make: Callable[[], llc.LocalPosterior]
    exact: Callable[[float, float], float]


def quadratic_loss(params: Any, batch: Any) -> jax.Array:
    """½ s (x·w − y)² of every row."""
    w = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))])
    return 0.5 * batch["s"] * (batch["x"].astype(w.dtype) @ w - batch["y"]) ** 2


def _singular_loss(name: str) -> Callable[[Any, Any], jax.Array]:
    square = {"w1^2 + w2^4": lambda w: w[0] ** 2 + w[1] ** 4}.get(name, lambda w: SINGULAR[name][0](*w) ** 2)
    return lambda params, batch: 0.5 * batch["s"] * batch["x"] ** 2 * square(params["w"])


SINGULAR_LOSSES = {name: _singular_loss(name) for name in SINGULAR}  # made once: one program each


class Structure(NamedTuple):
    """What a program is compiled for; the rest are numbers.

    Attributes:
        kind: "quadratic", or a key of `SINGULAR`.
        dtype: of the params.
        tree: a key of `TREES`.
        mask: a path, or None.
        sampler: a name, or "estimate".
    """

    kind: str
    dtype: str
    tree: str
    mask: str | None
    sampler: str


def structure(rng: np.random.Generator) -> Structure:
    """A random one."""
    names = ["NUTS", "HMC", "MALA", "estimate", "estimate"]
    if rng.random() < 0.4:
        # A sampler without an accept step has a bias of its own off a quadratic, which only calibration sees to.
        dtype = str(rng.choice(["float32", "float32", "float64"]))
        return Structure(str(rng.choice(sorted(SINGULAR))), dtype, "dict", None, str(rng.choice(names)))
    tree = str(rng.choice(sorted(TREES)))
    mask = str(rng.choice(MASKS[tree])) if tree in MASKS and rng.random() < 0.5 else None
    sampler = str(rng.choice([*names, "SGLD", "SGHMC", "SGNHT"]))
    return Structure("quadratic", str(rng.choice(DTYPES)), tree, mask, sampler)


def quadratic(rng: np.random.Generator, of: Structure) -> Problem:
    """A least-squares problem."""
    scales = 10.0 ** (rng.uniform(-6, 6, size=3) * (rng.random(3) < 0.25))  # of the data, of w*, of the loss
    number = np.float64 if of.dtype == "float64" else np.float32
    x = (scales[0] * rng.normal(size=(NUM_ROWS, 6)) * 10.0 ** rng.uniform(-1, 0, size=6)).astype(number)
    w = scales[1] * rng.normal(size=6)
    y = (x @ w + scales[0] * rng.choice([0.0, 1.0]) * rng.normal(size=NUM_ROWS)).astype(number)
    w = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64))[0].astype(number)
    s = np.full(NUM_ROWS, scales[2], number)
    nbeta = None if rng.random() < 0.7 else float(10 ** rng.uniform(0, 5))
    gamma = float(10 ** rng.uniform(-2, 2))
    moves = np.array(_MOVES[of.tree, of.mask] if of.mask else range(6))

    def make() -> llc.LocalPosterior:
        center = TREES[of.tree](jnp.asarray(w, jnp.bfloat16 if of.dtype == "bfloat16" else number))
        return llc.LocalPosterior(quadratic_loss, center, {"x": x, "y": y, "s": s}, nbeta, gamma, of.mask)

    def value(nbeta: float, gamma: float) -> float:
        rows, residual = (np.asarray(a, np.float64) for a in (x[:, moves], x.astype(np.float64) @ w - y))
        slope = s[0] * rows.T @ residual / NUM_ROWS
        h, vectors = np.linalg.eigh(float(s[0]) * rows.T @ rows / NUM_ROWS)
        g, stiffness = vectors.T @ slope, nbeta * h + gamma
        mean = -nbeta * g / stiffness
        return float(np.sum(nbeta * g * mean + 0.5 * nbeta * h * (mean**2 + 1 / stiffness)))

    return Problem(f"{of}, data, w*, loss times {', '.join(f'{scale:.1e}' for scale in scales)}", make, value)


def singular(rng: np.random.Generator, of: Structure) -> Problem:
    """A degenerate minimum at zero."""
    f, dim = SINGULAR[of.kind]
    scale = 10.0 ** (rng.uniform(-2, 2) * (rng.random() < 0.5))
    x, s = (a.astype(of.dtype) for a in (rng.normal(size=NUM_ROWS), np.full(NUM_ROWS, scale)))
    c = float(np.mean(x.astype(np.float64) ** 2) * s[0])
    nbeta, gamma = float(10 ** rng.uniform(1, 4)), float(10 ** rng.uniform(-0.5, 1))

    def make() -> llc.LocalPosterior:
        center = {"w": jnp.zeros(dim, of.dtype)}
        return llc.LocalPosterior(SINGULAR_LOSSES[of.kind], center, {"x": x, "s": s}, nbeta, gamma)

    def value(nbeta: float, gamma: float) -> float:
        return exact.log_grid(lambda *w: 0.5 * c * f(*w) ** 2, dim, nbeta, gamma, lowest=-20.0).mean

    return Problem(f"{of}, loss times {scale:.1e}", make, value)


def check(rng: np.random.Generator, repeats: int) -> Iterator[tuple[str, Outcome]]:
    """Random posteriors of one structure, which share their programs, and what came of each."""
    of = structure(rng)
    for _ in range(repeats):
        problem = (quadratic if of.kind == "quadratic" else singular)(rng, of)
        key = jax.random.key(int(rng.integers(0, 2**31)))
        with warnings.catch_warnings(action="ignore"), jax.enable_x64(of.dtype == "float64"):
            yield of.sampler, outcome(problem, of.sampler, key)


def outcome(problem: Problem, sampler: str, key: jax.Array) -> Outcome:
    try:
        posterior = problem.make()
        report = _report(posterior, sampler, key)
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        named = ("/llc/" in last.filename and "needs" in str(error)) or "need" in str(error)
        return Outcome("refused" if named else "other", f"{problem.name}: {error}"[:300])
    except Exception as error:
        return Outcome("other", f"{problem.name}: {type(error).__name__}: {error}"[:300])
    if report.verdict not in DEFINITE:
        why = [check.name for check in report.failed] or report.reason
        return Outcome("refused" if why else "other", f"{problem.name}: {why}"[:300])
    value = problem.exact(*posterior.scale)
    z, of_energy = (
        float((estimate.value - value) / estimate.mcse) if estimate.mcse > 0 else math.inf
        for estimate in (report.llc, llc.mean_energy(report.draws))
    )
    right = abs(z) < 4 and report.verdict not in ("BELOW", "ABOVE")
    text = f"{problem.name}: {report.verdict} {report.llc.value:.6g} ± {report.llc.mcse:.2g} for {value:.6g}"
    return Outcome("right" if right else "other", text, z, of_energy)


def _report(posterior: llc.LocalPosterior, sampler: str, key: jax.Array) -> llc.Report:
    """By the defaults of `llc.estimate`, or by a given sampler whose step comes from the curvature."""
    if sampler == "estimate":
        return llc.estimate(key, posterior, progress=False)
    spectrum = llc.spectrum(posterior)
    if sampler in ("NUTS", "HMC", "MALA"):
        made = getattr(llc, sampler)()
        thinning = 1 if sampler == "NUTS" else 3
    else:
        settings = llc.settings_from_curvature(posterior, spectrum.largest, CHAIN["num_draws"])
        made = getattr(llc, sampler)(settings.step_size)
        thinning = 10
    draws = llc.sample(key, posterior, made, spectrum=spectrum, thinning=thinning, **CHAIN)
    return llc.report(draws, spectrum=spectrum)
