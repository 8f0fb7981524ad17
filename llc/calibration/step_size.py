r"""Settings of SGLD from the curvature at w*.

With h_max the largest eigenvalue of the Hessian, T the number of steps and c = 0.5,

$$ \epsilon = \frac{c}{n\beta\, h_{max} + \gamma}, \qquad \gamma = \frac{80\, n\beta\, h_{max}}{c\, T}: $$

an eighth of the stability limit and, where the user gave none, a localization that even a flat direction feels T εγ/2
= 40
times over the run.
"""

from typing import NamedTuple

from llc.posterior.local_posterior import LocalPosterior

COURANT = 0.5  # c; stable below 4, THEORY §7 measured rmse 0.5–1.9 % with it
RELAXATIONS = 80  # T εγ; with 40 the energy of a 460-parameter network had 350–460 effective draws, too near the 400


class Settings(NamedTuple):
    """SGLD's step size and the localization, with the curvature they come from."""

    step_size: float
    gamma: float
    largest: float


def settings_from_curvature(posterior: LocalPosterior, largest: float, num_steps: int) -> Settings:
    """Step size ε and γ for `num_steps` steps of SGLD at a minimum with largest curvature `largest`.

    Args:
        posterior: gives nβ, and γ where the user set one.
        largest: h_max in nats per example and squared parameter.
        num_steps: T, steps a chain.

    Raises:
        ValueError: if the curvature is not positive, so that no scale for ε or γ exists.
    """
    nbeta = float(posterior.nbeta)
    gamma = None if posterior.gamma is None else float(posterior.gamma)
    if largest <= 0 and not gamma:
        raise ValueError(
            f"the Hessian at w* needs a positive eigenvalue to set γ from, got h_max = {largest:.3g}; "
            "give LocalPosterior(gamma=…), or train w* to a minimum."
        )
    stiffness = nbeta * max(largest, 0.0)
    if gamma is None:
        gamma = RELAXATIONS * stiffness / (COURANT * num_steps)
    return Settings(COURANT / (stiffness + gamma), gamma, largest)
