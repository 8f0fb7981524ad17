r"""The one way to walk over the rows of the data, in pieces that fit in memory.

A sum over examples is a sum over pieces, and so is a mean, each piece weighted by its rows. `Rows` holds data cut into
pieces of equal length and a shorter rest, and walks over them inside a compiled program; `batches` walks over data that
stay where they are, one program call a piece. How many rows go at once bounds the memory and not the result;
`rows_that_fit` decides it from the values that a batch keeps alive.
"""

import math
from collections.abc import Callable, Hashable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from llc.posterior.memory import free_memory, require_memory
from llc.posterior.programs import bytes_alive

_ROWS_OF_LOSS = 8192  # rows of data in one evaluation of L(w*), at most
_BUDGET = 2.0**30  # bytes that a batch keeps alive, where there is enough memory
_SHARE = 0.25  # of the free memory, where there is not
_FEW = (2, 4)  # rows of the two batches that tell what one row more takes
_MOST_COUNTED = 256
_COUNTED: dict[Hashable, int | None] = {}  # bytes alive in programs that were traced before


class Rows(eqx.Module):
    """Data cut into pieces of equal length and a rest; build it with `in_pieces`.

    Attributes:
        pieces: the data with two leading axes, (piece, row).
        rest: the last rows, fewer than a piece; None if there are none.
    """

    pieces: PyTree
    rest: PyTree

    @property
    def num_pieces(self) -> int:
        """Number of pieces, without the rest."""
        return jax.tree.leaves(self.pieces)[0].shape[0]

    @property
    def length(self) -> int:
        """Rows of a piece."""
        return jax.tree.leaves(self.pieces)[0].shape[1]

    @property
    def num_rows(self) -> int:
        """Rows of all pieces and the rest."""
        return self.num_pieces * self.length + (0 if self.rest is None else num_rows(self.rest))

    @property
    def rest_share(self) -> float:
        """Share of the rows that lies in the rest."""
        return 1 - self.num_pieces * self.length / self.num_rows

    def scan(self, fn: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree) -> tuple[PyTree, PyTree]:
        """`jax.lax.scan` over the pieces alone; where there is only one piece, there is no loop to compile."""
        if self.num_pieces > 1:
            return jax.lax.scan(fn, carry, self.pieces)
        carry, out = fn(carry, self._first())
        return carry, jax.tree.map(lambda x: x[None], out)

    def map[Result](self, fn: Callable[[PyTree], Result]) -> Result:
        """`fn` of every piece and of the rest, joined along the leading axis of its results."""
        if self.num_pieces > 1:
            head = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(fn, self.pieces))
        else:
            head = fn(self._first())
        if self.rest is None:
            return head
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), head, fn(self.rest))

    def sum(self, fn: Callable[[PyTree], PyTree], zero: PyTree) -> PyTree:
        """Σ `fn` over the pieces and the rest. Two results are in memory, however many pieces there are.

        Args:
            fn: of a batch.
            zero: zeros of the shape and dtype of its result.
        """
        head = self._sum_of_pieces(fn, zero)
        return head if self.rest is None else jax.tree.map(jnp.add, head, fn(self.rest))

    def mean(self, fn: Callable[[PyTree], PyTree], zero: PyTree) -> PyTree:
        """Mean over all rows of `fn`, which is a mean over the rows of a batch.

        Args:
            fn: of a batch.
            zero: zeros of the shape and dtype of its result.
        """
        head = jax.tree.map(lambda total: total / self.num_pieces, self._sum_of_pieces(fn, zero))
        if self.rest is None:
            return head
        share = self.rest_share
        return jax.tree.map(lambda a, b: (1 - share) * a + share * b, head, fn(self.rest))

    def beside(self, others: PyTree) -> "Rows":
        """Batches (these rows, those of `others`), for a pytree of arrays with as many rows."""
        other = in_pieces(others, self.length)
        return Rows((self.pieces, other.pieces), None if self.rest is None else (self.rest, other.rest))

    def joined(self) -> PyTree:
        """The data with one leading axis again."""
        head = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.pieces)
        return head if self.rest is None else jax.tree.map(lambda x, y: jnp.concatenate([x, y]), head, self.rest)

    def _first(self) -> PyTree:
        return jax.tree.map(lambda x: x[0], self.pieces)

    def _sum_of_pieces(self, fn: Callable[[PyTree], PyTree], zero: PyTree) -> PyTree:
        if self.num_pieces == 1:
            return fn(self._first())
        return self.scan(lambda total, piece: (jax.tree.map(jnp.add, total, fn(piece)), None), zero)[0]


def shapes_of(tree: PyTree) -> Hashable:
    """Structure, shapes and dtypes of a pytree's arrays, which tell programs apart."""
    arrays = jax.tree.map(lambda x: (x.shape, str(x.dtype)) if hasattr(x, "dtype") else type(x).__name__, tree)
    return jax.tree.structure(tree), str(jax.tree.leaves(arrays))


def num_rows(data: PyTree) -> int:
    """Length of the leading axis of a pytree of arrays."""
    return len(jax.tree.leaves(data)[0])


def in_pieces(data: PyTree, length: int) -> Rows:
    """`data` in pieces of `length` rows, and the rows that are left."""
    total = num_rows(data)
    num_pieces = total // length
    split = num_pieces * length
    pieces = jax.tree.map(lambda x: x[:split].reshape(num_pieces, length, *x.shape[1:]), data)
    return Rows(pieces, jax.tree.map(lambda x: x[split:], data) if split < total else None)


def even_length(total: int, num_pieces: int) -> int:
    """Length of `num_pieces` pieces of `total` rows, or of up to twice as many where those leave no rest."""
    return total // next((k for k in range(num_pieces, 2 * num_pieces) if total % k == 0), num_pieces)


def batches(data: PyTree, length: int) -> Iterator[PyTree]:
    """`data` in batches of `length` rows, the last one shorter if need be; for a loop outside of a program."""
    for start in range(0, num_rows(data), length):
        yield jax.tree.map(lambda x, start=start: x[start : start + length], data)


def mean_loss(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    data: PyTree,
    convert: Callable[[PyTree], PyTree] = lambda batch: batch,
    *,
    most: int = _ROWS_OF_LOSS,
) -> float:
    """Mean loss over `data`, in batches that fit in memory, each weighted by its rows.

    Args:
        loss_fn: of (params, batch), a mean or one value an example.
        params: at which it is evaluated.
        data: a pytree of arrays with one leading axis.
        convert: applied to each batch, to another precision for instance.
        most: rows at once where memory is no concern.
    """
    most = min(num_rows(data), most)
    program = ("mean", loss_fn, shapes_of(params), jax.config.jax_enable_x64)
    fit = rows_that_fit(lambda batch: loss_fn(params, convert(batch)), data, most, program=program)
    length, total = most if fit == most else even_length(num_rows(data), math.ceil(num_rows(data) / fit)), 0.0
    for batch in batches(data, length):
        total += float(jnp.mean(_evaluate(loss_fn, params, convert(batch)))) * num_rows(batch)
    return total / num_rows(data)


@eqx.filter_jit
def _evaluate(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> Array:
    return loss_fn(params, batch)


def rows_that_fit(
    fn: Callable[[PyTree], PyTree],
    data: PyTree,
    most: int,
    *,
    times: float = 1.0,
    least: int = 1,
    budget: float = _BUDGET,
    program: Hashable = None,
) -> int:
    """How many rows `fn` may be given at once: `most`, or fewer where it would keep more than `budget` alive.

    The bytes are those of the values that are alive at one time (`bytes_alive`), found without compiling or computing
    anything. A number below `most` is a power of two, so that it hardly depends on how much memory is free just now.

    Args:
        fn: of a batch; its params are in it.
        data: whose rows are given to it.
        most: rows at once where memory is no concern.
        times: bytes that are alive, in units of those of `fn`: 2 for the derivative of a gradient along a direction.
        least: rows that are known to fit, from the user's `batch_size` for instance.
        budget: bytes, by default 1 GiB; a quarter of the free memory where that is less.
        program: equal for functions that are the same program, so that they are traced once; None traces `fn`.

    Raises:
        ValueError: if not even one row fits in the memory that is free.
    """
    most = min(most, num_rows(data))
    budget = min(budget, _SHARE * free_memory())
    alive = alive_bytes(fn, data, most, program)
    if alive is None or times * alive <= budget or most <= max(least, _FEW[1]):
        return most
    few, more = (alive_bytes(fn, data, size, program) for size in _FEW)
    if few is None or more is None:
        return most
    a_row = times * (more - few) / (_FEW[1] - _FEW[0])
    if a_row * most <= budget:  # what is alive whatever the number of rows can't be helped here
        return most
    require_memory(int(a_row), "the values of one row of data", "shorter examples in data, or a smaller model")
    fit = 2 ** int(math.log2(max(budget / a_row, 1.0)))
    return min(max(fit, least), most)


def alive_bytes(fn: Callable[[PyTree], PyTree], data: PyTree, size: int, program: Hashable = None) -> int | None:
    """Bytes that `fn` keeps alive on `size` rows; None if it can't be traced (what evaluates it says why).

    Args:
        fn: of a batch.
        data: whose rows are given to it.
        size: rows of the batch.
        program: as of `rows_that_fit`.
    """

    def batch_of(x: Array | np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))

    batch = jax.tree.map(batch_of, data)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
    known = (program, jax.tree.structure(batch), shapes)
    if program is not None and known in _COUNTED:
        return _COUNTED[known]
    try:
        alive = bytes_alive(fn, batch)
    except Exception:  # the user's function may raise anything, for instance for want of a gradient
        alive = None
    if program is not None:
        _COUNTED[known] = alive
        if len(_COUNTED) > _MOST_COUNTED:
            del _COUNTED[next(iter(_COUNTED))]
    return alive
