r"""How much work a gradient is, in floating-point operations, counted by XLA's compiler without running anything.

What is not a matrix product is bound by memory: a byte that is read or written counts as 1.5 operations,

$$ \text{operations} = \text{flops} + 1.5 \cdot \text{bytes}. $$

Measured on ten small networks on a CPU (dense, residual, convolutional, recurrent, attention), the gradient took one
second for 37 to 99 · 10⁹ of these operations, and for 12 to 67 · 10⁹ of flops alone. The compiler counts the body of a
loop once; here it counts as often as it runs.
"""

import jax
from jax.dtypes import canonicalize_dtype
from jax.extend.core import Jaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import in_loops
from llc.posterior.programs import inner_programs

_ROWS = 256  # whose gradient is counted; with few rows the parameters would be most of the bytes
_OF_A_BYTE = 1.5


def gradient_operations(posterior: LocalPosterior) -> float:
    """Operations of one gradient of the loss over all the data; nothing is compiled or computed."""
    posterior = posterior.resident()
    num_rows = min(posterior.num_data, _ROWS)

    def gradient(position: PyTree, batch: PyTree) -> PyTree:
        return jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(position)

    few = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), canonicalize_dtype(x.dtype)), posterior.data
    )
    traced = jax.jit(in_loops(posterior.loss_fn, gradient)).trace(posterior.position, few)
    return _operations(traced) * posterior.num_data / num_rows


def _operations(traced: jax.stages.Traced) -> float:
    """Operations of a program, those of its loops as often as they run."""
    counted = traced.lower().cost_analysis() or {}
    once = counted.get("flops", 0.0) + _OF_A_BYTE * counted.get("bytes accessed", 0.0)
    return float(once) + _of_repetitions(traced.jaxpr.jaxpr)


def _of_repetitions(jaxpr: Jaxpr) -> float:
    """Operations of loops beyond their first run; how often a `while` runs is not known."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"]
            args = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
            total += (equation.params["length"] - 1) * _operations(jax.jit(jaxpr_as_fun(body)).trace(*args))
        total += sum(_of_repetitions(part) for part, _ in inner_programs(equation))
    return total
