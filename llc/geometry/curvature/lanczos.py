r"""Gauss quadrature of a spectral measure by Lanczos (Golub & Meurant 1994; Ubaru, Chen & Saad 2017).

$$ z^\top f(H) z \approx \lVert z \rVert^2 \sum_k (e_1^\top s_k)^2 f(\theta_k), \qquad T = V^\top H V, \quad
   T s_k = \theta_k s_k, \quad V e_1 = z / \lVert z \rVert . $$

T of half the steps is the leading half of T, so the change from m/2 to m steps costs nothing.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from matfree import decomp
from tqdm.auto import tqdm

from llc.geometry.curvature.operators import curvature_operator
from llc.geometry.curvature.symmetric import SymmetricOperator
from llc.posterior.arguments import require_integer
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import require_memory
from llc.posterior.precision import float64

_ORTHONORMAL = 1e-6  # defect of the Lanczos basis: 1e-14 while it is one, 1 from the breakdown on

Measure = tuple[Float[np.ndarray, "... node"], Float[np.ndarray, "... node"]]


def quadratures(
    operator: SymmetricOperator, num_matvecs: int, num_probes: int, seed: int, *, progress: bool | None
) -> tuple[Measure, Measure]:
    """Measures of `num_probes` Rademacher probes, a row each, with all the steps and with half of them.

    `num_matvecs` vectors of `dim` float64 are kept, one probe after the other.
    """
    rows, halves = [], []
    keys = jax.random.split(jax.random.key(seed), num_probes)
    for key in tqdm(keys, desc="lanczos", unit="probe", disable=None if progress is None else not progress):
        nodes, weights, half = _quadrature(
            operator, jax.random.rademacher(key, (operator.dim,), jnp.float64), num_matvecs
        )
        rows.append((nodes, weights))
        halves.append(half)
    return tuple(tuple(np.stack(x) for x in zip(*measure, strict=True)) for measure in (rows, halves))  # pyright: ignore[reportReturnType]


def quadrature(operator: SymmetricOperator, start: Any, num_matvecs: int) -> Measure:
    """The measure f ↦ startᵀ f(H) start."""
    nodes, weights, _ = _quadrature(operator, start, num_matvecs)
    return nodes, weights


def top_eigenvalue(posterior: LocalPosterior, *, num_matvecs: int = 30, seed: int = 0) -> float:
    """h_max of the Hessian at w*, from one Lanczos run over all the data, in float64.

    Args:
        posterior: loss, data and w*; nβ and γ play no part.
        num_matvecs: Lanczos steps, a Hessian product each.
        seed: of the start.

    Returns:
        The largest eigenvalue in nats per example and squared parameter, from below.
    """
    require_differentiable(posterior)
    require_integer("num_matvecs", num_matvecs, least=1)
    require_integer("seed", seed, least=0, most=2**32 - 1)
    with float64():
        operator = curvature_operator(posterior)
        probe = jax.random.normal(jax.random.key(seed), (operator.dim,), jnp.float64)
        nodes, _ = quadrature(operator, probe, num_matvecs)
    return float(nodes.max())


def _quadrature(
    operator: SymmetricOperator, start: Any, num_matvecs: int
) -> tuple[Float[np.ndarray, "node"], Float[np.ndarray, "node"], Measure]:
    require_memory(8 * (num_matvecs + 8) * operator.dim, f"{num_matvecs} Lanczos steps", "fewer of them (num_matvecs)")
    steps = min(num_matvecs, operator.dim)
    diagonal, off_diagonal, gram = map(np.asarray, jax.device_get(_tridiagonalize(operator, start, steps)))
    require_finite(diagonal[:1])
    # Where the Krylov space is exhausted, the basis stops being orthonormal, and what follows is no information.
    defect = np.abs(np.tril(gram - np.eye(steps))).max(axis=1)
    broken = np.flatnonzero(~(defect < _ORTHONORMAL))
    size = int(broken[0]) if broken.size else steps
    scale = float(np.sum(np.square(np.asarray(start))))
    whole = _gauss(diagonal, off_diagonal, size, steps, scale)
    # An exhausted space leaves no error of quadrature.
    half = whole if size < steps or steps < 2 else _gauss(diagonal, off_diagonal, steps // 2, steps, scale)
    return *whole, half


def _gauss(diagonal: np.ndarray, off_diagonal: np.ndarray, size: int, padded: int, scale: float) -> Measure:
    nodes, vectors = scipy.linalg.eigh_tridiagonal(diagonal[:size], off_diagonal[: size - 1])
    weights = vectors[0] ** 2 * scale
    return np.pad(nodes, (0, padded - size), mode="edge"), np.pad(weights, (0, padded - size))


@eqx.filter_jit
def _tridiagonalize(
    operator: SymmetricOperator, start: Float[Array, "dim"], num_matvecs: int
) -> tuple[Float[Array, "step"], Float[Array, "coupling"], Float[Array, "step step"]]:
    tridiagonalize = decomp.tridiag_sym(num_matvecs, materialize=False, reortho="full", custom_vjp=False)
    result = tridiagonalize(operator.product, start)
    diagonal, off_diagonal = result.J_small
    basis = jnp.asarray(result.Q_tall)
    return diagonal, off_diagonal, basis @ basis.T


class NotFiniteError(ValueError):
    """The Hessian has no finite products at this point."""


def require_finite(values: np.ndarray) -> None:
    """Raises NotFiniteError, a ValueError, if the Hessian's products are not finite."""
    if not np.isfinite(values).all():
        raise NotFiniteError(
            "the Hessian at w* needs to be finite, got nan or inf; check the second derivative of loss_fn at w* "
            "(square roots and norms at 0 have none)."
        )
