r"""What kind of run it was, told from its draws: near w*, out of its basin, or held by the localization alone.

With x = w − w*, ΔL = L(w) − L(w*) and d parameters:

- **degree** m = E[x·∇L] / E[ΔL]: with what power the loss rises from w* to the draws. It is 2 of a quadratic, 2k of a
  homogeneous loss of that degree, and at least 1 of every convex one, since L(w*) ≥ L(w) − x·∇L there. Where draws lie
  on a plateau, such as that of a network at chance, it falls to 0. It needs no reference, no spectrum, and no chains
  that have mixed: x·∇U is recorded, and nβ x·∇L = x·∇U − γ‖x‖².
- **reference** E[ΔL] / (L_ref − L(w*)): part of the way to a loss at which nothing is left of what was learnt. L_ref is
  that of all parameters at zero, which is chance for most networks, or what the user says.
- **distance** γ E‖x‖² / d: 1 of the Gaussian of the localization, less where the loss holds the draws.
- **share** Var[nβΔL] / E[nβΔL]: 1 under a Gamma law, and Σp² / Σp on a quadratic with shares p = h / (h + γ/nβ): how
  much of its own the average direction shows.
- **quad_ratio** λ̂ / λ_quad, where the curvature at w* is known.
- **half_step** by how much of itself λ̂ falls in a run at half the step, where there is one.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema
from llc.analysis.advice import stronger_gamma, was_chosen
from llc.analysis.check import Check, make_check
from llc.analysis.estimators import Estimate
from llc.analysis.schema import POSTERIOR, SAMPLE_STATS, constant, variable
from llc.analysis.series import finite_chains, monte_carlo_error

Name = Literal["local", "left the basin", "localization only"]

_SIGMAS = 3  # standard errors by which a number is beyond its limit
_CONVEX = 1.0  # degree: least of a convex loss
_FAR = 0.5  # of the way to the reference loss, from which draws have to look quadratic to be called local (set by eye)
_NEAR = 0.25  # of that way, within which a degree below 1 may come of an L(w*) that is too low (set by eye)
_QUADRATIC = (0.5, 2.0)  # λ̂ / λ_quad, and degree / 2, of draws that do (set by eye; 1 is exact)
_KNOWN = 0.5  # standard error of the degree up to which it is quoted
_SHOWN = 0.25  # share below which localization decides; .28 at γ/nβ = h_max if curvatures are uniform in log h
_FREE = 0.5  # distance: part of the localization's spread that is left if the loss holds next to nothing
_WEAKER = 0.5  # share that the named γ shows


@dataclass(frozen=True)
class Evidence:
    """What a character is told from; nan where the draws do not have it (see the module).

    Attributes:
        degree: E[x·∇L] / E[ΔL], dimensionless.
        degree_error: its standard error.
        excess: E[ΔL], nats per example.
        reference: E[ΔL] / (L_ref − L(w*)).
        distance: γ E‖x‖² / d.
        share: Var[nβΔL] / E[nβΔL].
        share_error: its standard error.
        quad_ratio: λ̂ / λ_quad.
        half_step: (λ̂ − λ̂ at half the step) / λ̂.
    """

    degree: float
    degree_error: float
    excess: float
    reference: float
    distance: float
    share: float
    share_error: float
    quad_ratio: float = math.nan
    half_step: float = math.nan

    @property
    def on_plateau(self) -> bool:
        """Whether the loss surely rises less from w* to the draws than any convex one, and not for a wrong L(w*)."""
        return self.degree + _SIGMAS * self.degree_error < _CONVEX and not self.reference < _NEAR

    @property
    def looks_quadratic(self) -> bool:
        """Whether λ̂ is that of the curvature at w*, and the loss rises to the draws as a quadratic does."""
        low, high = _QUADRATIC
        rises = not self.degree_error < _KNOWN or low <= self.degree / 2 <= high
        return low <= self.quad_ratio <= high and rises

    @property
    def is_held(self) -> bool:
        """Whether the localization, not the loss, decides where the draws are."""
        return not self.distance < _FREE and self.share + _SIGMAS * self.share_error < _SHOWN


@dataclass(frozen=True)
class Character:
    """What kind of run it was.

    Attributes:
        name: "local": the draws lie in the basin of w*, and λ̂ tells of it at this nβ and γ. "left the basin": they lie
            where nothing is left of what was learnt, and λ̂ tells nothing of w*. "localization only": γ is so large that
            the draws hardly feel the loss, and λ̂ is right and next to nothing.
        evidence: the numbers it was told from.
        reason: the same in one sentence.
    """

    name: Name
    evidence: Evidence
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Name, reason and evidence, as plain data."""
        return asdict(self)


def character_of(draws: xr.DataTree, mean: Estimate, variance: Estimate, quad: float | None) -> Character | None:
    """What kind of run it was; None where λ̂ is not above its error, so that nothing is told.

    Args:
        draws: of one run; a run at half the step among them serves.
        mean: the mean energy λ̂.
        variance: the energy variance.
        quad: λ_quad at the scale of the draws, or None.
    """
    error = _error(variable(draws, POSTERIOR, schema.ENERGY))
    if not (math.isfinite(error) and mean.value > _SIGMAS * error):
        return None
    evidence = _evidence(draws, replace(mean, mcse=error), variance, quad)
    if evidence.on_plateau or (evidence.reference > _FAR and not evidence.looks_quadratic):
        return Character("left the basin", evidence, _told(evidence))
    if evidence.is_held:
        shown = f"the average direction contributes {max(evidence.share, 0.0):.0%} of its full value"
        return Character("localization only", evidence, f"variance / mean of the energy: {shown}")
    return Character("local", evidence, _told(evidence) + _too_warm(evidence, mean))


def _too_warm(evidence: Evidence, mean: Estimate) -> str:
    """That nβ is so small that even a model which has learnt nothing has a λ̂ little larger; empty elsewhere."""
    if not evidence.reference > _FAR:
        return ""
    return (
        f"; even a model that has learnt nothing has λ̂ = {mean.value / evidence.reference:.2g} at this nβ: to measure "
        "what was learnt, raise nbeta, or divide a squared error by twice the variance of its noise"
    )


def character_checks(draws: xr.DataTree, character: Character | None) -> tuple[Check, ...]:
    """The checks `basin` and `localization_only`, of kind "scale"; none where nothing is told.

    Args:
        draws: of one run.
        character: of `character_of`.
    """
    if character is None:
        return ()
    evidence = character.evidence
    degree, share = evidence.degree, evidence.share
    left, held = character.name == "left the basin", character.name == "localization only"
    return (
        make_check("basin", "scale", degree, _CONVEX, passed=not left, seen=character.reason, cure=_return_cure(draws)),
        make_check(
            "localization_only",
            "scale",
            share,
            _SHOWN,
            passed=not held,
            seen=f"variance / mean of the energy is {share:.2g}",
            cure=_held_cure(draws, share),
        ),
    )


def _evidence(draws: xr.DataTree, mean: Estimate, variance: Estimate, quad: float | None) -> Evidence:
    nbeta, gamma, dim = (constant(draws, name) for name in (schema.NBETA, schema.GAMMA, schema.NUM_PARAMS))
    excess = mean.value / nbeta
    to_reference = schema.optional_constant(draws, schema.REFERENCE_LOSS) - constant(draws, schema.INIT_LOSS)
    degree = degree_error = distance = math.nan
    if schema.has(draws, SAMPLE_STATS, schema.DISTANCE):
        squares = variable(draws, SAMPLE_STATS, schema.DISTANCE) ** 2
        slopes = dim * variable(draws, SAMPLE_STATS, schema.VIRIAL) - gamma * squares  # nβ x·∇L
        finite = finite_chains(variable(draws, POSTERIOR, schema.ENERGY)) & finite_chains(slopes)
        if finite.any():
            distance = gamma * float(squares[finite].mean()) / dim
            degree = float(slopes[finite].mean()) / mean.value
            degree_error = math.hypot(_error(slopes), degree * mean.mcse, _unsettled(draws, dim)) / mean.value
    return Evidence(
        degree=degree,
        degree_error=degree_error,
        excess=excess,
        reference=excess / to_reference if _has_reference(draws, to_reference) else math.nan,
        distance=distance,
        share=variance.value / mean.value,
        share_error=math.hypot(variance.mcse, variance.value / mean.value * mean.mcse) / mean.value,
        quad_ratio=mean.value / quad if quad else math.nan,
        half_step=_half_step(draws, mean),
    )


def _unsettled(draws: xr.DataTree, dim: float) -> float:
    """By how much E[x·∇U] is off d, which it is once chains are stationary; 0 within its error.

    Before that x·∇U, of the steps between two draws, and γ‖x‖², of the draw after them, belong to different places.
    """
    virial = variable(draws, SAMPLE_STATS, schema.VIRIAL)
    off = abs(float(virial[finite_chains(virial)].mean()) - 1)
    return dim * off if off > _SIGMAS * _error(virial) else 0.0


def _error(values: Float[np.ndarray, "chain draw"]) -> float:
    """Standard error of the mean over finite chains; 0 where all draws are the same, as on a flat plateau."""
    finite = values[finite_chains(values)]
    return 0.0 if finite.size and np.ptp(finite) == 0 else monte_carlo_error(values)


def _has_reference(draws: xr.DataTree, to_reference: float) -> bool:
    return schema.has(draws, schema.CONSTANTS, schema.REFERENCE_LOSS) and to_reference > 0


def _half_step(draws: xr.DataTree, mean: Estimate) -> float:
    half = schema.half_step_run(draws)
    if half is None:
        return math.nan
    energy = variable(half, POSTERIOR, schema.ENERGY)
    energy = energy[finite_chains(energy)]
    return float((mean.value - energy.mean()) / mean.value) if energy.size else math.nan


def _told(evidence: Evidence) -> str:
    """The evidence in words, as far as there is any."""
    told = [f"variance / mean of the energy is {evidence.share:.2g}"]
    if not math.isnan(evidence.quad_ratio):
        told.insert(0, f"λ̂/λ_quad = {evidence.quad_ratio:.2g}")
    if evidence.degree_error < _KNOWN:
        told.insert(0, f"x·∇L/ΔL = {evidence.degree:.2g} (2 if quadratic)")
    if not math.isnan(evidence.reference):
        told.insert(0, f"ΔL = {evidence.excess:.2g}, {evidence.reference:.0%} of the way to chance")
    return "; ".join(told[:3])


def _return_cure(draws: xr.DataTree) -> str:
    """What to do about draws that left: a γ, by its value."""
    told = "the draws left the basin of w*, so λ̂ says nothing about w*; "
    if not was_chosen(draws):
        return f"{told}leave gamma out, so that llc.estimate chooses one at which the loss is about quadratic"
    step = schema.settings_of(draws)["sampler"].get("step_size")
    smaller = f", with step_size={step / 4:.3g}" if isinstance(step, float) else ""
    return f"{told}give {stronger_gamma(draws)}{smaller}"


def _held_cure(draws: xr.DataTree, share: float) -> str:
    """What to do about a localization that hides all: a γ, by its value; not where the program chose this one."""
    gamma = constant(draws, schema.GAMMA)
    hidden = "γ outweighs the loss, so that λ̂ is right at this γ but says little about w*; "
    if was_chosen(draws):
        weaker = draws.attrs.get(schema.WEAKER_GAMMA)
        known = isinstance(weaker, (int, float)) and 0 < weaker < math.inf
        named = f", or look further: with gamma={weaker:.3g} draws go a tenth of the way to chance" if known else ""
        return f"{hidden}compare λ̂ with others at the same scale (`llc.estimate(…, like=report)`){named}"
    share = min(max(share, 1e-3), _WEAKER)
    weaker = gamma * share / (1 - share) * (1 - _WEAKER) / _WEAKER  # h = γ/nβ · p / (1 − p) shows _WEAKER there
    return f"{hidden}give gamma={float(np.format_float_scientific(weaker, 1)):g}, or leave it out"
