r"""What the bounds of the rank rest on at this point: a smooth loss, and a minimum that is sharp enough.

A negative curvature or a gradient at w* shifts λ̂ by ½ Σ |h| / (γ/nβ − |h|) and by up to nβ gᵀ (H₊ + γ/nβ)⁻¹ g: both are
allowed as far as they are small beside λ_quad.
"""

from dataclasses import dataclass

import numpy as np

from llc.bounds.spectral_measure import Smoothness, Spectrum

_TILT = 0.02  # largest shift of λ̂ by gradient or negative curvature at w*, relative to λ_quad (or to one direction, ½)
_MISFIT = 1e-6  # ‖H − G‖ / ‖H‖; an exact fit to targets in float32 leaves 1e-7
_IMPERFECT = 1e-3  # |h_min| / h_max of an imperfectly trained minimum (5e-4 at a loss of 7e-5); a saddle has more


@dataclass(frozen=True)
class Assumption:
    """A condition of the bounds at this point: whether it holds, and how that was seen."""

    name: str
    holds: bool
    message: str


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
        # A negative h adds ½ |h| / (γ/nβ − |h|) to the Gaussian λ̂, and there is no Gaussian beyond γ/nβ.
        def excess(h):
            negative = np.minimum(-np.minimum(h, 0.0), 0.999 * localization_scale)
            return 0.5 * negative / (localization_scale - negative)

        shift = spectrum.sum(excess)
        holds = shift <= _TILT * unit and -smallest < localization_scale
        seen = f"h_min = {smallest:.2g} at γ/nβ = {localization_scale:.2g} shifts λ̂ by {shift:.2g}"
    else:
        holds = -smallest <= _IMPERFECT * largest
        seen = f"h_min / h_max = {smallest / largest:.2g}"
    minimum = Assumption("no negative curvature", bool(holds), seen)
    tilt = 2 * (nbeta or 0.0) * spectrum.newton_decrement(localization_scale)
    message = (
        f"the gradient at w* shifts λ̂ by up to {tilt:.2g}" if localization_scale else "not judged without nβ and γ"
    )
    stationary = Assumption("stationary", bool(not localization_scale or tilt <= _TILT * unit), message)
    assumptions = minimum, stationary, _smooth(spectrum.smoothness)
    if spectrum.matrix != "ggn":
        return assumptions
    message = f"the Hessian differs from the Gauss–Newton matrix by {spectrum.gauss_newton_discrepancy:.2g} of its norm"
    if spectrum.gauss_newton_discrepancy > _MISFIT:
        message += "; take the rank of the Hessian (matrix='hessian')"
    return *assumptions, Assumption(
        "Gauss–Newton is the Hessian", spectrum.gauss_newton_discrepancy <= _MISFIT, message
    )


def note_of(spectrum: Spectrum) -> str:
    """What to know of the bounds' meaning at this point; empty if nothing."""
    if spectrum.unstable_eigenvalues.size:
        return (
            f"{spectrum.unstable_eigenvalues.size} curvatures, up to {spectrum.unstable_eigenvalues.max():.2g}, "
            "would change by more than a third after a Newton step: w* is beside a minimum, "
            "perhaps a degenerate one; llc.polish it"
        )
    if spectrum.method in ("range_finder", "sketch") and spectrum.noise > spectrum.floor:
        return (
            f"curvature below {spectrum.noise:.2g} (h_max is {spectrum.largest:.2g}) is not seen by method "
            f"{spectrum.method!r} and taken for zero; 'dense' would count it"
        )
    if spectrum.matrix == "ggn" or not spectrum.gauss_newton_discrepancy > _MISFIT:
        return ""
    return (
        f"{spectrum.gauss_newton_discrepancy:.2g} of the Hessian's norm comes from residuals (label noise?) "
        "and may add to its rank: λ is that of the loss on these data; "
        "llc.spectrum(…, matrix='ggn') has the rank of the outputs"
    )


def _smooth(smoothness: Smoothness | None) -> Assumption:
    if smoothness is None:
        return Assumption("smooth", True, "not judged, the spectrum's file is older")  # noqa: FBT003
    if smoothness.state in ("coarse", "not judged"):
        coarse = smoothness.state == "coarse"
        reason = "the loss computes in less than float64" if coarse else "the spectrum was made for a small budget"
        return Assumption("smooth", True, f"not judged, {reason}")  # noqa: FBT003
    if smoothness.state == "boundary":
        message = (
            "the loss is not finite beside w*, which lies on the boundary of its domain: move w* inside, or "
            "parametrize without a boundary (exp or softplus)"
        )
        return Assumption("smooth", False, message)  # noqa: FBT003
    even, odd = (
        f"an {part} part ~ t^{power:.1f} (t^{smooth} if smooth)" if power < np.inf else f"no {part} part"
        for part, power, smooth in (("even", smoothness.even, 2), ("odd", smoothness.odd, 3))
    )
    seen = f"as t → 0 from w*, the gradient has {even} and {odd} beyond the Hessian"
    if smoothness.state == "smooth":
        return Assumption("smooth", True, seen)  # noqa: FBT003
    message = (
        f"w* lies on a kink (a ReLU that is exactly 0 there?): {seen}; move w* off the kink, or replace the activation "
        "by a smooth one"
    )
    return Assumption("smooth", False, message)  # noqa: FBT003
