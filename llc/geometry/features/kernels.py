r"""Gram matrices of the outputs' gradients, one for each group of params, without a dense Jacobian.

$$ K_g = J_g J_g^\top \in R^{nk \times nk}, \qquad K = \sum_g K_g , $$

with $J_g$ the columns of $J = \partial f / \partial w$ that belong to group g. Rows of J are computed in blocks that
fit in memory, two of which are kept at a time; beyond two blocks they are computed again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from llc.geometry.curvature.operators import JacobianOperator, require_predict_fn
from llc.posterior.precision import float64

_KERNEL_BYTES = 4 * 2**30  # of all K_g
_BLOCK_BYTES = 2**27  # of a block of rows of J
_AT_ONCE = 32  # inputs whose gradients are computed at a time
_MIXED = 1e-8  # ‖K u − J Jᵀ u‖ / ‖K u‖ where the outputs of an input depend on the other inputs of its batch


def grouped_kernels(
    operator: JacobianOperator, groups: Int[np.ndarray, "dim"], num_groups: int, *, block_bytes: int = _BLOCK_BYTES
) -> Float[np.ndarray, "group output output"]:
    """K_g of every group, in float64.

    Args:
        operator: J, of `behavioral_gradients`.
        groups: number of the group of each param.
        num_groups: how many there are.
        block_bytes: of a block of rows of J.

    Raises:
        ValueError: if the matrices take more than 4 GiB, or the outputs of an input depend on the others of its batch.
    """
    size = operator.num_outputs
    if 8 * num_groups * size**2 > _KERNEL_BYTES:
        raise ValueError(
            f"{num_groups} matrices of {size} × {size} outputs of inputs need "
            f"{8 * num_groups * size**2 / 2**30:.1f} GiB, got a limit of 4 GiB; take fewer inputs."
        )
    order = np.argsort(groups, kind="stable")
    ends = np.searchsorted(groups[order], np.arange(num_groups + 1))
    per_input = size // operator.num_inputs
    length = max(1, block_bytes // (8 * operator.dim * per_input))
    kernels = np.zeros((num_groups, size, size))
    with float64():
        inputs = operator.rows.joined()

        def block(start: int) -> tuple[slice, np.ndarray]:
            part = jax.tree.map(lambda x: x[start : start + length], inputs)
            rows = np.asarray(output_gradients(operator, part)).reshape(-1, operator.dim)[:, order]
            return slice(start * per_input, start * per_input + len(rows)), rows

        for start in range(0, operator.num_inputs, length):
            here, rows = block(start)
            for other in range(start, operator.num_inputs, length):
                there, columns = (here, rows) if other == start else block(other)
                for g in range(num_groups):
                    part = slice(ends[g], ends[g + 1])
                    kernels[g, here, there] = rows[:, part] @ columns[:, part].T
                    kernels[g, there, here] = kernels[g, here, there].T
    _require_separate(operator, kernels)
    return kernels


@eqx.filter_jit
def output_gradients(operator: JacobianOperator, inputs: PyTree) -> Float[Array, "input k dim"]:
    """Gradients of all outputs of each input, some inputs at a time."""
    posterior = operator.posterior
    predict_fn = require_predict_fn(posterior)
    flat, unravel = ravel_pytree(posterior.position)

    def of_input(row: PyTree) -> Float[Array, "k dim"]:
        batch = jax.tree.map(lambda x: x[None], row)
        return jax.jacrev(lambda z: predict_fn(posterior.params_at(unravel(z)), batch).ravel())(flat)

    return jax.lax.map(of_input, inputs, batch_size=_AT_ONCE)


def _require_separate(operator: JacobianOperator, kernels: Float[np.ndarray, "group output output"]) -> None:
    probe = np.random.default_rng(0).normal(size=kernels.shape[1])
    with float64():
        exact = np.asarray(_product(operator, jnp.asarray(probe)))
    found = np.einsum("gij,j->i", kernels, probe)
    if not np.linalg.norm(found - exact) <= _MIXED * np.linalg.norm(exact):
        raise ValueError(
            "predict_fn needs to be differentiable and to treat every input by itself, but its derivatives are not "
            "finite, or differ between a batch and its inputs one by one; switch batch statistics off."
        )


@eqx.filter_jit
def _product(operator: JacobianOperator, cotangent: Float[Array, "output"]) -> Float[Array, "output"]:
    return operator.product(operator.transpose_product(cotangent))
