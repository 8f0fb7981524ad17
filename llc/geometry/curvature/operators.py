r"""Curvature at w* as products with vectors: Hessian, Gauss–Newton matrix and Jacobian, over all the data.

$$ H v = \nabla \big( \nabla L(w^*) \cdot v \big), \qquad G v = \tfrac1n \sum_i J_i^\top A_i J_i v, \qquad
   J_i = \partial f(w^*, x_i) / \partial w, $$

with $A_i$ the Hessian of the loss of an example in its outputs $f$: a multiple of 1 (squared error), diag p − ppᵀ
(cross-entropy, p = softmax f), or that of any loss of the outputs (Schraudolph 2002; Martens 2020, arXiv 1412.1193).
G = H where the outputs fit or are linear in w. All of it by forward-over-reverse differentiation of one piece of the
data after the other, in float64 (ranks are decided on it), in the parameters that move.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.geometry.curvature.output_loss import OutputLoss, scaled_output_loss
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import in_loops
from llc.posterior.precision import as_float64
from llc.posterior.rows import Rows, even_length, in_pieces, num_rows, rows_that_fit
from llc.posterior.whole import on_resident_rows

_PIECE = 1024  # rows of data that one product keeps in memory at a time, and fewer where the model is large
_OF_A_GRADIENT = 2.0  # bytes that a product keeps alive, in units of those of a gradient (it is its derivative)
_MOVES = (0.1, 1.0, 10.0)  # of the params, in units of a typical one; outputs that ignore them all ignore the params


_OfBatch = Callable[[Array, PyTree], Array]  # of flat params and a batch


class _DataOperator(eqx.Module):
    """w* and the data in pieces that fit in memory."""

    posterior: LocalPosterior
    rows: Rows

    @property
    def dim(self) -> int:
        """d, the number of parameters that move."""
        return self.posterior.num_params

    @property
    def flat(self) -> Float[Array, "dim"]:
        """w*, flat."""
        return ravel_pytree(self.posterior.position)[0]

    def _flat_outputs(self) -> tuple[Float[Array, "dim"], _OfBatch]:
        flat, unravel = ravel_pytree(self.posterior.position)
        predict_fn = require_predict_fn(self.posterior)
        return flat, lambda z, batch: predict_fn(self.posterior.params_at(unravel(z)), batch)


class CurvatureOperator(_DataOperator):
    """A symmetric matrix of curvature, with the gradient of the mean loss, on flat vectors."""

    def loss(self) -> Float[Array, ""]:
        """L(w*)."""
        flat, loss_of = self._flat_loss()
        return self.rows.mean(lambda batch: loss_of(flat, batch), jnp.zeros((), flat.dtype))

    def gradient(self) -> Float[Array, "dim"]:
        """∇L(w*), flat."""
        flat, loss_of = self._flat_loss()
        slope = in_loops(self.posterior.loss_fn, jax.grad(loss_of))
        return self._average(lambda batch: slope(flat, batch))

    @abstractmethod
    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """The matrix times `vector`, flat."""

    def _flat_loss(self) -> tuple[Float[Array, "dim"], _OfBatch]:
        flat, unravel = ravel_pytree(self.posterior.position)
        return flat, lambda z, batch: self.posterior.loss(self.posterior.params_at(unravel(z)), batch)

    def _average(self, of_batch: Callable[[PyTree], Array]) -> Float[Array, "dim"]:
        return self.rows.mean(of_batch, jnp.zeros_like(self.flat))


def displaced(operator: CurvatureOperator, flat: Float[Array, "dim"]) -> CurvatureOperator:
    """The same matrix at another place."""
    _, unravel = ravel_pytree(operator.posterior.position)
    return eqx.tree_at(lambda o: o.posterior.center, operator, operator.posterior.params_at(unravel(flat)))


class HessianOperator(CurvatureOperator):
    """The Hessian of L at w*; build it with `curvature_operator`."""

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """H v, flat. Costs about two gradients."""
        flat, loss_of = self._flat_loss()

        def of_batch(flat: Array, vector: Array, batch: PyTree) -> Array:
            return jax.jvp(lambda z: jax.grad(loss_of)(z, batch), (flat,), (vector,))[1]

        return self._average(lambda batch: in_loops(self.posterior.loss_fn, of_batch)(flat, vector, batch))


class GaussNewtonOperator(CurvatureOperator):
    """The Gauss–Newton matrix of L at w*; build it with `gauss_newton_operator`."""

    output_loss: Callable[[Array, PyTree], Array] = eqx.field(static=True)
    scale: Float[Array, ""]

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """Jᵀ A J v, flat. Costs about two gradients."""
        flat, outputs_of = self._flat_outputs()

        def of_batch(batch: PyTree) -> Float[Array, "dim"]:
            outputs, tangent = jax.jvp(lambda z: outputs_of(z, batch), (flat,), (vector,))
            gradient_fn = jax.grad(lambda f: self.scale * jnp.mean(self.output_loss(f, batch)))
            cotangent = jax.jvp(gradient_fn, (outputs,), (tangent,))[1]
            return jax.vjp(lambda z: outputs_of(z, batch), flat)[1](cotangent)[0]

        return self._average(of_batch)

    def output_curvature(self) -> Float[Array, "input output output"]:
        """A of every example: examples do not mix in the mean loss, so one product a column serves all."""
        flat, outputs_of = self._flat_outputs()

        def of_batch(batch: PyTree) -> Float[Array, "row output output"]:
            outputs = outputs_of(flat, batch)
            rows = outputs.reshape(len(outputs), -1)

            def gradient(rows: Float[Array, "row output"]) -> Float[Array, "row output"]:
                of_outputs = lambda f: len(f) * self.scale * jnp.mean(self.output_loss(f, batch))  # noqa: E731
                return jax.grad(lambda f: of_outputs(f.reshape(outputs.shape)))(rows)

            columns = jnp.eye(rows.shape[1])[:, None] * jnp.ones_like(rows)
            return jax.lax.map(lambda column: jax.jvp(gradient, (rows,), (column,))[1], columns).transpose(1, 2, 0)

        return self.rows.map(of_batch)


class JacobianOperator(_DataOperator):
    """J = ∂f/∂w over all inputs, one row an output of an input (input-major); build it with `jacobian_operator`."""

    output_shape: tuple[int, ...] = eqx.field(static=True)  # of one input

    @property
    def num_inputs(self) -> int:
        """n, the number of inputs."""
        return self.rows.num_rows

    @property
    def num_outputs(self) -> int:
        """n·k, the number of rows of J."""
        return self.num_inputs * int(np.prod(self.output_shape))

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "output"]:
        """J v: how the outputs change along `vector`. Costs about two evaluations."""
        flat, outputs_of = self._flat_outputs()
        return self.rows.map(lambda batch: jax.jvp(lambda z: outputs_of(z, batch), (flat,), (vector,))[1]).ravel()

    def transpose_product(self, cotangent: Float[Array, "output"]) -> Float[Array, "dim"]:
        """Jᵀ u, the gradient of u · f. Costs about one gradient."""
        flat, outputs_of = self._flat_outputs()

        def of_batch(batch_and_part: tuple[PyTree, Array]) -> Float[Array, "dim"]:
            batch, part = batch_and_part
            return jax.vjp(lambda z: outputs_of(z, batch), flat)[1](part)[0]

        parts = cotangent.reshape(self.num_inputs, *self.output_shape)
        return self.rows.beside(parts).sum(of_batch, jnp.zeros_like(flat))

    def outputs(self) -> Float[Array, "output"]:
        """f(w*, x) of all inputs, flat."""
        flat, outputs_of = self._flat_outputs()
        return self.rows.map(lambda batch: outputs_of(flat, batch)).ravel()


def curvature_operator(posterior: LocalPosterior) -> HessianOperator:
    """Hessian operator of `posterior` in float64; to be called and used under `float64()`."""
    return HessianOperator(*_in_pieces(posterior, posterior.data, _loss_of))


def gauss_newton_operator(
    posterior: LocalPosterior,
    *,
    output_loss: OutputLoss = None,
) -> GaussNewtonOperator:
    """Gauss–Newton operator of `posterior` in float64; to be called and used under `float64()`.

    Args:
        posterior: with `predict_fn`, the outputs (batch, …), of which `loss_fn` is a function.
        output_loss: the loss as a function of the outputs. `"squared error"`, `"cross-entropy"` and
            `"binary cross-entropy"` have the factor that `loss_fn` gives them (½, sum or mean over outputs), measured
            where the params are moved; None finds out which of them it is in the same way.
            A callable `output_loss(outputs, batch)` returns what `loss_fn` returns, up to a constant. Outputs are
            logits in the cross-entropies, over the last axis or, binary, one by one.

    Raises:
        ValueError: if there is no `predict_fn`, its outputs have no leading axis of examples or do not depend on the
            params, or `loss_fn` is not that function of the outputs (a regularizer in it, for instance).
    """
    fields = _in_pieces(posterior, posterior.data, _loss_of)
    _output_shape(*fields)
    return GaussNewtonOperator(*fields, *scaled_output_loss(fields[0], posterior.data, output_loss))


def jacobian_operator(posterior: LocalPosterior, *, inputs: PyTree = None) -> JacobianOperator:
    """Jacobian operator of `posterior.predict_fn` in float64; to be called and used under `float64()`.

    Args:
        posterior: with `predict_fn`, the outputs (batch, …).
        inputs: batches for `predict_fn`, a pytree of arrays with the same leading axis; None takes `posterior.data`.

    Raises:
        ValueError: if there is no `predict_fn`, its outputs have no leading axis of examples or do not depend on the
            params, or the inputs have no leading axis in common.
    """
    if inputs is not None:
        check_inputs(inputs)
    fields = _in_pieces(posterior, posterior.data if inputs is None else inputs, _sum_of_outputs)
    return JacobianOperator(*fields, _output_shape(*fields))


def check_inputs(inputs: PyTree) -> None:
    """Raises ValueError if inputs have no leading axis in common."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if not shapes or shapes[0][:1] in ((), (0,)) or len({shape[:1] for shape in shapes}) > 1:
        raise ValueError(f"inputs need arrays with the same leading axis of at least one input, got shapes {shapes}.")


def _in_pieces(
    posterior: LocalPosterior, data: PyTree, scalar_of: Callable[[LocalPosterior, PyTree, PyTree], Array]
) -> tuple[LocalPosterior, Rows]:
    """The posterior in float64 without its data, and the data in pieces on which a product fits in memory.

    Args:
        posterior: loss and w*.
        data: what products walk over.
        scalar_of: (posterior, position, batch), whose gradient tells how many rows fit.
    """
    posterior, data = on_resident_rows(posterior), as_float64(data)
    stub = jax.tree.map(lambda x: np.zeros((2, *x.shape[1:]), x.dtype), data)  # the pieces are the data
    posterior = eqx.tree_at(lambda p: (p.center, p.data), posterior, (as_float64(posterior.center), stub))
    total = num_rows(data)
    length = total // max(1, total // _PIECE)

    def gradient(batch: PyTree) -> PyTree:
        return jax.grad(lambda position: scalar_of(posterior, position, batch))(posterior.position)

    fit = rows_that_fit(gradient, data, length, times=_OF_A_GRADIENT)
    return posterior, in_pieces(data, length if fit == length else even_length(total, math.ceil(total / fit)))


def _loss_of(posterior: LocalPosterior, position: PyTree, batch: PyTree) -> Array:
    return posterior.loss(posterior.params_at(position), batch)


def _sum_of_outputs(posterior: LocalPosterior, position: PyTree, batch: PyTree) -> Array:
    return jnp.sum(require_predict_fn(posterior)(posterior.params_at(position), batch))


def require_predict_fn(posterior: LocalPosterior) -> Callable[[PyTree, PyTree], Array]:
    """`posterior.predict_fn`; raises ValueError if there is none."""
    if posterior.predict_fn is None:
        raise ValueError(
            "outputs are needed, got a posterior without predict_fn; give LocalPosterior(predict_fn=…), a function "
            "predict_fn(params, batch) that returns an array (batch, …)."
        )
    return posterior.predict_fn


def _output_shape(posterior: LocalPosterior, rows: Rows) -> tuple[int, ...]:
    """Shape of the outputs of one example."""
    predict_fn = require_predict_fn(posterior)
    batch = jax.tree.map(lambda x: x[0], rows.pieces)
    length = rows.length
    outputs = eqx.filter_eval_shape(predict_fn, posterior.center, batch)
    shape = getattr(outputs, "shape", ())
    if shape[:1] != (length,) or not jnp.issubdtype(outputs.dtype, jnp.floating):
        seen = f"{outputs.dtype} of shape {shape}" if hasattr(outputs, "dtype") else f"{outputs}"
        raise ValueError(
            f"predict_fn needs to return an array of real numbers of shape (batch, …) = ({length}, …), got {seen}; "
            "return the outputs of every example and nothing else."
        )
    if not bool(_outputs_move(posterior, batch)):
        raise ValueError(
            "the outputs of predict_fn need to depend on the params that move, but they stay the same when those are "
            "moved; let predict_fn use its first argument, or let other params move (mask)."
        )
    return shape[1:]


@eqx.filter_jit
def _outputs_move(posterior: LocalPosterior, batch: PyTree) -> Array:
    flat, unravel = ravel_pytree(posterior.position)
    predict_fn = require_predict_fn(posterior)
    here = predict_fn(posterior.center, batch)
    direction = jnp.maximum(jnp.sqrt(jnp.mean(flat**2)), 1.0) * jax.random.normal(jax.random.key(0), flat.shape)
    there = [predict_fn(posterior.params_at(unravel(flat + move * direction)), batch) for move in _MOVES]
    return jnp.any(jnp.stack(there) != here)
