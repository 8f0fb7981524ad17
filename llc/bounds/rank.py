r"""From a spectrum to bounds on λ.

Near a local minimum of an analytic K ≥ 0 the splitting lemma gives K = |u|² + g(v) with u ∈ R^r, v ∈ R^(d−r), r the
rank of the Hessian and g of order at least four, hence (Bushnaq 2024)

$$ \tfrac{r}{2} \le \lambda \le \tfrac{r}{2} + \tfrac{d - r}{4} . $$

An eigenvalue counts if it stands above round-off, τ = max(8 ε h_max, 3 |h_min|, noise). Where no gap separates the
counted eigenvalues from τ, the rank is an interval: its lower end counts only eigenvalues above 10 γ/nβ, the scale from
which on the sampler sees a direction as curved.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from llc.bounds.assumptions import Assumption, assumptions_of, note_of
from llc.bounds.bound import Bound
from llc.bounds.renamed import renamed
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_number, require_type

_GAP_DECADES = 2.0  # below it, a change of τ by round-off or imperfect convergence changes the rank
_EDGE = 0.005  # largest share of a count from Lanczos in the decade above the smallest scale that it resolves
_VISIBLE = 10.0  # a direction with h > 10 γ/nβ has more than 10/11 of its full contribution to λ̂
_ROUNDING = 1e-9  # of bounds that are sums of halves, quarters and sixths
_OF_RANK = ", r/2 ≤ λ ≤ r/2 + (d − r)/4"


@dataclass(frozen=True)
class Bounds:
    """Bounds on the asymptotic λ, with what they rest on.

    Attributes:
        lower: r_lo / 2, or a larger one of `records`; nan where an assumption fails.
        upper: r_hi / 2 + (d − r_hi) / 4, or a smaller one of `records`; nan where an assumption fails.
        rank: number of eigenvalues above `threshold`.
        rank_interval: (r_lo, r_hi); equal where the spectrum has a gap.
        quad: λ_quad at `localization_scale`; the rank's half at localization_scale 0.
        quad_stderr: its standard error from the trace estimate (0 for a dense spectrum).
        dim: d.
        threshold: τ, in nats per example and squared parameter.
        gap: decades between the smallest counted eigenvalue and the largest below τ; nan if it can't be seen.
        localization_scale: γ/nβ; 0 if the bounds were made without.
        source: the spectrum's matrix and method, and the names of the two bounds.
        assumptions: conditions with their state at this point.
        records: the bounds beyond the rank, used or not.
        note: what a reader should know about the bounds at this point; empty if there is nothing.
        lower_source: name of the record that gives `lower`, or `"rank"`.
        upper_source: name of the record that gives `upper`, or `"rank"`.
        is_saddle: whether a probe beyond the rank saw the loss fall below that of w*, so that no bound holds.
    """

    lower: float
    upper: float
    rank: float
    rank_interval: tuple[float, float]
    quad: float
    quad_stderr: float
    dim: int
    threshold: float
    gap: float
    localization_scale: float
    source: str
    assumptions: tuple[Assumption, ...]
    records: tuple[Bound, ...] = ()
    note: str = ""
    lower_source: str = "rank"
    upper_source: str = "rank"
    is_saddle: bool = False

    clean = renamed("clean", "rank_is_unique")
    noise_scale = renamed("noise_scale", "localization_scale")

    def __str__(self) -> str:
        low, high = self.rank_interval
        rank = f"{low:.0f}" if self.rank_is_unique else f"{low:.0f} … {high:.0f}"
        scale = f" at γ/nβ = {self.localization_scale:.3g}" if self.localization_scale else " (no γ given: r/2)"
        error = f" ± {self.quad_stderr:.2g}" if self.quad_stderr else ""
        lines = [
            f"bounds  {self.interval}  {self.source}",
            f"rank    {rank} of {self.dim}  at τ = {self.threshold:.2g}, {self.spacing}",
            f"λ_quad  {self.quad:.4g}{error}{scale}",
        ]
        lines += [f"{'ok  ' if a.holds else 'FAIL'}    {a.name}: {a.message}" for a in self.assumptions]
        lines += [f"beyond  {record}" for record in self.records]
        lines += [f"note    {self.note}"] * bool(self.note)
        return "\n".join(lines)

    @property
    def interval(self) -> str:
        """[lower, upper], or in a sentence why it says nothing about λ."""
        if not self.valid:
            return "none: an assumption fails at w*."
        if self.is_vacuous:
            return f"none: the rank may be anything from 0 to d = {self.dim}, so that no λ up to d/2 is excluded."
        return f"[{self.lower:.4g}, {self.upper:.4g}]"

    @property
    def is_vacuous(self) -> bool:
        """Whether the interval is [0, d/2]: every λ that a smooth loss of d parameters can have."""
        return self.valid and self.lower <= 0 and self.upper >= self.dim / 2

    @property
    def valid(self) -> bool:
        """Whether all assumptions hold."""
        return all(assumption.holds for assumption in self.assumptions)

    @property
    def spacing(self) -> str:
        """The gap, in words for a reader."""
        if self.gap == np.inf:
            return "no eigenvalue below it"
        return f"gap of {self.gap:.1f} decades" if self.gap >= _GAP_DECADES else "no gap in the spectrum"

    @property
    def rank_is_unique(self) -> bool:
        """Whether the rank is one number: the spectrum has a gap, and no eigenvalue is uncertain."""
        return self.rank_interval[0] == self.rank_interval[1]


def rank_bounds(spectrum: Spectrum, *, nbeta: float | None = None, gamma: float | None = None) -> Bounds:
    """Bounds r/2 ≤ λ ≤ r/2 + (d − r)/4 from a spectrum, with λ_quad at the sampler's scale.

    Args:
        spectrum: of the Hessian at w*.
        nbeta: nβ of the sampler, dimensionless; with `gamma` it sets the scale γ/nβ of λ_quad and of the assumptions.
        gamma: γ of the sampler. Without the two, λ_quad is r/2 and the point is judged by |h_min| / h_max alone.

    Raises:
        ValueError: if only one of nbeta and gamma is given, nbeta is not positive, or gamma is negative.

    References:
        Bushnaq, Griffin & Mendel 2024 (bound); Watanabe 2009, Theorem 6.5 (splitting).
    """
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum")
    require_number("nbeta", nbeta, optional=True)
    require_number("gamma", gamma, strict=False, optional=True)
    localization_scale = _checked_scale(nbeta, gamma)
    threshold = spectrum.threshold
    if spectrum.exact:
        rank, interval, gap = _exact_rank(spectrum, threshold, localization_scale)
    else:
        rank, interval, gap = _estimated_rank(spectrum, threshold, localization_scale)
    assumptions = assumptions_of(spectrum, nbeta, localization_scale)
    valid = all(assumption.holds for assumption in assumptions)
    low, high = interval
    return Bounds(
        lower=low / 2 if valid else np.nan,
        upper=high / 2 + (spectrum.dim - high) / 4 if valid else np.nan,
        rank=rank,
        rank_interval=interval,
        quad=spectrum.quad(localization_scale) if localization_scale else rank / 2,
        quad_stderr=spectrum.quad_stderr(localization_scale) if localization_scale else 0.0,
        dim=spectrum.dim,
        threshold=float(threshold),
        gap=gap,
        localization_scale=localization_scale,
        source=f"{spectrum.matrix} rank ({spectrum.method}){_OF_RANK}",
        assumptions=assumptions,
        note=note_of(spectrum),
    )


def tighten(bounds: Bounds, records: tuple[Bound, ...]) -> Bounds:
    """`bounds` with the largest lower and the smallest upper bound of the rank and of `records`, both named.

    Nothing is taken from records where an assumption of `bounds` fails. Neither is it where two bounds contradict each
    other: some rank was decided wrongly then, and `source` says so.

    Args:
        bounds: of the rank.
        records: of `higher_bounds`.
    """
    bounds = replace(bounds, records=records)
    established = [record for record in records if record.status == "established"]
    if not bounds.valid or not established:
        return bounds
    lowest = max(established, key=lambda record: record.lower)
    highest = min(established, key=lambda record: record.upper)
    lower, below = max((bounds.lower, "rank"), (lowest.lower, lowest.name), key=lambda side: side[0])
    upper, above = min((bounds.upper, "rank"), (highest.upper, highest.name), key=lambda side: side[0])
    if lower > upper + _ROUNDING:
        conflict = f"{below} says λ ≥ {lower:.4g} and {above} says λ ≤ {upper:.4g}, so the bounds of the rank are kept"
        return replace(bounds, source=f"{bounds.source} ({conflict})")
    if upper - lower <= _ROUNDING:
        upper = lower
    rank = bounds.source.removesuffix(_OF_RANK)
    source = f"{rank}; lower bound: {below}, upper bound: {above}"
    return replace(bounds, lower=lower, upper=upper, lower_source=below, upper_source=above, source=source)


def at_scale(bounds: Bounds, spectrum: Spectrum, *, nbeta: float, gamma: float) -> Bounds:
    """`bounds` with λ_quad and the assumptions at another nβ and γ; what is known beyond the rank is kept.

    Args:
        bounds: of `rank_bounds` or `higher_bounds`.
        spectrum: from which they were made.
        nbeta: nβ.
        gamma: γ.
    """
    rescaled = rank_bounds(spectrum, nbeta=nbeta, gamma=gamma)
    return extend(rescaled, bounds.records, bounds.assumptions, is_saddle=bounds.is_saddle)


def extend(
    bounds: Bounds, records: tuple[Bound, ...], assumptions: tuple[Assumption, ...], *, is_saddle: bool = False
) -> Bounds:
    """`bounds` of the rank with the records and the further assumptions of others at the same point.

    Args:
        bounds: of the rank, whose own assumptions are judged at their scale and stay.
        records: of `higher_bounds`.
        assumptions: those with a name that `bounds` does not have are added; if one fails, no bound holds.
        is_saddle: whether the others saw the loss fall below that of w*.
    """
    extended = tighten(bounds, records)
    names = {assumption.name for assumption in bounds.assumptions}
    more = tuple(assumption for assumption in assumptions if assumption.name not in names)
    if not all(assumption.holds for assumption in more):
        extended = replace(extended, lower=np.nan, upper=np.nan)
    return replace(extended, assumptions=(*extended.assumptions, *more), is_saddle=is_saddle)


def _checked_scale(nbeta: float | None, gamma: float | None) -> float:
    if (nbeta is None) != (gamma is None):
        raise ValueError(f"rank_bounds needs nbeta and gamma together, got nbeta = {nbeta}, gamma = {gamma}.")
    if nbeta is None or gamma is None:
        return 0.0
    if not (nbeta > 0 and gamma >= 0):
        raise ValueError(f"rank_bounds needs nbeta > 0 and gamma >= 0, got nbeta = {nbeta}, gamma = {gamma}.")
    return gamma / nbeta


class _Rank(NamedTuple):
    rank: float
    interval: tuple[float, float]
    gap: float


def _exact_rank(spectrum: Spectrum, threshold: float, localization_scale: float) -> _Rank:
    eigenvalues = spectrum.nodes[0]
    counted = eigenvalues[eigenvalues > threshold]
    rank = float(len(counted))
    below = np.abs(eigenvalues[eigenvalues <= threshold])
    if not below.size:
        gap = np.inf
    elif not counted.size:
        gap = np.nan
    else:
        gap = float(np.log10(counted.min() / max(below.max(), spectrum.floor, spectrum.noise)))
    if not counted.size or gap >= _GAP_DECADES:
        # At a point beside the minimum the sign of an eigenvalue below 3 |h_min| is uncertain. Where such eigenvalues
        # are positive on the whole, their directions may be curved.
        negative = -np.sum(np.minimum(eigenvalues, 0.0))
        unsure = eigenvalues[(eigenvalues <= threshold) & (eigenvalues > max(spectrum.floor, spectrum.noise))]
        high = rank + (len(unsure) if np.sum(unsure) > 3 * negative else 0.0)
        return _Rank(rank, (rank - float(np.sum(spectrum.unstable_eigenvalues > threshold)), high), gap)
    visible = max(_VISIBLE * localization_scale, threshold * 10**_GAP_DECADES)
    low = spectrum.count(visible) - float(np.sum(spectrum.unstable_eigenvalues > visible))
    return _Rank(rank, (low, rank), gap)


def _estimated_rank(spectrum: Spectrum, threshold: float, localization_scale: float) -> _Rank:
    """The rank as an interval: Lanczos can't count at round-off.

    It is at most d, and at least the count above some scale less the error of that count. The scale is 10 γ/nβ, or the
    smallest one that is resolved where hardly any eigenvalue lies in the decade above it (a gap).
    """
    scale = max(_VISIBLE * localization_scale, threshold * 10**_GAP_DECADES)
    edge = max(spectrum.resolution, threshold)
    if edge < scale and spectrum.count(10 * edge) >= (1 - _EDGE) * spectrum.count(edge):
        scale = edge
    if not spectrum.resolves(scale):
        return _Rank(np.nan, (0.0, float(spectrum.dim)), np.nan)
    count = spectrum.count(scale)
    error = 2 * spectrum.count_stderr(scale)
    return _Rank(count, (max(0.0, float(np.floor(count - error))), float(spectrum.dim)), np.nan)
