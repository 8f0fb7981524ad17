r"""The part of the Hessian that comes from residuals, and may add to its rank.

For a loss ψ(f(w), y) of outputs f the Hessian of the mean loss is

$$ H = G + R, \qquad G = \tfrac1n J^\top (\partial^2 \psi)\, J, \qquad
   R = \tfrac1n \sum_i \partial \psi_i \cdot \partial^2 f_i : $$

the Gauss–Newton matrix, and a part that is zero at an exact fit. With noise in the targets R curves directions of the
kernel of J too, in which the outputs do not move to first order: the rank of H is then that of the loss on these data.
"""

import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llc.geometry.curvature.operators import CurvatureOperator, GaussNewtonOperator, gauss_newton_operator
from llc.geometry.curvature.output_loss import OutputLoss, UnknownOutputLossError
from llc.geometry.curvature.smoothness import directions
from llc.posterior.local_posterior import LocalPosterior

_PACKAGE = str(Path(__file__).parents[2])  # warnings name the line that called it


def gauss_newton_part(posterior: LocalPosterior, output_loss: OutputLoss) -> GaussNewtonOperator | None:
    """G in float64; None without `predict_fn`, and, with a warning, where the loss is no known function of its outputs.

    Raises:
        ValueError: if `predict_fn` does not return outputs that depend on the params.
    """
    if posterior.predict_fn is None:
        return None
    try:
        return gauss_newton_operator(posterior, output_loss=output_loss)
    except UnknownOutputLossError as error:
        message = f"what residuals add to the Hessian is not measured: {error}"
        warnings.warn(message, skip_file_prefixes=(_PACKAGE,))
        return None


def residual_share(gauss_newton: CurvatureOperator | None, products: Float[np.ndarray, "direction dim"]) -> float:
    """‖H − G‖ / ‖H‖ (Frobenius) from the products H v with `directions(dim)`; nan without a G."""
    if gauss_newton is None:
        return float("nan")
    difference = products - np.asarray(first_order(gauss_newton, jnp.asarray(directions(gauss_newton.dim)))[1])
    return float(np.linalg.norm(difference) / max(np.linalg.norm(products), np.finfo(np.float64).tiny))


@eqx.filter_jit
def first_order(
    operator: CurvatureOperator, vectors: Float[Array, "vector dim"]
) -> tuple[Float[Array, "dim"], Float[Array, "vector dim"]]:
    """The gradient, and the products with `vectors`."""
    return operator.gradient(), jax.lax.map(operator.product, vectors)
