"""NumPy arrays that a loss uses directly (relative positions, edges, class weights), usable in every precision.

JAX 0.12 remembers a NumPy array, by its identity, in the precision in which it was used first, for as long as a program
that has it lives. An int64 or float64 table is int32 or float32 in a program of the default precision, and using it
under float64 fails. A view of the array has the same values in the same memory and another identity, so that the
function gets views while it is traced. The tables are found where functions keep them: closures, globals, defaults,
`functools.partial`, attributes of objects, and containers of all these. A function under `functools.cache` gives views
of what it keeps.
"""

import collections
import contextlib
import copy
import functools
import gc
import itertools
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

_WIDE = {np.dtype(name) for name in ("int64", "uint64", "float64", "complex128")}  # what JAX narrows by default
_MOST = 2000  # objects that are looked at: a function that holds a data set of Python objects has to end
_LONG = 100  # entries of a container that are looked at
_ROOTS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})  # of libraries
_HOLDERS = (  # types of libraries that hold what is the user's
    *(functools.partial, types.SimpleNamespace, types.MappingProxyType, dict, list, tuple, set, frozenset),
    *(collections.deque, collections.ChainMap, collections.UserDict, collections.UserList, np.ndarray),
)
_CACHED = type(functools.cache(lambda: 0))
_LOCK = threading.RLock()

Setter = Callable[[Any], None]


@contextlib.contextmanager
def fresh_tables(*holders: Any) -> Iterator[None]:
    """A context in which functions and objects have views of their wide NumPy arrays; afterwards all is as it was."""
    with _LOCK:
        undo: list[tuple[Setter, Any]] = []
        try:
            for put, value in tables(*holders):
                put(_viewed(value))
                undo.append((put, value))
            yield
        finally:
            for put, value in reversed(undo):
                put(value)


def tables(*holders: Any) -> list[tuple[Setter, Any]]:
    """Where wide NumPy arrays are kept: a function that puts another value there, and the value of now."""
    found: list[tuple[Setter, Any]] = []
    seen: set[int] = set()
    todo: list[tuple[Any, frozenset[str]]] = [(holder, frozenset()) for holder in reversed(holders)]
    while todo and len(seen) < _MOST:
        value, names = todo.pop()
        if id(value) in seen or _of_library(value):
            continue
        seen.add(id(value))
        names = names | _names_in(value)
        for put, part in _parts(value, names):
            if _holds_table(part) or _is_cached(part):
                found.append((put, part))
            if not isinstance(part, str | bytes | int | float | complex | jax.Array | None) and not _of_numbers(part):
                todo.append((part, names))
    return found


def _holds_table(value: Any) -> bool:
    """Whether it is a wide array, or a tuple with one, which has to be made anew."""
    if isinstance(value, np.ndarray):
        return value.dtype in _WIDE
    return isinstance(value, tuple) and any(_holds_table(part) for part in value)


def _of_numbers(value: Any) -> bool:
    """Whether it is an array that can't hold objects."""
    return isinstance(value, np.ndarray) and value.dtype != object


def _is_cached(value: Any) -> bool:
    """Whether it is a user's function under `functools.cache`, which may keep a table where nothing reaches it."""
    return isinstance(value, _CACHED) and not _of_library(value)


def _viewed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view()
    if _is_cached(value):
        return _viewing(value)
    parts = [_viewed(part) if _holds_table(part) else part for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _viewing(cached: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives views of the tables that it keeps."""

    @functools.wraps(cached)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _views_within(cached(*args, **kwargs))

    return call


def _views_within(value: Any) -> Any:
    """`value`, made anew with views where it is a table or a container with one."""
    if isinstance(value, dict | list):
        made = copy.copy(value)
        for name, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            made[name] = _views_within(part)
        return made
    return _viewed(value) if _holds_table(value) else value


def _names_in(value: Any) -> frozenset[str]:
    """Names that the code of a function and of the functions within it looks up."""
    code = getattr(value, "__code__", None)
    if not isinstance(code, types.CodeType):
        return frozenset()
    names, todo = set(), [code]
    while todo:
        code = todo.pop()
        names |= set(code.co_names)
        todo += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return frozenset(names)


def _of_library(value: Any) -> bool:
    """Whether an object, or its type, is defined in an installed package or in the standard library."""
    if isinstance(value, _HOLDERS):
        return False
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(module, str) and _installed(module.partition(".")[0])


@functools.cache
def _installed(package: str) -> bool:
    module = sys.modules.get(package)
    path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if package in ("__main__", "llc") or module is None:
        return package == "llc"
    return path is None or str(path).startswith(_ROOTS)


def _parts(value: Any, names: frozenset[str]) -> Iterator[tuple[Setter, Any]]:
    """What `value` holds, each with the function that puts another value in its place."""
    if isinstance(value, types.FunctionType):
        yield from _of_function(value, names)
    elif isinstance(value, types.MethodType):
        yield _nowhere, value.__func__
        yield _nowhere, value.__self__
    elif isinstance(value, functools.partial):
        yield _nowhere, value.func
        yield functools.partial(_put_arguments, value), value.args
        yield from _of_dict(value.keywords, None)
    elif isinstance(value, types.ModuleType):
        yield from _of_dict(vars(value), names)
    elif isinstance(value, dict):
        yield from _of_dict(value, None)
    elif isinstance(value, types.MappingProxyType):
        yield from ((_nowhere, part) for part in gc.get_referents(value))  # the dict behind it
    elif isinstance(value, list | collections.deque | np.ndarray):
        entries = value.ravel() if isinstance(value, np.ndarray) else value
        for i, part in enumerate(list(itertools.islice(entries, _LONG))):
            yield functools.partial(entries.__setitem__, i), part
    elif isinstance(value, tuple | set | frozenset):
        yield from ((_nowhere, part) for part in itertools.islice(value, _LONG))
    elif isinstance(value, type):
        yield from _of_class(value)
    else:
        yield from _of_object(value)


def _of_function(fn: types.FunctionType, names: frozenset[str]) -> Iterator[tuple[Setter, Any]]:
    for cell in fn.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield functools.partial(setattr, cell, "cell_contents"), cell.cell_contents
    yield functools.partial(setattr, fn, "__defaults__"), fn.__defaults__ or ()
    yield from _of_dict(fn.__kwdefaults__ or {}, None)
    yield from _of_dict(fn.__globals__, names)
    if (wrapped := getattr(fn, "__wrapped__", None)) is not None:
        yield _nowhere, wrapped


def _of_class(value: type) -> Iterator[tuple[Setter, Any]]:
    yield from ((_nowhere, other) for other in (type(value), *value.__bases__))
    for name, part in list(vars(value).items()):
        put = functools.partial(setattr, value, name)
        if isinstance(part, staticmethod | classmethod):
            kind = type(part)
            yield (lambda new, put=put, kind=kind: put(kind(new))), part.__func__
        else:
            yield put, part


def _of_dict(entries: dict[Any, Any], names: frozenset[str] | None) -> Iterator[tuple[Setter, Any]]:
    wanted = itertools.islice(entries, _LONG) if names is None else (name for name in names if name in entries)
    for name in list(wanted):
        yield functools.partial(entries.__setitem__, name), entries[name]


def _of_object(value: Any) -> Iterator[tuple[Setter, Any]]:
    yield _nowhere, type(value)
    if isinstance(entries := getattr(value, "__dict__", None), dict):
        yield from _of_dict(entries, None)
    for name in getattr(type(value), "__slots__", ()):
        if isinstance(name, str) and hasattr(value, name):
            yield functools.partial(object.__setattr__, value, name), getattr(value, name)
    if not isinstance(value, type) and hasattr(value, "__wrapped__"):
        yield _nowhere, value.__wrapped__


def _put_arguments(fn: functools.partial, args: tuple[Any, ...]) -> None:
    fn.__setstate__((fn.func, args, fn.keywords, vars(fn)))  # pyright: ignore[reportAttributeAccessIssue]


def _nowhere(value: Any) -> None:
    """In place of a setter where a value can't be a table."""
