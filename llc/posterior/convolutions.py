r"""Convolutions that are fast in a loop on a CPU: as matrix products, or with the channels last.

XLA's CPU compiler has a fast convolution of float32 with the channels last. Others it brings to that form only where
they stand at the top of a program, and not inside a loop; and there is none in float64
(https://github.com/jax-ml/jax/issues/12868). Sampling and Hessian products are loops, and the gradient through a
convolution is two others, of other forms: through 3 × 3 convolutions of 16 channels it took 9 to 35 times as long in a
loop as outside. So

- `by_products` writes the convolutions of a loss as what they are,

  $$ y_{n p o} = \sum_{t, i} x_{n,\, s p + d t,\, i}\, k_{t i o}, $$

  with places p of the output, taps t of the kernel, channels i and o, stride s and dilation d: x is cut into one
  shifted copy a tap, and the sum over taps and channels is one matrix product. Derivatives of any order are matrix
  products too. The copies take as much memory as x times the number of taps.
- `channels_last` takes what was differentiated already and turns the axes of its float32 convolutions, which
  `by_products` leaves to it. With 8 to 64 channels a gradient takes a quarter to a half of its time by products, a
  Hessian product a sixth to a third.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, PyTree

CONVOLUTION = "conv_general_dilated"  # the primitive
_FAST = np.dtype(np.float32)
_PRODUCTS, _CHANNELS_LAST = "products", "channels last"
_FORM = jax.make_user_context(_PRODUCTS)  # of the convolutions; JAX keeps what it traced of the two apart

type _Rule = Callable[[JaxprEqn, Array, Array], Array]


def by_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` with its convolutions as matrix products; those within custom derivatives stay as they are.

    Within `channels_last`, those that XLA is fast at are left to it.

    Args:
        fn: a function of pytrees that JAX can trace, with a pytree of arrays as result.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image, kernel = jnp.arange(16.0).reshape(1, 1, 4, 4), jnp.ones((1, 1, 2, 2))
        >>> fn = lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID")
        >>> by_products(fn)(image, kernel).ravel()
        Array([10., 18., 42., 50.], dtype=float32)
    """
    return _rewritten(fn, _to_product)


def channels_last(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`, which differentiates a loss or evaluates it, with float32 convolutions that are fast in a loop.

    Args:
        fn: a function of pytrees that JAX can trace, with a pytree of arrays as result. It is not differentiated again.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image, kernel = jnp.arange(16.0).reshape(1, 1, 4, 4), jnp.ones((1, 1, 2, 2))
        >>> loss = lambda k: jnp.sum(jax.lax.conv(image, k, (2, 2), "VALID"))
        >>> channels_last(jax.grad(loss))(kernel).ravel()
        Array([20., 24., 36., 40.], dtype=float32)
    """
    rewritten = _rewritten(fn, _turn)

    @functools.wraps(fn)
    def run(*args: PyTree) -> PyTree:
        with _FORM(_CHANNELS_LAST):
            return rewritten(*args)

    return run


def _rewritten(fn: Callable[..., PyTree], rule: _Rule) -> Callable[..., PyTree]:
    """`fn` with each of its convolutions as `rule` has it."""

    @functools.wraps(fn)
    def run(*args: PyTree) -> PyTree:
        arrays, rest = eqx.partition(args, _is_array)
        closed, out = jax.make_jaxpr(lambda arrays: fn(*eqx.combine(arrays, rest)), return_shape=True)(arrays)
        values = _evaluate(rule, closed.jaxpr, closed.consts, jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return run


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def _evaluate(rule: _Rule, jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
    """The results of a traced program, its equations one by one, with `rule` for its convolutions."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [var.val if isinstance(var, Literal) else values[var] for var in equation.invars]
        with equation.ctx.manager:
            values |= zip(equation.outvars, _results(rule, equation, inputs), strict=True)
    return [var.val if isinstance(var, Literal) else values[var] for var in jaxpr.outvars]


def _results(rule: _Rule, equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Of one equation, and of the programs within it: calls, checkpoints, and loops of a known length."""
    name, params = equation.primitive.name, equation.params
    if name == CONVOLUTION:
        return [rule(equation, *map(jnp.asarray, inputs))]
    if name == "jit":
        return _evaluate(rule, params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs)
    bound = equation.primitive.get_bind_params(params)
    if name == "scan":
        bound |= {"jaxpr": _rewritten_program(rule, params["jaxpr"])}
    elif name in ("remat2", "checkpoint"):
        bound |= {"jaxpr": _rewritten_program(rule, params["jaxpr"]).jaxpr}
    out = equation.primitive.bind(*inputs, **bound)
    return out if equation.primitive.multiple_results else [out]


def _rewritten_program(rule: _Rule, program: Any) -> Any:
    """A program within an equation, of the same arguments and results."""
    jaxpr, consts = getattr(program, "jaxpr", program), list(getattr(program, "consts", ()))
    args = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in (var.aval for var in jaxpr.invars)
    ]
    return jax.make_jaxpr(functools.partial(_evaluate, rule, jaxpr, consts))(args)


def _turn(equation: JaxprEqn, x: Array, kernel: Array) -> Array:
    """The same convolution with axes row, place, channel; tap, channel, output; row, place, output."""
    of_x, of_kernel, of_out = equation.params["dimension_numbers"]
    channel, places = x.ndim - 1, tuple(range(1, x.ndim - 1))
    turned = jax.lax.ConvDimensionNumbers(
        (0, channel, *places), (channel, channel - 1, *range(channel - 1)), (0, channel, *places)
    )
    x, kernel = _with_channels_last(x, of_x), _with_taps_first(kernel, of_kernel)
    out = equation.primitive.bind(x, kernel, **equation.params | {"dimension_numbers": turned})
    return _back(out, of_out)


def _to_product(equation: JaxprEqn, x: Array, kernel: Array) -> Array:
    params = equation.params
    batch_groups, groups = params["batch_group_count"], params["feature_group_count"]
    num_taps = math.prod(kernel.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:])
    is_fast = groups == 1 and num_taps > 1 and x.dtype == kernel.dtype == _FAST
    if batch_groups > 1 or (is_fast and _FORM.value == _CHANNELS_LAST):
        return equation.primitive.bind(x, kernel, **params)
    return _convolve(x, kernel, **params)


def _with_channels_last(x: Array, order: Sequence[int]) -> Array:
    return jnp.transpose(x, (order[0], *order[2:], order[1]))


def _with_taps_first(kernel: Array, order: Sequence[int]) -> Array:
    return jnp.transpose(kernel, (*order[2:], order[1], order[0]))


def _back(out: Array, order: Sequence[int]) -> Array:
    """Axes row, place, output in the order that a convolution's result has."""
    return jnp.transpose(out, np.argsort((order[0], *order[2:], order[1])).tolist())


def _convolve(
    x: Array,
    kernel: Array,
    *,
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    dimension_numbers: jax.lax.ConvDimensionNumbers,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, whose params these are, of one batch group."""
    of_x, of_kernel, of_out = dimension_numbers
    x, kernel = _with_channels_last(x, of_x), _with_taps_first(kernel, of_kernel)
    between = [(low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    taps = _shifted(x, kernel.shape[:-2], window_strides, rhs_dilation)
    in_groups = taps.reshape(*taps.shape[:-1], feature_group_count, -1)
    weights = kernel.reshape(taps.shape[-2], kernel.shape[-2], feature_group_count, -1)
    out = jnp.einsum(
        "...tgi,tigo->...go", in_groups, weights, precision=precision, preferred_element_type=preferred_element_type
    )
    return _back(out.reshape(*out.shape[:-2], -1), of_out)


def _shifted(x: Array, size: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]) -> Array:
    """(row, place, tap, channel): the values of `x` that each tap of a kernel of this size meets."""
    reach = [(length - 1) * step for length, step in zip(size, dilation, strict=True)]
    num_places = [max(0, (n - r - 1) // s + 1) for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    taps = []
    for tap in itertools.product(*map(range, size)):
        start = [index * step for index, step in zip(tap, dilation, strict=True)]
        stop = [a + max(0, (n - 1) * s + 1) for a, n, s in zip(start, num_places, strides, strict=True)]
        taps.append(jax.lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1)))
    return jnp.stack(taps, -2)
