r"""Preconditioners P of stochastic gradient samplers: drift $P \nabla U$, noise $P^{1/2} \xi$.

Identity: $P = I$. RMSProp (Li et al. 2016, arXiv 1512.07666, Algorithm 1), from gradients g of the mean loss:

$$ V \leftarrow \alpha V + (1 - \alpha) g \odot g, \qquad P = \mathrm{diag}\big(1 / (\epsilon + \sqrt{V})\big). $$
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


class Preconditioner(eqx.Module):
    """A positive diagonal matrix P that may follow the gradients."""

    @abc.abstractmethod
    def init(self, position: PyTree) -> Any:
        """State before the first gradient."""

    @abc.abstractmethod
    def update(self, state: Any, loss_grad: PyTree) -> Any:
        """State after a gradient of the mean loss."""

    @abc.abstractmethod
    def apply(self, state: Any, tree: PyTree, power: float = 1.0) -> PyTree:
        """P^power · tree."""


class Identity(Preconditioner):
    """P = I: the sampler's stationary law is the posterior up to its step-size bias."""

    def init(self, position: PyTree) -> None:
        """Nothing to remember."""

    def update(self, state: None, loss_grad: PyTree) -> None:
        """Nothing to learn."""

    def apply(self, state: None, tree: PyTree, power: float = 1.0) -> PyTree:  # noqa: ARG002
        """`tree` itself."""
        return tree


class RMSPropState(NamedTuple):
    """Second moment of the loss gradient, and the number of gradients seen."""

    second_moment: PyTree
    num_gradients: Int[Array, ""]


class RMSProp(Preconditioner):
    r"""P = 1 / (ε + √V) from a running second moment V of the loss gradient.

    The same P scales drift, tether and noise. The divergence term $\tfrac{\epsilon}{2} \nabla \cdot P$ that a P which
    depends on w needs (Li et al. 2016, eq. 10) is left out, as everywhere in practice: the sampler then draws from
    another measure than the posterior. Keep it for comparability with published numbers; prefer `Identity`.

    Args:
        decay: α; 0.99, Li et al. 2016, §4.
        eps: ε, bounds P by 1/ε; 0.1 as in published LLC estimates, so that a flat direction does not take off.

    Raises:
        ValueError: unless 0 <= decay < 1 and eps > 0.
    """

    decay: float = 0.99
    eps: float = 0.1

    def __check_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"RMSProp needs 0 <= decay < 1, got {self.decay}; 0.99 averages over 100 steps.")
        if not self.eps > 0:
            raise ValueError(f"RMSProp needs eps > 0, got {self.eps}; it bounds the preconditioner by 1/eps.")

    def init(self, position: PyTree) -> RMSPropState:
        """V = 0 before the first gradient (bias-corrected afterwards, as in Adam)."""
        return RMSPropState(optax.tree.zeros_like(position), jnp.zeros((), jnp.int32))

    def update(self, state: RMSPropState, loss_grad: PyTree) -> RMSPropState:
        """V after a gradient of the mean loss."""
        second = jax.tree.map(
            lambda v, g: (self.decay * v + (1 - self.decay) * g * g).astype(v.dtype), state.second_moment, loss_grad
        )
        return RMSPropState(second, state.num_gradients + 1)

    def apply(self, state: RMSPropState, tree: PyTree, power: float = 1.0) -> PyTree:
        """P^power · tree."""
        correction = 1 - jnp.power(jnp.float32(self.decay), state.num_gradients)

        def scale(v, x):
            root = jnp.sqrt(v / correction.astype(v.dtype))
            return x * (self.eps + root) ** -power

        return jax.tree.map(scale, state.second_moment, tree)
