"""The spectrum of the Hessian (or the Gauss–Newton matrix) at w*, by the method that fits its size (see measure.py)."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llc.bounds.spectral_measure import Spectrum, shrink
from llc.geometry.curvature.dense import MAX_ORDER, Eigenvalues, dense, gram
from llc.geometry.curvature.lanczos import quadrature, quadratures
from llc.geometry.curvature.operators import (
    CurvatureOperator,
    GaussNewtonOperator,
    check_symmetric,
    curvature_operator,
    gauss_newton_operator,
    jacobian_operator,
)
from llc.geometry.curvature.output_loss import OutputLoss
from llc.geometry.curvature.range_finder import range_finder
from llc.geometry.curvature.residuals import first_order, gauss_newton_part, residual_share
from llc.geometry.curvature.sketch import sketch_size, sketched
from llc.geometry.curvature.smoothness import directions, probe_smoothness
from llc.geometry.curvature.stability import unstable_eigenvalues
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_METHODS = ("auto", "dense", "gram", "range_finder", "sketch", "lanczos")
_RANGE = {"range_finder": range_finder, "sketch": sketched}  # find all non-zero eigenvalues where they are few
_MATRICES = ("hessian", "ggn")

_MIN_MATVECS, _MAX_MATVECS = 40, 400  # Lanczos steps a probe; each keeps a vector of d float64
_VECTOR_BYTES = 4 * 2**30  # of the vectors that are kept where their number is not given
_WORTH = 4  # times the products of Lanczos that a try of the range finder may cost
_SMALL = 1_000  # order of a matrix up to which `auto` makes it dense without a try of the range finder
_FEW = 8  # part of the order up to which that try goes on
_LOST = 0.002  # of λ_quad, that the range finder may lose there
_SPARE = 128  # vectors beyond a count from Lanczos, which has an error


def spectrum(
    posterior: LocalPosterior,
    *,
    matrix: str = "hessian",
    method: str = "auto",
    output_loss: OutputLoss = None,
    num_matvecs: int | None = None,
    num_probes: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Spectrum:
    """Spectrum of the Hessian of the mean loss at w*, or of its Gauss–Newton part, over all the data, in float64.

    Args:
        posterior: loss, data and w*; nβ and γ enter the number of Lanczos steps only. With a mask, the matrix of the
            parameters that move.
        matrix: `"hessian"`, or `"ggn"`, the Gauss–Newton matrix of `posterior.predict_fn` (the same where the outputs
            fit; without negative eigenvalues elsewhere).
        method: one of

            - `"dense"`: all eigenvalues from d products; 24 d² bytes. Where the gradient is not round-off, a product
              more for each curvature tells whether it is that of a minimum (also of block; see settled.py).
            - `"gram"`: all eigenvalues of the Gauss–Newton matrix from n·k products with J Jᵀ, for n examples with k
              outputs; 24 (n k)² bytes.
            - `"range_finder"`: all r non-zero eigenvalues from about r + 64 products; 8 (r + 64) d bytes. An error
            where
              there are more than 5,000.
            - `"sketch"`: the same from two products for each of 1.25 … 1.5 r + 75 columns; 16 (1.5 r)² bytes and, for
              any r, 96 vectors of d (at most 2 GiB). Without eigenvectors.
            - `"lanczos"`: stochastic Lanczos quadrature, num_probes · num_matvecs products; 8 · num_matvecs · d bytes.
            - `"auto"`: dense up to d = 5,000, and from 1,000 on block where the rank is below d/8; gram up to
              n·k = 5,000; else lanczos, and where that counts few eigenvalues (four times the products of lanczos at
              most) block or, where its vectors would take more than 4 GiB, sketch, which see whether these are all.
        output_loss: for `"ggn"`: see `gauss_newton_operator`.
        num_matvecs: Lanczos steps a probe. None takes what resolves γ/nβ, (π/2) √(h_max nβ / γ), between 40 and 400
            (40 if the posterior has no γ), and at most 4 GiB of vectors: fewer steps smear null
            directions into λ_quad.
        num_probes: random probes; errors of sums fall as 1/√num_probes.
        seed: of the random probes.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is unknown, out of range, needs more memory than is free, or the matrix has more
            eigenvalues than `"range_finder"` or `"sketch"` can find.

    References:
        Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 2017.
        Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 2011.
    """
    for name, value, options in (("matrix", matrix, _MATRICES), ("method", method, _METHODS)):
        if value not in options:
            raise ValueError(f"{name} needs one of {options}, got {value!r}.")
    for name, value in (("num_matvecs", 1 if num_matvecs is None else num_matvecs), ("num_probes", num_probes)):
        if value < 1:
            raise ValueError(f"{name} needs an integer >= 1, got {value}.")
    if method == "gram" and matrix != "ggn":
        raise ValueError(
            f"method 'gram' needs matrix 'ggn', got {matrix!r}; the Hessian is J times Jᵀ at an exact fit only."
        )
    with float64():
        hessian = curvature_operator(posterior)
        if matrix == "ggn":
            operator = outputs = gauss_newton_operator(posterior, output_loss=output_loss)
        else:
            operator, outputs = hessian, gauss_newton_part(posterior, output_loss)
        chosen = _choose(operator, posterior, matrix) if method == "auto" else method
        precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(posterior.position))
        found = None
        if method == "auto" and chosen == "dense" and operator.dim > _SMALL:
            check_symmetric(hessian)
            found = range_finder(operator, operator.dim // _FEW, seed, precision=precision, progress=progress)
            chosen = "range_finder" if found is not None and _all_seen(found, posterior) else "dense"
        if chosen == "dense":
            return _dense(operator, hessian, outputs, matrix, progress=progress)
        check_symmetric(hessian)
        gradient, products = map(np.asarray, first_order(hessian, jnp.asarray(directions(operator.dim))))
        steps = num_matvecs or _resolving_matvecs(posterior, operator.dim, seed)
        measure = quadrature(operator, gradient, steps) if np.any(gradient) else (np.zeros(1), np.zeros(1))
        gauss_newton_discrepancy = residual_share(outputs, products)
        common = operator.dim, matrix, gauss_newton_discrepancy, probe_smoothness(hessian, gradient, products), measure
        if chosen == "gram" and isinstance(operator, GaussNewtonOperator):
            return _exact(gram(operator, jacobian_operator(posterior), progress=progress), "gram", *common)
        if chosen in _RANGE:
            found = found or _RANGE[chosen](operator, MAX_ORDER, seed, precision=precision, progress=progress)
            if found is None:
                raise ValueError(
                    f"method {chosen!r} needs at most {MAX_ORDER} eigenvalues that are not zero, got more; "
                    "take method='lanczos'."
                )
            return _settled(_exact(found, chosen, *common), operator, gradient)
        rows, halves = quadratures(operator, steps, num_probes, seed, progress=progress)
        result = _spectrum(rows, halves, "lanczos", 0.0, *common)
        if method == "auto" and (finder := _range_finder(result)):
            rank = _counted(result)
            found = _RANGE[finder](operator, rank, seed, precision=precision, progress=progress)
            if found is not None and _all_seen(found, posterior):
                result = _settled(_exact(found, finder, *common), operator, gradient)
        return result


def _dense(
    operator: CurvatureOperator,
    hessian: CurvatureOperator,
    outputs: CurvatureOperator | None,
    matrix: str,
    *,
    progress: bool | None,
) -> Spectrum:
    found, squares, full, gradient = dense(operator, progress=progress)
    vectors = directions(operator.dim)
    products = vectors @ full if matrix == "hessian" else np.asarray(first_order(hessian, jnp.asarray(vectors))[1])
    gauss_newton_discrepancy = residual_share(outputs, products)
    smoothness = probe_smoothness(hessian, gradient, products)
    result = _exact(found, "dense", operator.dim, matrix, gauss_newton_discrepancy, smoothness, (found.nodes, squares))
    return _settled(result, operator, gradient)


def _settled(result: Spectrum, operator: CurvatureOperator, gradient: np.ndarray) -> Spectrum:
    nodes = np.repeat(result.nodes[0], result.weights[0].astype(int))
    return replace(
        result, unstable_eigenvalues=unstable_eigenvalues(operator, nodes, result.vectors, gradient, result.threshold)
    )


def _exact(found: Eigenvalues, method: str, *common: Any) -> Spectrum:
    result = _spectrum((found.nodes[None], found.weights[None]), (None, None), method, found.noise, *common)
    return replace(result, vectors=found.vectors)


def _spectrum(rows, halves, method, noise, dim, matrix, gauss_newton_discrepancy, smoothness, gradient_measure):
    names = ("nodes", "weights"), ("half_nodes", "half_weights"), ("gradient_nodes", "gradient_weights")
    pairs = zip(names, (rows, halves, gradient_measure), strict=True)
    arrays = {name: array for keys, measure in pairs for name, array in zip(keys, measure, strict=True)}
    return Spectrum(
        **arrays,
        dim=dim,
        matrix=matrix,
        method=method,
        noise=noise,
        gauss_newton_discrepancy=gauss_newton_discrepancy,
        smoothness=smoothness,
    )


def _counted(result: Spectrum) -> int:
    """A rank that Lanczos does not count beyond."""
    return math.ceil(result.count(result.resolution)) + _SPARE


def _range_finder(result: Spectrum) -> str:
    """What may find all eigenvalues of as few as Lanczos counts; empty if nothing at its cost."""
    rank, products = _counted(result), _WORTH * result.nodes.size
    if rank <= min(MAX_ORDER, products, _VECTOR_BYTES // (8 * result.dim)):
        return "range_finder"
    return "sketch" if rank <= MAX_ORDER and 2 * sketch_size(rank) <= products else ""


def _choose(operator: CurvatureOperator, posterior: LocalPosterior, matrix: str) -> str:
    if operator.dim <= MAX_ORDER:
        return "dense"
    return "gram" if matrix == "ggn" and jacobian_operator(posterior).num_outputs <= MAX_ORDER else "lanczos"


def _all_seen(found: Eigenvalues, posterior: LocalPosterior) -> bool:
    """Whether what the range lacks can't matter for λ_quad: ½ (nβ/γ) times the trace of the rest, √(d − r) ‖rest‖.

    Without γ, at γ/nβ = h_max / 1000, below what calibration chooses.
    """
    largest = float(found.nodes.max(initial=0.0))
    scale = largest / 1000 if not posterior.gamma else float(posterior.gamma) / float(posterior.nbeta)
    rest = found.noise * math.sqrt(found.weights[found.nodes == 0].sum())
    quad = float(np.sum(found.weights * shrink(found.nodes, scale)))
    return 0.5 * rest <= _LOST * max(quad, 0.5) * scale


def _resolving_matvecs(posterior: LocalPosterior, dim: int, seed: int) -> int:
    localization_scale = 0.0 if posterior.gamma is None else float(posterior.gamma) / float(posterior.nbeta)
    steps = _MIN_MATVECS
    if localization_scale > 0:
        steps = 0.5 * np.pi * np.sqrt(max(top_eigenvalue(posterior, seed=seed), 0.0) / localization_scale)
    most = max(min(_MAX_MATVECS, _VECTOR_BYTES // (8 * dim)), 2)
    return int(min(max(np.ceil(steps), _MIN_MATVECS), most))


def top_eigenvalue(posterior: LocalPosterior, *, num_matvecs: int = 30, seed: int = 0) -> float:
    """h_max of the Hessian at w*, from one Lanczos run over all the data, in float64."""
    with float64():
        operator = curvature_operator(posterior)
        probe = jax.random.normal(jax.random.key(seed), (operator.dim,), jnp.float64)
        nodes, _ = quadrature(operator, probe, num_matvecs)
    return float(nodes.max())
