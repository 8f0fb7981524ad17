r"""Step size and γ from the curvature at w*.

With h_max the largest eigenvalue of the Hessian, T the number of steps and c = 0.5,

$$ \epsilon = \frac{c}{n\beta\, h_{max} + \gamma}, \qquad \gamma = \frac{80\, n\beta\, h_{max}}{c\, T}: $$

an eighth of the stability limit and, where the user gave none, a localization under which even a flat direction relaxes
T εγ/2 = 40 times over the run. Pilot runs (pilots.py) correct both.
"""

import math
from typing import NamedTuple

import numpy as np

from llc.calibration.localization import Localization
from llc.calibration.record import Choice, PilotResult, Request
from llc.posterior.arguments import require_integer, require_number, require_type
from llc.posterior.local_posterior import LocalPosterior

COURANT = 0.5  # c; stable below 4, and with it λ̂ had an rmse of 0.5–1.9 %
RELAXATIONS = 80.0  # T εγ; with 40 the energy of a 460-parameter network had 350–460 effective draws, too near the 400
_BEYOND = 1.2  # times κ at the chosen γ, that a weaker one has which is named beside it


class Settings(NamedTuple):
    """SGLD's step size and the localization, with the curvature they come from."""

    step_size: float
    gamma: float
    largest: float


def settings_from_curvature(
    posterior: LocalPosterior, largest: float, num_steps: int, *, relaxations: float = RELAXATIONS
) -> Settings:
    """Step size ε and γ for `num_steps` steps of SGLD at a minimum with largest curvature `largest`.

    Args:
        posterior: gives nβ, and γ where the user set one.
        largest: h_max in nats per example and squared parameter.
        num_steps: T, steps a chain.
        relaxations: T εγ, of which γ follows where the user set none.

    Raises:
        ValueError: if the curvature is not positive, so that no scale for ε or γ exists.
    """
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    require_number("largest", largest, least=-math.inf)  # 0 or less where γ is given
    require_integer("num_steps", num_steps, least=1)
    require_number("relaxations", relaxations)
    nbeta = float(posterior.nbeta)
    gamma = None if posterior.gamma is None else float(posterior.gamma)
    if largest <= 0 and not gamma:
        raise ValueError(
            f"the Hessian at w* needs a positive eigenvalue to set γ from, got h_max = {largest:.3g}; "
            "give LocalPosterior(gamma=…), or train w* to a minimum."
        )
    stiffness = nbeta * max(largest, 0.0)
    if gamma is None:
        gamma = relaxations * stiffness / (COURANT * num_steps)
    return Settings(COURANT / (stiffness + gamma), gamma, largest)


def choose_step_size(request: Request, found: PilotResult) -> Choice[float | None]:
    """ε as the pilots left it, or that of the sampler that was given."""
    if request.sampler is not None or found.step_size is None:
        given = getattr(request.sampler, "step_size", None)
        return Choice(None if given is None else float(np.asarray(given)), "given", "of the sampler")
    nbeta, gamma = found.posterior.scale
    largest, num_pilots = request.spectrum.largest, len(found.pilots)
    stiffness = found.step_size * gamma + found.step_size * nbeta * largest
    reason = f"ε (nβ h_max + γ) = {stiffness:.2g}, stable below 4; h_max = {largest:.3g}"
    if not found.confirmed:
        reason += f"; none of {num_pilots} pilot runs stayed where it is stable"
    evidence = {"stiffness": stiffness, "largest": largest, "num_pilots": num_pilots, "confirmed": found.confirmed}
    return Choice(found.step_size, "chosen", reason, evidence)


def choose_gamma(request: Request, found: PilotResult, num_steps: int) -> Choice[float]:
    """γ as the pilots left it, with the number of times that a flat direction relaxes in a run of `num_steps`."""
    gamma, rate = found.posterior.scale.gamma, found.rate
    evidence: dict[str, int | float] = {} if rate is None else {"relaxations": rate * num_steps / 2}
    if not request.chooses_gamma:
        return Choice(gamma, "posterior", "of the posterior", evidence)
    if rate is None:
        return Choice(gamma, "chosen", "for the length of a run at ε = 0.5 / (nβ h_max + γ)")
    found_local = request.localization
    if found_local is not None and gamma == found_local.gamma:
        evidence |= {"anharmonicity": found_local.anharmonicity, "weaker": found_local.weaker}
        evidence["of_length"] = int(found_local.is_of_length)
        return Choice(gamma, "chosen", _reason(found_local), evidence)
    reason = f"a flat direction relaxes {evidence['relaxations']:.0f} times over the run"
    evidence["strengthened"] = gamma / found.pilots[0].gamma
    if len(found.pilots) > 1:
        times = evidence["strengthened"]
        reason += f"; {len(found.pilots)} pilot runs raised γ {times:.3g}-fold, to stay where the step size is stable"
    return Choice(gamma, "chosen", reason, evidence)


def _reason(localization: Localization) -> str:
    """Why γ is the one of `localization`."""
    if localization.item:
        return f"the largest that an item of the sweep needs: at {localization.item} it is {_own(localization)}"
    return _own(localization)


def _own(localization: Localization) -> str:
    """Why γ is the one of a w*."""
    kappa = localization.anharmonicity
    reason = f"the weakest at which the loss is about quadratic (its Gaussian mean is {kappa:.2g} times λ_quad)"
    weaker = [pair for pair in localization.profile if pair[0] < localization.gamma]
    if not localization.is_local:
        return (
            f"the loss is not quadratic at any γ; it is closest to that here (its Gaussian mean is {kappa:.2g} times "
            "λ_quad)"
        )
    if localization.is_of_length:
        told = f"its Gaussian mean is {kappa:.2g} times λ_quad"
        return f"set by the length of the run; the loss is about quadratic there ({told})"
    if localization.decided_by_share:
        mean = f"its Gaussian mean is {kappa:.2g} times λ_quad"
        share = f"{localization.share:.0%} of the way to the loss at params of zero"
        return f"the weakest at which the mean loss is {share} ({mean})"
    beyond = [pair for pair in weaker if _BEYOND * kappa <= pair[1] < math.inf]
    return f"{reason}; at γ = {beyond[0][0]:.3g} it is {beyond[0][1]:.2g} times" if beyond else reason
