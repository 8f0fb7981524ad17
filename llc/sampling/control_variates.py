r"""Functions of a draw whose mean under the posterior is known: control variates of λ̂, and checks of the sampler.

For x = w − w* and any constant matrix A, integration by parts under exp(−U) gives (Stein 1972; zero-variance principle
of Assaraf & Caffarel 1999, Mira, Solgi & Imparato 2013)

$$ \mathbb{E}[x^\top A\, \nabla U(w)] = \mathrm{tr}\, A . $$

On a quadratic loss A = ½ nβH (nβH + γ)⁻¹ makes x·A∇U equal to nβ (L(w) − L(w*)), so that the difference of the two is
λ_quad = tr A in every draw. V holds the eigenvectors of the largest curvatures h, and the identity is taken on both
sides of the split, along

$$ A x = V\, \mathrm{diag}\!\left(\frac{n\beta\, h / 2}{n\beta\, h + \gamma}\right) V^\top x
   \qquad\text{and}\qquad x - V V^\top x . $$

The second knows nothing of the curvature, but where the loss grows as |x|^(2k), x·∇U is 2k times nβ (L(w) − L(w*)).
Only x·A∇L is needed, the derivative of the loss along A x: one forward pass a direction, of every example.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.local_posterior import LocalPosterior

_BYTES = 2**30  # of the eigenvectors
_VISIBLE = 0.01  # share of its full ½ below which a direction is left out
_FEWEST = 16  # rows, so that small networks of different rank share a program


class ControlVariates(eqx.Module):
    """Directions A x, and the traces that x·A∇U have as their means: along the curved ones, and along the rest."""

    vectors: Float[Array, "curved dim"]  # orthonormal rows, and rows of zeros
    coefficients: Float[Array, "curved"]
    rest: Float[Array, ""]  # dimension of the rest

    @property
    def trace(self) -> Float[Array, ""]:
        """The trace of A over the curved directions, their part of λ_quad."""
        return jnp.sum(self.coefficients)

    def directions(self, offset: PyTree) -> PyTree:
        """A x of the curved directions and of the rest, along a new leading axis."""
        flat, unravel = ravel_pytree(offset)
        along = self.vectors @ flat
        pair = jnp.stack([(self.coefficients * along) @ self.vectors, flat - along @ self.vectors])
        return jax.vmap(unravel)(pair)

    def residuals(
        self, posterior: LocalPosterior, offset: PyTree, directions: PyTree, slopes: Float[Array, "2"]
    ) -> Float[Array, "2"]:
        """x·A∇U − tr A of the two, with `slopes` the derivatives of the loss along `directions`."""
        dtype = slopes.dtype
        nbeta, gamma = (jnp.asarray(x, dtype) for x in (posterior.nbeta, posterior.gamma))
        localization = sum(
            jnp.sum((x * leaf).reshape(2, -1), axis=1)
            for x, leaf in zip(jax.tree.leaves(offset), jax.tree.leaves(directions), strict=True)
        )
        return nbeta * slopes + gamma * localization - jnp.stack([self.trace, self.rest]).astype(dtype)


def make_control_variates(posterior: LocalPosterior, spectrum: Spectrum | None) -> ControlVariates | None:
    """Control variates from a spectrum with eigenvectors; None from one without.

    Args:
        posterior: with γ.
        spectrum: `llc.Spectrum` at w*; its largest eigenvalues are used as far as their vectors fit in a gigabyte.
    """
    if spectrum is None or spectrum.vectors is None:
        return None
    if spectrum.vectors.shape[1] != posterior.num_params:
        raise ValueError(
            f"spectrum needs to be that of the parameters that move, d = {posterior.num_params}, "
            f"got d = {spectrum.vectors.shape[1]}; compute llc.spectrum of the same posterior."
        )
    nbeta, gamma = posterior.scale
    dtype = jnp.result_type(*jax.tree.leaves(posterior.position))
    curvatures = nbeta * spectrum.vector_eigenvalues
    shares = curvatures / (curvatures + gamma)
    most = max(1, _BYTES // (dtype.itemsize * posterior.num_params))
    visible = int(np.sum(shares > _VISIBLE))
    rows = min(max(2 ** math.ceil(math.log2(max(visible, 1))), _FEWEST), most)  # a power of two: few programs
    kept = min(visible, rows)
    missing = rows - kept
    return ControlVariates(
        vectors=jnp.asarray(np.pad(spectrum.vectors[:kept], ((0, missing), (0, 0))), dtype),
        coefficients=jnp.asarray(np.pad(0.5 * shares[:kept], (0, missing)), dtype),
        rest=jnp.asarray(posterior.num_params - kept, dtype),
    )
