"""What a spectrum method is given: a matrix with its settings, and what most methods need to know beside it.

A method is a function `(Problem) -> Spectrum`. What costs products is computed at first use, and once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from llc.bounds.smoothness import Smoothness
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.dense import MAX_ORDER, Eigenvalues
from llc.geometry.curvature.lanczos import Measure, quadrature, top_eigenvalue
from llc.geometry.curvature.operators import CurvatureOperator, curvature_operator, gauss_newton_operator
from llc.geometry.curvature.output_loss import CONVEX_PARTS, OutputLoss
from llc.geometry.curvature.residuals import first_order, gauss_newton_part, residual_share
from llc.geometry.curvature.smoothness import directions, probe_smoothness
from llc.geometry.curvature.stability import unstable_eigenvalues
from llc.geometry.curvature.symmetric import check_symmetric
from llc.posterior.arguments import plain, require_flag, require_integer, require_number, require_option
from llc.posterior.local_posterior import LocalPosterior

_MIN_BUDGET = (
    13  # gradient-equivalents: the gradient, two Lanczos steps, a probe of two, two for the gradient's measure
)
_MIN_MATVECS, _MAX_MATVECS = 40, 400  # Lanczos steps a probe; each keeps a vector of d float64


@dataclass(frozen=True)
class Settings:
    """The settings of `llc.spectrum`, checked at construction; see there."""

    matrix: str = "hessian"
    output_loss: OutputLoss = None
    num_matvecs: int | None = None
    num_probes: int = 8
    relative_error: float = 0.02
    relative_scale: float = 0.01
    budget: int | None = None
    seed: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, plain(getattr(self, one.name)))
        require_option("matrix", self.matrix, ("hessian", "ggn"))
        require_integer("num_matvecs", self.num_matvecs, least=1, optional=True)
        require_integer("num_probes", self.num_probes, least=1)
        require_integer("budget", self.budget, least=_MIN_BUDGET, most=2**53, optional=True)
        require_integer("seed", self.seed, least=0, most=2**32 - 1)
        for name in ("relative_error", "relative_scale"):
            require_number(name, getattr(self, name))
        if self.output_loss is not None and not callable(self.output_loss):
            require_option("output_loss", self.output_loss, CONVEX_PARTS)
        require_flag("progress", self.progress, optional=True)


@dataclass(frozen=True)
class Limits:
    """Sizes up to which a method is taken.

    Attributes:
        order: of a dense matrix, and number of eigenvalues that the range finder and the sketch look for.
        small: order up to which `auto` makes a matrix dense without trying the range finder first.
        spare: vectors that the range finder may take beyond a count from Lanczos, which has an error.
        vector_bytes: of the vectors that are kept where their number is not given.
    """

    order: int = MAX_ORDER
    small: int = 1_000
    spare: int = 128
    vector_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Problem:
    """A symmetric matrix of curvature at w*; made and used under `float64()`.

    Attributes:
        posterior: loss, data and w*.
        settings: of `llc.spectrum`.
        hessian: of the mean loss.
        operator: the matrix whose spectrum is asked for.
        limits: sizes up to which a method is taken.
    """

    posterior: LocalPosterior
    settings: Settings
    hessian: CurvatureOperator
    operator: CurvatureOperator
    limits: Limits = field(default_factory=Limits)

    @property
    def hide_bar(self) -> bool | None:
        """As tqdm's `disable`."""
        return None if self.settings.progress is None else not self.settings.progress

    @property
    def precision(self) -> float:
        """Relative rounding of w*."""
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(self.posterior.position))

    @cached_property
    def gauss_newton(self) -> CurvatureOperator | None:
        """The Gauss–Newton matrix; None where the outputs are not known."""
        if self.settings.matrix == "ggn":
            return self.operator
        return gauss_newton_part(self.posterior, self.settings.output_loss)

    @cached_property
    def gradient_and_products(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "direction dim"]]:
        """The gradient, and the Hessian times the directions of the smoothness probe."""
        gradient, products = first_order(self.hessian, jnp.asarray(directions(self.operator.dim)))
        return np.asarray(gradient), np.asarray(products)

    @cached_property
    def num_matvecs(self) -> int:
        """Lanczos steps a probe: those that were asked for, or as many as resolve γ/nβ."""
        return self.settings.num_matvecs or _resolving_matvecs(
            self.posterior, self.operator.dim, self.settings.seed, self.limits.vector_bytes
        )

    @cached_property
    def around(self) -> "Around":
        """The gradient's measure by Lanczos, and what the loss is like beside w*."""
        gradient, products = self.gradient_and_products
        measure = (np.zeros(1), np.zeros(1))
        if np.any(gradient):
            measure = quadrature(self.operator, gradient, self.num_matvecs)
        return self.around_from(gradient, products, measure)

    def around_from(
        self, gradient: Float[np.ndarray, "dim"], products: Float[np.ndarray, "direction dim"], measure: Measure
    ) -> "Around":
        """The same from a gradient, products and a measure that are known already."""
        discrepancy = residual_share(self.gauss_newton, products)
        return Around(gradient, measure, discrepancy, probe_smoothness(self.hessian, gradient, products))

    def check(self) -> None:
        """Raises ValueError if the outputs do not depend on the params, or the Hessian is not symmetric."""
        _ = self.gauss_newton
        check_symmetric(self.hessian)

    def estimated(self, method: str, rows: Measure, halves: Measure) -> Spectrum:
        """A spectrum from measures of random probes, a row each."""
        result = self._spectrum(method, rows, self.around)
        return replace(result, half_nodes=halves[0], half_weights=halves[1])

    def exact(self, method: str, found: Eigenvalues, around: "Around | None" = None) -> Spectrum:
        """A spectrum of which all eigenvalues are known, with those that a Newton step changes."""
        around = around or self.around
        result = self._spectrum(method, (found.nodes[None], found.weights[None]), around)
        result = replace(result, noise=found.noise, vectors=found.vectors)
        nodes = np.repeat(found.nodes, found.weights.astype(int))
        unstable = unstable_eigenvalues(self.operator, nodes, found.vectors, around.gradient, result.threshold)
        return replace(result, unstable_eigenvalues=unstable)

    def _spectrum(self, method: str, rows: Measure, around: "Around") -> Spectrum:
        return Spectrum(
            nodes=rows[0],
            weights=rows[1],
            gradient_nodes=around.measure[0],
            gradient_weights=around.measure[1],
            dim=self.operator.dim,
            matrix=self.settings.matrix,
            method=method,
            gauss_newton_discrepancy=around.gauss_newton_discrepancy,
            smoothness=around.smoothness,
        )


class Around(NamedTuple):
    """What is known of w* beside the eigenvalues.

    Attributes:
        gradient: ∇L(w*).
        measure: of the gradient in the matrix.
        gauss_newton_discrepancy: the part of the Hessian that comes from residuals.
        smoothness: of the loss.
    """

    gradient: Float[np.ndarray, "dim"]
    measure: Measure
    gauss_newton_discrepancy: float
    smoothness: Smoothness


Method = Callable[[Problem], Spectrum]


def problem_of(posterior: LocalPosterior, settings: Settings, limits: Limits | None = None) -> Problem:
    """The problem of `posterior`; to be called and used under `float64()`.

    Raises:
        ValueError: if the Gauss–Newton matrix is asked for and the outputs are not known.
    """
    hessian = operator = curvature_operator(posterior)
    if settings.matrix == "ggn":
        operator = gauss_newton_operator(posterior, output_loss=settings.output_loss)
    return Problem(posterior, settings, hessian, operator, limits or Limits())


def _resolving_matvecs(posterior: LocalPosterior, dim: int, seed: int, vector_bytes: int) -> int:
    steps = _MIN_MATVECS
    if posterior.gamma is not None and (localization := posterior.scale.localization) > 0:
        steps = 0.5 * np.pi * np.sqrt(max(top_eigenvalue(posterior, seed=seed), 0.0) / localization)
    most = max(min(_MAX_MATVECS, vector_bytes // (8 * dim)), 2)
    return int(min(max(np.ceil(steps), _MIN_MATVECS), most))
