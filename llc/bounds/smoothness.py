"""What is known of the smoothness of a loss at w*, as geometry/curvature/smoothness.py finds it."""

import math
from typing import Literal, NamedTuple

State = Literal["smooth", "kink", "boundary", "coarse", "not judged"]


class Smoothness(NamedTuple):
    """How smooth the loss is at w*.

    Attributes:
        state: `"smooth"`, `"kink"`, `"boundary"` (the loss is not finite beside w*), or `"coarse"` (the loss rounds
            its parameters to less than float64, so that nothing can be said), or `"not judged"`.
        even: exponent of t in the even part of the gradient beyond the Hessian, at the smallest t at which it stands
            above round-off. It is 2 or more for a C³ loss, and inf where the part never stands above round-off.
        odd: the same of the odd part: 3 or more for a C⁴ loss.
        kinks: by how much of its own size the change of the gradient over a hundredth of the params differs from what
            the Hessian at w* says, without the part that falls like that of a smooth loss: the share of the curvature
            that sits in kinks around w*. nan where it was not measured.
    """

    state: State
    even: float
    odd: float
    kinks: float = math.nan
