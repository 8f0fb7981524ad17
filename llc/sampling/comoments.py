r"""Running moments of observables: means, variances, and covariances with the loss and with each other.

They are updated draw by draw as deviations from the running mean (Welford 1962), and blocks are put together by the
rule of Chan, Golub & LeVeque 1983, so that nothing is lost where a mean is many times its fluctuation: in float32 a sum
of squares would be lost from √d = 4,000 on. With n draws before, x a value and y another one,

$$ \bar x \leftarrow \bar x + \frac{x - \bar x}{n + 1}, \qquad
   C_{xy} \leftarrow C_{xy} + (x - \bar x_\text{old})(y - \bar y_\text{new}) . $$
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array


class Comoments(NamedTuple):
    """Moments of the draws of a block so far; on the host with a leading axis, the chains.

    Attributes:
        count: draws.
        loss: mean of L(w) − L(w*).
        mean: of every observable.
        second: Σ (x − mean)².
        with_loss: Σ (x − mean) (L − mean of L).
        cross: Σ (x − mean) ⊗ (y − mean) of pairs of observables, flattened.
    """

    count: Any
    loss: Any
    mean: dict[str, Any]
    second: dict[str, Any]
    with_loss: dict[str, Any]
    cross: dict[str, dict[str, Any]]


def empty_comoments(centers: Mapping[str, Array], pairs: Iterable[tuple[str, str]], zero: Array) -> Comoments:
    """Moments of no draws, of observables shaped like `centers` and of `pairs` of them."""
    cross: dict[str, dict[str, Any]] = {}
    for name, other in pairs:
        a, b = centers[name], centers[other]
        cross.setdefault(name, {})[other] = jnp.zeros((a.size, b.size), jnp.result_type(a, b))
    zeros = {name: jnp.zeros_like(center) for name, center in centers.items()}
    return Comoments(zero, zero, zeros, dict(zeros), dict(zeros), cross)


def with_draw(before: Comoments, values: Mapping[str, Array], delta: Array) -> Comoments:
    """With one draw more: the observables' differences to w*, and L(w) − L(w*)."""
    count = before.count + 1
    loss = before.loss + (delta - before.loss) / count
    old = {name: values[name] - mean for name, mean in before.mean.items()}
    mean = {name: before.mean[name] + off / count.astype(off.dtype) for name, off in old.items()}
    new = {name: values[name] - mean[name] for name in mean}
    return Comoments(
        count,
        loss,
        mean,
        {name: before.second[name] + old[name] * new[name] for name in mean},
        {name: before.with_loss[name] + old[name] * (delta - loss).astype(old[name].dtype) for name in mean},
        {
            name: {other: sums + jnp.outer(old[name], new[other]) for other, sums in others.items()}
            for name, others in before.cross.items()
        },
    )


def merged(parts: Sequence[Comoments]) -> Comoments:
    """Moments of the draws of all `parts` together, on the host."""
    total = parts[0]
    for part in parts[1:]:
        total = _merged(total, part)
    return total


def _merged(a: Comoments, b: Comoments) -> Comoments:
    count = a.count + b.count
    share, joint = b.count / count, a.count * b.count / count  # one each chain

    def along(x: np.ndarray, like: np.ndarray) -> np.ndarray:
        return np.asarray(x, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))

    off = {name: b.mean[name] - a.mean[name] for name in a.mean}
    loss = b.loss - a.loss

    def cross(name: str, other: str) -> np.ndarray:
        sums = a.cross[name][other] + b.cross[name][other]
        x, y = (off[k].reshape(len(joint), -1) for k in (name, other))
        return sums + along(joint, sums) * x[:, :, None] * y[:, None, :]

    return Comoments(
        count,
        a.loss + share * loss,
        {name: a.mean[name] + along(share, x) * x for name, x in off.items()},
        {name: a.second[name] + b.second[name] + along(joint, x) * x**2 for name, x in off.items()},
        {name: a.with_loss[name] + b.with_loss[name] + along(joint * loss, x) * x for name, x in off.items()},
        {name: {other: cross(name, other) for other in others} for name, others in a.cross.items()},
    )


def block_variables(blocks: Sequence[Comoments], dims: Mapping[str, tuple[str, ...]]) -> dict[str, xr.Variable]:
    """Means, variances and covariances within each block: `<name>.mean`, `.variance`, `.cov.loss`, `.cov.<other>`.

    Args:
        blocks: moments of each, chains first.
        dims: of every observable; those of a pair that are the same get a 2 in the second one.
    """
    if not blocks:
        return {}
    variables: dict[str, xr.Variable] = {
        "num_draws": xr.Variable(("block",), np.array([float(block.count.flat[0]) for block in blocks])),
        "loss.mean": xr.Variable(("block", "chain"), np.stack([block.loss for block in blocks]).astype(np.float64)),
    }
    count = variables["num_draws"].to_numpy()

    def put(name: str, axes: tuple[str, ...], sums: Sequence[np.ndarray], shape: tuple[int, ...] | None = None) -> None:
        stacked = np.stack(sums)
        stacked = stacked if shape is None else stacked.reshape(*stacked.shape[:2], *shape)
        variables[name] = xr.Variable(("block", "chain", *axes), stacked)

    for name in blocks[0].mean:
        put(f"{name}.mean", dims[name], [block.mean[name] for block in blocks])
        for key, field in (("variance", "second"), ("cov.loss", "with_loss")):
            sums = [getattr(block, field)[name] / n for block, n in zip(blocks, count, strict=True)]
            put(f"{name}.{key}", dims[name], [x.astype(blocks[0].mean[name].dtype) for x in sums])
    for name, others in blocks[0].cross.items():
        for other in others:
            shape = blocks[0].mean[name].shape[1:] + blocks[0].mean[other].shape[1:]
            axes = dims[name] + tuple(f"{dim}_2" if dim in dims[name] else dim for dim in dims[other])
            sums = [block.cross[name][other] / n for block, n in zip(blocks, count, strict=True)]
            put(f"{name}.cov.{other}", axes, [x.astype(blocks[0].mean[name].dtype) for x in sums], shape)
    return variables
