r"""The spectrum of the Hessian at w*: dense, or as the quadrature of stochastic Lanczos.

Sums over eigenvalues are what the bounds and λ_quad need, so a spectrum is a measure: nodes and weights with

$$ \mathrm{tr}\, f(H) \approx \frac{1}{P} \sum_{p=1}^{P} \sum_k w_{pk}\, f(h_{pk}) , $$

exact with one row of unit weights from `eigh`; from P random probes and Lanczos otherwise (Golub & Meurant 1994; Ubaru,
Chen & Saad 2017), with the spread over probes as its error. Ritz values are never counted as eigenvalues.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import xarray as xr
from jaxtyping import Float
from matfree import decomp

from llc.geometry.operators import CurvatureOperator, curvature_operator
from llc.geometry.smoothness import Smoothness, directions, probe_smoothness
from llc.posterior import LocalPosterior, float64

_METHODS = ("auto", "dense", "lanczos")
_MATRICES = ("hessian",)

_DENSE_PARAMS = 5_000  # d up to which `auto` takes the dense spectrum: 200 MB and about a minute of eigh on two cores
_MIN_MATVECS, _MAX_MATVECS = 40, 400  # Lanczos steps a probe; each keeps a vector of d float64
_ORTHONORMAL = 1e-6  # defect of the Lanczos basis: 1e-14 while it is one, 1 from the breakdown on
_COLUMNS = 32  # columns of the dense Hessian computed at a time


@dataclass(frozen=True)
class Spectrum:
    """Spectral measure of a symmetric matrix, and of the gradient in it.

    Attributes:
        nodes: eigenvalues (dense) or Ritz values, in nats per example and squared parameter.
        weights: multiplicity of each node; every row adds up to `dim`.
        dim: d, the order of the matrix.
        matrix: `"hessian"`.
        method: `"dense"` or `"lanczos"`.
        gradient_nodes: nodes of the measure of the gradient g of the mean loss.
        gradient_weights: its weights; Σ w f(node) = gᵀ f(H) g.
        noise: round-off of the matrix as measured by its asymmetry, in the unit of the nodes; 0 where unmeasured.
        smoothness: of the loss at w*; None in files of before it was probed.
    """

    nodes: Float[np.ndarray, "probe node"]
    weights: Float[np.ndarray, "probe node"]
    dim: int
    matrix: str
    method: str
    gradient_nodes: Float[np.ndarray, "gradient_node"]
    gradient_weights: Float[np.ndarray, "gradient_node"]
    noise: float = 0.0
    smoothness: Smoothness | None = None

    @property
    def largest(self) -> float:
        """h_max."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """h_min; negative at a saddle or an unconverged point."""
        return float(self.nodes.min())

    @property
    def exact(self) -> bool:
        """Whether the nodes are the eigenvalues themselves."""
        return self.method == "dense"

    def resolves(self, scale: float) -> bool:
        """Whether eigenvalues on both sides of `scale` are told apart; always, if the nodes are exact.

        m Lanczos steps resolve the lower edge of the spectrum to h_max (π / 2m)² (zeros of Chebyshev polynomials).
        """
        return self.exact or (
            scale > 0 and self.nodes.shape[1] >= 0.5 * np.pi * math.sqrt(max(self.largest, 0.0) / scale)
        )

    def sum(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Tr f(H), for `fn` that acts on arrays of eigenvalues."""
        return float(np.mean(np.sum(self.weights * fn(self.nodes), axis=1)))

    def stderr(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Standard error of `sum(fn)` over the probes; 0 for an exact spectrum."""
        sums = np.sum(self.weights * fn(self.nodes), axis=1)
        return 0.0 if len(sums) < 2 else float(np.std(sums, ddof=1) / np.sqrt(len(sums)))

    def count(self, threshold: float) -> float:
        """Number of eigenvalues above `threshold` (a weight, not an integer, from Lanczos)."""
        return self.sum(lambda h: (h > threshold).astype(float))

    def quad(self, noise_scale: float) -> float:
        """λ_quad = ½ Σ h / (h + γ/nβ) over positive h, with `noise_scale` = γ/nβ: the Gaussian part of λ̂(nβ, γ)."""
        return self.sum(lambda h: _shrink(h, noise_scale))

    def quad_stderr(self, noise_scale: float) -> float:
        """Standard error of `quad` from the probes."""
        return self.stderr(lambda h: _shrink(h, noise_scale))

    def decrement(self, noise_scale: float) -> float:
        """½ gᵀ (H₊ + γ/nβ)⁻¹ g: the loss that a damped Newton step would still win, in nats per example."""
        curvature = np.maximum(np.maximum(self.gradient_nodes, 0) + noise_scale, np.finfo(np.float64).tiny)
        return float(0.5 * np.sum(self.gradient_weights / curvature))

    def to_dataset(self) -> xr.Dataset:
        """As an xarray Dataset, for the `curvature` group of a DataTree."""
        variables = {
            "nodes": (("probe", "node"), self.nodes),
            "weights": (("probe", "node"), self.weights),
            "gradient_nodes": (("gradient_node",), self.gradient_nodes),
            "gradient_weights": (("gradient_node",), self.gradient_weights),
        }
        attributes = {"dim": self.dim, "matrix": self.matrix, "method": self.method, "noise": self.noise}
        if self.smoothness is not None:
            attributes |= {f"smoothness_{name}": value for name, value in self.smoothness._asdict().items()}
        return xr.Dataset(variables, attrs=attributes)

    @classmethod
    def from_dataset(cls, dataset: Any) -> "Spectrum":
        """From a Dataset (or DataTree node) that `to_dataset` made."""
        names = ("nodes", "weights", "gradient_nodes", "gradient_weights")
        arrays = {name: np.asarray(dataset[name].values) for name in names}
        attributes = dataset.attrs
        smoothness = None
        if "smoothness_state" in attributes:
            even, odd = (float(attributes[f"smoothness_{part}"]) for part in ("even", "odd"))
            smoothness = Smoothness(str(attributes["smoothness_state"]), even, odd)  # pyright: ignore[reportArgumentType]
        return cls(
            **arrays,
            dim=int(attributes["dim"]),
            matrix=str(attributes["matrix"]),
            method=str(attributes["method"]),
            noise=float(attributes["noise"]),
            smoothness=smoothness,
        )


def _shrink(h: np.ndarray, noise_scale: float) -> np.ndarray:
    h = np.maximum(h, 0.0)
    return np.where(h > 0, 0.5 * h / np.where(h > 0, h + noise_scale, 1.0), 0.0)


def spectrum(
    posterior: LocalPosterior,
    *,
    matrix: str = "hessian",
    method: str = "auto",
    num_matvecs: int | None = None,
    num_probes: int = 8,
    seed: int = 0,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss at w*, over all the data, in float64.

    Args:
        posterior: loss, data and w*; nβ and γ do not enter. With a mask, the Hessian of the parameters that move.
        matrix: `"hessian"`.
        method: `"dense"` (d² · 8 bytes, d Hessian products, exact), `"lanczos"` (stochastic Lanczos quadrature,
            num_probes · num_matvecs products, num_matvecs · d · 8 bytes), or `"auto"`: dense up to 5,000 parameters.
        num_matvecs: Lanczos steps a probe. None takes what resolves γ/nβ, (π/2) √(h_max nβ / γ), between 40 and 400
            (40 if the posterior has no γ): fewer steps smear null directions into λ_quad, which no probe shows.
        num_probes: random probes; errors of sums fall as 1/√num_probes.
        seed: of the random probes.

    Raises:
        ValueError: if a setting is unknown or out of range.

    References:
        Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 2017.
    """
    for name, value, options in (("matrix", matrix, _MATRICES), ("method", method, _METHODS)):
        if value not in options:
            raise ValueError(f"{name} needs one of {options}, got {value!r}.")
    for name, value in (("num_matvecs", 1 if num_matvecs is None else num_matvecs), ("num_probes", num_probes)):
        if value < 1:
            raise ValueError(f"{name} needs an integer >= 1, got {value}.")
    dense = posterior.num_params <= _DENSE_PARAMS if method == "auto" else method == "dense"
    with float64():
        operator = curvature_operator(posterior)
        if dense:
            return _dense(operator)
        if num_matvecs is None:
            num_matvecs = _resolving_matvecs(posterior, seed)
        return _lanczos(operator, num_matvecs, num_probes, seed)


def _resolving_matvecs(posterior: LocalPosterior, seed: int) -> int:
    noise_scale = 0.0 if posterior.gamma is None else float(posterior.gamma) / float(posterior.nbeta)
    if noise_scale <= 0:
        return _MIN_MATVECS
    steps = 0.5 * np.pi * np.sqrt(max(top_eigenvalue(posterior, seed=seed), 0.0) / noise_scale)
    return int(np.clip(np.ceil(steps), _MIN_MATVECS, _MAX_MATVECS))


def top_eigenvalue(posterior: LocalPosterior, *, num_matvecs: int = 30, seed: int = 0) -> float:
    """h_max of the Hessian at w*, from one Lanczos run over all the data, in float64."""
    with float64():
        operator = curvature_operator(posterior)
        probe = jax.random.normal(jax.random.key(seed), (operator.dim,), jnp.float64)
        nodes, _ = _quadrature(operator, probe, num_matvecs)
    return float(nodes.max())


def _dense(operator: CurvatureOperator) -> Spectrum:
    hessian, gradient = (np.array(x) for x in jax.device_get(_materialize(operator)))
    _require_finite(hessian)
    smoothness = probe_smoothness(operator, gradient, directions(operator.dim) @ hessian)
    asymmetry = 0.5 * (hessian - hessian.T)
    # Spectral norm of a matrix of independent round-off: twice its Frobenius norm over √d (semicircle edge).
    noise = 2 * np.linalg.norm(asymmetry) / np.sqrt(operator.dim)
    nodes, vectors = scipy.linalg.eigh(hessian - asymmetry, overwrite_a=True, driver="evd")
    weights = (vectors.T @ gradient) ** 2
    ones = np.ones((1, operator.dim))
    return Spectrum(nodes[None], ones, operator.dim, "hessian", "dense", nodes, weights, float(noise), smoothness)


def _lanczos(operator: CurvatureOperator, num_matvecs: int, num_probes: int, seed: int) -> Spectrum:
    keys = jax.random.split(jax.random.key(seed), num_probes)
    probes = [jax.random.rademacher(k, (operator.dim,), jnp.float64) for k in keys]
    rows = [_quadrature(operator, probe, num_matvecs) for probe in probes]
    gradient, products = map(np.asarray, _first_order(operator, jnp.asarray(directions(operator.dim))))
    smoothness = probe_smoothness(operator, gradient, products)
    gradient_nodes, gradient_weights = np.zeros(1), np.zeros(1)
    if np.any(gradient):
        gradient_nodes, gradient_weights = _quadrature(operator, gradient, num_matvecs)
    nodes, weights = (np.stack(x) for x in zip(*rows, strict=True))
    measure = gradient_nodes, gradient_weights
    return Spectrum(nodes, weights, operator.dim, "hessian", "lanczos", *measure, smoothness=smoothness)


def _quadrature(operator: CurvatureOperator, start: Any, num_matvecs: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the measure f ↦ startᵀ f(H) start: Ritz values and weights."""
    steps = min(num_matvecs, operator.dim)
    diagonal, off_diagonal, gram = map(np.asarray, jax.device_get(_tridiagonalize(operator, start, steps)))
    _require_finite(diagonal[:1])
    # Where the Krylov space is exhausted, the basis stops being orthonormal, and what follows is no information.
    defect = np.abs(np.tril(gram - np.eye(steps))).max(axis=1)
    broken = np.flatnonzero(~(defect < _ORTHONORMAL))
    size = int(broken[0]) if broken.size else steps
    nodes, vectors = scipy.linalg.eigh_tridiagonal(diagonal[:size], off_diagonal[: size - 1])
    weights = vectors[0] ** 2 * float(np.sum(np.square(np.asarray(start))))
    padding = steps - size
    return np.pad(nodes, (0, padding), mode="edge"), np.pad(weights, (0, padding))


@eqx.filter_jit
def _materialize(operator: CurvatureOperator):
    rows = -(-operator.dim // _COLUMNS) * _COLUMNS  # whole batches: a rest would be compiled apart
    columns = jax.lax.map(operator.product, jnp.eye(rows, operator.dim), batch_size=_COLUMNS)
    return columns[: operator.dim], operator.gradient()


@eqx.filter_jit
def _first_order(operator: CurvatureOperator, vectors):
    return operator.gradient(), jax.lax.map(operator.product, vectors)


@eqx.filter_jit
def _tridiagonalize(operator: CurvatureOperator, start, num_matvecs: int):
    tridiagonalize = decomp.tridiag_sym(num_matvecs, materialize=False, reortho="full", custom_vjp=False)
    result = tridiagonalize(operator.product, start)
    diagonal, off_diagonal = result.J_small
    basis = jnp.asarray(result.Q_tall)
    return diagonal, off_diagonal, basis @ basis.T


def _require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            "the Hessian at w* needs to be finite, got nan or inf; check the second derivative of loss_fn at w* "
            "(square roots and norms at 0 have none)."
        )
