r"""Convolutions as matrix products, for losses on a CPU.

XLA's CPU compiler has a fast convolution, but not for one that stands inside a loop, nor in float64
(https://github.com/jax-ml/jax/issues/12868): a gradient through a 3 × 3 convolution of 32 channels took 35 times as
long in `fori_loop` as outside. Sampling and Hessian products are loops. So the convolutions of a loss are written as
what they are,

$$ y_{n p o} = \sum_{t, i} x_{n,\, s p + d t,\, i}\, k_{t i o}, $$

with places p of the output, taps t of the kernel, channels i and o, stride s and dilation d: x is cut into one shifted
copy a tap, and the sum over taps and channels is one matrix product. Derivatives of any order are matrix products too.
The copies take as much memory as x times the number of taps.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

CONVOLUTION = "conv_general_dilated"  # the primitive


def by_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` with its convolutions as matrix products; those within its loops and custom derivatives stay as they are.

    Args:
        fn: a function of pytrees that JAX can trace, with a pytree of arrays as result.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> image, kernel = jnp.arange(16.0).reshape(1, 1, 4, 4), jnp.ones((1, 1, 2, 2))
        >>> fn = lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID")
        >>> by_products(fn)(image, kernel).ravel()
        Array([10., 18., 42., 50.], dtype=float32)
    """

    @functools.wraps(fn)
    def run(*args: PyTree) -> PyTree:
        arrays, rest = eqx.partition(args, _is_array)
        closed, out = jax.make_jaxpr(lambda arrays: fn(*eqx.combine(arrays, rest)), return_shape=True)(arrays)
        values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return run


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic))


def _evaluate(jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
    """The results of a traced program, its equations one by one."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [var.val if isinstance(var, Literal) else values[var] for var in equation.invars]
        name, params = equation.primitive.name, equation.params
        with equation.ctx.manager:
            if name == CONVOLUTION and params["batch_group_count"] == 1:
                out = [_convolve(*map(jnp.asarray, inputs), **params)]
            elif name == "jit":
                out = _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs)
            elif name in ("remat2", "checkpoint"):
                part = functools.partial(_evaluate, params["jaxpr"], [])
                again = jax.checkpoint(part, policy=params["policy"], prevent_cse=params["prevent_cse"])
                out = again(inputs)
            else:
                out = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
                out = out if equation.primitive.multiple_results else [out]
        values |= zip(equation.outvars, out, strict=True)
    return [var.val if isinstance(var, Literal) else values[var] for var in jaxpr.outvars]


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
    x = jnp.transpose(x, (of_x[0], *of_x[2:], of_x[1]))  # row, place, channel
    kernel = jnp.transpose(kernel, (*of_kernel[2:], of_kernel[1], of_kernel[0]))  # tap, channel, output
    between = [(low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    taps = _shifted(x, kernel.shape[:-2], window_strides, rhs_dilation)
    in_groups = taps.reshape(*taps.shape[:-1], feature_group_count, -1)
    weights = kernel.reshape(taps.shape[-2], kernel.shape[-2], feature_group_count, -1)
    out = jnp.einsum(
        "...tgi,tigo->...go", in_groups, weights, precision=precision, preferred_element_type=preferred_element_type
    )
    order = np.argsort((of_out[0], *of_out[2:], of_out[1])).tolist()
    return jnp.transpose(out.reshape(*out.shape[:-2], -1), order)


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
