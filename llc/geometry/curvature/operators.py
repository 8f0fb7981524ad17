r"""Curvature at w* as products with vectors: Hessian, Gauss–Newton matrix and Jacobian, over all the data.

$$ H v = \nabla \big( \nabla L(w^*) \cdot v \big), \qquad G v = \tfrac1n \sum_i J_i^\top A_i J_i v, \qquad
   J_i = \partial f(w^*, x_i) / \partial w, $$

with $A_i$ the Hessian of the loss of an example in its outputs $f$: a multiple of 1 (squared error), diag p − ppᵀ
(cross-entropy, p = softmax f), or that of any loss of the outputs (Schraudolph 2002; Martens 2020, arXiv 1412.1193).
G = H where the outputs fit or are linear in w. All of it by forward-over-reverse differentiation of one piece of the
data after the other, in float64 (ranks are decided on it), in the parameters that move.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.geometry.curvature.output_loss import OutputLoss, scaled_output_loss
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import as_float64

_PIECE = 1024  # rows of data that one product keeps in memory at a time
_ASYMMETRY = 1e-3  # ‖A − Aᵀ‖ / ‖A‖; round-off stays below it up to d = 10⁷ even where the loss computes in float32
_MOVES = (0.1, 1.0, 10.0)  # of the params, in units of a typical one; outputs that ignore them all ignore the params


@runtime_checkable
class SymmetricOperator(Protocol):
    """What a spectrum is made from: a symmetric matrix of order `dim` that multiplies vectors."""

    @property
    def dim(self) -> int:
        """Order of the matrix."""
        ...

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """The matrix times `vector`."""
        ...


class _DataOperator(eqx.Module):
    """w* and the data in pieces that fit in memory."""

    posterior: LocalPosterior
    pieces: PyTree
    rest: PyTree
    rest_weight: float = eqx.field(static=True)

    @property
    def dim(self) -> int:
        """d, the number of parameters that move."""
        return self.posterior.num_params

    def _flat_outputs(self):
        flat, unravel = ravel_pytree(self.posterior.position)
        predict_fn: Any = self.posterior.predict_fn
        return flat, lambda z, batch: predict_fn(self.posterior.params_at(unravel(z)), batch)

    def _sum(self, of_piece: Callable, pieces: PyTree) -> Array:
        """Σ of_piece(piece), flat vectors of the params: two of them in memory, however many pieces there are."""
        flat, _ = ravel_pytree(self.posterior.position)
        return jax.lax.scan(lambda total, piece: (total + of_piece(piece), None), jnp.zeros_like(flat), pieces)[0]


class CurvatureOperator(_DataOperator):
    """A symmetric matrix of curvature, with the gradient of the mean loss, on flat vectors."""

    def loss(self) -> Float[Array, ""]:
        """L(w*)."""
        flat, loss_of = self._flat_loss()
        num_pieces = len(jax.tree.leaves(self.pieces)[0])
        head = jnp.sum(jax.lax.map(lambda batch: loss_of(flat, batch), self.pieces)) / num_pieces
        rest = 0.0 if self.rest is None else loss_of(flat, self.rest)
        return (1 - self.rest_weight) * head + self.rest_weight * rest

    def gradient(self) -> Float[Array, "dim"]:
        """∇L(w*), flat."""
        flat, loss_of = self._flat_loss()
        return self._average(lambda batch: jax.grad(loss_of)(flat, batch))

    @property
    def flat(self) -> Float[Array, "dim"]:
        """w*, flat."""
        return ravel_pytree(self.posterior.position)[0]

    @abstractmethod
    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """The matrix times `vector`, flat."""

    def _flat_loss(self):
        flat, unravel = ravel_pytree(self.posterior.position)
        return flat, lambda z, batch: self.posterior.loss(self.posterior.params_at(unravel(z)), batch)

    def _average(self, of_piece: Callable) -> Array:
        num_pieces = len(jax.tree.leaves(self.pieces)[0])
        head = self._sum(of_piece, self.pieces) / num_pieces
        if self.rest is None:
            return head
        return (1 - self.rest_weight) * head + self.rest_weight * of_piece(self.rest)


def displaced(operator: CurvatureOperator, flat: Float[Array, "dim"]) -> CurvatureOperator:
    """The same matrix at another place."""
    _, unravel = ravel_pytree(operator.posterior.position)
    return eqx.tree_at(lambda o: o.posterior.center, operator, operator.posterior.params_at(unravel(flat)))


class HessianOperator(CurvatureOperator):
    """The Hessian of L at w*; build it with `curvature_operator`."""

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """H v, flat. Costs about two gradients."""
        flat, loss_of = self._flat_loss()
        return self._average(lambda batch: jax.jvp(lambda z: jax.grad(loss_of)(z, batch), (flat,), (vector,))[1])


class GaussNewtonOperator(CurvatureOperator):
    """The Gauss–Newton matrix of L at w*; build it with `gauss_newton_operator`."""

    output_loss: Callable[[Array, PyTree], Array] = eqx.field(static=True)
    scale: Float[Array, ""]

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "dim"]:
        """Jᵀ A J v, flat. Costs about two gradients."""
        flat, outputs_of = self._flat_outputs()

        def of_piece(batch):
            outputs, tangent = jax.jvp(lambda z: outputs_of(z, batch), (flat,), (vector,))
            gradient_fn = jax.grad(lambda f: self.scale * jnp.mean(self.output_loss(f, batch)))
            cotangent = jax.jvp(gradient_fn, (outputs,), (tangent,))[1]
            return jax.vjp(lambda z: outputs_of(z, batch), flat)[1](cotangent)[0]

        return self._average(of_piece)

    def output_curvature(self) -> Float[Array, "input output output"]:
        """A of every example: examples do not mix in the mean loss, so one product a column serves all."""
        flat, outputs_of = self._flat_outputs()

        def of_piece(batch):
            outputs = outputs_of(flat, batch)
            rows = outputs.reshape(len(outputs), -1)

            def gradient(rows):
                of_outputs = lambda f: len(f) * self.scale * jnp.mean(self.output_loss(f, batch))  # noqa: E731
                return jax.grad(lambda f: of_outputs(f.reshape(outputs.shape)))(rows)

            columns = jnp.eye(rows.shape[1])[:, None] * jnp.ones_like(rows)
            return jax.lax.map(lambda column: jax.jvp(gradient, (rows,), (column,))[1], columns).transpose(1, 2, 0)

        head = jax.lax.map(of_piece, self.pieces)
        head = head.reshape(-1, *head.shape[2:])
        return head if self.rest is None else jnp.concatenate([head, of_piece(self.rest)])


class JacobianOperator(_DataOperator):
    """J = ∂f/∂w over all inputs, one row an output of an input (input-major); build it with `jacobian_operator`."""

    output_shape: tuple[int, ...] = eqx.field(static=True)  # of one input

    @property
    def num_inputs(self) -> int:
        """n, the number of inputs."""
        num_pieces, length = jax.tree.leaves(self.pieces)[0].shape[:2]
        return num_pieces * length + (0 if self.rest is None else len(jax.tree.leaves(self.rest)[0]))

    @property
    def num_outputs(self) -> int:
        """n·k, the number of rows of J."""
        return self.num_inputs * int(np.prod(self.output_shape))

    def product(self, vector: Float[Array, "dim"]) -> Float[Array, "output"]:
        """J v: how the outputs change along `vector`. Costs about two evaluations."""
        flat, outputs_of = self._flat_outputs()
        return self._each(lambda batch: jax.jvp(lambda z: outputs_of(z, batch), (flat,), (vector,))[1])

    def transpose_product(self, cotangent: Float[Array, "output"]) -> Float[Array, "dim"]:
        """Jᵀ u, the gradient of u · f. Costs about one gradient."""
        flat, outputs_of = self._flat_outputs()

        def of_piece(piece):
            batch, part = piece
            return jax.vjp(lambda z: outputs_of(z, batch), flat)[1](part)[0]

        num_pieces, length = jax.tree.leaves(self.pieces)[0].shape[:2]
        rows = cotangent.reshape(self.num_inputs, *self.output_shape)
        split = num_pieces * length
        head = self._sum(of_piece, (self.pieces, rows[:split].reshape(num_pieces, length, *self.output_shape)))
        return head if self.rest is None else head + of_piece((self.rest, rows[split:]))

    def outputs(self) -> Float[Array, "output"]:
        """f(w*, x) of all inputs, flat."""
        flat, outputs_of = self._flat_outputs()
        return self._each(lambda batch: outputs_of(flat, batch))

    def _each(self, of_piece: Callable) -> Array:
        head = jax.lax.map(of_piece, self.pieces).ravel()
        return head if self.rest is None else jnp.concatenate([head, of_piece(self.rest).ravel()])


def curvature_operator(posterior: LocalPosterior) -> HessianOperator:
    """Hessian operator of `posterior` in float64; to be called and used under `float64()`."""
    return HessianOperator(*_in_pieces(posterior, posterior.data))


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
    fields = _in_pieces(posterior, posterior.data)
    _output_shape(*fields[:2])
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
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if inputs is not None and (not shapes or shapes[0][:1] in ((), (0,)) or len({shape[:1] for shape in shapes}) > 1):
        raise ValueError(f"inputs need arrays with the same leading axis of at least one input, got shapes {shapes}.")
    fields = _in_pieces(posterior, posterior.data if inputs is None else inputs)
    return JacobianOperator(*fields, _output_shape(*fields[:2]))


def check_symmetric(operator: SymmetricOperator, *, num_probes: int = 4, seed: int = 0) -> float:
    """‖A − Aᵀ‖ / ‖A‖ in the Frobenius norm, estimated from 2 · `num_probes` products.

    E (uᵀAv − vᵀAu)² = ‖A − Aᵀ‖² and E ‖Au‖² = ‖A‖² for independent Gaussian u and v.

    Raises:
        ValueError: if it is above 1e-3, which no round-off explains.
    """
    difference, size = _symmetry(operator, jax.random.split(jax.random.key(seed), num_probes))
    defect = 0.0 if float(size) == 0 else float(np.sqrt(float(difference) / float(size)))
    require_symmetry(defect)
    return defect


def require_symmetry(defect: float) -> None:
    """Raises ValueError if ‖A − Aᵀ‖ / ‖A‖ is above 1e-3, which no round-off explains."""
    if not defect <= _ASYMMETRY:
        raise ValueError(
            f"the operator needs to be symmetric, got ‖A − Aᵀ‖ / ‖A‖ ≈ {defect:.2g}; check the custom "
            "derivatives of the loss, which are not those of any function."
        )


@eqx.filter_jit
def _symmetry(operator: SymmetricOperator, keys: Array):
    def probe(key):
        u, v = jax.random.normal(key, (2, operator.dim))
        a_u, a_v = operator.product(u), operator.product(v)
        return (u @ a_v - v @ a_u) ** 2, 0.5 * (a_u @ a_u + a_v @ a_v)

    differences, sizes = jax.lax.map(probe, keys)
    return jnp.sum(differences), jnp.sum(sizes)


def _in_pieces(posterior: LocalPosterior, data: PyTree) -> tuple[LocalPosterior, PyTree, PyTree, float]:
    """The posterior in float64 without its data, the data in pieces of equal length, and their rest with its share."""
    data = as_float64(data)
    num_data = len(jax.tree.leaves(data)[0])
    num_pieces = max(1, num_data // _PIECE)
    length = num_data // num_pieces
    split = num_pieces * length
    pieces = jax.tree.map(lambda x: x[:split].reshape(num_pieces, length, *x.shape[1:]), data)
    rest = jax.tree.map(lambda x: x[split:], data) if split < num_data else None
    stub = jax.tree.map(lambda x: np.zeros((2, *x.shape[1:]), x.dtype), data)  # the pieces are the data
    posterior = eqx.tree_at(lambda p: (p.center, p.data), posterior, (as_float64(posterior.center), stub))
    return posterior, pieces, rest, 1 - split / num_data


def _output_shape(posterior: LocalPosterior, pieces: PyTree) -> tuple[int, ...]:
    """Shape of the outputs of one example."""
    if posterior.predict_fn is None:
        raise ValueError(
            "outputs are needed, got a posterior without predict_fn; give LocalPosterior(predict_fn=…), a function "
            "predict_fn(params, batch) that returns an array (batch, …)."
        )
    batch = jax.tree.map(lambda x: x[0], pieces)
    length = len(jax.tree.leaves(batch)[0])
    outputs = eqx.filter_eval_shape(posterior.predict_fn, posterior.center, batch)
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
    predict_fn: Any = posterior.predict_fn
    here = predict_fn(posterior.center, batch)
    direction = jnp.maximum(jnp.sqrt(jnp.mean(flat**2)), 1.0) * jax.random.normal(jax.random.key(0), flat.shape)
    there = [predict_fn(posterior.params_at(unravel(flat + move * direction)), batch) for move in _MOVES]
    return jnp.any(jnp.stack(there) != here)
