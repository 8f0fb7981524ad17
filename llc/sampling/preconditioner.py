r"""Preconditioners P of stochastic gradient samplers: drift $P \nabla U$, noise $P^{1/2} \xi$.

Identity: $P = I$. RMSProp (Li et al. 2016, arXiv 1512.07666, Algorithm 1), from gradients g of the mean loss:

$$ V \leftarrow \alpha V + (1 - \alpha) g \odot g, \qquad P = \mathrm{diag}\big(1 / (\epsilon + \sqrt{V})\big). $$

Diagonal: a P that is given. Curvature: the damped inverse of the Hessian at w*, from its eigenpairs $(h_i, v_i)$,

$$ P = I + \sum_i \Big( \frac{\delta}{\max(h_i, 0) + \delta} - 1 \Big) v_i v_i^\top . $$

A P that is constant leaves the stationary law as it is.
"""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import plain, require_number
from llc.posterior.mask import path_name

_FEW, _ORTHONORMAL = 1000, 1e-2  # vectors whose products are looked at, and by how much these may be off


class Preconditioner(eqx.Module):
    """A positive definite matrix P that may follow the gradients.

    Attributes:
        is_identity: whether P = I, so that a step is one of plain SGLD.
    """

    is_identity: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, position: PyTree) -> Any:
        """State before the first gradient."""

    @abc.abstractmethod
    def update(self, state: Any, loss_grad: PyTree) -> Any:
        """State after a gradient of the mean loss."""

    @abc.abstractmethod
    def apply(self, state: Any, tree: PyTree, power: float = 1.0) -> PyTree:
        """P^power · tree."""


class Constant(Preconditioner):
    """P that learns nothing from gradients."""

    def init(self, position: PyTree) -> None:
        """Nothing to remember."""

    def update(self, state: None, loss_grad: PyTree) -> None:
        """Nothing to learn."""


class Identity(Constant):
    """P = I: the sampler's stationary law is the posterior up to its step-size bias."""

    is_identity: ClassVar[bool] = True

    def apply(self, state: None, tree: PyTree, power: float = 1.0) -> PyTree:  # noqa: ARG002
        """`tree` itself."""
        return tree


class Diagonal(Constant):
    """P = diag(scales), constant: each parameter has its own step size, ε times its scale.

    Args:
        scales: positive numbers, a pytree of arrays like the parameters that move; 1 / (nβ h_ii + γ) for instance, with
            ε = 0.5 then.

    Raises:
        ValueError: if a scale is not positive and finite.
    """

    scales: PyTree

    def __check_init__(self) -> None:
        _check_positive("Diagonal", self.scales)

    def init(self, position: PyTree) -> None:
        """Nothing to remember; the scales have to fit the parameters that move."""
        shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (self.scales, position)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Diagonal needs scales like the parameters that move, of shapes {shapes[1]}, got {shapes[0]}."
            )
        names = [
            {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (self.scales, position)
        ]
        if all(isinstance(tree, dict) for tree in (self.scales, position)) and names[0] != names[1]:
            raise ValueError(
                f"Diagonal needs scales of the parameters that move, {sorted(names[1])}, got {sorted(names[0])}."
            )

    def apply(self, state: None, tree: PyTree, power: float = 1.0) -> PyTree:  # noqa: ARG002
        """P^power · tree."""
        scales = jax.tree.leaves(self.scales)
        leaves, structure = jax.tree.flatten(tree)
        scaled = [x * jnp.asarray(s, x.dtype) ** power for s, x in zip(scales, leaves, strict=True)]
        return jax.tree.unflatten(structure, scaled)


def _check_positive(name: str, scales: PyTree) -> None:
    """Raises ValueError unless all scales are finite and positive numbers."""
    leaves = jax.tree.leaves(scales)
    kinds = (jax.Array, np.ndarray, np.number, float, int)
    concrete = [leaf for leaf in leaves if not isinstance(leaf, Tracer)]
    if not leaves or not all(isinstance(leaf, kinds) and np.asarray(leaf).dtype.kind in "iuf" for leaf in concrete):
        raise ValueError(f"{name} needs scales to be arrays of positive numbers, got {type(scales).__name__}.")
    for leaf in concrete:
        if not bool(np.all((np.asarray(leaf) > 0) & np.isfinite(leaf))):
            raise ValueError(f"{name} needs finite scales > 0, got one of {np.min(leaf):.3g}.")


class Curvature(Constant):
    r"""The damped inverse of the Hessian at w*: P = δ (H + δ)⁻¹ on the eigenvectors of a spectrum, 1 on the rest.

    Stiff directions take shorter steps, flat ones keep theirs, so that ε may be up to nβ h_max / (nβ δ + γ) times as
    large. It helps where the spectrum is wide and the loss is nearly quadratic; without damping flat directions would
    take off, and stiffen away from w*. Build it with `Curvature.of(spectrum)`.

    Args:
        vectors: eigenvectors, as orthonormal rows.
        scales: δ / (h + δ) of each.
    """

    vectors: Float[Array, "curved dim"]
    scales: Float[Array, "curved"]

    def __check_init__(self) -> None:
        _check_positive("Curvature", self.scales)
        vectors, scales = self.vectors, self.scales
        right = all(
            isinstance(x, (jax.Array, np.ndarray)) and np.dtype(x.dtype).kind in "fiu" for x in (vectors, scales)
        )
        if not (right and vectors.ndim == 2 and scales.shape == vectors.shape[:1]):
            shapes = [getattr(x, "shape", type(x).__name__) for x in (vectors, scales)]
            raise ValueError(
                f"Curvature needs arrays, vectors (k, d) and scales (k,), got {shapes[0]} and {shapes[1]}."
            )
        if not (isinstance(vectors, Tracer) or np.isfinite(vectors).all()):
            raise ValueError("Curvature needs finite vectors, got nan or infinity.")
        if not isinstance(vectors, Tracer) and len(vectors) <= _FEW:
            off = float(np.abs(np.asarray(vectors @ vectors.T) - np.eye(len(vectors))).max(initial=0.0))
            if off > _ORTHONORMAL:
                raise ValueError(
                    f"Curvature needs orthonormal vectors as rows, got products that are off by {off:.2g}; take "
                    "Curvature.of(spectrum)."
                )

    @classmethod
    def of(cls, spectrum: Spectrum, damping: float = 0.1) -> "Curvature":
        """From `llc.spectrum(posterior)`, with δ = damping · h_max.

        Raises:
            ValueError: if the damping is not positive, or the spectrum has no eigenvectors or no positive eigenvalue.
        """
        if not damping > 0:
            raise ValueError(f"Curvature needs damping > 0, in units of h_max, got {damping}; 0.1 is usual.")
        if spectrum.vectors is None or not spectrum.largest > 0:
            raise ValueError(
                "Curvature needs a spectrum with eigenvectors (method 'dense' or 'range_finder') and a positive "
                f"eigenvalue, got method {spectrum.method!r} with h_max = {spectrum.largest:.3g}."
            )
        curvatures = spectrum.vector_eigenvalues
        delta = damping * spectrum.largest
        scales = delta / (np.maximum(curvatures, 0.0) + delta)
        return cls(jnp.asarray(spectrum.vectors, jnp.float32), jnp.asarray(scales, jnp.float32))

    def init(self, position: PyTree) -> None:
        """Nothing to remember; the vectors have to be of the parameters that move."""
        size = sum(leaf.size for leaf in jax.tree.leaves(position))
        if size != self.vectors.shape[1]:
            raise ValueError(
                f"Curvature needs the spectrum of the {size} parameters that move, got d = {self.vectors.shape[1]}."
            )

    def apply(self, state: None, tree: PyTree, power: float = 1.0) -> PyTree:  # noqa: ARG002
        """P^power · tree."""
        flat, unravel = ravel_pytree(tree)
        vectors, scales = self.vectors.astype(flat.dtype), self.scales.astype(flat.dtype)
        return unravel(flat + ((scales**power - 1) * (vectors @ flat)) @ vectors)


class RMSPropState(NamedTuple):
    """Second moment of the loss gradient, and the number of gradients seen."""

    second_moment: PyTree
    num_gradients: Int[Array, ""]


class RMSProp(Preconditioner):
    r"""P = 1 / (ε + √V) from a running second moment V of the loss gradient.

    The same P scales drift, localization and noise. The divergence term $\tfrac{\epsilon}{2} \nabla \cdot P$ that a P
    which depends on w needs (Li et al. 2016, eq. 10) is left out, as everywhere in practice: the sampler then draws
    from another measure than the posterior. Keep it for comparability with published numbers; prefer `Identity`.

    Args:
        decay: α; 0.99, Li et al. 2016, §4.
        eps: ε, bounds P by 1/ε; 0.1 as in published LLC estimates, so that a flat direction does not take off.

    Raises:
        ValueError: unless 0 <= decay < 1 and eps > 0.
    """

    decay: float = eqx.field(default=0.99, converter=plain)
    eps: float = eqx.field(default=0.1, converter=plain)

    def __check_init__(self) -> None:
        require_number("decay", self.decay, least=-math.inf)
        require_number("eps", self.eps, least=-math.inf)
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

        def scale(v: Array, x: Array) -> Array:
            root = jnp.sqrt(v / correction.astype(v.dtype))
            return x * (self.eps + root) ** -power

        return jax.tree.map(scale, state.second_moment, tree)
