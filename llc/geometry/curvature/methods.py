"""The spectrum of the Hessian (or the Gauss–Newton matrix) at w*, by the method that fits its size.

What a spectrum is stands in llc/bounds/spectral_measure.py. A method is a function `(Problem) -> Spectrum`.
"""

import math
import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from llc.bounds.shrinkage import shrink
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.deflated import deflated
from llc.geometry.curvature.dense import Eigenvalues, gram
from llc.geometry.curvature.dense import dense as dense_eigenvalues
from llc.geometry.curvature.lanczos import quadratures
from llc.geometry.curvature.lanczos import top_eigenvalue as top_eigenvalue
from llc.geometry.curvature.operators import GaussNewtonOperator, jacobian_operator
from llc.geometry.curvature.output_loss import OutputLoss
from llc.geometry.curvature.problem import Method, Problem, Settings, problem_of
from llc.geometry.curvature.range_finder import range_finder
from llc.geometry.curvature.residuals import first_order
from llc.geometry.curvature.sketch import sketch_size, sketched
from llc.geometry.curvature.smoothness import directions
from llc.posterior.arguments import require_option
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64
from llc.posterior.whole import on_resident_rows

_WORTH = 4  # times the products of Lanczos that a try of the range finder may cost
_FEW = 8  # part of the order up to which that try goes on
_LOST = 0.002  # of λ_quad, that the range finder may lose there


def spectrum(
    posterior: LocalPosterior,
    *,
    matrix: str = "hessian",
    method: str = "auto",
    output_loss: OutputLoss = None,
    num_matvecs: int | None = None,
    num_probes: int = 8,
    budget: int | None = None,
    relative_error: float = 0.02,
    relative_scale: float = 0.01,
    seed: int = 0,
    progress: bool | None = None,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss at w*, or of its Gauss–Newton part, over all the data.

    In float64, except for `"deflated"`.

    Args:
        posterior: loss, data and w*; nβ and γ enter the number of products only. With a mask, the matrix is that of the
            parameters that move.
        matrix: `"hessian"`, or `"ggn"`, the Gauss–Newton matrix of `posterior.predict_fn` (the same where the outputs
            fit; without negative eigenvalues elsewhere).
        method: one of

            - `"dense"`: all eigenvalues from d products; 24 d² bytes. Where the gradient is not round-off, one more
              product for each curvature tells whether it is that of a minimum (see stability.py); `"range_finder"` does
              the same.
            - `"gram"`: all eigenvalues of the Gauss–Newton matrix from n·k products with J Jᵀ, for n examples with k
              outputs; 24 (n k)² bytes.
            - `"range_finder"`: all r non-zero eigenvalues from about r + 64 products; 8 (r + 64) d bytes. More than
              5,000 are an error.
            - `"sketch"`: the same from two products for each of 1.25 … 1.5 r + 75 columns; 16 (1.5 r)² bytes and, for
              any r, 96 vectors of d (at most 2 GiB). Without eigenvectors.
            - `"lanczos"`: stochastic Lanczos quadrature, num_probes · num_matvecs products; 8 · num_matvecs · d bytes.
            - `"deflated"`: λ_quad to `relative_error`, h_max and the leading eigenvectors for at most `budget`, in the
              precision of the params; smoothness and stability are not judged (see deflated.py).
            - `"auto"`: dense up to d = 5,000, and above 1,000 range_finder where the rank is below d/8. Beyond 5,000
              deflated if a budget is given; else gram up to n·k = 5,000, and lanczos above it. Where lanczos counts few
              eigenvalues, range_finder (or sketch, where its vectors would take more than 4 GiB) sees whether these are
              all, for at most four times the products of lanczos.
        output_loss: for `"ggn"`: see `gauss_newton_operator`.
        num_matvecs: Lanczos steps a probe of `"lanczos"`. None takes what resolves γ/nβ, (π/2) √(h_max nβ / γ), between
            40 and 400 (40 if the posterior has no γ), and at most 4 GiB of vectors: fewer steps smear null directions
            into λ_quad.
        num_probes: random probes of `"lanczos"`; errors of sums fall as 1/√num_probes.
        budget: most work of `"deflated"`, in gradients over all the data (a product counts as two). None sets no limit
            but that of 400 steps a run and 64 probes.
        relative_error: wanted standard error of λ_quad, relative to it, of `"deflated"`.
        relative_scale: γ/nβ in units of h_max at which `"deflated"` looks at λ_quad where the posterior has no γ.
        seed: of the random probes.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is unknown, out of range, needs more memory than is free, or the matrix has more
            eigenvalues than `"range_finder"` or `"sketch"` can find.

    References:
        Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 2017.
        Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 2011.
    """
    require_differentiable(posterior)
    if isinstance(method, str) and method == "block":
        warnings.warn("method 'block' is called 'range_finder' now.", DeprecationWarning, stacklevel=2)
        method = "range_finder"
    require_option("method", method, METHODS)
    settings = Settings(
        matrix=matrix,
        output_loss=output_loss,
        num_matvecs=num_matvecs,
        num_probes=num_probes,
        relative_error=relative_error,
        relative_scale=relative_scale,
        budget=budget,
        seed=seed,
        progress=progress,
    )
    if method == "gram" and matrix != "ggn":
        raise ValueError(
            f"method 'gram' needs matrix 'ggn', got {matrix!r}; the Hessian is J times Jᵀ at an exact fit only."
        )
    posterior = on_resident_rows(posterior)
    with float64():
        found = METHODS[method](problem_of(posterior, settings))
    return found if posterior.whole is None else replace(found, row_share=float(posterior.whole.share))


def auto(problem: Problem) -> Spectrum:
    """By the method that fits the size, as `spectrum` says."""
    order, settings = problem.operator.dim, problem.settings
    if order > problem.limits.order:
        if settings.budget is not None:
            return deflated(problem)
        if settings.matrix == "ggn" and jacobian_operator(problem.posterior).num_outputs <= problem.limits.order:
            return by_gram(problem)
        return _lanczos_and_range(problem)
    if order > problem.limits.small:
        problem.check()
        found = _in_range("range_finder", problem, order // _FEW)
        if found is not None and _all_seen(found, problem.posterior):
            return problem.exact("range_finder", found)
    return by_dense(problem)


def by_dense(problem: Problem) -> Spectrum:
    """All eigenvalues of the dense matrix, which has the gradient's measure and the products in it."""
    _ = problem.gauss_newton  # its errors come before the work
    found, squares, full, gradient = dense_eigenvalues(problem.operator, progress=problem.settings.progress)
    vectors = directions(problem.operator.dim)
    if problem.settings.matrix == "hessian":
        products = vectors @ full
    else:
        products = np.asarray(first_order(problem.hessian, jnp.asarray(vectors))[1])
    return problem.exact("dense", found, problem.around_from(gradient, products, (found.nodes, squares)))


def by_gram(problem: Problem) -> Spectrum:
    """All eigenvalues of the Gauss–Newton matrix from the Gram matrix of the outputs."""
    problem.check()
    if not isinstance(problem.operator, GaussNewtonOperator):
        raise TypeError("the Gram matrix is that of a Gauss–Newton matrix.")
    _ = problem.around
    found = gram(problem.operator, jacobian_operator(problem.posterior), progress=problem.settings.progress)
    return problem.exact("gram", found)


def by_range_finder(problem: Problem) -> Spectrum:
    """All eigenvalues that are not zero, from a basis of the range."""
    return _from_range("range_finder", problem)


def by_sketch(problem: Problem) -> Spectrum:
    """All eigenvalues that are not zero, from a two-sided sketch."""
    return _from_range("sketch", problem)


def by_lanczos(problem: Problem) -> Spectrum:
    """Stochastic Lanczos quadrature."""
    problem.check()
    _ = problem.around
    settings = problem.settings
    steps = problem.num_matvecs, settings.num_probes, settings.seed
    return problem.estimated("lanczos", *quadratures(problem.operator, *steps, progress=settings.progress))


METHODS: dict[str, Method] = {
    "auto": auto,
    "dense": by_dense,
    "gram": by_gram,
    "range_finder": by_range_finder,
    "sketch": by_sketch,
    "lanczos": by_lanczos,
    "deflated": deflated,
}


def _from_range(name: str, problem: Problem) -> Spectrum:
    problem.check()
    _ = problem.around
    found = _in_range(name, problem, problem.limits.order)
    if found is None:
        raise ValueError(
            f"method {name!r} needs at most {problem.limits.order} eigenvalues that are not zero, got more; "
            "take method='lanczos'."
        )
    return problem.exact(name, found)


def _in_range(name: str, problem: Problem, max_rank: int) -> Eigenvalues | None:
    """All non-zero eigenvalues, if there are at most `max_rank`."""
    find = range_finder if name == "range_finder" else sketched
    settings = problem.settings
    return find(problem.operator, max_rank, settings.seed, precision=problem.precision, progress=settings.progress)


def _lanczos_and_range(problem: Problem) -> Spectrum:
    """Lanczos, and where it counts few eigenvalues what may find them all at its cost."""
    result = by_lanczos(problem)
    rank = math.ceil(result.count(result.resolution)) + problem.limits.spare  # Lanczos does not count beyond it
    products = _WORTH * result.nodes.size
    if rank <= min(problem.limits.order, products, problem.limits.vector_bytes // (8 * result.dim)):
        name = "range_finder"
    elif rank <= problem.limits.order and 2 * sketch_size(rank) <= products:
        name = "sketch"
    else:
        return result
    found = _in_range(name, problem, rank)
    return problem.exact(name, found) if found is not None and _all_seen(found, problem.posterior) else result


def _all_seen(found: Eigenvalues, posterior: LocalPosterior) -> bool:
    """Whether what the range lacks can't matter for λ_quad: ½ (nβ/γ) times the trace of the rest, √(d − r) ‖rest‖.

    Without γ, at γ/nβ = h_max / 1000, below what calibration chooses.
    """
    largest = float(found.nodes.max(initial=0.0))
    scale = largest / 1000 if not posterior.gamma else posterior.scale.localization
    rest = found.noise * math.sqrt(found.weights[found.nodes == 0].sum())
    quad = float(np.sum(found.weights * shrink(found.nodes, scale)))
    return 0.5 * rest <= _LOST * max(quad, 0.5) * scale
