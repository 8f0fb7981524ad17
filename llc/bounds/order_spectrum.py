"""How many directions have which order at each scale, as a record and a table (see scales.py)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

ORDERS = ("2", "4", "6", "8+", "flat", "falling")


@dataclass(frozen=True)
class OrderSpectrum:
    """Counts of directions by order over scales, largest scale first.

    Attributes:
        scales: τ, in nats per example and squared parameter.
        distances: ρ = 1/√(nβτ), in units of the parameters.
        rank: number of curvatures above τ.
        rank_stderr: its standard error (0 for an exact spectrum).
        lower: r(τ)/2.
        upper: r(τ)/2 + (d − D − r(τ))/4.
        effective_dimension: 2 λ_quad at γ/nβ = τ.
        orbit: D, the number of symmetry directions; None where they were not looked for, and are among `"flat"`.
        counts: of the other directions with h <= τ, a column for each of `ORDERS`: `"flat"` where K is at round-off,
            `"falling"` where it is below that of w*. nan where ρ is beyond the distances that were probed.
        counts_stderr: standard errors of the counts, from the directions that were probed.
        num_probed: number of directions that were probed.
    """

    scales: Float[np.ndarray, "scale"]
    distances: Float[np.ndarray, "scale"]
    rank: Float[np.ndarray, "scale"]
    rank_stderr: Float[np.ndarray, "scale"]
    lower: Float[np.ndarray, "scale"]
    upper: Float[np.ndarray, "scale"]
    effective_dimension: Float[np.ndarray, "scale"]
    orbit: int | None
    counts: Float[np.ndarray, "scale order"]
    counts_stderr: Float[np.ndarray, "scale order"]
    num_probed: int

    def __str__(self) -> str:
        head = f"{'τ':>8} {'ρ':>8} {'rank':>7} {'bracket':>17} {'2λ_quad':>8} "
        lines = [head + " ".join(f"{name:>8}" for name in (*(f"order {o}" for o in ORDERS[:4]), *ORDERS[4:]))]
        for i, scale in enumerate(self.scales):
            bracket = f"[{self.lower[i]:.4g}, {self.upper[i]:.4g}]"
            line = f"{scale:8.1e} {self.distances[i]:8.2g} {self.rank[i]:7.4g} {bracket:>17} "
            line += f"{self.effective_dimension[i]:8.4g} "
            lines.append(line + " ".join(self._count(i, j) for j in range(len(ORDERS))))
        return "\n".join(lines)

    def _count(self, row: int, column: int) -> str:
        count, error = self.counts[row, column], self.counts_stderr[row, column]
        if math.isnan(count):
            return f"{'–':>8}"
        return f"{f'{count:.4g}' + (f'±{error:.1g}' if error else ''):>8}"
