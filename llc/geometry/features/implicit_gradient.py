r"""What a finite step size adds to the loss: the modified loss of backward error analysis, and the limit of stability.

$$ \tilde L = L + \frac{\varepsilon}{4} \lVert \nabla L \rVert^2, \qquad
   w_{t+1} = w_t - \varepsilon \nabla L(w_t) \quad \text{follows} \quad \dot w = -\nabla \tilde L(w) $$

for a time of order 1 up to ε² instead of ε (Barrett & Dherin 2021, arXiv 2009.11162). Batches of B of n examples in a
random order add to the mean of ‖∇L‖² over batches

$$ \frac{n - B}{n - 1} \frac{\operatorname{tr} \Sigma}{B}, \qquad
   \Sigma = \tfrac1n \sum_i (\nabla \ell_i - \nabla L)(\nabla \ell_i - \nabla L)^\top $$

(Smith et al. 2021, arXiv 2101.12176). The expansion needs ε h_max well below 2, where gradient descent on a quadratic
function becomes unstable (Cohen et al. 2021, arXiv 2103.00065).
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.geometry.curvature.lanczos import top_eigenvalue
from llc.geometry.curvature.operators import CurvatureOperator, curvature_operator
from llc.posterior.arguments import require_integer, require_number
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_AT_ONCE = 16  # examples whose gradients are computed at a time


@dataclasses.dataclass(frozen=True)
class ImplicitGradientPenalty:
    """The modified loss at one point; build it with `implicit_gradient_penalty`.

    Attributes:
        step_size: ε of gradient descent, w ← w − ε ∇L (no ½ as in SGLD).
        loss: L, in nats per example.
        gradient_norm: ‖∇L‖.
        noise: (n − B)/(n − 1) tr Σ / B, what batches of B add to the mean of ‖∇L‖²; 0 without a batch size.
        sharpness: h_max of the Hessian, from Lanczos: from below.
    """

    step_size: float
    loss: float
    gradient_norm: float
    noise: float
    sharpness: float

    @property
    def penalty(self) -> float:
        """(ε/4) ‖∇L‖², in the unit of the loss; with a batch size, its mean over batches."""
        return self.step_size / 4 * (self.gradient_norm**2 + self.noise)

    @property
    def modified_loss(self) -> float:
        """L + (ε/4) ‖∇L‖²."""
        return self.loss + self.penalty

    @property
    def stability(self) -> float:
        """ε h_max / 2: the edge of stability is at 1, and the modified loss holds well below."""
        return self.step_size * self.sharpness / 2

    @property
    def stable(self) -> bool:
        """Whether h_max < 2/ε."""
        return self.stability < 1

    def __str__(self) -> str:
        relation = "<" if self.stable else "≥"
        return (
            f"L {self.loss:.4g} + (ε/4)‖∇L‖² {self.penalty:.3g} = {self.modified_loss:.4g}; "
            f"h_max {self.sharpness:.4g} {relation} 2/ε = {2 / self.step_size:.4g}"
        )


def implicit_gradient_penalty(
    posterior: LocalPosterior, step_size: float, *, batch_size: int | None = None, num_matvecs: int = 30, seed: int = 0
) -> ImplicitGradientPenalty:
    """The implicit gradient penalty of gradient descent at w*, with its sharpness, in float64.

    Args:
        posterior: the loss, its data and the point, which need not be a minimum. nβ and γ play no part.
        step_size: ε > 0 of gradient descent.
        batch_size: B of SGD. Default: all the data at once.
        num_matvecs: of Lanczos for h_max, as for `top_eigenvalue`.
        seed: of its start.

    Raises:
        ValueError: if the step size is not a number > 0, the batch larger than the data, or the Hessian not finite.

    References:
        Barrett & Dherin 2021, Implicit gradient regularization; Smith et al. 2021, On the origin of implicit
        regularization in stochastic gradient descent.

    Example:
        >>> import jax.numpy as jnp
        >>> posterior = LocalPosterior(lambda w, x: 0.5 * (w * x) ** 2, jnp.array(2.0), jnp.ones(10))
        >>> found = implicit_gradient_penalty(posterior, 0.1)
        >>> round(found.penalty, 6), round(found.stability, 6)
        (0.1, 0.05)
    """
    require_differentiable(posterior)
    require_number("step_size", step_size)
    require_integer("batch_size", batch_size, least=1, most=posterior.num_data, optional=True)
    sharpness = top_eigenvalue(posterior, num_matvecs=num_matvecs, seed=seed)
    noise = 0.0
    with float64():
        operator = curvature_operator(posterior)
        gradient, loss = _gradient(operator)
        if batch_size is not None and batch_size < posterior.num_data:
            n = posterior.num_data
            variance = float(jnp.mean(_squares(operator, gradient)))
            noise = (n - batch_size) / (n - 1) * variance / batch_size
        return ImplicitGradientPenalty(
            float(step_size), float(loss), float(np.linalg.norm(np.asarray(gradient))), noise, sharpness
        )


@eqx.filter_jit
def _gradient(operator: CurvatureOperator) -> tuple[Float[Array, "dim"], Float[Array, ""]]:
    return operator.gradient(), operator.loss()


@eqx.filter_jit
def _squares(operator: CurvatureOperator, gradient: Float[Array, "dim"]) -> Float[Array, "input"]:
    """‖∇ℓ_i − ∇L‖² of every example."""
    posterior = operator.posterior
    flat, unravel = ravel_pytree(posterior.position)

    def of_row(row: PyTree) -> Float[Array, ""]:
        batch = jax.tree.map(lambda x: x[None], row)
        own = jax.grad(lambda z: posterior.loss(posterior.params_at(unravel(z)), batch))(flat)
        return jnp.sum((own - gradient) ** 2)

    return jax.lax.map(of_row, operator.rows.joined(), batch_size=_AT_ONCE)
