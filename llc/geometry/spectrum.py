r"""The spectrum of the Hessian (or the Gauss–Newton matrix) at w*, as a measure.

Sums over eigenvalues are what the bounds and λ_quad need, so a spectrum is nodes and weights with

$$ \mathrm{tr}\, f(H) \approx \frac{1}{P} \sum_{p=1}^{P} \sum_k w_{pk}\, f(h_{pk}) : $$

one row of eigenvalues with their multiplicities where a method finds them all (eigenvalues.py), or P rows of Gauss
quadrature by Lanczos from random probes (lanczos.py). The error of a sum has two parts then: the probes',
√(2 tr f² / P), an upper bound for Rademacher probes, and the quadrature's, seen as the change from half the steps to
all of them. Ritz values are never counted as eigenvalues.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.geometry.eigenvalues import MAX_ORDER, Eigenvalues, block, dense, gram
from llc.geometry.lanczos import quadrature, quadratures
from llc.geometry.operators import (
    CurvatureOperator,
    GaussNewtonOperator,
    check_symmetric,
    curvature_operator,
    gauss_newton_operator,
    jacobian_operator,
)
from llc.geometry.output_loss import OutputLoss
from llc.geometry.residuals import first_order, gauss_newton_part, residual_share
from llc.geometry.sketch import sketch_size, sketched
from llc.geometry.smoothness import Smoothness, directions, probe_smoothness
from llc.posterior import LocalPosterior, float64

_METHODS = ("auto", "dense", "gram", "block", "sketch", "lanczos")
_RANGE = {"block": block, "sketch": sketched}  # find all non-zero eigenvalues where they are few
_MATRICES = ("hessian", "ggn")

_MIN_MATVECS, _MAX_MATVECS = 40, 400  # Lanczos steps a probe; each keeps a vector of d float64
_VECTOR_BYTES = 4 * 2**30  # of the vectors that are kept where their number is not given
_WORTH = 4  # times the products of Lanczos that a try of the range finder may cost
_SMALL = 1_000  # order of a matrix up to which `auto` makes it dense without a try of the range finder
_FEW = 8  # part of the order up to which that try goes on
_SPARE = 128  # vectors beyond a count from Lanczos, which has an error


@dataclass(frozen=True)
class Spectrum:
    """Spectral measure of a symmetric matrix, and of the gradient in it.

    Attributes:
        nodes: eigenvalues, or Ritz values (lanczos), in nats per example and squared parameter.
        weights: multiplicity of each node; every row adds up to `dim`.
        dim: d, the order of the matrix.
        matrix: `"hessian"` or `"ggn"`.
        method: `"dense"`, `"gram"`, `"block"`, `"sketch"` or `"lanczos"`.
        gradient_nodes: nodes of the measure of the gradient g of the mean loss.
        gradient_weights: its weights; Σ w f(node) = gᵀ f(H) g.
        noise: error of an eigenvalue (by round-off, seen as asymmetry; by what the range lacks, where only that was
            found), in the unit of the nodes; 0 where unmeasured.
        smoothness: of the loss at w*; None in files of before it was probed.
        misfit: ‖H − G‖ / ‖H‖ (Frobenius, from three random directions) of the Hessian H and the Gauss–Newton matrix G:
            the part of H that comes from residuals; nan where unmeasured, without `predict_fn` for instance.
        half_nodes: nodes from half of the Lanczos steps; None where the nodes are the eigenvalues.
        half_weights: their weights.
        vectors: orthonormal eigenvectors of the largest eigenvalues, largest first, in float32; None where the method
            does not find them (gram, sketch, lanczos) and in files, which do not hold them.
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
    misfit: float = math.nan
    half_nodes: Float[np.ndarray, "probe half_node"] | None = None
    half_weights: Float[np.ndarray, "probe half_node"] | None = None
    vectors: Float[np.ndarray, "kept dim"] | None = None

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
        return self.method != "lanczos"

    @property
    def resolution(self) -> float:
        """The smallest scale at which eigenvalues are told apart; 0 if the nodes are exact.

        m Lanczos steps resolve the lower edge of the spectrum to h_max (π / 2m)² (zeros of Chebyshev polynomials).
        """
        return 0.0 if self.exact else max(self.largest, 0.0) * (0.5 * np.pi / self.nodes.shape[1]) ** 2

    def resolves(self, scale: float) -> bool:
        """Whether eigenvalues on both sides of `scale` are told apart.

        That a count is the same with half of the steps does not replace it: both may take the null space for curved.
        """
        return self.exact or scale >= self.resolution > 0

    def sum(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Tr f(H), for `fn` that acts on arrays of eigenvalues."""
        return _sum(self.nodes, self.weights, fn)

    def stderr(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Standard error of `sum(fn)`, 0 for an exact spectrum: √(2 tr f² / P) of the probes, and the quadrature's.

        The probes' is that of Gaussian ones and an upper bound for Rademacher ones (√(2r / P) of a count r), which
        eight sums can't measure as well. The quadrature's is the change of the sum from half of the steps to all.
        """
        if self.half_nodes is None or self.half_weights is None:
            return 0.0
        probes = 2 * self.sum(lambda h: fn(h) ** 2) / len(self.nodes)
        return math.hypot(math.sqrt(max(probes, 0.0)), self.sum(fn) - _sum(self.half_nodes, self.half_weights, fn))

    def count_stderr(self, threshold: float) -> float:
        """Standard error of `count(threshold)`."""
        return self.stderr(lambda h: (h > threshold).astype(float))

    def count(self, threshold: float) -> float:
        """Number of eigenvalues above `threshold` (a weight, not an integer, from Lanczos)."""
        return self.sum(lambda h: (h > threshold).astype(float))

    def quad(self, noise_scale: float) -> float:
        """λ_quad = ½ Σ h / (h + γ/nβ) over positive h, with `noise_scale` = γ/nβ: the Gaussian part of λ̂(nβ, γ)."""
        return self.sum(lambda h: _shrink(h, noise_scale))

    def quad_stderr(self, noise_scale: float) -> float:
        """Standard error of `quad`."""
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
        if self.half_nodes is not None:
            variables["half_nodes"] = (("probe", "half_node"), self.half_nodes)
            variables["half_weights"] = (("probe", "half_node"), self.half_weights)
        attributes = {name: getattr(self, name) for name in ("dim", "matrix", "method", "noise", "misfit")}
        if self.smoothness is not None:
            attributes |= {f"smoothness_{name}": value for name, value in self.smoothness._asdict().items()}
        return xr.Dataset(variables, attrs=attributes)

    @classmethod
    def from_dataset(cls, dataset: Any) -> "Spectrum":
        """From a Dataset (or DataTree node) that `to_dataset` made."""
        names = ("nodes", "weights", "gradient_nodes", "gradient_weights")
        names += ("half_nodes", "half_weights") if "half_nodes" in dataset else ()
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
            misfit=float(attributes.get("misfit", math.nan)),
            smoothness=smoothness,
        )


def _sum(nodes: np.ndarray, weights: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> float:
    return float(np.mean(np.sum(weights * fn(nodes), axis=1)))


def _shrink(h: np.ndarray, noise_scale: float) -> np.ndarray:
    h = np.maximum(h, 0.0)
    return np.where(h > 0, 0.5 * h / np.where(h > 0, h + noise_scale, 1.0), 0.0)


def spectrum(
    posterior: LocalPosterior,
    *,
    matrix: str = "hessian",
    method: str = "auto",
    output_loss: OutputLoss = None,
    num_matvecs: int | None = None,
    num_probes: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss at w*, or of its Gauss–Newton part, over all the data, in float64.

    Args:
        posterior: loss, data and w*; nβ and γ enter the number of Lanczos steps only. With a mask, the matrix of the
            parameters that move.
        matrix: `"hessian"`, or `"ggn"`, the Gauss–Newton matrix of `posterior.predict_fn` (the same where the outputs
            fit; without negative eigenvalues elsewhere).
        method: one of

            - `"dense"`: all eigenvalues from d products; 24 d² bytes.
            - `"gram"`: all eigenvalues of the Gauss–Newton matrix from n·k products with J Jᵀ, for n examples with k
              outputs; 24 (n k)² bytes.
            - `"block"`: all r non-zero eigenvalues from about r + 64 products; 8 (r + 64) d bytes. An error where
              there are more than 5,000.
            - `"sketch"`: the same from two products for each of 1.25 … 1.5 r + 75 columns; 16 (1.5 r)² bytes and, for
              any r, 96 vectors of d (at most 2 GiB). Without eigenvectors.
            - `"lanczos"`: stochastic Lanczos quadrature, num_probes · num_matvecs products; 8 · num_matvecs · d bytes.
            - `"auto"`: dense up to d = 5,000, and from 1,000 on block where the rank is below d/8; gram up to
              n·k = 5,000; else lanczos, and where that counts few eigenvalues (four times the products of lanczos at
              most) block or, where its vectors would take more than 4 GiB, sketch, which see whether these are all.
        output_loss: for `"ggn"`: see `gauss_newton_operator`.
        num_matvecs: Lanczos steps a probe. None takes what resolves γ/nβ, (π/2) √(h_max nβ / γ), between 40 and 400
            (40 if the posterior has no γ), and at most 4 GiB of vectors: fewer steps smear null
            directions into λ_quad.
        num_probes: random probes; errors of sums fall as 1/√num_probes.
        seed: of the random probes.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is unknown, out of range, needs more memory than is free, or the matrix has more
            eigenvalues than `"block"` or `"sketch"` can find.

    References:
        Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 2017.
        Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 2011.
    """
    for name, value, options in (("matrix", matrix, _MATRICES), ("method", method, _METHODS)):
        if value not in options:
            raise ValueError(f"{name} needs one of {options}, got {value!r}.")
    for name, value in (("num_matvecs", 1 if num_matvecs is None else num_matvecs), ("num_probes", num_probes)):
        if value < 1:
            raise ValueError(f"{name} needs an integer >= 1, got {value}.")
    if method == "gram" and matrix != "ggn":
        raise ValueError(
            f"method 'gram' needs matrix 'ggn', got {matrix!r}; the Hessian is J times Jᵀ at an exact fit only."
        )
    with float64():
        hessian = curvature_operator(posterior)
        if matrix == "ggn":
            operator = outputs = gauss_newton_operator(posterior, output_loss=output_loss)
        else:
            operator, outputs = hessian, gauss_newton_part(posterior, output_loss)
        chosen = _choose(operator, posterior, matrix) if method == "auto" else method
        precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(posterior.position))
        found = None
        if method == "auto" and chosen == "dense" and operator.dim > _SMALL:
            check_symmetric(hessian)
            found = block(operator, operator.dim // _FEW, seed, precision=precision, progress=progress)
            chosen = "dense" if found is None else "block"
        if chosen == "dense":
            return _dense(operator, hessian, outputs, matrix)
        check_symmetric(hessian)
        gradient, products = map(np.asarray, first_order(hessian, jnp.asarray(directions(operator.dim))))
        steps = num_matvecs or _resolving_matvecs(posterior, operator.dim, seed)
        measure = quadrature(operator, gradient, steps) if np.any(gradient) else (np.zeros(1), np.zeros(1))
        misfit = residual_share(outputs, products)
        common = operator.dim, matrix, misfit, probe_smoothness(hessian, gradient, products), measure
        if chosen == "gram" and isinstance(operator, GaussNewtonOperator):
            return _exact(gram(operator, jacobian_operator(posterior), progress=progress), "gram", *common)
        if chosen in _RANGE:
            found = found or _RANGE[chosen](operator, MAX_ORDER, seed, precision=precision, progress=progress)
            if found is None:
                raise ValueError(
                    f"method {chosen!r} needs at most {MAX_ORDER} eigenvalues that are not zero, got more; "
                    "take method='lanczos'."
                )
            return _exact(found, chosen, *common)
        rows, halves = quadratures(operator, steps, num_probes, seed, progress=progress)
        result = _spectrum(rows, halves, "lanczos", 0.0, *common)
        if method == "auto" and (finder := _range_finder(result)):
            rank = _counted(result)
            found = _RANGE[finder](operator, rank, seed, precision=precision, progress=progress)
            result = result if found is None else _exact(found, finder, *common)
        return result


def _dense(
    operator: CurvatureOperator, hessian: CurvatureOperator, outputs: CurvatureOperator | None, matrix: str
) -> Spectrum:
    found, squares, full, gradient = dense(operator)
    vectors = directions(operator.dim)
    products = vectors @ full if matrix == "hessian" else np.asarray(first_order(hessian, jnp.asarray(vectors))[1])
    misfit = residual_share(outputs, products)
    smoothness = probe_smoothness(hessian, gradient, products)
    return _exact(found, "dense", operator.dim, matrix, misfit, smoothness, (found.nodes, squares))


def _exact(found: Eigenvalues, method: str, *common: Any) -> Spectrum:
    result = _spectrum((found.nodes[None], found.weights[None]), (None, None), method, found.noise, *common)
    return replace(result, vectors=found.vectors)


def _spectrum(rows, halves, method, noise, dim, matrix, misfit, smoothness, gradient_measure):
    names = ("nodes", "weights"), ("half_nodes", "half_weights"), ("gradient_nodes", "gradient_weights")
    pairs = zip(names, (rows, halves, gradient_measure), strict=True)
    arrays = {name: array for keys, measure in pairs for name, array in zip(keys, measure, strict=True)}
    return Spectrum(**arrays, dim=dim, matrix=matrix, method=method, noise=noise, misfit=misfit, smoothness=smoothness)


def _counted(result: Spectrum) -> int:
    """A rank that Lanczos does not count beyond."""
    return math.ceil(result.count(result.resolution)) + _SPARE


def _range_finder(result: Spectrum) -> str:
    """What may find all eigenvalues of as few as Lanczos counts; empty if nothing at its cost."""
    rank, products = _counted(result), _WORTH * result.nodes.size
    if rank <= min(MAX_ORDER, products, _VECTOR_BYTES // (8 * result.dim)):
        return "block"
    return "sketch" if rank <= MAX_ORDER and 2 * sketch_size(rank) <= products else ""


def _choose(operator: CurvatureOperator, posterior: LocalPosterior, matrix: str) -> str:
    if operator.dim <= MAX_ORDER:
        return "dense"
    return "gram" if matrix == "ggn" and jacobian_operator(posterior).num_outputs <= MAX_ORDER else "lanczos"


def _resolving_matvecs(posterior: LocalPosterior, dim: int, seed: int) -> int:
    noise_scale = 0.0 if posterior.gamma is None else float(posterior.gamma) / float(posterior.nbeta)
    steps = _MIN_MATVECS
    if noise_scale > 0:
        steps = 0.5 * np.pi * np.sqrt(max(top_eigenvalue(posterior, seed=seed), 0.0) / noise_scale)
    most = max(min(_MAX_MATVECS, _VECTOR_BYTES // (8 * dim)), 2)
    return int(min(max(np.ceil(steps), _MIN_MATVECS), most))


def top_eigenvalue(posterior: LocalPosterior, *, num_matvecs: int = 30, seed: int = 0) -> float:
    """h_max of the Hessian at w*, from one Lanczos run over all the data, in float64."""
    with float64():
        operator = curvature_operator(posterior)
        probe = jax.random.normal(jax.random.key(seed), (operator.dim,), jnp.float64)
        nodes, _ = quadrature(operator, probe, num_matvecs)
    return float(nodes.max())
