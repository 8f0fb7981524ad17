r"""Whether the Hessian of a squared loss is the Gram matrix of its behavioral gradients, as it is at an exact fit.

$$ H = \tfrac sn G G^\top + \tfrac sn \sum_{ic} (f_{ic} - y_{ic}) \nabla^2 f_{ic} $$

(behavioral_gradients.py has G; Bushnaq et al. 2024, arXiv 2405.10927.)
"""

import dataclasses

import numpy as np
import scipy.linalg

from llc.geometry.curvature.dense import materialize
from llc.geometry.curvature.operators import curvature_operator, gauss_newton_operator, jacobian_operator
from llc.geometry.features.behavioral_gradients import FLOOR, BehavioralGradients, relative_rounding
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_IDENTICAL = 1e-6  # ‖H − (s/n) G Gᵀ‖ / ‖H‖; a fit to float32 leaves 1e-7
_ROUNDOFF = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class HessianIdentity:
    """H against (s/n) G Gᵀ at one point of a squared loss.

    Attributes:
        hessian_rank: number of eigenvalues of H that are larger, in size, than (16 ε)² h_max and than round-off.
        gradient_rank: rank G.
        difference: ‖H − (s/n) G Gᵀ‖ / ‖H‖, spectral norms: the part Σ residual · ∇²f of H.
        smallest: h_min / h_max; below zero by more than round-off only with residuals.
        factor: s; 2 where the loss is the squared error summed over outputs, 1 with a ½.
        residual: root mean square of ‖f(x) − y‖ over the data, if the loss is 0 at a fit.
    """

    hessian_rank: int
    gradient_rank: int
    difference: float
    smallest: float
    factor: float
    residual: float

    @property
    def holds(self) -> bool:
        """Whether H is (s/n) G Gᵀ to 1e-6, with the same rank."""
        return self.hessian_rank == self.gradient_rank and self.difference <= _IDENTICAL

    def __str__(self) -> str:
        relation = "=" if self.holds else "≠"
        return (
            f"H {relation} {self.factor:.3g}/n G Gᵀ: difference {self.difference:.2g}, rank H {self.hessian_rank}, "
            f"rank G {self.gradient_rank}, h_min/h_max {self.smallest:.2g}, residual {self.residual:.2g}"
        )


def hessian_identity(posterior: LocalPosterior) -> HessianIdentity:
    """Whether H = (s/n) G Gᵀ at w*. It holds where the outputs fit the targets, and fails by the residuals elsewhere.

    The matrices are dense: 8 N (2 N + nk) bytes.

    Args:
        posterior: with `predict_fn`, of which `loss_fn` is the squared error.

    Raises:
        ValueError: if the loss is another one or there are no outputs.
    """
    require_differentiable(posterior)
    if posterior.predict_fn is None:
        raise ValueError("hessian_identity needs outputs, got a posterior without predict_fn; give predict_fn=….")
    if posterior.weights is not None:
        raise ValueError("hessian_identity needs rows of equal weight, got a posterior with weights; leave them out.")
    with float64():
        operator = curvature_operator(posterior)
        factor = float(gauss_newton_operator(posterior, output_loss="squared error").scale)
        hessian, loss = np.asarray(materialize(operator)[0]), posterior.init_loss()
        gradients = BehavioralGradients(jacobian_operator(posterior), relative_rounding(posterior))
    eigenvalues = scipy.linalg.eigvalsh(hessian)
    size = float(np.abs(eigenvalues).max())
    noise = max((FLOOR * gradients.precision) ** 2, 8 * _ROUNDOFF) * size
    difference = np.linalg.norm(hessian - factor * gradients.feature_gram, ord=2)
    return HessianIdentity(
        hessian_rank=int(np.sum(np.abs(eigenvalues) > noise)),
        gradient_rank=gradients.rank,
        difference=float(difference) / size if size else float(difference),
        smallest=float(eigenvalues[0]) / size if size else 0.0,
        factor=factor,
        residual=float(np.sqrt(2 * max(loss, 0.0) / factor)),
    )
