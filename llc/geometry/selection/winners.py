r"""What follows from the covariance of selected samples: ranks of the Hessian, its shape, and limits of what is seen.

Candidates are w* + σz with z ~ N(0, I), and of every m the one of least loss wins. With C the second moment of their z,

$$ C_{ii} \approx 1 - \sqrt2\, \kappa_m \frac{h_i}{\lVert h \rVert} \quad (r \gg 1), \qquad
   C \to c\, H^{-1} \quad (m \to \infty, \text{ on the range}), \qquad C_{ii} = 1 \quad (\text{in the kernel}), $$

where κ_m is the mean of the largest of m normal variables (Shir & Yehudayoff, arXiv 1806.03674). The loss does not vary
along the kernel, so winners are not selected there, whatever m, σ and an independent noise of the loss are: restricted
to the kernel, RC *is* a Wishart matrix of R winners and dimension d − r. By Cauchy interlacing the (r+1)-th least
eigenvalue of C is no less than the least eigenvalue of that matrix. A test against the quantile of the latter therefore
claims too many directions with a probability of at most 5 %, and so does a test of directions that were chosen on other
winners. "Kernel" means the directions along which the loss does not vary at the scale σ.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float

from llc.geometry.selection.laws import (
    ERROR,
    expected_maximum,
    flat_rank,
    lower_edge,
    normal_scores,
    shape_slope,
    stein_edge,
)


@dataclass(frozen=True)
class InverseHessian:
    """Shape of the pseudo-inverse of the Hessian, of trace 1, with its known error.

    Attributes:
        matrix: C on the `rank` most shrunken directions, divided by its trace; 0 on the others.
        rank: number of directions.
        slope: d log C / d log h for a nearly flat spectrum of that rank: −1 if m were infinite. Eigenvalues of `matrix`
            that differ by a factor stand for curvatures that differ by its power −1/slope.
        message: what is needed, what was got, what to do; empty where the shape is right to 10 %.
    """

    matrix: Float[np.ndarray, "dim dim"]
    rank: int
    slope: float
    message: str

    @property
    def hopeless(self) -> bool:
        """Whether `matrix` is far from an inverse, as `message` says."""
        return bool(self.message)


@dataclass(frozen=True)
class SelectedSamples:
    """Winners of best-of-m around w*, as sums; made by `selected_covariance`.

    Attributes:
        halves: second moment about w* of the even and of the odd winners, in units of σ²; 1 where nothing selects.
        stein: (1/N) Σ s_j (z_j z_jᵀ − 1) over all candidates, s_j the normal score of the loss's rank in its group;
            0 where nothing selects, √2 h_i/‖h‖ times the scores' correlation with the loss for r ≫ 1.
        mean: mean winner in units of σ; 0 up to 1/√R at a minimum.
        sigma: σ, in units of the parameters.
        num_candidates: m.
        num_winners: R.
        failed: share of the candidates whose loss is not finite; they never win against a finite one.
    """

    halves: Float[np.ndarray, "half dim dim"]
    stein: Float[np.ndarray, "dim dim"]
    mean: Float[np.ndarray, "dim"]
    sigma: float
    num_candidates: int
    num_winners: int
    failed: float

    def __str__(self) -> str:
        variance, error = self.kernel_variance
        found = max(self.rank, self.certified_rank, self.stein_rank)
        lines = [
            f"selected samples  best of m = {self.num_candidates}, R = {self.num_winners:,} winners, "
            f"N = {self.num_evaluations:,} evaluations, σ = {self.sigma:.3g}",
            f"rank    ≥ {self.rank} of {self.dim} at 95 % (winners), ≥ {self.certified_rank} (χ² certificate), "
            f"≥ {self.stein_rank} (all samples)",
            f"kernel  variance {variance:.3f} ± {error:.3f} σ²" + ("" if self.complete else ": directions are hidden"),
            f"blind   below h = {self.blind_limit:.2g} ‖h‖; a flat spectrum shows up to rank {self.visible_rank:.3g}",
        ]
        if found > self.visible_rank or not self.complete:
            lines.append(
                f"        all of a flat rank {max(found, 1)} takes about N = "
                f"{self.num_evaluations * max(found, 1) / self.visible_rank:,.0f}; Hessian-vector products take fewer"
            )
        if not self.centered:
            lines.append(
                "FAIL    the winners' mean is not w*: w* is no minimum of this loss, and a direction may be its slope"
            )
        return "\n".join(lines)

    @property
    def dim(self) -> int:
        """Number of parameters, d."""
        return len(self.stein)

    @property
    def num_evaluations(self) -> int:
        """N = mR, evaluations of the loss."""
        return self.num_candidates * self.num_winners

    @property
    def covariance(self) -> Float[np.ndarray, "dim dim"]:
        """C: second moment of all winners about w*, in units of the parameters squared."""
        return self.sigma**2 * self._moment

    @property
    def _moment(self) -> np.ndarray:
        return np.tensordot(np.array(self._half_sizes) / self.num_winners, self.halves, axes=1)

    @property
    def _half_sizes(self) -> tuple[int, int]:
        return self.num_winners - self.num_winners // 2, self.num_winners // 2

    @functools.cached_property
    def eigenvalues(self) -> Float[np.ndarray, "dim"]:
        """Of C, in units of σ², least first."""
        return np.linalg.eigvalsh(self._moment)

    @functools.cached_property
    def edges(self) -> Float[np.ndarray, "dim"]:
        """What the k-th least eigenvalue of C has to be below, k = 1 … d, to count: `lower_edge` of d − k + 1."""
        return lower_edge(self.dim - np.arange(self.dim), self.num_winners)

    @property
    def rank(self) -> int:
        """Directions in which C is below the lower Marchenko–Pastur edge; too large in at most 5 % of cases."""
        return _leading(self.eigenvalues < self.edges)

    @functools.cached_property
    def certified_rank(self) -> int:
        """Largest k with "rank ≥ k at 95 %", see `certify`."""
        return self.certify()

    def certify(self, confidence: float = 1 - ERROR) -> int:
        r"""Largest k with "rank ≥ k at `confidence`" by directions of half of the winners, judged by the other half.

        V_k holds the eigenvectors of the k least eigenvalues of the first half's moment. If the rank were below k, the
        span of V_k would meet the kernel in some unit vector u, which the second half's R₂ winners have not seen:
        R₂ uᵀC₂u ~ χ²(R₂) exactly, and λ_max(V_kᵀ C₂ V_k) ≥ uᵀC₂u. So k is claimed while λ_max is below the
        1 − `confidence` quantile of χ²(R₂)/R₂; λ_max grows with k, so that one quantile serves all k. The bound is
        exact at rank 0: there 95 % is wrong in 5 of 100 runs, and no certificate of that level never overshoots.

        Raises:
            ValueError: if the confidence is not within (0, 1).
        """
        if not 0 < confidence < 1:
            raise ValueError(f"certify needs a confidence within (0, 1), got {confidence}; 0.95 is usual.")
        vectors = np.linalg.eigh(self.halves[0])[1]
        block = vectors.T @ self.halves[1] @ vectors
        size = self._half_sizes[1]
        limit = scipy.stats.chi2.ppf(1 - confidence, size) / size
        # λ_max grows with k: bisection over the nested blocks.
        low, high = 0, self.dim
        while low < high:
            middle = (low + high + 1) // 2
            passed = np.linalg.eigvalsh(block[:middle, :middle])[-1] < limit
            low, high = (middle, high) if passed else (low, middle - 1)
        return low

    @functools.cached_property
    def stein_rank(self) -> int:
        """Directions in which the all-sample matrix is above its edge ≈ 2√(d/N); too large in ≤ 5 % of cases."""
        eigenvalues = np.linalg.eigvalsh(self.stein)[::-1]
        scores = normal_scores(self.num_candidates)
        return _leading(eigenvalues > stein_edge(self.dim - np.arange(self.dim), self.num_evaluations, scores))

    @functools.cached_property
    def kernel_variance(self) -> tuple[float, float]:
        """Variance of the second half's winners outside of the first half's `certified_rank` directions, and its error.

        In units of σ². 1 where nothing selects; less where directions are hidden below the blind limit, or where the
        loss varies at this σ along directions without curvature (quartic selection: falls as σ grows).
        """
        vectors = np.linalg.eigh(self.halves[0])[1][:, self.certified_rank :]
        count = vectors.shape[1]
        if not count:
            return float("nan"), float("nan")
        variance = np.sum(vectors * (self.halves[1] @ vectors)) / count
        return float(variance), float(np.sqrt(2 / (count * self._half_sizes[1])))

    @property
    def complete(self) -> bool:
        """Whether the directions outside of the certificate are unselected, to three standard errors."""
        variance, error = self.kernel_variance
        return not abs(variance - 1) > 3 * error

    @property
    def centered(self) -> bool:
        """Whether the mean winner is w* up to chance (1 in 1,000); at a slope it is not."""
        return bool(self.num_winners * np.sum(self.mean**2) <= scipy.stats.chi2.ppf(0.999, self.dim))

    @property
    def blind_limit(self) -> float:
        r"""h/‖h‖ below which a direction leaves no trace in C, √(d/2N) · √(m/κ_m²), for r ≫ 1 and a loss without noise.

        Where the spike 1 − √2 κ_m h/‖h‖ meets the bulk at 1 − √(d/R) (Baik, Ben Arous & Péché 2005). √(m/κ_m²) is
        least, 1.92, at m = 5. The all-sample matrix with perfect scores is blind below √(d/2N). Noise of the loss
        divides h/‖h‖ by √(1 + its variance over that of the loss among the candidates).
        """
        return float(np.sqrt(self.dim / (2 * self.num_winners)) / expected_maximum(self.num_candidates))

    @property
    def visible_rank(self) -> float:
        """Largest rank of which a flat spectrum shows all directions in C: N/16d at m = 5, without noise."""
        return flat_rank(self.dim, self.num_candidates, self.num_winners)

    def inverse_hessian(self, rank: int | None = None) -> InverseHessian:
        """Shape of H⁻¹ from C on its `rank` most shrunken directions (default: `self.rank`), with its known error.

        Raises:
            ValueError: if `rank` is not in 1 … d, or none was found.
        """
        rank = self.rank if rank is None else rank
        if not 1 <= rank <= self.dim:
            raise ValueError(
                f"the shape of the inverse Hessian needs a rank in 1 … d = {self.dim}, got {rank}; "
                "give the rank, or draw more winners."
            )
        values, vectors = np.linalg.eigh(self._moment)
        matrix = (vectors[:, :rank] * values[:rank]) @ vectors[:, :rank].T
        slope = -1.0 if rank == 1 else shape_slope(self.num_candidates, rank)
        message = ""
        if slope > -0.9:
            need = next((m for m in (500 * 2**k for k in range(12)) if shape_slope(m, rank) <= -0.9), None)
            wanted = "which no number of candidates gives" if need is None else f"num_candidates ≈ {need:,}"
            message = (
                f"the shape of the inverse needs a slope of log C on log h below −0.9, "
                f"{wanted} for rank {rank}, got {slope:.2f} at num_candidates = {self.num_candidates}; "
                "use Hessian-vector products, or read the curvatures as C^(1/slope)."
            )
        return InverseHessian(matrix / np.trace(matrix), rank, slope, message)


def _leading(passed: np.ndarray) -> int:
    """Number of entries before the first False."""
    return len(passed) if passed.all() else int(np.argmin(passed))
