r"""Whether the loss is smooth at w*: the gradient on both sides of it, over eleven decades of distance.

Along a direction v, with g the gradient, the two parts

$$ D(t) = \tfrac12 [g(w^* + tv) + g(w^* - tv)] - g(w^*), \qquad A(t) = \tfrac12 [g(w^* + tv) - g(w^* - tv)] - t H v $$

are O(t²) for a C³ loss and O(t³) for a C⁴ loss. A kink at w* leaves a lower power as t → 0: |b|³ gives A ∝ t², the
square of a ReLU gives D ∝ t, |b₁ b₂| gives A ∝ t, and |b| or a ReLU gives a part that does not fall at all. A kink at
a distance (a ReLU that switches for some datum near w*) looks the same, but only beyond its distance. Hence the rule:

- t falls from 0.1 to 10⁻¹² by factors of 8, in units of a typical parameter, and the norms of the parts are joined
  over the random directions: their sum falls with the lowest of the powers.
- A norm counts where it stands above 100 times the round-off, which is measured: a gradient that is affine in t on one
  side, as it is at the smallest distances whether there is a kink at w* or not, has second differences of zero. To it
  comes the round-off ε ‖g‖ of gradients that grow with t.
- Exponents are those of the smallest distances that count. The loss is not smooth if two exponents in a row (a factor
  of 64 in t) are half a unit or more below the smooth one, and if the part doesn't then fall below round-off faster
  than that: it does where t passes the nearest of the kinks at a distance.

Kinks at a distance are measured apart: the Hessian at w* leaves them out, and the posterior reaches them. Where the
curvature of a ReLU network sits in many of them, ‖A(t)‖/t has a level k that hardly depends on t; the smooth part s t²
falls by 64 from a step to the next, as far as the loss is about quartic there. At a hundredth of the size of the params
and at an eighth of that,

$$ \frac{\lVert A(t) \rVert}{t} = k + s, \qquad \frac{\lVert A(t/8) \rVert}{t/8} = k + \frac{s}{64}, $$

so that k follows from both. It is noisy where few kinks lie within the smaller distance (then the larger one's whole is
its limit), and 0 where none does. In units of ‖H v‖ it is .30 in a ReLU transformer layer of 1,040 parameters, and .20
in a ReLU network of 269,322. A loss that is far from quadratic at an eighth of that distance has a large k, too: 1 in a
GELU transformer trained to a loss of 10⁻³. So it is measured only where the program of the gradient has a step (a
comparison, a sign, the place of a maximum) that depends on the params. Without one there are no kinks, but for the
zeros of roots.

A kink that moves the gradient by less than round-off, or by less than the smooth part of many other parameters does
over the distances that count, is not seen.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from llc.bounds.smoothness import Smoothness
from llc.geometry.curvature.operators import CurvatureOperator
from llc.posterior.programs import has_steps

_NUM_DIRECTIONS = 3
_RATIO = 8.0
_STEPS = 0.1 * _RATIO ** -np.arange(13.0)
_RESOLVED = 100.0  # times the round-off: an exponent then has an error below 0.01, and chance never reaches it
_SMOOTH_EVEN, _SMOOTH_ODD = 2, 3
_MARGIN = 0.5
_KINK_STEPS = slice(1, 3)  # the two distances at which kinks around w* are measured
_HIDDEN = 0.02  # of the curvature: rounding from which a share is not told
_FINE, _COARSE = 2.0**-30, 2.0**-4  # relative moves that float32 does not see, and that bfloat16 does


def directions(dim: int) -> Float[np.ndarray, "direction dim"]:
    """Gaussian directions of `probe_smoothness`, the same in every run."""
    return np.random.default_rng(0).normal(size=(_NUM_DIRECTIONS, dim))


def probe_smoothness(
    operator: CurvatureOperator,
    gradient: Float[np.ndarray, "dim"],
    products: Float[np.ndarray, "direction dim"],
) -> Smoothness:
    """Smoothness of the loss at w*, from 78 gradients over all the data; to be used under `float64()`.

    Args:
        operator: of the Hessian, in float64.
        gradient: g(w*), flat.
        products: H v for each v of `directions(operator.dim)`.
    """
    flat = operator.flat
    steps = _typical_size(operator) * _STEPS
    even, odd, size, noise = np.zeros((4, len(steps)))
    curvature = 0.0
    for v, product in zip(directions(operator.dim), products, strict=True):
        ahead, behind = _gradients(operator, v, steps), _gradients(operator, v, -steps)
        if not (_finite(operator, v * steps[-1]) and np.isfinite(ahead[-1]).all() and np.isfinite(behind[-1]).all()):
            return Smoothness("boundary", np.nan, np.nan)
        with np.errstate(invalid="ignore", over="ignore"):  # far from w* a loss may end, or grow beyond float64
            even = np.hypot(even, _norms(0.5 * (ahead + behind) - gradient))
            odd = np.hypot(odd, _norms(0.5 * (ahead - behind) - steps[:, None] * product))
            size = np.hypot(size, _norms(ahead) + _norms(behind) + steps * np.linalg.norm(product))
            curvature = np.hypot(curvature, np.linalg.norm(product))
            noise = np.maximum(noise, max(_roundoff(ahead), _roundoff(behind)))
    floor = _RESOLVED * (noise + np.finfo(np.float64).eps * size)
    (even_kink, even_power), (odd_kink, odd_power) = _judge(even, floor, _SMOOTH_EVEN), _judge(odd, floor, _SMOOTH_ODD)
    share = kink_share(odd[_KINK_STEPS] / steps[_KINK_STEPS], float(curvature)) if _may_have_kinks(operator) else 0.0
    if not (even_kink or odd_kink):
        return Smoothness("smooth", even_power, odd_power, share)
    state = "coarse" if _is_coarse(operator, np.asarray(flat)) else "kink"
    return Smoothness(state, even_power, odd_power, share)


def kinks_nearby(operator: CurvatureOperator, num_directions: int) -> float:
    """The share of the curvature around w* that sits in kinks, from a third of the rows.

    For large models: a direction takes a product and four gradients on those rows, so the price of one product on all
    of them, in the precision that the operator is in. Trained networks have their curvature in few rows, so that fewer
    of them give another share each time.

    Args:
        operator: of the Hessian.
        num_directions: up to three.

    Returns:
        As of `kink_share`; 0 where the gradient has no step, nan where rounding hides it.
    """
    if not _may_have_kinks(operator):
        return 0.0
    pieces = operator.rows
    each = max(pieces.num_rows // 3 // pieces.num_pieces, 1)
    few = jax.tree.map(lambda x: x[:, :each], pieces.pieces)
    operator = eqx.tree_at(lambda o: o.rows, operator, replace(pieces, pieces=few, rest=None))
    dtype = operator.flat.dtype
    steps = jnp.asarray(_typical_size(operator) * _STEPS[_KINK_STEPS], dtype)
    missing, noise, curvature = np.zeros(2), np.zeros(2), 0.0
    for direction in directions(operator.dim)[:num_directions]:
        found = map(np.asarray, _missing_at(operator, jnp.asarray(direction, dtype), steps))
        missing, noise, curvature = (np.hypot(x, y) for x, y in zip((missing, noise, curvature), found, strict=True))
    share = kink_share(missing, float(curvature))
    return share if noise.max() <= _HIDDEN * max(curvature, missing[0]) else float("nan")


@eqx.filter_jit
def _missing_at(
    operator: CurvatureOperator, direction: Float[Array, "dim"], steps: Float[Array, "step"]
) -> tuple[Float[Array, "step"], Float[Array, "step"], Float[Array, ""]]:
    """‖A(t)‖ / t, its rounding, and ‖H v‖."""
    with jax.default_matmul_precision("highest"):
        product = operator.product(direction)
        gradients = jax.lax.map(
            lambda step: _moved(operator, step * direction).gradient(), jnp.concatenate([steps, -steps])
        )
    ahead, behind = gradients[: len(steps)], gradients[len(steps) :]
    missing = jnp.linalg.norm(0.5 * (ahead - behind) - steps[:, None] * product, axis=1) / steps
    sizes = jnp.linalg.norm(ahead, axis=1) + jnp.linalg.norm(behind, axis=1)
    return missing, jnp.finfo(direction.dtype).eps * sizes / steps, jnp.linalg.norm(product)


def kink_share(missing: Float[np.ndarray, "2"], curvature: float) -> float:
    """The share of the curvature around w* that sits in kinks, in units of the whole change of the gradient.

    Args:
        missing: ‖A(t)‖ / t for t = 0.1/8 and 0.1/64 of the size of the params.
        curvature: ‖H v‖.

    Returns:
        A number between 0 and 1; nan where the gradients are not finite.
    """
    wide, near = missing
    if not np.isfinite([wide, near, curvature]).all():
        return float("nan")
    level = min((_RATIO**2 * near - wide) / (_RATIO**2 - 1), wide)
    return float(level / max(curvature, wide)) if level > 0 else 0.0


def _may_have_kinks(operator: CurvatureOperator) -> bool:
    """Whether the gradient takes a step that depends on the params."""
    posterior, few = operator.posterior, jax.tree.map(lambda x: x[0, :2], operator.rows.pieces)
    gradient = jax.grad(lambda position, batch: posterior.loss(posterior.params_at(position), batch))
    return has_steps(gradient, posterior.position, few)


def _typical_size(operator: CurvatureOperator) -> float:
    """Of a parameter, and at least 1."""
    return max(float(jnp.sqrt(jnp.mean(operator.flat**2))), 1.0)


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def _roundoff(gradients: np.ndarray) -> float:
    """Largest second difference of the smallest distances on one side: 8t lies at 8/9 t + 1/9 64t."""
    wide, middle, near = gradients[-4:-2], gradients[-3:-1], gradients[-2:]
    differences = (_RATIO * near + wide) / (_RATIO + 1) - middle
    return float(_norms(differences).max())


def _judge(values: np.ndarray, floor: np.ndarray, smooth: int) -> tuple[bool, float]:
    """Whether the power law at the smallest distances that count is one of a kink, and its exponent."""
    counted = values > floor  # False where not finite
    if not counted.any():
        return False, np.inf
    last = int(np.flatnonzero(counted)[-1])
    first = last - int(np.argmin(np.append(counted[: last + 1][::-1], False))) + 1
    exponents = np.log(values[first:last] / values[first + 1 : last + 1])[-2:] / np.log(_RATIO)
    exponent = float(exponents.max(initial=-np.inf))
    if last + 1 < len(values):
        with np.errstate(divide="ignore"):
            exponent = max(exponent, float(np.log(values[last] / floor[last + 1]) / np.log(_RATIO)))
    return len(exponents) == 2 and exponent <= smooth - _MARGIN, exponent


def _gradients(operator: CurvatureOperator, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Gradient at w* + t v for each t: as many vectors as a Lanczos run keeps, at most."""
    return np.asarray(_gradients_at(operator, jnp.asarray(direction), jnp.asarray(steps)))


@eqx.filter_jit
def _gradients_at(
    operator: CurvatureOperator, direction: Float[Array, "dim"], steps: Float[Array, "step"]
) -> Float[Array, "step dim"]:
    return jax.lax.map(lambda step: _moved(operator, step * direction).gradient(), steps)


def _finite(operator: CurvatureOperator, offset: np.ndarray) -> bool:
    """Whether the loss is finite on both sides: a gradient may be finite where the loss is not."""
    return bool(np.isfinite(_losses_at(operator, jnp.asarray(np.stack([offset, -offset])))).all())


@eqx.filter_jit
def _losses_at(operator: CurvatureOperator, offsets: Float[Array, "offset dim"]) -> Float[Array, "offset"]:
    return jax.lax.map(lambda offset: _moved(operator, offset).loss(), offsets)


def _moved(operator: CurvatureOperator, offset: Float[Array, "dim"]) -> CurvatureOperator:
    """The operator at w* + offset."""
    flat, unravel = ravel_pytree(operator.posterior.position)
    center = operator.posterior.params_at(unravel(flat + offset))
    return eqx.tree_at(lambda o: o.posterior.center, operator, center)


def _is_coarse(operator: CurvatureOperator, flat: np.ndarray) -> bool:
    """Whether the loss rounds its parameters to float32 or less: a move far below that leaves no trace at all."""
    gradients = _gradients(operator, flat * directions(operator.dim)[0], np.array([0.0, _FINE, -_FINE, _COARSE]))
    unmoved = (gradients[1:] == gradients[0]).all(axis=1)
    return bool(unmoved[:2].all() and not unmoved[2])
