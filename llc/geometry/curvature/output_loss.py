r"""The loss as a function of the outputs, found by moving the params.

Squared error and cross-entropy are, for every example and up to what is affine in its outputs f, a convex function ψ:

$$ \ell(w) = s\, \psi(f(w)) + a \cdot f(w) + b, \qquad
   \psi = \tfrac12 \lVert f \rVert^2, \quad \log \sum_c e^{f_c}, \quad \sum_c \log(1 + e^{f_c}) , $$

where a and b hold the targets. Their second derivative in f is that of s ψ alone, so the targets need not be known,
and s, the factor in front (2 of a sum of squares, 1 of half of it, 1/T of a mean over T tokens), follows by least
squares from the losses and outputs at moved params. What remains of the losses tells whether ψ is the right one.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import as_float64
from llc.posterior.weights import Weighted, WeightedRows

OutputLoss = str | Callable[[Array, PyTree], Array] | None

_EXAMPLES = 4  # whose losses are fitted
_SPARE = 8  # moves beyond those that an affine function of the outputs can fit
_MAX_OUTPUTS = 2000  # of an example; the fit takes as many evaluations of it, and a dense least squares of that order
_MOVE = 0.3  # of each param, in units of a typical one: large against round-off, small against what overflows
_MISFIT = 1e-3  # of the losses; float64 leaves 1e-12, a loss that computes in float32 1e-5
_AFFINE = 1e-9  # share of ψ beyond its affine part, below which s is not seen


class UnknownOutputLossError(ValueError):
    """The loss is no known function of the outputs."""


def _squared_error(outputs: Array, _batch: PyTree) -> Float[Array, "batch"]:
    return 0.5 * jnp.sum(outputs.reshape(len(outputs), -1) ** 2, axis=1)


def _cross_entropy(outputs: Array, _batch: PyTree) -> Float[Array, "batch"]:
    outputs = outputs.reshape(len(outputs), *(outputs.shape[1:] or (1,)))
    return jnp.sum(jax.nn.logsumexp(outputs, axis=-1).reshape(len(outputs), -1), axis=1)


def _binary_cross_entropy(outputs: Array, _batch: PyTree) -> Float[Array, "batch"]:
    return jnp.sum(jax.nn.softplus(outputs).reshape(len(outputs), -1), axis=1)


CONVEX_PARTS: dict[str, Callable] = {
    "squared error": _squared_error,
    "cross-entropy": _cross_entropy,
    "binary cross-entropy": _binary_cross_entropy,
}


def scaled_output_loss(
    posterior: LocalPosterior, data: PyTree, output_loss: OutputLoss
) -> tuple[Callable[[Array, PyTree], Array], Float[Array, ""]]:
    """A function of (outputs, batch), and the factor with which its mean has the curvature of `posterior.loss`.

    Args:
        posterior: in float64, with `predict_fn`.
        data: what `posterior.loss` and `predict_fn` are given; only the first few examples are used.
        output_loss: a name, a callable that returns what `loss_fn` returns up to a constant, or None: the name whose
            function fits best.

    Raises:
        ValueError: if the name is unknown, or the loss is not this function of the outputs.
    """
    rows = as_float64(jax.tree.map(lambda x: jnp.asarray(x[_first_rows(data)]), data))
    if callable(output_loss):
        output_loss = Weighted(output_loss) if isinstance(data, WeightedRows) else output_loss
        _check_callable(posterior, rows, output_loss)
        return output_loss, jnp.ones(())
    names = tuple(CONVEX_PARTS) if output_loss is None else (output_loss,)
    if not set(names) <= set(CONVEX_PARTS):
        raise ValueError(f"output_loss needs a callable or one of {tuple(CONVEX_PARTS)}, got {output_loss!r}.")
    predict_fn: Any = posterior.predict_fn
    num_outputs = eqx.filter_eval_shape(predict_fn, posterior.center, rows).size // len(jax.tree.leaves(rows)[0])
    if num_outputs > _MAX_OUTPUTS:
        raise UnknownOutputLossError(
            f"an output loss by name needs at most {_MAX_OUTPUTS} outputs an example, got {num_outputs}; give the loss "
            "as a callable output_loss(outputs, batch)."
        )
    losses, outputs, parts = map(np.asarray, _at_moved_params(posterior, rows, names, 1 + num_outputs + _SPARE))
    finite = np.isfinite(losses).all(axis=1) & np.isfinite(outputs).all(axis=(1, 2))
    losses, outputs, parts = losses[finite], outputs[finite], parts[finite]
    fits = {name: _fit(losses, outputs, parts[:, i]) for i, name in enumerate(names)}
    best = min(fits, key=lambda name: fits[name][1])
    scale, misfit = fits[best]
    if not (misfit < _MISFIT and scale > 0):
        raise UnknownOutputLossError(
            f"loss_fn needs to be {' or '.join(names)} of the outputs of predict_fn, but a share of {misfit:.2g} of it "
            "is not; leave regularizers out, or give the loss as a callable output_loss(outputs, batch)."
        )
    return _part(best, rows), jnp.asarray(scale)


def _first_rows(data: PyTree) -> np.ndarray:
    """Numbers of the rows that are fitted; where rows have weights, of those with one above zero."""
    if not isinstance(data, WeightedRows):
        return np.arange(min(_EXAMPLES, len(jax.tree.leaves(data)[0])))
    return np.argsort(np.asarray(data.weights) == 0, kind="stable")[:_EXAMPLES]


def _part(name: str, batch: PyTree) -> Callable[[Array, PyTree], Array]:
    return Weighted(CONVEX_PARTS[name]) if isinstance(batch, WeightedRows) else CONVEX_PARTS[name]


@eqx.filter_jit
def _at_moved_params(
    posterior: LocalPosterior, rows: PyTree, names: tuple[str, ...], num_moves: int
) -> tuple[Float[Array, "move row"], Float[Array, "move row output"], Float[Array, "move name row"]]:
    """Losses, outputs and convex parts."""
    predict_fn: Any = posterior.predict_fn

    def at(key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        params = _moved(posterior, key)
        losses = jax.lax.map(
            lambda row: jnp.mean(posterior.loss_fn(params, jax.tree.map(lambda x: x[None], row))), rows
        )
        outputs = predict_fn(params, rows)
        return losses, outputs.reshape(len(outputs), -1), jnp.stack([_part(n, rows)(outputs, rows) for n in names])

    return jax.lax.map(at, jax.random.split(jax.random.key(0), num_moves))


def _moved(posterior: LocalPosterior, key: Array) -> PyTree:
    flat, unravel = ravel_pytree(posterior.position)
    typical = jnp.maximum(jnp.sqrt(jnp.mean(flat**2)), 1.0)
    return posterior.params_at(unravel(flat + _MOVE * typical * jax.random.normal(key, flat.shape)))


def _fit(losses: np.ndarray, outputs: np.ndarray, parts: np.ndarray) -> tuple[float, float]:
    """s, and the share of the losses beyond their affine part that s ψ does not explain."""
    if len(losses) <= 1 + outputs.shape[-1]:
        return 0.0, 1.0
    beyond_losses, beyond_parts = [], []
    for i in range(losses.shape[1]):
        basis, sizes, _ = np.linalg.svd(np.column_stack([np.ones(len(losses)), outputs[:, i]]), full_matrices=False)
        basis = basis[:, sizes > 1e-12 * sizes[0]]
        for column, beyond in ((losses[:, i], beyond_losses), (parts[:, i], beyond_parts)):
            beyond.append(column - basis @ (basis.T @ column))
    loss, part = np.concatenate(beyond_losses), np.concatenate(beyond_parts)
    if not (np.linalg.norm(part) > _AFFINE * np.linalg.norm(parts) and np.any(loss)):
        return 0.0, 1.0
    scale = (loss @ part) / (part @ part)
    return float(scale), float(np.linalg.norm(loss - scale * part) / np.linalg.norm(loss))


def _check_callable(posterior: LocalPosterior, rows: PyTree, output_loss: Callable) -> None:
    predict_fn: Any = posterior.predict_fn
    out = eqx.filter_eval_shape(lambda p, b: output_loss(predict_fn(p, b), b), posterior.center, rows)
    if len(getattr(out, "shape", (0, 0))) > 1:
        raise ValueError(f"output_loss needs to return what loss_fn returns, got {type(out).__name__}: {out}.")
    losses, found = map(np.asarray, _with_callable(posterior, rows, output_loss))
    if not np.ptp(losses - found) <= _MISFIT * np.ptp(losses):
        raise ValueError(
            "output_loss(predict_fn(params, batch), batch) needs to be loss_fn(params, batch) up to a constant, but "
            f"where the params are moved one changes by {np.ptp(found):.3g} and the other by {np.ptp(losses):.3g}; "
            "leave regularizers out, and reduce over outputs and examples as loss_fn does."
        )


@eqx.filter_jit
def _with_callable(
    posterior: LocalPosterior, rows: PyTree, output_loss: Callable
) -> tuple[Float[Array, "move"], Float[Array, "move"]]:
    """Mean losses, and what `output_loss` makes of the outputs."""
    predict_fn: Any = posterior.predict_fn

    def at(key: PRNGKeyArray) -> tuple[Array, Array]:
        params = _moved(posterior, key)
        return jnp.mean(posterior.loss_fn(params, rows)), jnp.mean(output_loss(predict_fn(params, rows), rows))

    return jax.lax.map(at, jax.random.split(jax.random.key(0), _SPARE))
