"""Selected samples against Hessian eigenvalues: what a rank and an inverse Hessian cost, counted in evaluated losses.

Losses are quadratics of known rank in d parameters, L = ½ wᵀHw with eigenvalues from 1 down to `low` in a random frame,
plus noise of `noise` times the spread of L among the candidates. At equal cost stand

    winners       covariance of the best of 5 (llc.selected_covariance), the rank by its lower edge: comparisons of 5
    all samples   the Stein matrix of the same evaluations: comparisons of 5
    LSQ ranks     least squares of a quadratic to normal scores of the ranks of all N losses: comparisons of all
    LSQ losses    least squares of a quadratic to the losses; without noise, interpolation
    Lanczos, Hessian   llc.spectrum by stochastic Lanczos quadrature and dense; a Hessian-vector product counts as six
                       losses (a gradient as three, a product as two gradients), no noise, differentiable losses only

Monotone distortions of the loss change nothing in the first three, as they see no more than the order. All directions
are found where at least `share` of the repeats have a rank of r or more, here and at all larger N (each rule is too
large by chance in 5 %, counted apart). The error of the inverse is min_c ‖cM − H⁺‖ / ‖H⁺‖ with the true rank given,
and "to the inverse" the N from which on it is below 20 %; also for winners of the best of 500. Least squares starts at
its d²/2 unknowns; with noise it is not run at d = 500, where that is 125,251.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from selected_samples_results import COLUMNS, METHODS, conclusion, figure, summarize, too_large
from study import Row, Study, table

import llc
from llc.geometry.selection.laws import normal_scores, stein_edge

PRODUCT = 6  # losses that a Hessian-vector product costs
SIGMA = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    cases: tuple[str, ...] = ("2 1 1", "10 3 0.5", "10 5 0.1", "30 5 0.5", "30 20 0.5", "100 5 0.5", "500 3 0.5")
    noises: tuple[float, ...] = (0.0, 1.0, 3.0)
    multiples: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # N / (d r)
    repeats: int = 5
    share: float = 0.8
    work: float = 6e9  # largest N d² of selection
    lsq_work: float = 2e8  # largest N d² of least squares, which takes some hundred passes


QUICK = Settings(cases=("10 3 0.5",), noises=(0.0, 1.0), multiples=(8, 64), repeats=2, share=0.5)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("selected_samples", __doc__, Settings(), QUICK)
    settings = study.settings
    rows = study.rows(run, settings.cases)
    lines = [line for row in rows if "cells" in row for line in summarize(row, settings.noises, settings.share)]
    excess = {method: too_large(rows, method) for method in METHODS[:4]}
    found = (
        conclusion(lines) + "\nRanks too large, of all runs: " + ", ".join(f"{m} {e:.1%}" for m, e in excess.items())
    )
    summary = {"conclusion": found, "too large": excess, "lines": lines}
    text = "\n\n".join([found, table(lines, COLUMNS)])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows, settings.noises))


# One case


class Quadratic(NamedTuple):
    """The loss ½‖root · w‖² of known rank.

    Attributes:
        root: the non-zero directions, scaled by the square roots of their eigenvalues.
        inverse: the pseudo-inverse of the Hessian.
        spread: standard deviation of the loss among the candidates, without noise.
    """

    root: Float[np.ndarray, "r d"]
    inverse: Float[np.ndarray, "d d"]
    spread: float


def run(case: str, settings: Settings) -> Row:
    """All methods on one quadratic "d r low", at every noise and N."""
    dim, rank, low = int(case.split()[0]), int(case.split()[1]), float(case.split()[2])
    quadratic = make_quadratic(dim, rank, low, settings.seed)
    factor = quadratic.root.tolist()  # a NumPy array would be kept in the precision of its first use

    def loss(params: PyTree) -> Array:
        return 0.5 * jnp.sum((jnp.asarray(factor) @ params["w"]) ** 2)

    def noisy(key: PRNGKeyArray, params: PyTree) -> Array:
        return loss(params) + params["noise"] * jax.random.normal(key)

    cells = []
    for noise in settings.noises:
        center = {"w": np.zeros(dim), "noise": np.asarray(noise * quadratic.spread)}  # one program for all noises
        posterior = llc.LocalPosterior(lambda params, _: loss(params), center, np.zeros((10, 0)), mask="w")
        for multiple, repeat in itertools.product(settings.multiples, range(settings.repeats)):
            num_losses = multiple * dim * rank
            at = {"noise": noise, "N": num_losses, "repeat": repeat}
            key = jax.random.fold_in(jax.random.key(settings.seed), repeat)
            if num_losses * dim**2 <= settings.work:
                cells += [at | cell for cell in selected(key, posterior, noisy, num_losses, quadratic)]
            if num_losses > dim * (dim + 1) / 2 + 1 and num_losses * dim**2 <= settings.lsq_work:
                seed = [settings.seed, repeat, num_losses]
                cells += [at | cell for cell in fitted(seed, quadratic, num_losses, noise)]
        if not noise:
            cells += exact(posterior, quadratic)
    return {"d": dim, "r": rank, "low": low, "cells": cells}


def make_quadratic(dim: int, rank: int, low: float, seed: int) -> Quadratic:
    """Eigenvalues from 1 down to `low` in a random frame."""
    rng = np.random.default_rng([seed, dim, rank])
    curvatures = np.geomspace(1, low, rank)
    frame = np.linalg.qr(rng.normal(size=(dim, rank)))[0].T
    spread = 0.5 * SIGMA**2 * np.sqrt(2 * np.sum(curvatures**2))
    return Quadratic(np.sqrt(curvatures)[:, None] * frame, (frame.T / curvatures) @ frame, spread)


def fitted(seed: list[int], quadratic: Quadratic, num_losses: int, noise: float) -> list[Row]:
    """Least squares on the ranks of the losses, and with noise on the losses themselves."""
    draws = np.random.default_rng(seed)
    z = draws.normal(size=(num_losses, quadratic.root.shape[1]))
    losses = 0.5 * np.sum((SIGMA * z @ quadratic.root.T) ** 2, axis=1)
    losses += noise * quadratic.spread * draws.normal(size=num_losses)
    scores = normal_scores(num_losses)[np.argsort(np.argsort(losses))]
    targets = {"LSQ ranks": scores} | ({"LSQ losses": losses} if noise else {})
    rank, inverse = len(quadratic.root), quadratic.inverse
    return [{"method": name} | judge(*least_squares(z, y), rank, inverse) for name, y in targets.items()]


def selected(
    key: PRNGKeyArray,
    posterior: llc.LocalPosterior,
    noisy: Callable[[PRNGKeyArray, PyTree], Array],
    num_losses: int,
    quadratic: Quadratic,
) -> list[Row]:
    """Winners of 5, their all-sample matrix, winners of 500 for the inverse; nothing where N is too small."""
    rank, inverse = len(quadratic.root), quadratic.inverse
    cells = []
    for m in (5, 500):
        try:
            found = llc.selected_covariance(
                key,
                posterior,
                noisy_loss_fn=noisy,
                sigma=SIGMA,
                num_candidates=m,
                num_winners=max(1, num_losses // m),
                progress=False,
            )
        except ValueError:  # too few winners for so many parameters
            continue
        error = shape_error(found.inverse_hessian(rank).matrix, inverse)
        if m == 500:
            cells.append({"method": "winners of 500", "error": error})
            continue
        cells.append({"method": "winners", "rank": found.rank, "error": error})
        values, vectors = leading(found.stein, rank)
        error = shape_error((vectors / np.maximum(values, 1e-3)) @ vectors.T, inverse)
        cells.append({"method": "all samples", "rank": found.stein_rank, "error": error})
    return cells


def least_squares(z: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric B of targets ≈ a + zᵀBz, and what its k-th largest eigenvalue has to exceed.

    Its error is a Gaussian orthogonal matrix of entries s/(2√ν), s² the residual variance, ν = N − d(d + 1)/2 − 1.
    """
    num_losses, dim = z.shape

    def centered(x: np.ndarray) -> np.ndarray:
        return x - x.mean()

    def products(flat: np.ndarray) -> np.ndarray:
        return centered(np.einsum("ni,ni->n", z @ flat.reshape(dim, dim), z))

    def adjoint(values: np.ndarray) -> np.ndarray:
        return (z.T @ (centered(values)[:, None] * z)).ravel()

    operator = scipy.sparse.linalg.LinearOperator((num_losses, dim**2), matvec=products, rmatvec=adjoint, dtype=float)
    solution = scipy.sparse.linalg.lsqr(operator, centered(targets), atol=1e-9, btol=1e-9, iter_lim=300)[0]
    free = num_losses - dim * (dim + 1) // 2 - 1
    residual = np.sqrt(np.sum((centered(targets) - products(solution)) ** 2) / free)
    return solution.reshape(dim, dim), 0.5 * residual * stein_edge(dim - np.arange(dim), free, np.array([-1.0, 1.0]))


def exact(posterior: llc.LocalPosterior, quadratic: Quadratic) -> list[Row]:
    """Interpolation, the dense Hessian and Lanczos, each at its own cost, once."""
    root, inverse = quadratic.root, quadratic.inverse
    rank, dim = root.shape
    ends = SIGMA * np.concatenate([root, np.zeros((1, dim))])
    single = 0.5 * np.sum(ends**2, axis=0)
    pairs = np.zeros((dim, dim))
    for i in range(dim):
        pairs[i] = 0.5 * np.sum((ends[:, [i]] + ends) ** 2, axis=0) - single[i] - single
    floors = np.full(dim, 1e-6 * np.abs(pairs).max())
    cells = [{"method": "LSQ losses", "N": dim * (dim + 1) // 2 + 1} | judge(pairs, floors, rank, inverse)]
    dense = llc.spectrum(posterior, method="dense")
    found = int(llc.rank_bounds(dense).rank)
    cells.append({"method": "Hessian", "N": PRODUCT * dim, "rank": found, "error": 0.0})
    steps = min(dim, 40)
    lanczos = llc.spectrum(posterior, method="lanczos", num_matvecs=steps)
    found = round(lanczos.count(1e-6 * lanczos.largest))
    cells.append({"method": "Lanczos", "N": PRODUCT * steps * len(lanczos.nodes), "rank": found})
    return [{"noise": 0.0, "repeat": 0} | cell for cell in cells]


def judge(matrix: np.ndarray, edges: np.ndarray, rank: int, inverse: np.ndarray) -> Row:
    """Rank of an estimate of the Hessian up to scale, and the error of its inverse on the leading directions."""
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
    above = eigenvalues > np.maximum(edges, 1e-6 * eigenvalues[0])
    values, vectors = leading(matrix, rank)
    error = shape_error((vectors / np.maximum(values, 1e-3 * values[-1])) @ vectors.T, inverse)
    return {"rank": len(above) if above.all() else int(np.argmin(above)), "error": error}


def leading(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues, rising, with their vectors."""
    values, vectors = np.linalg.eigh(matrix)
    return values[-rank:], vectors[:, -rank:]


def shape_error(matrix: np.ndarray, inverse: np.ndarray) -> float:
    """min_c ‖cM − H⁺‖ / ‖H⁺‖: the sine of the angle between the two."""
    cosine = np.sum(matrix * inverse) / (np.linalg.norm(matrix) * np.linalg.norm(inverse))
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


if __name__ == "__main__":
    main()
