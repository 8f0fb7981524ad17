r"""What a loss has to be, probed on a few rows when a posterior is made.

1. *A mean over rows.* The batches of L(w*), of the draws and of the Hessian have different sizes, so that the loss of a
   batch has to be that of its parts: $L(A \cup B) = \tfrac12 (L(A) + L(B))$ for halves of equal size, or
   $\ell_i(A \cup B) = \ell_i(A)$ for a loss per example. The halves are made as different as the data are.
2. *Its gradient is finite, and its derivative*, see `loss_slopes`.
3. *Its precision shows λ.* A rounding unit of L(w*) has to be small in units of 1/nβ.

At w* everything may be zero, so that w* moved by a tenth of its size is probed too. Cost: two programs, of a loss on 16
rows and of a gradient on 32, in float64; three evaluations of the first for each of at most 4 ways to cut the rows, and
about ten of the second. A loss that fails in float64 is probed in the precision of the params.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from llc.posterior.loss_slopes import Slopes, undefined_slope, wrong_slope
from llc.posterior.precision import as_float64, float64
from llc.posterior.programs import coarsest_float
from llc.posterior.rows import num_rows, rows_that_fit

_PROBED = 32  # rows
_LOOKED_AT = 2**16  # rows among which those that differ most are chosen
_ELEMENTS = 2**22  # of these rows, at most
_SPLITS = 4  # ways to cut the rows into halves
_MOVES = (0.1, 1e-3)  # of the size of w*, or of 1; the second where the loss is not finite at the first
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
        """The loss of `batch`, as the function gives it."""
        return np.asarray(_with_gradient(self.loss_fn, self.params_at(_arrays(position)), batch)[0], np.float64)

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

    few = rows_that_fit(loss, data, _PROBED, times=4.0, least=2)
    rows, splits = different_rows(data, max(2, few // 2 * 2))
    batch = jax.tree.map(lambda x: x[rows], data)
    for context, convert in ((float64, as_float64), (contextlib.nullcontext, lambda tree: tree)):
        with context():
            arrays, position = convert(_arrays(batch)), convert(probe.position)
            if _runs(probe, arrays, position, splits):
                name = _precision(probe, arrays, position)
                check_precision(name, probe.nbeta, init_loss)
                _check(probe, arrays, splits, position, _TOLERANCES.get(name, _HALF))
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
            f"loss_fn needs to compute in float32 or float64, but it computes in {name}, whose unit at "
            f"L(w*) = {init_loss:.3g} is {unit:.2g}; nβ times that is {nbeta * unit:.2g}, not small beside λ̂. "
            "Cast params, inputs and outputs to float32 in loss_fn, or set the model's compute dtype to it."
        )


def _runs(probe: Probe, batch: PyTree, position: PyTree, splits: np.ndarray) -> bool:
    """Whether the loss and its gradient work in this precision and on so few rows; what needs these says why not."""
    try:
        probe.value(position, batch)
        _of_halves(probe, position, batch, splits)
    except Exception:  # the user's function may raise anything
        return False
    return True


def _check(probe: Probe, batch: PyTree, splits: np.ndarray, position: PyTree, tolerance: _Tolerance) -> None:
    position = jax.tree.map(np.asarray, position)
    moved = next((z for z in (_moved(position, size) for size in _MOVES) if _finite(probe.value(z, batch))), position)
    pairs = [(probe.value(z, batch), _of_halves(probe, z, batch, splits)) for z in (position, moved)]
    if not np.array_equal(_of_halves(probe, position, batch, splits), pairs[0][1], equal_nan=True):
        raise ValueError(
            "loss_fn needs to be a fixed function of (params, batch), but evaluated twice at w* it gives two values: a "
            "callback in it draws random numbers or keeps a state. Put what is random into data."
        )
    pairs = [(whole, halves) for whole, halves in pairs if _finite(whole) and _finite(halves)]
    size = max((float(np.abs(part).max()) for pair in pairs for part in pair), default=0.0)
    for whole, halves in pairs:
        compare = _compare_examples if probe.per_example else _compare_means
        compare(whole, halves, splits, tolerance.parts * size)
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
    )
    _refuse(wrong_slope(slopes))


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _precision(probe: Probe, batch: PyTree, position: PyTree) -> str:
    """The dtype of least precision in which the loss computes."""
    arrays, rest = eqx.partition(probe.params_at(position), eqx.is_inexact_array)
    return coarsest_float(lambda arrays, batch: probe.loss_fn(eqx.combine(arrays, rest), batch), arrays, batch).name


def _compare_examples(
    whole: Float[np.ndarray, "all"], halves: Float[np.ndarray, "split half row"], splits: np.ndarray, allowed: float
) -> None:
    if (worst := float(np.abs(halves - whole[splits]).max())) > allowed:
        raise ValueError(
            "loss_fn needs the loss of an example to depend on that example alone, but in half of the batch it changes "
            f"by {worst:.3g}: batch normalization in training mode (use the running averages), dropout (switch it "
            "off), or negatives, weights or normalizers that are taken from the batch (as of a contrastive loss: put "
            "fixed negatives of each row, its weights and normalizers into data)."
        )


def _compare_means(
    whole: Float[np.ndarray, ""], halves: Float[np.ndarray, "split half"], splits: np.ndarray, allowed: float
) -> None:
    means = halves.mean(axis=1)  # of halves of equal size
    worst = int(np.abs(means - whole).argmax())
    if abs(means[worst] - whole) <= allowed:
        return
    if np.abs(2 * means - whole).max() <= allowed:
        raise ValueError(
            "loss_fn needs to return the mean loss of a batch, got a sum (it doubles when the batch is doubled); "
            "divide by the batch size, or return one loss per example."
        )
    raise ValueError(
        f"loss_fn needs to return the mean of the losses of its rows, but on {splits[0].size} rows it is "
        f"{float(whole):.6g} and the mean of the two halves is {means[worst]:.6g}. L(w*), the draws and the Hessian "
        "take batches of different sizes and would see different functions. Return one loss per example instead. For a "
        "mean with weights of rows, give these as LocalPosterior(weights=…), of shape (n,); for one over tokens, the "
        "mean over tokens of each row, with their numbers as weights=…. A prior or penalty is divided by n and added "
        "to each example. Batch normalization in training mode, dropout and negatives from the batch give a loss that "
        "is no function of the row; switch them off."
    )


def _of_halves(probe: Probe, position: PyTree, batch: PyTree, splits: np.ndarray) -> np.ndarray:
    """Loss of each half of each split, (split, half) and, for a loss per example, row."""
    halves = jax.tree.map(lambda x: x[splits.reshape(-1, splits.shape[-1])], batch)
    out = np.asarray(_of_each(probe.loss_fn, probe.params_at(_arrays(position)), halves), np.float64)
    return out.reshape(*splits.shape[:2], *out.shape[1:])


@eqx.filter_jit
def _of_each(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, halves: PyTree) -> Array:
    return jax.lax.map(lambda half: loss_fn(params, half), halves)


@eqx.filter_jit
def _with_gradient(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
    def mean(params: PyTree) -> tuple[Array, Array]:
        out = loss_fn(params, batch)
        return jnp.mean(out), out

    gradient, out = eqx.filter_grad(mean, has_aux=True)(params)
    return out, gradient


def different_rows(data: PyTree, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of at most `count` rows that differ much, and ways to cut these into different halves of equal length.

    Rows are told apart by the sum, the zeros and the least entry of each array; (split, half, row) are numbers among
    the rows that are returned.
    """
    leaves = [x for x in jax.tree.leaves(data) if np.size(x)]
    total = num_rows(data)
    width = max(1, sum(int(np.prod(np.shape(x)[1:])) for x in leaves))
    most = max(count, min(_LOOKED_AT, _ELEMENTS // width))
    seen = np.unique(np.linspace(0, total - 1, min(total, most)).astype(int))
    features = _features(
        [np.asarray(x[seen]) for x in leaves if jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool]
    )
    orders = [np.argsort(feature, kind="stable") for feature in features]
    extremes = dict.fromkeys(
        int(order[i]) for j in range(count) for order in orders for i in (j, -1 - j) if j < len(seen)
    )
    spread = np.linspace(0, len(seen) - 1, min(count, len(seen))).astype(int).tolist()
    rows = list(dict.fromkeys([*list(extremes)[: count // 2], *spread, *range(len(seen))]))[:count]
    rows = np.sort(np.asarray(rows[: len(rows) // 2 * 2]))
    cuts = [np.arange(len(rows)), *(np.argsort(feature[rows], kind="stable") for feature in features)]
    cuts = [cuts[i] for i in np.unique(np.linspace(0, len(cuts) - 1, min(_SPLITS, len(cuts))).astype(int))]
    return seen[rows], np.stack([cut.reshape(2, -1) for cut in cuts])


def _features(leaves: list[np.ndarray]) -> list[Float[np.ndarray, "row"]]:
    """Numbers of each row that differ between the rows."""
    found = []
    for leaf in leaves:
        flat = np.nan_to_num(leaf.reshape(len(leaf), -1).astype(np.float64))
        found += [flat.sum(axis=1), (flat == 0).sum(axis=1, dtype=np.float64), flat.min(axis=1)]
    return [feature for feature in found if np.ptp(feature) > 0]


def _moved(position: PyTree, share: float) -> PyTree:
    """`position` moved at random, by `share` of its size or of 1."""
    rng = np.random.default_rng(0)

    def move(leaf: np.ndarray) -> np.ndarray:
        size = max(1.0, float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64))))) if leaf.size else 1.0
        return np.asarray(leaf + share * size * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(move, position)


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value).all())


def _arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, tree)
