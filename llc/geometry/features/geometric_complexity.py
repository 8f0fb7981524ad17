r"""Geometric complexity: how much the outputs change with the inputs, a discrete Dirichlet energy.

$$ \mathrm{GC} = \frac1n \sum_i \lVert \partial f(w, x_i) / \partial x \rVert_F^2 , $$

after Dherin et al. 2022 (arXiv 2209.13083), who find that many regularizers lower it. It is exact where the inputs
have few numbers (a derivative along each) or the outputs are few (a gradient of each). Otherwise it is an average over
random signs u, $\lVert J \rVert_F^2 = E \lVert J^\top u \rVert^2$ (Hutchinson), with its standard error.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.geometry.curvature.operators import JacobianOperator, require_predict_fn
from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.posterior.arguments import require_integer
from llc.posterior.keys import check_key
from llc.posterior.precision import float64
from llc.posterior.rows import rows_that_fit

_EXACT = 256  # derivatives of an input, up to which the norm is exact unless probes are asked for
_PROBES = 64  # where they are needed and their number is not given: an error of at most √(2 / 64) of an input's norm
_AT_ONCE = 64  # inputs
_MIXED = 1e-8  # relative difference of the outputs between a batch and its inputs one by one


@dataclasses.dataclass(frozen=True)
class GeometricComplexity:
    """Mean squared norm of ∂f/∂x over the data.

    Attributes:
        value: GC, in the square of outputs per input.
        probe_error: standard error from random probes; 0 where the norms are exact.
        row_error: standard error of the mean over inputs, if those are a sample of a population.
        per_input: ‖∂f/∂x‖² of each input.
        method: "forward" (a derivative along each number of an input), "reverse" (a gradient of each output), or
            "probes".
        num_derivatives: of each input.
    """

    value: float
    probe_error: float
    row_error: float
    per_input: Float[np.ndarray, "input"]
    method: str
    num_derivatives: int

    def __str__(self) -> str:
        sampled = f" ± {self.probe_error:.2g} (probes)" if self.method == "probes" else ""
        return (
            f"geometric complexity {self.value:.4g}{sampled} ± {self.row_error:.2g} (inputs), {self.method}, "
            f"{self.num_derivatives} derivatives an input"
        )


def geometric_complexity(
    predict_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    num_probes: int | None = None,
    key: PRNGKeyArray | None = None,
) -> GeometricComplexity:
    """Geometric complexity of a model at `params`, in float64.

    Args:
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …); of logits, not of probabilities, in the
            reference.
        params: w, as for `LocalPosterior`.
        inputs: a pytree of arrays with the same leading axis of n inputs. Derivatives are taken in the floating-point
            ones; integers (tokens) stay as they are.
        num_probes: random probes for each input, at least 2. Default: none where the smaller of the numbers of an input
            and of its outputs is at most 256, and 64 beyond.
        key: of the probes; needed where there are any.

    Raises:
        ValueError: if no input is of floating point, the derivatives are not finite, the outputs of an input depend on
            the others of its batch, or a key is missing.

    References:
        Dherin, Munn, Rosca & Barrett 2022, Why neural networks find simple solutions: the many regularizers of
        geometric complexity.

    Example:
        >>> import jax.numpy as jnp
        >>> geometric_complexity(lambda w, x: x @ w, jnp.array([3.0, 4.0]), jnp.ones((5, 2))).value
        25.0
    """
    require_integer("num_probes", num_probes, least=2, optional=True)
    if key is not None:
        check_key(key)
    operator = behavioral_gradients(predict_fn, params, inputs).operator
    with float64():
        rows = operator.rows.joined()
        moving = eqx.filter(rows, eqx.is_inexact_array)
        dim = sum(leaf.size for leaf in jax.tree.leaves(moving)) // operator.num_inputs
        if not dim:
            raise ValueError("inputs need floating-point numbers to take derivatives in, got none; embed tokens first.")
        _require_separate(operator, rows)
        num_outputs = operator.num_outputs // operator.num_inputs
        if num_probes is None and min(dim, num_outputs) > _EXACT:
            num_probes = _PROBES
        if num_probes is not None:
            if key is None:
                raise ValueError(
                    f"key is needed for random probes of {num_outputs} outputs in {dim} numbers of an input, got None; "
                    "give key=jax.random.key(0)."
                )
            squares = np.asarray(_squares(operator, rows, "probes", num_probes, key))
        else:
            squares = np.asarray(_squares(operator, rows, "forward" if dim <= num_outputs else "reverse", 0, None))
    method = "probes" if num_probes else "forward" if dim <= num_outputs else "reverse"
    return _record(squares, method, num_probes or min(dim, num_outputs))


def _record(squares: Float[np.ndarray, "input probe"], method: str, num_derivatives: int) -> GeometricComplexity:
    if not np.isfinite(squares).all():
        raise ValueError("predict_fn needs finite derivatives in its inputs, got nan or inf (norms and roots at 0).")
    per_input, per_probe = squares.mean(axis=1), squares.mean(axis=0)
    n, probes = squares.shape
    return GeometricComplexity(
        value=float(per_input.mean()),
        probe_error=float(per_probe.std(ddof=1) / np.sqrt(probes)) if method == "probes" else 0.0,
        row_error=float(per_input.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        per_input=per_input,
        method=method,
        num_derivatives=num_derivatives,
    )


@eqx.filter_jit
def _squares(
    operator: JacobianOperator, rows: PyTree, method: str, num_probes: int, key: PRNGKeyArray | None
) -> Float[Array, "input probe"]:
    """‖∂f/∂x‖² of each input, and of each probe where there are any."""
    keys = None if key is None else jax.random.split(key, operator.num_inputs)

    def of_input(row_and_key: tuple[PyTree, PRNGKeyArray | None]) -> Float[Array, "probe"]:
        row, own_key = row_and_key
        moves, stays = eqx.partition(row, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(moves)

        def outputs(x: Float[Array, "dim"]) -> Float[Array, "k"]:
            batch = jax.tree.map(lambda leaf: leaf[None], eqx.combine(unravel(x), stays))
            return require_predict_fn(operator.posterior)(operator.posterior.center, batch).ravel()

        if method == "forward":
            along = lambda direction: jnp.sum(jax.jvp(outputs, (flat,), (direction,))[1] ** 2)  # noqa: E731
            return jnp.sum(jax.lax.map(along, jnp.eye(len(flat))))[None]
        values, pullback = jax.vjp(outputs, flat)
        square = lambda cotangent: jnp.sum(pullback(cotangent)[0] ** 2)  # noqa: E731
        if own_key is None:
            return jnp.sum(jax.lax.map(square, jnp.eye(len(values))))[None]
        return jax.lax.map(square, jax.random.rademacher(own_key, (num_probes, len(values)), jnp.float64))

    at_once = rows_that_fit(lambda batch: _predict(operator, batch), rows, _AT_ONCE, times=3.0)
    return jax.lax.map(of_input, (rows, keys), batch_size=at_once)


@eqx.filter_jit
def _predict(operator: JacobianOperator, batch: PyTree) -> Array:
    return require_predict_fn(operator.posterior)(operator.posterior.center, batch)


def _require_separate(operator: JacobianOperator, rows: PyTree) -> None:
    """Raises ValueError where the outputs of an input depend on the others of its batch."""
    few = min(operator.num_inputs, 8)
    parts = [slice(0, few), *(slice(i, i + 1) for i in range(few))]
    together, *alone = (np.asarray(_predict(operator, jax.tree.map(lambda x, p=part: x[p], rows))) for part in parts)
    one_by_one = np.concatenate(alone)
    scale = max(float(np.linalg.norm(one_by_one)), float(np.finfo(np.float64).tiny))
    if not np.linalg.norm(together - one_by_one) <= _MIXED * scale:
        raise ValueError(
            "predict_fn needs to treat every input by itself and to be finite, but its outputs differ between a batch "
            "and its inputs one by one; switch batch statistics off."
        )
