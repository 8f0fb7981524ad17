r"""λ̂ over nβ from the draws of one run, by reweighting.

Draws at t = nβ, weighted by $e^{-(t' - t)(L(w) - L(w^*))}$, are draws at t' and the same γ:

$$ \hat\lambda(t') = t'\, \frac{\sum_k w_k (L(w_k) - L(w^*))}{\sum_k w_k}, \qquad
   \log w_k = -\Big(\frac{t'}{t} - 1\Big)\, n\beta\, (L(w_k) - L(w^*)) . $$

The energy nβ (L(w) − L(w*)) is about Gamma(λ, 1), so that the reach is a factor of about 1 ± 1 / √λ in nβ. It is judged
by Pareto-smoothed importance sampling: a tail index k̂ below 0.7, and enough effective draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from llc.analysis import schema
from llc.analysis.schema import constant, variable
from llc.analysis.series import array_stats, effective_sample_size, finite_chains, monte_carlo_error
from llc.posterior.arguments import require_type

_MAX_TAIL = 0.7  # Vehtari et al., Pareto smoothed importance sampling, 2024, §3.2.3
_MIN_ESS = 100.0  # below it the standard error itself is unreliable
_LEAST_DRAWS = 25  # five in the tail, from which its shape is fitted
_NUM_POINTS, _REACH = 41, 4.0  # default grid: nβ / 4 … 4 nβ


@dataclass(frozen=True)
class TemperatureCurve:
    """λ̂ over nβ, at the γ of the run.

    Attributes:
        nbeta: inverse temperatures times n, increasing.
        value: λ̂ at each.
        mcse: Monte Carlo standard error, autocorrelation and weights included.
        ess: effective draws, after weighting.
        tail: Pareto k̂ of the weights; −inf at the run's own nβ.
        trusted: where k̂ < 0.7 and at least 100 effective draws are left.
        own: nβ of the run.
        gamma: γ of the run.
    """

    nbeta: Float[np.ndarray, "point"]
    value: Float[np.ndarray, "point"]
    mcse: Float[np.ndarray, "point"]
    ess: Float[np.ndarray, "point"]
    tail: Float[np.ndarray, "point"]
    trusted: Bool[np.ndarray, "point"]
    own: float
    gamma: float

    def __str__(self) -> str:
        inside = self.nbeta[self.trusted]
        reach = f"trusted from {inside.min():.4g} to {inside.max():.4g}" if inside.size else "trusted nowhere"
        lines = [f"λ̂ over nβ at γ = {self.gamma:.4g}, {reach}", f"{'nβ':>12} {'λ̂':>10} {'± se':>9} {'ESS':>8}  k̂"]
        for point in zip(self.nbeta, self.value, self.mcse, self.ess, self.tail, self.trusted, strict=True):
            mark = "" if point[-1] else "  not trusted"
            lines.append("{:12.5g} {:10.4f} {:9.4f} {:8.0f} {:5.2f}{}".format(*point[:-1], mark))
        return "\n".join(lines)


def temperature_curve(draws: xr.DataTree, nbetas: Sequence[float] | np.ndarray | None = None) -> TemperatureCurve:
    """λ̂ at other nβ from one run, with the range where it can be trusted.

    Args:
        draws: of `llc.sample`, with the loss on all the data.
        nbetas: inverse temperatures times n; None takes 41 from a quarter of the run's to four times it.

    Raises:
        ValueError: if an nβ is not positive, the loss is known on a subset only, or no chain is finite.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry, Pareto smoothed importance sampling, JMLR 2024.
    """
    require_type("draws", draws, xr.DataTree, "a DataTree of llc.sample")
    own = constant(draws, schema.NBETA)
    grid = own * np.geomspace(1 / _REACH, _REACH, _NUM_POINTS) if nbetas is None else _numbers(nbetas)
    if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
        raise ValueError(f"nbetas needs positive numbers, got {nbetas}; nβ of the run is {own:.4g}.")
    if constant(draws, schema.EVAL_SIZE) < constant(draws, schema.NUM_DATA):
        raise ValueError(
            f"temperature_curve needs the loss on all {constant(draws, 'num_data'):.0f} examples, got it on "
            f"{constant(draws, 'eval_size'):.0f}, whose noise would be in the weights; sample with eval_size=None."
        )
    energy = variable(draws, schema.POSTERIOR, schema.ENERGY)
    energy = energy[finite_chains(energy)]
    if energy.size < _LEAST_DRAWS:
        raise ValueError(
            f"draws need at least {_LEAST_DRAWS} of finite chains for the tail of the weights, got {energy.size}; "
            "see the report, or draw more."
        )
    points = [_reweighted(energy, float(nbeta) / own) for nbeta in grid]
    value, mcse, ess, tail = (np.array(column) for column in zip(*points, strict=True))
    trusted = (tail < _MAX_TAIL) & (ess >= _MIN_ESS)
    return TemperatureCurve(grid, value, mcse, ess, tail, trusted, own, constant(draws, schema.GAMMA))


def _numbers(nbetas: object) -> Float[np.ndarray, "..."]:
    """They, least first; nan where they are no numbers."""
    try:
        return np.sort(np.asarray(nbetas, float))
    except (TypeError, ValueError, OverflowError):
        return np.array([np.nan])


def _reweighted(energy: Float[np.ndarray, "chain draw"], ratio: float) -> tuple[float, float, float, float]:
    """λ̂ at `ratio` times the run's nβ, its error, the effective draws and k̂."""
    weights, tail = np.full(energy.shape, 1 / energy.size), -np.inf
    if ratio != 1:
        r_eff = min(effective_sample_size(energy) / energy.size, 1.0) or 1 / energy.size
        # It takes minus the logarithm of the weights, as one of a likelihood that is left out.
        log_weights, tail = array_stats().psislw((ratio - 1) * energy.ravel(), r_eff=r_eff)
        weights = np.exp(log_weights - np.max(log_weights)).reshape(energy.shape)
        weights /= weights.sum()
    value = float(np.sum(weights * energy))
    # The ratio of two means, linearized: its error is that of the mean of N w (E − value).
    influence = energy.size * weights * (energy - value)
    error = monte_carlo_error(influence)
    spread = float(np.sum(weights * (energy - value) ** 2))
    ess = spread / error**2 if 0 < error < np.inf else 0.0
    return ratio * value, ratio * error, ess, float(tail)
