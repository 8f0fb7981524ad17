"""The scale at which a posterior sees the loss."""

from typing import NamedTuple


class Scale(NamedTuple):
    """The scale at which a posterior sees the loss.

    Attributes:
        nbeta: nβ, dimensionless.
        gamma: γ, in the unit of nβ·loss per squared parameter.
    """

    nbeta: float
    gamma: float

    @property
    def localization(self) -> float:
        """γ/nβ, in the unit of the loss: a direction of this curvature shows one half of its contribution to λ."""
        return self.gamma / self.nbeta
