r"""Homogeneous forms as symmetric tensors, and the forms with which the residuals begin in the kernel of H.

A vector Q of e forms of degree k in m variables is an array of shape (e, m, …, m), symmetric in its last k axes.

Let K ≍ |F|² and J = F'(0). Along a kernel direction v, the curve c(t) = tv + t²u₂ + t³u₃ + … with

$$ u_j = -J^+ [t^j] F(c(t)) $$

keeps the residuals out of the image of J. What is left of order t^k, Q(v) = P_coker [t^k] F(c(t)), are the leading
forms. For k = 2 they are ½ P_coker F''[v, v].
"""

import itertools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, PRNGKeyArray

from llc.geometry.higher_order.excess import Excess, Offset
from llc.geometry.higher_order.ranges import Splitting, beyond_image, project

Forms = Inexact[np.ndarray, "..."]  # (equation, variable, …, variable)

ZERO = 1e-8  # of a tensor of unit size: derivatives are known to 1e-12, and Newton steps end at 1e-13
_CHUNK = 64  # points at a time: one program for all kernels
_MAX_NUMBERS = 2**27  # of residuals of all points: 1 GiB
_POINTS = 1_225  # at which forms on a part of the kernel are known: 48 variables of degree 2, 17 of 3, 10 of 4
_MOST_POINTS = 2_200  # where as many variables are all that can matter: up to 64, 21, 12
_MOST_FORMS = 256  # more than twice as many as the variables of a part: none of its ideal is lost
PRICE_OF_FORMS = 6 * _MOST_FORMS + 4 * (_POINTS + _MOST_POINTS)  # products, at most


def at_points(forms: Forms, point: np.ndarray, times: int) -> np.ndarray:
    """`forms` with `times` of their variables set to `point`."""
    for _ in range(times):
        forms = forms @ point
    return forms


def restricted(forms: Forms, basis: Inexact[np.ndarray, "variable new"]) -> Forms:
    """`forms` of the new variables y, with the old ones basis · y."""
    for axis in range(1, forms.ndim):
        forms = np.moveaxis(np.tensordot(forms, basis, axes=(axis, 0)), -1, axis)
    return forms


def symmetrized(forms: Forms) -> Forms:
    """The mean over all orders of the variables."""
    orders = list(itertools.permutations(range(1, forms.ndim)))
    return np.asarray(sum(np.transpose(forms, (0, *order)) for order in orders) / len(orders))


def reduced(forms: Forms) -> Forms:
    """Forms that generate the same ideal: orthonormal ones, in those variables only that they depend on."""
    forms = _row_space(forms.reshape(len(forms), -1)).reshape(-1, *forms.shape[1:])
    return restricted(forms, _row_space(forms.reshape(-1, forms.shape[-1])).conj().T)


def _row_space(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span those of `matrix`."""
    if len(matrix) > matrix.shape[1]:
        matrix = np.linalg.qr(matrix, mode="r")
    _, sizes, rows = np.linalg.svd(matrix, full_matrices=False)
    return rows[sizes > ZERO * sizes[0]]


def leading_forms(excess: Excess, splitting: Splitting, degree: int, key: PRNGKeyArray) -> Forms | None:
    """The leading forms of the residuals on the kernel of H, of which `degree` is known; None where they do not fit.

    Where the whole kernel does not fit, a random subspace takes its place, of the size that `part_size` gives. The lct
    can only fall by that (Lazarsfeld 2004, Positivity II, Theorem 9.5.1), as it can only fall where 256 random
    combinations take the place of more residuals: a bound from below holds for all of them.

    Costs k derivatives of the residuals for each of the C(m + k, k) points that determine a form of degree k in m
    variables, and 6 products for each form.

    Args:
        excess: K around w*, with residuals.
        splitting: of its Hessian at w*.
        degree: k, half of the order of g; 2, 3 or 4.
        key: of the subspace and of the combinations.
    """
    basis_key, mix_key = jax.random.split(key)
    num_residuals = jax.eval_shape(excess.residuals, jnp.zeros(excess.dim)).size
    num_forms = min(num_residuals, _MOST_FORMS)
    if num_forms < num_residuals:
        weights = jax.random.normal(mix_key, (num_forms, num_residuals)) / np.sqrt(num_residuals)
    else:
        weights = jnp.eye(num_residuals)
    beyond = beyond_image(excess, splitting, weights)

    def on_part(size: int) -> Forms:
        kernel = jnp.asarray(_orthonormal(splitting, jax.random.normal(basis_key, (size, excess.dim))))
        return _on_kernel(excess, splitting, kernel, beyond, degree)

    def fits(size: int) -> bool:
        numbers = (math.comb(size + degree, degree) + size**degree) * num_forms + size * excess.dim
        return numbers <= _MAX_NUMBERS

    free = excess.dim - splitting.rank
    if fits(free):
        return on_part(free)
    size = next((size for size in range(min(free, part_size(degree)), 0, -1) if fits(size)), 0)
    if not size:
        return None
    forms = on_part(size)
    enough = min(free, part_size(degree, len(reduced(forms)))) if np.abs(forms).max() > 0 else size
    return on_part(enough) if enough > size and fits(enough) else forms


def part_size(degree: int, num_forms: int = 0) -> int:
    """Variables of a part of the kernel, where the whole is too large: what 1,225 points determine, or all that matter.

    The lct of e forms is at most e, and in m = k·e variables the blow-up of the origin gives no less: more variables
    raise no bound. Where 2,200 points determine as many, the part has them.
    """
    usual, most = (
        next(size for size in itertools.count(1) if math.comb(size + 1 + degree, degree) > points)
        for points in (_POINTS, _MOST_POINTS)
    )
    enough = degree * num_forms
    return enough if usual < enough <= most else usual


def _orthonormal(splitting: Splitting, vectors: Float[Array, "variable dim"]) -> Float[np.ndarray, "variable dim"]:
    """An orthonormal basis of the kernel, or of a part of it, from random vectors."""
    return np.linalg.qr(np.asarray(project(splitting, vectors)).T)[0].T


def _on_kernel(
    excess: Excess,
    splitting: Splitting,
    kernel: Float[Array, "variable dim"],
    beyond: Float[Array, "form output"],
    degree: int,
) -> Forms:
    """The forms in coordinates of orthonormal rows of the kernel, from their values at sums of these."""
    size = len(kernel)
    sums = [s for n in range(1, degree + 1) for s in itertools.combinations_with_replacement(range(size), n)]
    counts = np.array([np.bincount(s, minlength=size) for s in sums], float)
    counts = np.concatenate([counts, np.zeros((-len(sums) % _CHUNK, size))]).reshape(-1, _CHUNK, size)
    chunks = [np.asarray(_forms_at(excess, splitting, kernel, jnp.asarray(c), beyond, degree)) for c in counts]
    found = dict(zip(sums, np.concatenate(chunks), strict=False))
    return _polarized(found, size, degree)


def _polarized(values: dict[tuple[int, ...], np.ndarray], size: int, degree: int) -> Forms:
    """The tensor of a form from its values at sums of basis vectors: Σ over parts S, (−1)^(k − |S|) Q(Σ_S e_i) / k!."""
    num_outputs = len(next(iter(values.values())))
    tensor = np.zeros((num_outputs, *(size,) * degree))
    for index in itertools.combinations_with_replacement(range(size), degree):
        parts = (part for n in range(1, degree + 1) for part in itertools.combinations(index, n))
        entry = sum((-1) ** (degree - len(part)) * values[part] for part in parts) / math.factorial(degree)
        for order in set(itertools.permutations(index)):
            tensor[(slice(None), *order)] = entry
    return tensor


@eqx.filter_jit
def _forms_at(
    excess: Excess,
    splitting: Splitting,
    kernel: Float[Array, "variable dim"],
    points: Float[Array, "point variable"],
    beyond: Float[Array, "form output"],
    degree: int,
) -> Float[Array, "point form"]:
    _, pull = jax.vjp(excess.residuals, jnp.zeros(excess.dim))

    def form(point: Float[Array, "variable"]) -> Array:
        curve = [point @ kernel]
        for power in range(2, degree):
            curve.append(-splitting.solve(pull(_coefficient(excess, curve, power))[0]))
        return beyond @ _coefficient(excess, curve, degree)

    return jax.lax.map(form, points, batch_size=max(1, int(_MAX_NUMBERS // (64 * len(points) * excess.dim))))


def _coefficient(excess: Excess, curve: list[Offset], power: int) -> Array:
    """[t^power] of the residuals along Σ t^j curve_j, by nested derivatives."""

    def along(t: ArrayLike) -> Array:
        powers = jnp.stack([jnp.asarray(t) ** (j + 1) for j in range(len(curve))])
        return excess.residuals(powers @ jnp.stack(curve))

    return _nth_derivative(along, power)(0.0) / math.factorial(power)


def _nth_derivative(fn: Callable[[ArrayLike], Array], times: int) -> Callable[[ArrayLike], Array]:
    if not times:
        return fn
    return _nth_derivative(lambda t: jax.jvp(fn, (t,), (1.0,))[1], times - 1)
