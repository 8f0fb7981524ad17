r"""The assumptions of the rank's bounds at w*: a smooth loss, and a point that is near enough to a minimum.

Negative curvature at w* shifts λ̂ by ½ Σ |h| / (γ/nβ − |h|), and a gradient by up to nβ gᵀ (H₊ + γ/nβ)⁻¹ g. Both are
allowed as long as they are small beside λ_quad.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum

_TILT = 0.02  # largest shift of λ̂ by gradient or negative curvature at w*, relative to λ_quad (or to one direction, ½)
_MISFIT = 1e-6  # ‖H − G‖ / ‖H‖; an exact fit to targets in float32 leaves 1e-7
_IMPERFECT = 1e-3  # |h_min| / h_max of a minimum that is not trained to the end: 5e-4 was seen at a loss of 7e-5
NO_DESCENT = "no descent in the kernel"  # of the Hessian; judged by the probes beyond the rank


@dataclass(frozen=True)
class Assumption:
    """A condition of the bounds at this point: whether it holds, and how that was seen.

    Attributes:
        name: of the condition.
        holds: whether it holds.
        message: how that was seen.
        kind: `"minimum"` if it is one of gradient or curvature, that w* is a minimum; else `"bounds"`.
    """

    name: str
    holds: bool
    message: str
    kind: Literal["minimum", "bounds"] = "bounds"


def assumptions_of(spectrum: Spectrum, nbeta: float | None, localization_scale: float) -> tuple[Assumption, ...]:
    """The conditions at this point.

    Args:
        spectrum: of the Hessian at w*.
        nbeta: nβ of the sampler, or None.
        localization_scale: γ/nβ, or 0 without a sampler.
    """
    smallest, largest = spectrum.smallest, max(spectrum.largest, np.finfo(np.float64).tiny)
    unit = max(spectrum.quad(localization_scale), 0.5) if localization_scale else 0.5
    if localization_scale:
        # A negative h adds ½ |h| / (γ/nβ − |h|) to the Gaussian λ̂. From |h| = γ/nβ on there is no Gaussian.
        def excess(h: np.ndarray) -> np.ndarray:
            negative = np.minimum(-np.minimum(h, 0.0), 0.999 * localization_scale)
            return 0.5 * negative / (localization_scale - negative)

        shift = spectrum.sum(excess)
        holds = shift <= _TILT * unit and -smallest < localization_scale
        seen = f"h_min = {smallest:.2g} at γ/nβ = {localization_scale:.2g} shifts λ̂ by {shift:.2g}"
    else:
        holds = -smallest <= _IMPERFECT * largest
        seen = f"h_min / h_max = {smallest / largest:.2g}"
    minimum = Assumption("no negative curvature", bool(holds), seen, "minimum")
    tilt = 2 * (nbeta or 0.0) * spectrum.newton_decrement(localization_scale)
    message = (
        f"the gradient at w* shifts λ̂ by up to {tilt:.2g}" if localization_scale else "not judged without nβ and γ"
    )
    stationary = Assumption("stationary", bool(not localization_scale or tilt <= _TILT * unit), message, "minimum")
    assumptions = minimum, stationary, _smooth(spectrum.smoothness)
    if spectrum.row_share < 1:
        message = f"the spectrum is of {spectrum.row_share:.2g} of the rows of data; its rank is not that of all rows"
        assumptions = *assumptions, Assumption("all rows", holds=False, message=message)
    if spectrum.matrix != "ggn":
        return assumptions
    message = f"the Hessian differs from the Gauss–Newton matrix by {spectrum.gauss_newton_discrepancy:.2g} of its norm"
    if spectrum.gauss_newton_discrepancy > _MISFIT:
        message += ", so that its rank is not that of the Hessian; take llc.spectrum(…, matrix='hessian')"
    return *assumptions, Assumption(
        "Gauss–Newton is the Hessian", spectrum.gauss_newton_discrepancy <= _MISFIT, message
    )


def note_of(spectrum: Spectrum) -> str:
    """What a reader of the bounds should know about them at this point; empty if there is nothing."""
    if spectrum.unstable_eigenvalues.size:
        count = spectrum.unstable_eigenvalues.size
        return (
            f"{count} curvature{'s' if count > 1 else ''}, up to {spectrum.unstable_eigenvalues.max():.2g}, "
            "would change by more than a third after a Newton step, so w* lies beside a minimum, perhaps a "
            "degenerate one; move w* there by llc.polish"
        )
    if spectrum.method in ("range_finder", "sketch") and spectrum.noise > spectrum.floor:
        return (
            f"method {spectrum.method!r} does not resolve curvature below {spectrum.noise:.2g} (h_max is "
            f"{spectrum.largest:.2g}) and takes it for zero; method 'dense' would count it"
        )
    if spectrum.matrix == "ggn" or not spectrum.gauss_newton_discrepancy > _MISFIT:
        return ""
    return (
        f"{spectrum.gauss_newton_discrepancy:.2g} of the Hessian's norm comes from residuals (label noise?) and may "
        "add to its rank. λ is then that of the loss on these data; llc.spectrum(…, matrix='ggn') has the rank of the "
        "outputs"
    )


def _smooth(smoothness: Smoothness | None) -> Assumption:
    if smoothness is None:
        return Assumption("smooth", holds=True, message="not judged: the spectrum's file has no probe")
    if smoothness.state in ("coarse", "not judged"):
        coarse = smoothness.state == "coarse"
        reason = "the loss computes in less than float64" if coarse else "the spectrum was made for a small budget"
        return Assumption("smooth", holds=True, message=f"not judged: {reason}")
    if smoothness.state == "boundary":
        message = (
            "w* lies on the boundary of the loss's domain, since the loss is not finite beside it; move w* inside, or "
            "use a parametrization without a boundary (exp or softplus)"
        )
        return Assumption("smooth", holds=False, message=message)
    even, odd = (
        f"an {part} part ~ t^{power:.1f} (t^{smooth} if smooth)" if power < np.inf else f"no {part} part"
        for part, power, smooth in (("even", smoothness.even, 2), ("odd", smoothness.odd, 3))
    )
    seen = f"as t → 0 from w*, the gradient has {even} and {odd} beyond the Hessian"
    if smoothness.state == "smooth":
        return Assumption("smooth", holds=True, message=seen)
    message = (
        f"w* lies on a kink of the loss (a ReLU that is exactly 0 there?): {seen}; move w* off the kink, or replace "
        "the activation by a smooth one"
    )
    return Assumption("smooth", holds=False, message=message)
