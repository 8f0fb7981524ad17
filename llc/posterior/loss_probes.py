r"""What a loss has to be, probed on a few rows when a posterior is made.

1. *A mean over rows.* The batches of L(w*), of the draws and of the Hessian have different sizes, so that the loss of a
   batch has to be that of its parts: $L(A \cup B) = \tfrac12 (L(A) + L(B))$ for halves of equal size, or
   $\ell_i(A \cup B) = \ell_i(A)$ for a loss per example. The halves are made as different as the data are.
2. *Its gradient is finite, and its derivative*, see `loss_slopes`.
3. *Its precision shows λ.* A rounding unit of L(w*) has to be small in units of 1/nβ.
4. *It is the same function in float64*, in which L(w*) and curvature are computed: random numbers of the default dtype
   are others there.

At w* everything may be zero, so that w* moved by a tenth of its size is probed too. Cost: two programs, of a loss on 13
rows and of a gradient on 26, in float64; three evaluations of the first for each of at most 4 ways to cut the rows, and
about ten of the second. A loss that fails in float64 is probed in the precision of the params. Where the traced program
is another one on many rows than on 26, up to 2,048 of them are compared with their parts, too; and where it has steps
that depend on the params, up to 77 gradients on 26 rows look for jumps.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from llc.posterior.cures import require_unchanged
from llc.posterior.loss_parts import (
    different_rows,
    even_parts,
    is_another_program,
    losses_of_parts,
    require_sum_of_parts,
)
from llc.posterior.loss_slopes import Slopes, undefined_slope, wrong_slope
from llc.posterior.precision import as_float64, float64
from llc.posterior.programs import coarsest_float, draws_wide_numbers, has_steps
from llc.posterior.rows import num_rows, rows_that_fit

_PROBED = (26, 32)  # rows; the second for a loss that needs batches of a power of two
_LARGE = 2048  # rows of the batch of a loss that does something else on many rows
_MOVES = (0.1, 1e-3)  # of the size of w*, or of 1; the second where the loss is not finite at the first
_JUMPS_SEEN = 0.01  # share of a slope that may be off, above which rounding hides jumps
_LARGE_MODEL = 10**6  # parameters, beyond which no jumps are looked for, and the loss alone has its own program
_MAX_ROUNDING = 0.01  # nβ · unit of the loss; λ̂ is of order 1, and a report claims 2 %


@dataclass(frozen=True)
class _Tolerance:
    """What rounding and curvature may do in one precision.

    Attributes:
        parts: to the mean of the parts, as a share of the loss. It is 2²⁶ units in float64, which leaves eight digits
            for cancellation within the loss, and 2¹¹ in float32.
        step: of finite differences, as a share of the size of the parameters; None where there can be none.
        share: of a slope by which a finite difference may be off. About a share `step` of the rectifiers is crossed,
            and the third derivative counts with the square of it.
        noise: by which a finite difference may be off, as a share of the loss: 100 units divided by the step.
    """

    parts: float
    step: float | None = None
    share: float = 0.0
    noise: float = 0.0


_TOLERANCES = {
    "float64": _Tolerance(parts=1.5e-8, step=1e-6, share=1e-3, noise=2e-8),
    "float32": _Tolerance(parts=2.5e-4, step=3e-3, share=0.03, noise=4e-3),
}
_HALF = _Tolerance(parts=0.05)


@dataclass(frozen=True)
class Probe:
    """A loss around w*.

    Attributes:
        loss_fn: of (params, batch).
        position: the parameters that move, at w*.
        params_at: full params from those that move.
        select: those that move from full params.
        per_example: whether the loss comes per example.
        nbeta: nβ, with which rounding is compared; None if it is not known.
    """

    loss_fn: Callable[[PyTree, PyTree], Array]
    position: PyTree
    params_at: Callable[[PyTree], PyTree]
    select: Callable[[PyTree], PyTree]
    per_example: bool
    nbeta: float | None

    def value(self, position: PyTree, batch: PyTree) -> Float[np.ndarray, "*row"]:
        """The loss of `batch`, as the function gives it; by the program of the gradient, but for a large model."""
        params = self.params_at(_arrays(position))
        alone = _is_large(position)
        loss = _loss(self.loss_fn, params, batch) if alone else _with_gradient(self.loss_fn, params, batch)[0]
        return np.asarray(loss, np.float64)

    def gradient(self, position: PyTree, batch: PyTree) -> PyTree:
        """Gradient of the mean loss of `batch`, for the parameters that move."""
        params = self.params_at(_arrays(position))
        _, gradient = _with_gradient(self.loss_fn, params, batch)
        return jax.tree.map(np.asarray, self.select(eqx.combine(gradient, params)))


def check_loss_function(probe: Probe, data: PyTree, init_loss: float) -> str:
    """The dtype of least precision in which the loss computes; "float64" of one that fails on so few rows.

    Raises:
        ValueError: if the loss is no mean over rows, has another gradient, or is too coarse to show λ.

    Args:
        probe: the loss.
        data: from which a few rows are taken.
        init_loss: L(w*), of any precision.
    """

    def loss(batch: PyTree) -> Array:
        return probe.loss_fn(probe.params_at(probe.position), batch)

    narrow_by_default = not jax.config.jax_enable_x64
    precisions = ((float64, as_float64), (contextlib.nullcontext, lambda tree: tree))
    for most, (context, convert) in itertools.product(_PROBED, precisions):
        few = rows_that_fit(loss, data, most, times=4.0, least=2)
        rows, splits = different_rows(data, max(2, few // 2 * 2))
        with context():
            batch, position = convert(_rows(data, rows)), convert(probe.position)
            if _runs(probe, batch, position, splits):
                name = _precision(probe, batch, position)
                check_precision(name, probe.nbeta, init_loss)
                tolerance = _TOLERANCES.get(name, _HALF)
                _check(probe, batch, splits, position, tolerance)
                large = even_parts(rows_that_fit(loss, data, _LARGE, times=4.0, least=2), len(rows))
                if large.shape[1] > 1 and is_another_program(loss, data, len(rows), large.size):
                    spread = np.linspace(0, num_rows(data) - 1, large.size).astype(int)
                    _check_parts(probe, convert(_rows(data, spread)), large, position, tolerance)
                if narrow_by_default:
                    _check_random_numbers(probe, batch, position)
                return name
    return "float64"


def check_precision(name: str, nbeta: float | None, init_loss: float) -> None:
    """Raises ValueError if a loss that computes in half precision is too coarse at this nβ.

    Args:
        name: the dtype of least precision in which the loss computes.
        nbeta: nβ; None if it is not known.
        init_loss: L(w*).
    """
    if name in _TOLERANCES or nbeta is None:
        return
    unit = float(jnp.finfo(name).eps) * abs(init_loss)
    if nbeta * unit > _MAX_ROUNDING:
        raise ValueError(
            f"loss_fn needs to compute in float32 or float64, but it computes in {name}, whose rounding unit at "
            f"L(w*) = {init_loss:.3g} is {unit:.2g}; nβ times that is {nbeta * unit:.2g}, not small compared with λ̂. "
            "Cast params, inputs and outputs to float32 in loss_fn, or set the model's compute dtype to it."
        )


def _runs(probe: Probe, batch: PyTree, position: PyTree, splits: np.ndarray) -> bool:
    """Whether the loss and its gradient work in this precision and on so few rows; what needs these says why not.

    Raises:
        ValueError: if the loss changes a state among its params.
    """
    try:
        probe.value(position, batch)
        _of_parts(probe, position, batch, splits)
    except Exception as error:  # the user's function may raise anything
        require_unchanged(error)
        return False
    return True


def _check(probe: Probe, batch: PyTree, splits: np.ndarray, position: PyTree, tolerance: _Tolerance) -> None:
    position = jax.tree.map(np.asarray, position)
    parts = [_of_parts(probe, position, batch, splits) for _ in range(2)]
    if not np.array_equal(*parts, equal_nan=True):
        raise ValueError(
            "loss_fn needs to be a fixed function of (params, batch), but evaluated twice at w* it gives two values: a "
            "callback in it draws random numbers or keeps a state. Put what is random into data."
        )
    moved, size = _check_parts(probe, batch, splits, position, tolerance)
    _refuse(undefined_slope(probe.gradient(position, batch)) if _finite(probe.value(position, batch)) else None)
    if tolerance.step is None or not _finite(probe.value(moved, batch)):
        return
    slopes = Slopes(
        lambda z: float(np.mean(probe.value(z, batch))),
        lambda z: probe.gradient(z, batch),
        probe.gradient(moved, batch),
        moved,
        tolerance.step,
        tolerance.share,
        tolerance.noise * size,
        tolerance.share < _JUMPS_SEEN and _may_jump(probe, batch, position),
    )
    _refuse(wrong_slope(slopes))


def _check_parts(
    probe: Probe, batch: PyTree, splits: np.ndarray, position: PyTree, tolerance: _Tolerance
) -> tuple[PyTree, float]:
    """A position beside w* where the loss is finite, and the size of the losses.

    Raises:
        ValueError: if the loss of the batch is not that of its parts.
    """
    moved = next((z for z in (_moved(position, size) for size in _MOVES) if _finite(probe.value(z, batch))), position)
    pairs = [(probe.value(z, batch), _of_parts(probe, z, batch, splits)) for z in (position, moved)]
    pairs = [(whole, parts) for whole, parts in pairs if _finite(whole) and _finite(parts)]
    size = max((float(np.abs(part).max()) for pair in pairs for part in pair), default=0.0)
    for whole, parts in pairs:
        require_sum_of_parts(whole, parts, splits, tolerance.parts * size)
    return moved, size


def _of_parts(probe: Probe, position: PyTree, batch: PyTree, splits: np.ndarray) -> np.ndarray:
    return losses_of_parts(probe.loss_fn, probe.params_at(_arrays(position)), batch, splits)


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _may_jump(probe: Probe, batch: PyTree, position: PyTree) -> bool:
    if _is_large(position):
        return False
    loss, arrays = _of_arrays(probe, position)
    return has_steps(loss, arrays, batch)


def _check_random_numbers(probe: Probe, batch: PyTree, position: PyTree) -> None:
    loss, arrays = _of_arrays(probe, position)
    if draws_wide_numbers(loss, arrays, batch):
        raise ValueError(
            "loss_fn needs to be the same function in float32 and in float64, but it draws random numbers of the "
            "default dtype, which differ between the two. Draw them once outside of loss_fn, or with "
            "dtype=jnp.float32 (jax.random.bernoulli: p=jnp.float32(…), jax.random.randint: dtype=jnp.int32)."
        )


def _precision(probe: Probe, batch: PyTree, position: PyTree) -> str:
    """The dtype of least precision in which the loss computes."""
    loss, arrays = _of_arrays(probe, position)
    return coarsest_float(loss, arrays, batch).name


def _of_arrays(probe: Probe, position: PyTree) -> tuple[Callable[[PyTree, PyTree], Array], PyTree]:
    """The loss as a function of the arrays among its params and of a batch, and these arrays."""
    arrays, rest = eqx.partition(probe.params_at(_arrays(position)), eqx.is_inexact_array)
    return lambda arrays, batch: probe.loss_fn(eqx.combine(arrays, rest), batch), arrays


@eqx.filter_jit
def _loss(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> Array:
    return loss_fn(params, batch)


@eqx.filter_jit
def _with_gradient(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
    def mean(params: PyTree) -> tuple[Array, Array]:
        out = loss_fn(params, batch)
        return jnp.mean(out), out

    gradient, out = eqx.filter_grad(mean, has_aux=True)(params)
    return out, gradient


def _moved(position: PyTree, share: float) -> PyTree:
    """`position` moved at random, by `share` of its size or of 1."""
    rng = np.random.default_rng(0)

    def move(leaf: Array | np.ndarray) -> np.ndarray:
        size = max(1.0, float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64))))) if leaf.size else 1.0
        return np.asarray(leaf + share * size * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(move, position)


def _is_large(position: PyTree) -> bool:
    return sum(leaf.size for leaf in jax.tree.leaves(position)) > _LARGE_MODEL


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value).all())


def _rows(data: PyTree, rows: np.ndarray) -> PyTree:
    return _arrays(jax.tree.map(lambda x: x[rows], data))


def _arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, tree)
