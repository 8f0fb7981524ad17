"""The record of a function that is recorded, and what is refused of it before anything is computed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.placement import on_common_devices
from llc.posterior.validation import check_data
from llc.posterior.weights import WeightedRows

RESERVED = ("chain", "draw", "block", "loss", "num_draws")  # what the groups of draws have already


@dataclass(frozen=True, eq=False)
class Observable:
    """A function to be recorded, with its own data.

    Args:
        fn: `fn(params)` or `fn(params, batch)`, an array of real numbers of fixed shape. It sees the full params, those
            that a mask holds at w* too. With data it returns one value (an array) for each row, or a mean over rows.
        data: a pytree of arrays with one leading axis, the rows; None takes the posterior's data if `fn` needs a batch.
        dims: names of the axes of what `fn` returns over all the data. Default: `<name>_row` for the rows, and
            `<name>_dim_<k>`.
        moments: True keeps running means, variances and covariances with the loss in blocks of draws instead of the
            draws, for values of 10⁶ entries; False keeps the draws. None keeps them up to a gigabyte in all.
        covariance_with: names of other observables whose covariances with this one are kept too (each an array of the
            size of one times that of the other); for what is kept as moments.

    Raises:
        ValueError: if `fn` is not callable, data are no rows, or dims are no different names.

    Example:
        >>> Observable(lambda params, batch: batch @ params, data=np.eye(3), dims=("query",)).dims
        ('query',)
    """

    fn: Callable[..., Any]
    data: PyTree = None
    dims: Sequence[str] | None = None
    moments: bool | None = None
    covariance_with: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ValueError(f"Observable needs fn to be a function of (params) or (params, batch), got {self.fn!r}.")
        if self.data is not None:
            check_rows(self.data, "data")
        for name in ("dims", "covariance_with"):
            value = getattr(self, name)
            if value is None and name == "dims":
                continue
            names = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
            if not all(isinstance(x, str) and x for x in names) or len(set(names)) < len(names):
                raise ValueError(f"Observable needs {name} to be different names, got {value!r}.")
            object.__setattr__(self, name, names)
        if self.moments is not None and not isinstance(self.moments, bool):
            raise ValueError(f"Observable needs moments to be True, False or None, got {self.moments!r}.")


@dataclass(frozen=True)
class OfParams:
    """A function of the params alone, called like one of (params, batch)."""

    fn: Callable[[PyTree], PyTree]

    def __call__(self, params: PyTree, batch: PyTree) -> PyTree:  # noqa: ARG002  (there is none)
        """What the function gives."""
        return self.fn(params)


def as_records(observables: object) -> dict[str, Observable]:
    """Observables by name, of what `llc.sample` is given.

    Raises:
        ValueError: if it is no dict, a name is taken, or something is no function; the message names it.
    """
    if observables is None:
        return {}
    if not isinstance(observables, Mapping):
        raise ValueError(f"observables needs a dict of functions by name, got {type(observables).__name__}.")
    records = {name: _as_record(name, given) for name, given in observables.items()}
    for name, record in records.items():
        if unknown := [other for other in record.covariance_with if other not in records]:
            raise ValueError(f"observable {name!r} needs covariance_with to name observables, got {unknown}.")
    return records


def _as_record(name: object, given: object) -> Observable:
    if not (isinstance(name, str) and name.isidentifier()) or name in RESERVED:
        raise ValueError(
            f"observables need names that are identifiers and none of {RESERVED}, got {name!r}; rename it."
        )
    if isinstance(given, Observable):
        return given
    if not callable(given):
        raise ValueError(
            f"observable {name!r} needs to be a function of (params) or (params, batch), or an llc.Observable, got "
            f"{type(given).__name__}."
        )
    return Observable(given)


def data_of(record: Observable, posterior: LocalPosterior) -> PyTree:
    """The data that an observable is evaluated on, where they run; None of a function of the params alone."""
    if record.data is None:
        if _takes(record.fn, 1):
            return None
        return posterior.data.rows if isinstance(posterior.data, WeightedRows) else posterior.data
    return jax.device_put(on_common_devices(posterior.center, jax.tree.map(_as_array, record.data))[1])


def _takes(fn: Callable[..., Any], number: int) -> bool:
    """Whether a function can be called with so many arguments; one without a signature is taken for one of params."""
    try:
        inspect.signature(fn).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:
        return number == 1
    return True


def check_rows(data: PyTree, name: str) -> None:
    """Raises ValueError if `data` are no arrays of numbers with one leading axis of at least one row."""
    check_data(data, name)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes if shape}) != 1 or shapes[0][0] == 0:
        raise ValueError(f"{name} needs arrays with one leading axis of at least one row, got shapes {shapes[:8]}.")


def _as_array(leaf: Any) -> Any:
    return leaf if eqx.is_array(leaf) else np.asarray(leaf)
