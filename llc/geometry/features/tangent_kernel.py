r"""The tangent kernel: which functions a small step of gradient descent can learn, and how fast.

$$ K = J J^\top \in R^{nk \times nk}, \qquad
   A = \frac{\langle K_c,\, y_c y_c^\top \rangle}{\lVert K_c \rVert_F\, \lVert y_c \rVert^2}, \qquad
   r_\text{eff} = \frac{(\operatorname{tr} K)^2}{\lVert K \rVert_F^2}, \qquad
   s_m = \frac{\sum_{i \le m} (v_i \cdot y)^2}{\lVert y \rVert^2} , $$

with $J = \partial f / \partial w$ over all outputs of all inputs, $v_i$ the eigenvectors of K, largest first, and the
index c for centred over the inputs, output by output. A component of the error along $v_i$ is learnt at the rate of its
eigenvalue (Jacot et al. 2018, arXiv 1806.07572; Arora et al. 2019, arXiv 1901.08584). A is the centred alignment
(Cortes et al. 2012) that grows along training outside of the lazy limit (Baratin et al. 2021, arXiv 2008.00938).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.geometry.features.kernels import grouped_kernels
from llc.geometry.features.units import moving_leaves

_FLOOR = 8 * float(np.finfo(np.float64).eps)  # of an eigenvalue, relative to the largest, for each row of K


class LayerKernel(NamedTuple):
    """The part of the tangent kernel that one layer makes; the parts add up to the whole.

    Attributes:
        path: of the layer, or of the leaf where no layer is above it.
        trace: of its part of K.
        effective_rank: (tr K)² / ‖K‖² of its part.
        alignment: of its part with the labels; nan without labels.
    """

    path: str
    trace: float
    effective_rank: float
    alignment: float


@dataclasses.dataclass(frozen=True)
class TangentKernel:
    """K = JJᵀ at w*, and what it says about the labels; build it with `tangent_kernel`.

    Attributes:
        gram: K, in the square of outputs per param; the outputs of an input are next to each other.
        eigenvalues: of K, largest first.
        alignment: centred alignment with the labels, 0 to 1; nan without labels.
        label_shares: share of ‖y‖² in the first 1, 2, … eigenvectors; None without labels.
        layers: the part of each layer, in the order of the params.
    """

    gram: Float[np.ndarray, "output output"]
    eigenvalues: Float[np.ndarray, "output"]
    alignment: float
    label_shares: Float[np.ndarray, "output"] | None
    layers: tuple[LayerKernel, ...]

    @property
    def trace(self) -> float:
        """Σ ‖∂f_c(x_i)/∂w‖² over outputs and inputs."""
        return float(np.trace(self.gram))

    @property
    def effective_rank(self) -> float:
        """(tr K)² / ‖K‖²_F, the participation number of the eigenvalues: 1 to the rank."""
        return _effective_rank(self.gram)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above round-off; `BehavioralGradients.rank` resolves the square root of what this does.

        In the lazy limit the model is linear in its params, and λ = rank / 2.
        """
        return int(np.sum(self.eigenvalues > _FLOOR * len(self.gram) * self.eigenvalues[0]))

    def __str__(self) -> str:
        lines = [
            f"trace {self.trace:.4g}, rank {self.rank} of {len(self.gram)}, effective rank {self.effective_rank:.3g}"
        ]
        if self.label_shares is not None:
            most = int(np.searchsorted(self.label_shares, 0.9)) + 1
            lines.append(f"alignment with the labels {self.alignment:.3f}; 90 % of their norm in the first {most}")
        lines += [
            f"{layer.path:<20} trace {layer.trace:.4g}, effective rank {layer.effective_rank:.3g}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def tangent_kernel(
    predict_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    labels: PyTree = None,
    mask: PyTree = None,
) -> TangentKernel:
    """The tangent kernel of a model at `params`, in float64, by layer and against labels.

    Rows of J are computed in blocks, so that it serves for any number of params; the outputs of all inputs are limited
    to 4 GiB of kernels, 8 (nk)² bytes a layer.

    Args:
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …) with k numbers for each input.
        params: w*, as for `LocalPosterior`.
        inputs: a pytree of arrays with the same leading axis of n inputs.
        labels: y, of the shape of the outputs (classes as one-hot rows). Default: none, and no alignment.
        mask: which params move, as for `LocalPosterior`; that of the last layer gives the kernel of random features.

    Raises:
        ValueError: if the params, the mask or the outputs can't define gradients, the labels have another shape or are
            constant, or the kernels do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> inputs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> kernel = tangent_kernel(lambda w, x: x @ w, jnp.ones(2), inputs, labels=jnp.array([0.0, 1.0]))
        >>> kernel.gram.tolist(), kernel.trace, kernel.label_shares.tolist()
        ([[1.0, 0.0], [0.0, 4.0]], 5.0, [1.0, 1.0])
    """
    operator = behavioral_gradients(predict_fn, params, inputs, mask=mask).operator
    targets = None if labels is None else _labels(labels, operator.num_inputs, operator.output_shape)
    leaves = moving_leaves(operator)
    paths = list(dict.fromkeys(leaf.layer for leaf in leaves))
    groups = np.concatenate([np.full(leaf.rows.stop - leaf.rows.start, paths.index(leaf.layer)) for leaf in leaves])
    parts = grouped_kernels(operator, groups, len(paths))
    gram = parts.sum(axis=0)
    eigenvalues, vectors = scipy.linalg.eigh(gram)
    shares = None
    if targets is not None:
        components = (vectors[:, ::-1].T @ targets.ravel()) ** 2
        shares = np.minimum(np.cumsum(components) / np.sum(targets**2), 1.0)
    layers = tuple(
        LayerKernel(path or "params", float(np.trace(part)), _effective_rank(part), _alignment(part, targets))
        for path, part in zip(paths, parts, strict=True)
    )
    return TangentKernel(gram, eigenvalues[::-1].copy(), _alignment(gram, targets), shares, layers)


def _labels(labels: object, num_inputs: int, output_shape: tuple[int, ...]) -> Float[np.ndarray, "input k"]:
    """Y as (n, k)."""
    wanted = (num_inputs, *output_shape)
    try:
        values = np.asarray(labels, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"labels need to be an array of real numbers, got {type(labels).__name__}.") from error
    num_outputs = int(np.prod(output_shape))
    accepted = {wanted, (num_inputs, num_outputs)} | ({(num_inputs,)} if num_outputs == 1 else set())
    if values.shape not in accepted:
        raise ValueError(
            f"labels need the shape of the outputs, {wanted}, got {values.shape}; give classes as one-hot rows "
            "(jax.nn.one_hot)."
        )
    values = values.reshape(num_inputs, -1)
    if not np.isfinite(values).all() or not np.ptp(values, axis=0).any():
        raise ValueError(
            "labels need to be finite and not the same for all inputs; alignment is not defined otherwise."
        )
    return values


def _effective_rank(kernel: Float[np.ndarray, "output output"]) -> float:
    squares = float(np.sum(kernel**2))
    return float(np.trace(kernel)) ** 2 / squares if squares else 0.0


def _alignment(kernel: Float[np.ndarray, "output output"], labels: Float[np.ndarray, "input k"] | None) -> float:
    """Centred over the inputs, output by output."""
    if labels is None:
        return float("nan")
    n, k = labels.shape
    blocks = kernel.reshape(n, k, n, k)
    centred = blocks - blocks.mean(axis=0, keepdims=True)
    centred = (centred - centred.mean(axis=2, keepdims=True)).reshape(n * k, n * k)
    targets = (labels - labels.mean(axis=0)).ravel()
    norm = float(np.linalg.norm(centred)) * float(targets @ targets)
    return float(targets @ centred @ targets) / norm if norm else 0.0
