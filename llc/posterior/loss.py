"""A loss as a fixed function: the user's function, together with the values that it had when the posterior was made.

JAX finds a compiled program by the identity of the function it was made from. A function whose attribute, class weight
or global variable has changed would therefore be the old one. A `Loss` is equal to another one if both have the same
code *and* the same program: posteriors of a function that has not changed share what was compiled, and one of a
function that has changed meets no old constant.
"""

import functools
import hashlib
import itertools
import re
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

from llc.posterior.convolutions import CONVOLUTION, by_products, channels_last
from llc.posterior.loss_parts import is_another_program
from llc.posterior.precision import as_float64, float64
from llc.posterior.programs import inner_programs, primitives
from llc.posterior.rows import num_rows
from llc.posterior.tables import fresh_tables

# JAX keeps what it traced of functions within the loss (jitted ones, bodies of loops, branches, checkpoints) by their
# identity too, and of each user context apart: each program has its own, and so has each look at what the program is.
_PROGRAM = jax.make_user_context()
_LOOKS = itertools.count()
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_JITTED = type(jax.jit(lambda: 0)), type(eqx.filter_jit(lambda: 0))
_LONG = 300  # characters of another program's message
_ROWS = 2  # of the batch on which the program is read; its values play no part
_MANY = 2048  # rows of another batch, on which it may be another program


class Program(NamedTuple):
    """What a function does.

    Attributes:
        fingerprint: a digest of the program of the function and of its gradient, with all constants; equal programs
            have equal digests. Where the gradient can't be traced it is that of the function alone. Where that can't
            either (what evaluates it says why), or calls back to Python, whose doings are not seen, it is of the
            function's own.
        no_gradient: why JAX has no gradient of a function that it can trace; None if it has one.
        convolves: whether there are convolutions in it.
    """

    fingerprint: str
    no_gradient: str | None = None
    convolves: bool = False


class Loss:
    """`fn(params, batch)` with its `fingerprint`; called like the function.

    Attributes:
        fn: the function.
        fingerprint: as of `Program`.
        no_gradient: as of `Program`.
        convolves: as of `Program`.
    """

    def __init__(self, fn: Callable[[PyTree, PyTree], Array], program: Program, of_sizes: str = "") -> None:
        self.fn = fn
        self.fingerprint = program.fingerprint + of_sizes
        self.no_gradient = program.no_gradient
        self.convolves = program.convolves

    @property
    def __wrapped__(self) -> Callable[[PyTree, PyTree], Array]:
        return self.fn

    def __call__(self, params: PyTree, batch: PyTree) -> PyTree:
        """What `fn` gives, with its NumPy tables in the precision of now."""
        with _PROGRAM(self.fingerprint), fresh_tables(self.fn, params), warnings.catch_warnings():
            # A float64 table is float32 here without a word, as it would be in a loss of its own.
            warnings.filterwarnings("ignore", message="Explicitly requested dtype")
            return (by_products(self.fn) if has_slow_convolutions(self) else self.fn)(params, batch)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Loss) or self.fingerprint != other.fingerprint:
            return False
        mine, others = _identity(self.fn), _identity(other.fn)
        return mine is others or (_hashable(mine) and _hashable(others) and bool(mine == others))

    def __hash__(self) -> int:
        identity = _identity(self.fn)
        return hash((hash(identity) if _hashable(identity) else id(identity), self.fingerprint))

    def __repr__(self) -> str:
        return f"Loss({self.fn!r})"


def has_slow_convolutions(loss_fn: Callable[[PyTree, PyTree], PyTree]) -> bool:
    """Whether a `Loss`, or what wraps one, has convolutions that are slow in a loop (convolutions.py)."""
    return bool(getattr(loss_fn, "convolves", False)) and jax.default_backend() == "cpu"


def in_loops(loss_fn: Callable[[PyTree, PyTree], Array], fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`, which evaluates `loss_fn` or its derivatives and is not differentiated again, as it is fast in a loop."""
    return channels_last(fn) if has_slow_convolutions(loss_fn) else fn


def _identity(fn: Callable[[PyTree, PyTree], PyTree]) -> object:
    """What two functions of one program share: their code, so that a `def` in a loop is compiled once.

    The values that such a function has caught are in its fingerprint.
    """
    return fn.__code__ if isinstance(fn, FunctionType) else fn


def fixed(fn: Callable[[PyTree, PyTree], Array], params: PyTree, data: PyTree, name: str = "loss_fn") -> Loss:
    """`fn` with the constants that it has now.

    Raises:
        ValueError: if it has other constants the next time that it is traced.
    """
    fn = _traced_function(fn)
    first = program_of(fn, params, data)
    if first.fingerprint != program_of(fn, params, data).fingerprint:
        raise ValueError(
            f"{name} needs to be a fixed function of (params, batch), but traced twice it is two different programs: "
            "it probably draws from np.random or random, reads a clock, or counts its calls, and JAX would freeze "
            "what it got once. Draw what is random before, with a fixed seed, and put it into data."
        )
    return Loss(fn, first, _of_sizes(fn, params, data) + _of_float64(fn, params, data))


def _of_sizes(fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree) -> str:
    """What tells functions apart that are one program on two rows; empty where it is the same one on many rows.

    The sizes at which it changes are known by their powers of two, and by the numbers that the function has caught.
    """

    def loss(batch: PyTree) -> PyTree:
        with fresh_tables(fn, params):
            return fn(params, batch)

    if not jax.tree.leaves(data):
        return ""
    most = min(num_rows(data), _MANY)
    with _PROGRAM(next(_LOOKS)), warnings.catch_warnings(action="ignore"):
        if most <= _ROWS or not is_another_program(loss, data, _ROWS, most):
            return ""
        sizes = [*(2**k for k in range(2, most.bit_length()) if 2**k < most), most]
        programs = [is_another_program(loss, data, _ROWS, size) for size in sizes]
    return f" of sizes {[*zip(sizes, programs, strict=True), *_numbers(fn)]}"


def _of_float64(fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree) -> str:
    """What tells functions apart that are one program in float32, such as by a dtype that they have caught."""
    forward, args = _forward(fn, params, data)
    try:
        with float64(), _PROGRAM(next(_LOOKS)), warnings.catch_warnings(action="ignore"):
            closed = jax.make_jaxpr(forward)(*jax.eval_shape(as_float64, args))
            return f" in float64 {_digest(closed.jaxpr, closed.consts)}"
    except Exception:  # the user's function may raise anything, and what evaluates it says why
        return ""


def _numbers(fn: Any, depth: int = 3) -> list[Any]:
    """Numbers and texts among the values that a function, its arguments or its object hold."""
    if isinstance(fn, (bool, int, float, str, np.number)):
        return [fn]
    if depth == 0:
        return []
    cells = getattr(fn, "__closure__", None) or ()
    held = [cell.cell_contents for cell in cells if cell != type(cell)()]
    held += [*(getattr(fn, "__defaults__", None) or ()), *(getattr(fn, "__kwdefaults__", None) or {}).values()]
    if (code := getattr(fn, "__code__", None)) is not None:
        held += [fn.__globals__[name] for name in code.co_names if name in fn.__globals__]
    elif isinstance(fn, functools.partial):
        held += [fn.func, *fn.args, *fn.keywords.values()]
    elif not isinstance(fn, type):
        held += [getattr(fn, "__self__", None), getattr(fn, "__func__", None), *getattr(fn, "__dict__", {}).values()]
    return [number for value in held for number in _numbers(value, depth - 1)]


def _traced_function(fn: Callable[[PyTree, PyTree], Array]) -> Callable[[PyTree, PyTree], Array]:
    """What JAX traces: a jitted function itself would give the program, with the constants, of its first call."""
    if isinstance(fn, Loss):
        return fn.fn
    while type(fn) in _JITTED:
        fn = getattr(fn, "__wrapped__")  # noqa: B009  (of two types that have it)
    return fn


def _forward(
    fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree
) -> tuple[Callable[[PyTree, PyTree], PyTree], tuple[PyTree, PyTree]]:
    """`fn` as a function of the arrays among the params and of a batch, and its arguments with few rows."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)

    def forward(arrays: PyTree, batch: PyTree) -> PyTree:
        params = eqx.combine(arrays, rest)
        with fresh_tables(fn, params):
            return fn(params, batch)

    return forward, (arrays, jax.tree.map(lambda x: x[:_ROWS], data))


def program_of(fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree) -> Program:
    """The program of `fn`; nothing is compiled or computed."""
    forward, args = _forward(fn, params, data)
    args = jax.tree.map(_like, args)

    def with_gradient(arrays: PyTree, batch: PyTree) -> PyTree:
        def total(arrays: PyTree) -> tuple[Array, PyTree]:
            out = forward(arrays, batch)
            return jnp.sum(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out))), out

        return jax.grad(total, has_aux=True)(arrays)

    no_gradient = None
    for traced in (with_gradient, forward):
        try:
            # What warnings say is said where the loss is evaluated.
            with _PROGRAM(next(_LOOKS)), warnings.catch_warnings(action="ignore"):
                closed = jax.make_jaxpr(traced)(*args)
        except Exception as error:  # the user's function may raise anything
            no_gradient = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:_LONG]}"
            continue
        used = {*primitives(closed.jaxpr)}
        calls_host = any(primitive_name.endswith("callback") for primitive_name in used)
        of_host = f" of {id(fn)}" if calls_host else ""  # what the host does is not in the program
        name = f"{_digest(closed.jaxpr, closed.consts)}{of_host}"
        return Program(name, no_gradient, CONVOLUTION in used)
    return Program(f"unknown of {id(fn)}")


def _digest(jaxpr: Jaxpr, consts: list[Any]) -> str:
    digest = hashlib.blake2b(_ADDRESS.sub("", str(jaxpr)).encode(), digest_size=16)
    for value in [*consts, *_constants(jaxpr)]:
        digest.update(_bytes(value))
    return digest.hexdigest()


def _constants(jaxpr: Jaxpr) -> list[Any]:
    """Constants of the equations, and of the programs within them."""
    found = []
    for equation in jaxpr.eqns:
        found += [var.val for var in equation.invars if isinstance(var, Literal)]
        for part, consts in inner_programs(equation):
            found += [*consts, *_constants(part)]
    return found


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        return repr(value).encode()
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return repr((array.shape, array.dtype)).encode() + array.tobytes()


def _like(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))


def _hashable(fn: object) -> bool:
    """Whether it has a hash, and equality that is a truth value."""
    try:
        hash(fn)
    except Exception:  # of the user's object: an array among its fields, a dataclass that may change
        return False
    return True
