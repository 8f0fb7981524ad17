"""What yields batches again and again: a DataLoader, grain, tf.data, a class with `__iter__`, a function; pass by pass.

A pass begins with `open_pass`, which hands the number of the pass's order to a source that takes one, and `Form` is
what all batches have in common.
"""

import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.mask import path_name
from llc.posterior.validation import native

_opening = threading.Lock()
_TF_INFINITE = -1  # tf.data.INFINITE_CARDINALITY
_ENDLESS = 2**62  # batches; what repeats without end in grain has the length sys.maxsize

Source = Iterable[PyTree] | Callable[..., Iterable[PyTree]]


def check_source(source: Any) -> None:
    """Raises ValueError if `source` is no iterable of batches and no function that returns one."""
    if is_function(source):
        return
    arrays = isinstance(source, dict | str | bytes) or _is_array(source)
    arrays |= isinstance(source, tuple) and len(source) > 0 and all(map(_is_array, source))
    if arrays or not hasattr(source, "__iter__"):
        raise ValueError(
            f"source needs to be an iterable of batches, or a function that returns one, got {type(source).__name__}; "
            "arrays need no reading: give them to LocalPosterior as they are."
        )


def check_repeatable(source: Any) -> None:
    """Raises ValueError if `source` can be gone through once only."""
    check_source(source)
    if not is_function(source) and hasattr(source, "__next__"):
        raise ValueError(
            f"source needs to be gone through again and again, got {type(source).__name__}, which is used up after one "
            "pass; give the loader itself, or the function that makes it: llc.stream(make_batches) instead of "
            "llc.stream(make_batches())."
        )


def check_ends(source: Any, setting: str) -> None:
    """Raises ValueError if `source`, all of whose rows are to be read, says that it has no end; `setting` gives one."""
    if is_function(source) or not _says_endless(source):
        return
    raise ValueError(
        f"source needs an end, got {type(source).__name__}, which repeats itself without end; leave its repeat() out, "
        f"or say where to stop: {setting}=…."
    )


def _says_endless(source: Any) -> bool:
    """By its length, as of grain, or its cardinality, as of tf.data; most sources say nothing."""
    cardinality: Callable[[], Any] | None = getattr(source, "cardinality", None)
    try:
        return len(source) >= _ENDLESS if cardinality is None else int(cardinality()) == _TF_INFINITE
    except (TypeError, ValueError, NotImplementedError, OverflowError):  # no length, or none that is known
        return False


def _is_array(source: Any) -> bool:
    return hasattr(source, "shape") and hasattr(source, "dtype")


def is_function(source: Any) -> bool:
    """Whether `source` is called for its batches."""
    return callable(source) and (isinstance(source, type) or not hasattr(source, "__iter__"))


def takes_number(source: Any) -> bool:
    """Whether the order of a pass can be chosen by a number: by `set_epoch`, or the one argument of a function."""
    if not is_function(source):
        return callable(getattr(source, "set_epoch", None))
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):  # of a built-in function
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(needed) == 1


def open_pass(source: Any, number: int) -> Iterator[PyTree]:
    """The batches of one pass, as NumPy arrays; `number` chooses their order where the source takes one."""
    given = source
    if is_function(source):
        source = source(number) if takes_number(source) else source()
        if not hasattr(source, "__iter__"):
            raise ValueError(
                "source needs to return an iterable of batches where it is a function, got "
                f"{type(source).__name__}; yield the batches, or return a loader."
            )
    if not takes_number(source) or is_function(given):
        return (as_arrays(batch) for batch in source)
    with _opening:  # an iterator may ask for the number at its first batch only, and threads share a source
        source.set_epoch(number)
        iterator = iter(source)
        first = list(itertools.islice(iterator, 1))
    return (as_arrays(batch) for batch in itertools.chain(first, iterator))


def as_arrays(batch: PyTree) -> PyTree:
    """A batch of arrays or tensors of any library as NumPy arrays."""
    return jax.tree.map(_as_array, batch)


def _as_array(leaf: Any) -> np.ndarray:
    for name in ("detach", "cpu"):  # of a PyTorch tensor that has a gradient, or lies on a device
        leaf = getattr(leaf, name)() if callable(getattr(leaf, name, None)) else leaf
    try:
        return native(np.asarray(leaf))
    except TypeError:  # bfloat16, which NumPy knows by JAX only
        if not hasattr(leaf, "__dlpack__"):
            raise
        return np.asarray(jax.dlpack.from_dlpack(leaf))


class Form:
    """Structure, row shapes and dtypes that all batches share, taken from the first one.

    Raises:
        ValueError: if that has no arrays with the examples along the leading axis.
    """

    def __init__(self, first: PyTree) -> None:
        leaves, self.structure = jax.tree.flatten(first)
        self.shapes = _shapes(first)
        if not leaves or any(np.ndim(x) == 0 for x in leaves):
            raise ValueError(
                f"source needs batches of arrays with the examples along the leading axis, got {self.shapes or first}."
            )
        self.rows = [(x.shape[1:], x.dtype) for x in leaves]
        self.row_bytes = sum(x.nbytes // max(len(x), 1) for x in leaves)

    def num_rows(self, batch: PyTree, before: int) -> int:
        """Rows of a batch that comes after `before` rows.

        Raises:
            ValueError: if it is of another form, or its arrays are not of one length.
        """
        leaves, structure = jax.tree.flatten(batch)
        lengths = {len(x) for x in leaves if x.ndim}
        same = structure == self.structure and [(x.shape[1:], x.dtype) for x in leaves] == self.rows
        if not same or len(lengths) != 1:
            raise ValueError(
                f"source needs batches of one structure and row shape, got {self.shapes} first and {_shapes(batch)} "
                f"with {sorted(lengths)} examples after {before}; pad rows to one length and put a mask beside."
            )
        return lengths.pop()


def _shapes(batch: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of a row of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {path_name(path): (np.shape(x)[1:], str(np.asarray(x).dtype)) for path, x in leaves}
