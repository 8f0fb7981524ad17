r"""Curvature of the mean loss at w*, as products: the Hessian times a vector, and the gradient, over all the data.

$$ H v = \nabla \big( \nabla L(w^*) \cdot v \big), \qquad L = \sum_p \tfrac{n_p}{n} L_p , $$

by forward-over-reverse differentiation of each piece p of the data, in float64 (ranks are decided on it).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.posterior import LocalPosterior, as_float64

_PIECE = 1024  # rows of data that one product keeps in memory at a time


class CurvatureOperator(eqx.Module):
    """The Hessian of L at w* on flat vectors of the parameters that move.

    Build it with `curvature_operator`.
    """

    posterior: LocalPosterior
    pieces: PyTree
    rest: PyTree
    rest_weight: float = eqx.field(static=True)

    @property
    def dim(self) -> int:
        """d, the number of parameters that move."""
        return self.posterior.num_params

    def gradient(self) -> Float[Array, "dim"]:
        """∇L(w*), flat."""
        flat, loss_of = self._flat_loss()
        return self._average(lambda batch: jax.grad(loss_of)(flat, batch))

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """H v, flat. Costs about two gradients."""
        flat, loss_of = self._flat_loss()
        return self._average(lambda batch: jax.jvp(lambda z: jax.grad(loss_of)(z, batch), (flat,), (vector,))[1])

    def _flat_loss(self):
        flat, unravel = ravel_pytree(self.posterior.position)
        return flat, lambda z, batch: self.posterior.loss(self.posterior.params_at(unravel(z)), batch)

    def _average(self, of_piece):
        head = jnp.mean(jax.lax.map(of_piece, self.pieces), axis=0)
        if self.rest is None:
            return head
        return (1 - self.rest_weight) * head + self.rest_weight * of_piece(self.rest)


def curvature_operator(posterior: LocalPosterior) -> CurvatureOperator:
    """Hessian operator of `posterior` in float64; to be called and used under `float64()`."""
    num_data = posterior.num_data
    num_pieces = max(1, num_data // _PIECE)
    length = num_data // num_pieces
    split = num_pieces * length
    data = as_float64(posterior.data)
    pieces = jax.tree.map(lambda x: x[:split].reshape(num_pieces, length, *x.shape[1:]), data)
    rest = jax.tree.map(lambda x: x[split:], data) if split < num_data else None
    stub = jax.tree.map(lambda x: np.zeros((2, *x.shape[1:]), x.dtype), data)  # the pieces are the data
    posterior = eqx.tree_at(lambda p: (p.center, p.data), posterior, (as_float64(posterior.center), stub))
    return CurvatureOperator(posterior, pieces, rest, 1 - split / num_data)
