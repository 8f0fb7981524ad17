r"""The spectrum of the Hessian (or the Gauss–Newton matrix) at w*, as a measure.

Sums over eigenvalues are what the bounds and λ_quad need, so a spectrum is nodes and weights with

$$ \mathrm{tr}\, f(H) \approx \frac{1}{P} \sum_{p=1}^{P} \sum_k w_{pk}\, f(h_{pk}) : $$

one row of eigenvalues with their multiplicities where a method finds all of them, or P rows of Gauss quadrature by
Lanczos from random probes (geometry/curvature). The error of such a sum has two parts. The probes contribute
√(2 tr f² / P), which is an upper bound for Rademacher probes. The quadrature contributes the change of the sum from
half of the steps to all of them. Ritz values are never counted as eigenvalues.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.bounds.renamed import renamed
from llc.bounds.shrinkage import shrink, signed_shrink
from llc.bounds.smoothness import Smoothness, State

_SIGNED = 0.7  # −h_min nβ/γ below which λ_quad takes negative eigenvalues as they are

ThresholdCause = Literal["round-off", "negative curvature", "error of the method"]


@dataclass(frozen=True)
class Spectrum:
    """Spectral measure of a symmetric matrix, and of the gradient in it.

    Attributes:
        nodes: eigenvalues, or Ritz values (lanczos), in nats per example and squared parameter.
        weights: multiplicity of each node; every row adds up to `dim`.
        dim: d, the order of the matrix.
        matrix: `"hessian"` or `"ggn"`.
        method: `"dense"`, `"gram"`, `"range_finder"`, `"sketch"`, `"lanczos"` or `"deflated"`.
        gradient_nodes: nodes of the measure of the gradient g of the mean loss.
        gradient_weights: its weights; Σ w f(node) = gᵀ f(H) g.
        noise: error of an eigenvalue by the method, in the unit of the nodes: round-off, seen as asymmetry of a dense
            matrix, or the curvature outside of the range that was found. It is 0 where it was not measured.
        smoothness: of the loss at w*; None in files that are older than the probe.
        gauss_newton_discrepancy: ‖H − G‖ / ‖H‖ (Frobenius, from three random directions) of the Hessian H and the
            Gauss–Newton matrix G: the part of H that comes from residuals; nan where unmeasured, without
            `predict_fn` for instance.
        unstable_eigenvalues: eigenvalues that a Newton step changes by more than a third, so that they are not those
            of a minimum; empty where eigenvectors are not known (gram, sketch, lanczos).
        half_nodes: nodes from half of the Lanczos steps; None where the nodes are the eigenvalues.
        half_weights: their weights.
        vectors: orthonormal eigenvectors of the largest eigenvalues, largest first, in float32. None where the method
            does not find them (gram, sketch, lanczos), and in files, which do not store them.
        row_share: share of the data's rows whose mean loss the matrix belongs to.
        num_exact: number of leading nodes of every row that are eigenvalues of weight one (deflated). Only what follows
            them is estimated from the row's probe.
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
    gauss_newton_discrepancy: float = math.nan
    unstable_eigenvalues: Float[np.ndarray, "unstable"] = field(default_factory=lambda: np.zeros(0))
    half_nodes: Float[np.ndarray, "probe half_node"] | None = None
    half_weights: Float[np.ndarray, "probe half_node"] | None = None
    vectors: Float[np.ndarray, "kept dim"] | None = None
    num_exact: int = 0
    row_share: float = 1.0

    misfit = renamed("misfit", "gauss_newton_discrepancy")
    unsettled = renamed("unsettled", "unstable_eigenvalues")
    decrement = renamed("decrement", "newton_decrement")

    def __str__(self) -> str:
        if self.exact:
            rank = f"{self.count(self.threshold):.0f} of {self.dim:,} eigenvalues above τ = {self.threshold:.2g}"
        else:
            scale = max(self.resolution, self.threshold)
            error = self.count_stderr(scale)
            rank = f"about {self.count(scale):.0f} ± {error:.0f} of {self.dim:,} eigenvalues above {scale:.2g}"
            rank += f" (unresolved below); τ = {self.threshold:.2g}"
        return "\n".join(
            (
                f"spectrum   {self.matrix}, method {self.method}, d = {self.dim:,}",
                f"curvature  h_max = {self.largest:.4g}, h_min = {self.smallest:.2g}",
                f"rank       {rank}, set by {self.threshold_cause}",
            )
        )

    @property
    def largest(self) -> float:
        """h_max."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """h_min; negative at a saddle or an unconverged point."""
        return float(self.nodes.min())

    @property
    def floor(self) -> float:
        """Curvature below it is round-off."""
        return 8 * float(np.finfo(np.float64).eps) * max(self.largest, 0.0)

    @property
    def threshold(self) -> float:
        """τ, above which an eigenvalue counts: the largest of the three levels that `threshold_cause` names."""
        return max(self._levels.values())

    @property
    def threshold_cause(self) -> ThresholdCause:
        """What sets τ: round-off, three times the most negative eigenvalue, or the method's error (`noise`)."""
        levels = self._levels
        return max(levels, key=lambda cause: levels[cause])

    @property
    def _levels(self) -> dict[ThresholdCause, float]:
        return {
            "round-off": self.floor,
            "negative curvature": 3 * max(-self.smallest, 0.0),
            "error of the method": self.noise,
        }

    @property
    def exact(self) -> bool:
        """Whether the nodes are the eigenvalues themselves."""
        return self.method not in ("lanczos", "deflated")

    @property
    def vector_eigenvalues(self) -> Float[np.ndarray, "kept"]:
        """Eigenvalues of `vectors`, in their order; empty without."""
        size = 0 if self.vectors is None else len(self.vectors)
        return self.nodes[0, :size] if self.num_exact else np.sort(self.nodes[0])[::-1][:size]

    @property
    def resolution(self) -> float:
        """The smallest scale at which eigenvalues are told apart; 0 if the nodes are exact.

        m Lanczos steps resolve the lower edge of the spectrum to h (π / 2m)² (zeros of Chebyshev polynomials), h the
        largest eigenvalue that is not known exactly.
        """
        if self.exact or self.nodes.shape[1] == self.num_exact:
            return 0.0
        estimated = self.nodes[:, self.num_exact :]
        return max(float(estimated.max()), 0.0) * (0.5 * np.pi / estimated.shape[1]) ** 2

    def resolves(self, scale: float) -> bool:
        """Whether eigenvalues on both sides of `scale` are told apart.

        A count that stays the same with half of the steps is no substitute: both counts may take the null space for
        curved.
        """
        return self.exact or scale >= self.resolution > 0 or (self.num_exact > 0 and scale > self.resolution)

    def sum(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Tr f(H), for `fn` that acts on arrays of eigenvalues."""
        return _sum(self.nodes, self.weights, fn)

    def stderr(self, fn: Callable[[np.ndarray], np.ndarray]) -> float:
        """Standard error of `sum(fn)`, 0 for an exact spectrum: √(2 tr f² / P) of the probes, and the quadrature's.

        The trace is over what is not known exactly. The first part is exact for Gaussian probes and an
        upper bound for Rademacher probes (√(2r / P) for a count of r), which the spread of eight sums can't measure as
        well. The second part is the change of the sum from half of the steps to all of them.
        """
        if self.half_nodes is None or self.half_weights is None:
            return 0.0
        rest = slice(self.num_exact, None)
        probes = 2 * _sum(self.nodes[:, rest], self.weights[:, rest], lambda h: fn(h) ** 2) / len(self.nodes)
        return math.hypot(math.sqrt(max(probes, 0.0)), self.sum(fn) - _sum(self.half_nodes, self.half_weights, fn))

    def count_stderr(self, threshold: float) -> float:
        """Standard error of `count(threshold)`."""
        _require_nonnegative("count_stderr", "threshold", threshold)
        return self.stderr(lambda h: (h > threshold).astype(float))

    def count(self, threshold: float) -> float:
        """Number of eigenvalues above `threshold` (a weight, not an integer, from Lanczos).

        Raises:
            ValueError: if the threshold is negative, since negative eigenvalues are not counted.
        """
        _require_nonnegative("count", "threshold", threshold)
        return self.sum(lambda h: (h > threshold).astype(float))

    def quad(self, localization_scale: float) -> float:
        """λ_quad = ½ Σ h / (h + γ/nβ) over positive h, with `localization_scale` = γ/nβ: the Gaussian part of λ̂(nβ, γ).

        Raises:
            ValueError: if `localization_scale` is negative.
        """
        _require_nonnegative("quad", "localization_scale", localization_scale)
        return self.sum(self._part_of(localization_scale))

    def quad_stderr(self, localization_scale: float) -> float:
        """Standard error of `quad`."""
        return self.stderr(self._part_of(localization_scale))

    def _part_of(self, scale: float) -> Callable[[np.ndarray], np.ndarray]:
        """What each eigenvalue adds to λ_quad: with its sign where only the leading eigenvalues are known.

        An imperfect minimum has as many small negative eigenvalues as positive ones. Probes resolve their signed sum
        after a few steps, and that of the positive ones alone hardly ever. Where −h_min is near γ/nβ, no Gaussian is.
        """
        signed = self.num_exact > 0 and -self.smallest < _SIGNED * scale
        return lambda h: (signed_shrink if signed else shrink)(h, scale)

    def signed_quad(self, localization_scale: float) -> float:
        """½ Σ h / (h + γ/nβ) over all h, the mean of nβ (L − L*) in the Gaussian at w*; nan where h_min ≤ −γ/nβ.

        Where many small eigenvalues of either sign surround zero (an imperfect minimum), a trace estimate has this sum
        after a few steps, while `quad`, whose summand has a kink at zero, takes hundreds.
        """
        _require_nonnegative("signed_quad", "localization_scale", localization_scale)
        return self.sum(lambda h: signed_shrink(h, localization_scale))

    def signed_quad_stderr(self, localization_scale: float) -> float:
        """Standard error of `signed_quad`."""
        return self.stderr(lambda h: signed_shrink(h, localization_scale))

    def newton_decrement(self, localization_scale: float) -> float:
        """½ gᵀ (H₊ + γ/nβ)⁻¹ g: the decrease of the loss by a damped Newton step, in nats per example."""
        curvature = np.maximum(np.maximum(self.gradient_nodes, 0) + localization_scale, np.finfo(np.float64).tiny)
        with np.errstate(over="ignore"):  # without localization, along a direction without curvature: inf
            return float(0.5 * np.sum(self.gradient_weights / curvature))

    def to_dataset(self) -> xr.Dataset:
        """As an xarray Dataset, for the `curvature` group of a DataTree."""
        variables = {
            "nodes": (("probe", "node"), self.nodes),
            "weights": (("probe", "node"), self.weights),
            "gradient_nodes": (("gradient_node",), self.gradient_nodes),
            "gradient_weights": (("gradient_node",), self.gradient_weights),
        }
        if self.unstable_eigenvalues.size:
            variables["unstable_eigenvalues"] = (("unstable",), self.unstable_eigenvalues)
        if self.half_nodes is not None:
            variables["half_nodes"] = (("probe", "half_node"), self.half_nodes)
            variables["half_weights"] = (("probe", "half_node"), self.half_weights)
        names = ("dim", "matrix", "method", "noise", "gauss_newton_discrepancy", "num_exact", "row_share")
        attributes = {name: getattr(self, name) for name in names}
        if self.smoothness is not None:
            attributes |= {f"smoothness_{name}": value for name, value in self.smoothness._asdict().items()}
        return xr.Dataset(variables, attrs=attributes)

    @classmethod
    def from_dataset(cls, dataset: Any) -> "Spectrum":
        """From a Dataset (or DataTree node) that `to_dataset` made, in this release or in version 0.1."""
        names: tuple[str, ...] = ("nodes", "weights", "gradient_nodes", "gradient_weights")
        names += ("half_nodes", "half_weights") if "half_nodes" in dataset else ()
        arrays = {name: np.asarray(dataset[name].values) for name in names}
        for name in ("unsettled", "unstable_eigenvalues"):  # the first in files of version 0.1
            if name in dataset.data_vars:
                arrays["unstable_eigenvalues"] = np.asarray(dataset[name].values)
        attributes = dataset.attrs
        smoothness = None
        if "smoothness_state" in attributes:
            even, odd, kinks = (float(attributes.get(f"smoothness_{n}", math.nan)) for n in ("even", "odd", "kinks"))
            state: State = str(attributes["smoothness_state"])  # pyright: ignore[reportAssignmentType]
            smoothness = Smoothness(state, even, odd, kinks)
        return cls(
            **arrays,
            dim=int(attributes["dim"]),
            matrix=str(attributes["matrix"]),
            method=_NEW_METHODS.get(attributes["method"], str(attributes["method"])),
            noise=float(attributes["noise"]),
            gauss_newton_discrepancy=float(
                attributes.get("gauss_newton_discrepancy", attributes.get("misfit", math.nan))
            ),
            smoothness=smoothness,
            num_exact=int(attributes.get("num_exact", 0)),
            row_share=float(attributes.get("row_share", 1.0)),
        )


_NEW_METHODS = {"block": "range_finder"}  # names of version 0.1


def _sum(nodes: np.ndarray, weights: np.ndarray, fn: Callable[[np.ndarray], np.ndarray]) -> float:
    return float(np.mean(np.sum(weights * fn(nodes), axis=1)))


def _require_nonnegative(method: str, name: str, value: float) -> None:
    if isinstance(value, (str, bytes)) or np.ndim(value) or not value >= 0:
        raise ValueError(f"{method} needs a {name} >= 0, got {value}.")
