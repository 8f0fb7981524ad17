r"""Whether the loss of a batch is that of its parts: what is evaluated for it, and what is said where it is not.

Parts have a prime number of rows where they can, so that groups of rows within a loss leave a rest, and other parts of
the same data other rests.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from llc.posterior.programs import primitives
from llc.posterior.rows import num_rows

_PRIMES = (13, 11, 7, 5, 3, 2, 1)  # rows of half a batch
_LOOKED_AT = 2**16  # rows among which those that differ most are chosen
_ELEMENTS = 2**22  # of these rows, at most
_SPLITS = 4  # ways to cut the rows into halves


def losses_of_parts(
    loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree, splits: Int[np.ndarray, "split part row"]
) -> Float[np.ndarray, "split part *row"]:
    """Loss of each part of each split.

    Args:
        loss_fn: of (params, batch).
        params: at which it is evaluated.
        batch: of arrays.
        splits: numbers of rows of the batch.
    """
    parts = jax.tree.map(lambda x: x[splits.reshape(-1, splits.shape[-1])], batch)
    out = np.asarray(_of_each(loss_fn, params, parts), np.float64)
    return out.reshape(*splits.shape[:2], *out.shape[1:])


@eqx.filter_jit
def _of_each(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, parts: PyTree) -> Array:
    return jax.lax.map(lambda part: loss_fn(params, part), parts)


def require_sum_of_parts(
    whole: Float[np.ndarray, "*all"],
    parts: Float[np.ndarray, "split part *row"],
    splits: Int[np.ndarray, "split part row"],
    allowed: float,
) -> None:
    """Raises ValueError if the loss of a batch is not that of its parts.

    Args:
        whole: loss of the batch, a mean or one per example.
        parts: as of `losses_of_parts`.
        splits: into parts of equal size.
        allowed: difference by rounding.
    """
    if whole.ndim:
        _compare_examples(whole, parts, splits, allowed)
    else:
        _compare_means(whole, parts, splits, allowed)


def _compare_examples(
    whole: Float[np.ndarray, "all"],
    parts: Float[np.ndarray, "split part row"],
    splits: Int[np.ndarray, "split part row"],
    allowed: float,
) -> None:
    if (worst := float(np.abs(parts - whole[splits]).max())) > allowed:
        raise ValueError(
            "loss_fn needs the loss of an example to depend on that example alone, but in a batch of "
            f"{splits.shape[-1]} rows instead of {splits[0].size} it changes by {worst:.3g}: batch normalization in "
            "training mode (use the running averages), dropout (switch it off), or negatives, weights or normalizers "
            "that are taken from the batch (as of a contrastive loss: put fixed negatives of each row, its weights and "
            "normalizers into data)."
        )


def _compare_means(
    whole: Float[np.ndarray, ""],
    parts: Float[np.ndarray, "split part"],
    splits: Int[np.ndarray, "split part row"],
    allowed: float,
) -> None:
    means = parts.mean(axis=1)  # of parts of equal size
    worst = int(np.abs(means - whole).argmax())
    if abs(means[worst] - whole) <= allowed:
        return
    if np.abs(splits.shape[1] * means - whole).max() <= allowed:
        raise ValueError(
            "loss_fn needs to return the mean loss of a batch, got a sum (it doubles when the batch is doubled); "
            "divide by the batch size, or return one loss per example."
        )
    raise ValueError(
        f"loss_fn needs to return the mean of the losses of its rows, but on {splits[0].size} rows it is "
        f"{float(whole):.6g} and the mean over parts of {splits.shape[-1]} rows is {means[worst]:.6g}. L(w*), the "
        "draws and the Hessian take batches of different sizes and would see different functions. Return one loss per "
        "example instead. For a mean with weights of rows, give the weights as LocalPosterior(weights=…), of shape "
        "(n,). For a mean over tokens, return the mean over the tokens of each row, and give the numbers of tokens as "
        "weights=…. Divide a prior or penalty by n and add it to each example. Batch normalization in training mode, "
        "dropout and negatives from the batch make the loss of a row depend on other rows; switch them off."
    )


def is_another_program(loss_fn: Callable[[PyTree], Array], data: PyTree, few: int, many: int) -> bool:
    """Whether a loss does something else on `many` rows than on `few`, as far as its traced programs tell.

    Nothing is compiled or computed. A loss that can't be traced counts as one program.

    Args:
        loss_fn: of a batch.
        data: whose rows it takes.
        few: rows of a small batch.
        many: rows of a large one.
    """

    def program(size: int) -> list[str]:
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)), data
        )
        return list(primitives(jax.make_jaxpr(loss_fn)(rows).jaxpr))

    try:
        return program(few) != program(many)
    except Exception:  # the user's function may raise anything; what evaluates it says why
        return False


def even_parts(total: int, most: int) -> Int[np.ndarray, "1 part row"]:
    """Rows of a batch of at most `total` rows, cut into equal parts of `most` rows, or down to half of it."""
    length = max(range(-(-most // 2), most + 1), key=lambda size: total // size * size)
    return np.arange(total // length * length).reshape(1, -1, length)


def different_rows(data: PyTree, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of at most `count` rows that differ much, and ways to cut these into different halves of equal length.

    Rows are told apart by the sum, the zeros and the least entry of each array; (split, half, row) are numbers among
    the rows that are returned. A half has a prime number of rows, up to 13, or half of `count` where that is more.
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
    rows = np.sort(np.asarray(rows[: 2 * _half(len(rows) // 2)]))
    cuts = [np.arange(len(rows)), *(np.argsort(feature[rows], kind="stable") for feature in features)]
    cuts = [cuts[i] for i in np.unique(np.linspace(0, len(cuts) - 1, min(_SPLITS, len(cuts))).astype(int))]
    return seen[rows], np.stack([cut.reshape(2, -1) for cut in cuts])


def _half(size: int) -> int:
    return next((prime for prime in _PRIMES if prime <= size), 1) if size <= _PRIMES[0] else size


def _features(leaves: list[np.ndarray]) -> list[Float[np.ndarray, "row"]]:
    """Numbers of each row that differ between the rows."""
    found = []
    for leaf in leaves:
        parts = [np.real(leaf), np.imag(leaf)] if np.iscomplexobj(leaf) else [leaf]
        flat = np.nan_to_num(np.concatenate([part.reshape(len(leaf), -1) for part in parts], axis=1).astype(np.float64))
        found += [flat.sum(axis=1), (flat == 0).sum(axis=1, dtype=np.float64), flat.min(axis=1)]
    return [feature for feature in found if np.ptp(feature) > 0]
