r"""What λ̂ is at a point that is no minimum, such as a checkpoint in the middle of training.

With g = ∇L(w*), curvatures h_i, and s = γ/nβ, the local Gaussian of U has its mean at w_γ = w* − (H + s)⁻¹ g, the
minimum that the localization leaves within reach, instead of at w*. Its mean energy has two parts,

$$ \hat\lambda \approx \lambda_{quad} + n\beta\,[L(w_\gamma) - L(w^*)], \qquad
   n\beta\,[L(w_\gamma) - L(w^*)] = -\frac{n\beta}{2} \sum_i g_i^2\, \frac{h_i + 2 s}{(h_i + s)^2} . $$

The second one, the share of the slope, is never positive where all h_i > −s. At least half of it is
½ nβ gᵀ(H + s)⁻¹g, at h = 0 it is −nβ² ‖g‖²/γ, and its size is never more than that for h_i ≥ 0: the bound that γ alone
gives. λ̂ less that share is λ̂ as measured from w_γ, which is what polishing w* within the localization's reach gives.
The slope also adds nβ s² Σ g_i²/(h_i + s)³ to the energy variance, as U is flat at w_γ and L is not.
"""

import math
from typing import NamedTuple

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.check import MAX_BIAS, Check, make_check
from llc.analysis.estimators import Estimate
from llc.bounds.spectral_measure import Spectrum


class Slope(NamedTuple):
    """The slope at w*, and what it does to λ̂ at the draws' nβ and γ.

    Attributes:
        grad_norm: ‖∇L(w*)‖ over the parameters that move, in nats per example and parameter.
        share: nβ (L(w_γ) − L(w*)), a part of λ̂: measured in a sweep, and elsewhere of the Gaussian at w*; nan where
            there is no spectrum, or none with all curvatures above −γ/nβ.
        most: nβ² ‖∇L(w*)‖²/γ, which is the largest size of that share where no curvature is negative.
        variance: what it adds to the energy variance; at most `most` where it is not known.
        distance: ‖w_γ − w*‖; nan as `share`.
    """

    grad_norm: float
    share: float
    most: float
    variance: float
    distance: float

    @property
    def is_known(self) -> bool:
        """Whether the share is known, and not only its bound."""
        return not math.isnan(self.share)

    @property
    def energy(self) -> float:
        """The size of the share, or of its bound where it is not known."""
        return abs(self.share) if self.is_known else self.most


def slope_of(draws: xr.DataTree, spectrum: Spectrum | None = None) -> Slope | None:
    """The slope at w* and its share of λ̂; None where neither draws nor spectrum know the gradient.

    Args:
        draws: of `llc.sample`.
        spectrum: of the Hessian at w*, with the gradient's measure in it.

    Example:
        >>> import arviz_base, numpy as np
        >>> constants = {"nbeta": 100.0, "gamma": 10.0, "center_gradient": 0.1}
        >>> draws = arviz_base.from_dict({"constant_data": constants})
        >>> round(slope_of(draws).most, 9)  # nβ² ‖g‖² / γ
        10.0
    """
    known = schema.has(draws, schema.CONSTANTS, schema.CENTER_GRADIENT)
    if not known and spectrum is None:
        return None
    nbeta, gamma = schema.constant(draws, schema.NBETA), schema.constant(draws, schema.GAMMA)
    square = float(np.sum(spectrum.gradient_weights)) if spectrum is not None else math.nan
    if known:
        square = schema.constant(draws, schema.CENTER_GRADIENT) ** 2
    square = max(square, 0.0)
    most = nbeta**2 * square / gamma if gamma else (math.inf if square else 0.0)
    norm, scale = math.sqrt(square), gamma / nbeta
    measured = schema.has(draws, schema.CONSTANTS, schema.REACHED_CHANGE)
    if spectrum is None or not scale > 0 or not np.all(spectrum.gradient_nodes > -scale):
        if not measured:
            return Slope(norm, math.nan, most, most, math.nan)
        return Slope(norm, *_measured(draws, nbeta, most))
    weights, nodes = np.maximum(spectrum.gradient_weights, 0.0), spectrum.gradient_nodes
    share = -0.5 * nbeta * float(np.sum(weights * (nodes + 2 * scale) / (nodes + scale) ** 2))
    variance = nbeta * scale**2 * float(np.sum(weights / (nodes + scale) ** 3))
    distance = math.sqrt(float(np.sum(weights / (nodes + scale) ** 2)))
    if measured:
        return Slope(norm, *_measured(draws, nbeta, most))._replace(variance=variance)
    return Slope(norm, share, most, variance, distance)


def _measured(draws: xr.DataTree, nbeta: float, most: float) -> tuple[float, float, float, float]:
    """Share, bound, variance and distance as a descent from w* found them."""
    share = nbeta * min(schema.constant(draws, schema.REACHED_CHANGE), 0.0)
    return share, most, most, schema.constant(draws, schema.REACHED_DISTANCE)


def slope_check(slope: Slope | None, llc: Estimate) -> Check | None:
    """Whether the slope at w* leaves λ̂ alone: its share is below 2 % of what λ̂ is without it. None without a gradient.

    Args:
        slope: of `slope_of`.
        llc: λ̂.
    """
    if slope is None or not math.isfinite(llc.value):
        return None
    known = slope.is_known
    polished = llc.value + slope.energy if known else llc.value
    threshold = MAX_BIAS * max(polished, 0.5)
    at = f"‖∇L(w*)‖ = {slope.grad_norm:.2g}"
    alike = "Compare λ̂ with others at the same scale, or train w* further (llc.polish)"
    if known:
        seen = f"{at}, which changes λ̂ by {slope.share + 0.0:.2g}"
        cure = (
            f"w* is no minimum, and λ̂ is right at this nβ and γ only; without the share of the slope it is "
            f"{slope.energy:.2g} larger, as after a polish within the localization's reach (a distance of "
            f"{slope.distance:.2g}). {alike}"
        )
    else:
        seen = f"{at}, which lowers λ̂ by at most {slope.most:.2g}"
        cure = (
            "w* may be no minimum, and λ̂ is then right at this nβ and γ only; llc.sweep, or a spectrum without "
            f"curvatures below −γ/nβ, gives the part of λ̂ that comes from the slope. {alike}"
        )
    return make_check(
        "slope",
        "slope",
        slope.energy,
        threshold,
        passed=slope.energy <= threshold,
        seen=seen,
        cure=cure,
    )
