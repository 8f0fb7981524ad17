r"""Covariances of losses with their Gaussian part known and not sampled: control variates of `llc.influence`.

Near w* a loss is ℓ_i ≈ u_i + ½ Σ_k κ_ik u_ik², in linear forms u of x = w − w*. With v the same forms of Σ∇U(w) and
A_ij = E[v_i u_j] known (docs/theory.md §8), integration by parts gives, for every loss and every draw's distribution,

    stands for                       has the mean
    u_i u_j                          A_ij       v_i u_j
    u_i (u_j² − A_jj)                0          v_i u_j² − 2 A_ij (u_j − v_j) − A_jj v_i
    (u_i² − A_ii) u_j                0          v_i u_i u_j − A_ii u_j − A_ij (u_i − v_i)
    (u_i² − A_ii)(u_j² − A_jj)       2 A_ij²    (v_i u_i − A_ii)(u_j² − A_jj) − 2 A_ij (u_i − v_i) u_j

On a quadratic loss u = v, so that nothing is left to sampling but the covariance of what no form describes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from llc.analysis.covariance import STRETCHES, Pooled, kept_series, pooled
from llc.analysis.schema import CONSTANTS, variable


class _Forms(NamedTuple):
    """Draws of one set: losses (chain, draw, row), u and v (chain, draw, row, form), and the forms' constants."""

    losses: np.ndarray
    u: np.ndarray
    v: np.ndarray
    root: np.ndarray  # (row, form, param), the first form that of the gradient
    curvature: np.ndarray  # (row, square)

    @property
    def own(self) -> np.ndarray:
        """½ Σ κ A of every row: the mean of its squares."""
        return 0.5 * np.sum(self.curvature * np.sum(self.root[:, 1:] ** 2, axis=2), axis=1)


def controlled_covariance(draws: xr.DataTree, first: str, second: str, forms: xr.Dataset) -> Pooled:
    """Cov(a, b) as `covariance` gives it, less its control variates, whose means are known.

    Each of three parts (linear, mixed, square) has one coefficient for all pairs, fitted by least squares to the
    stretches: 1 where the loss is quadratic, and 0 where a part says nothing, so that the error is never much larger.
    """
    a = _forms(draws, first, forms)
    b = a if first == second else _forms(draws, second, forms)
    a_center, b_center = _center(a), _center(b)
    linear, square = _gaussian(a, b)
    found: list[_Part] = []
    for chain, rows in _stretches(a):
        x, y = (part.losses[chain, rows] - center for part, center in ((a, a_center), (b, b_center)))
        one, other = _of_rows(a, chain, rows), _of_rows(b, chain, rows)
        controls = 0.5 * (_control(a, b, one, other) + _control(b, a, other, one).transpose(0, 2, 1))
        found.append(_Part(chain, float(len(x)), x.T @ y / len(x), controls))
    means = np.stack([linear, np.zeros_like(linear), square])
    coefficients = _fitted(found)

    def parts() -> Iterator[tuple[int, float, np.ndarray]]:
        for part in found:
            yield part.chain, part.num_draws, part.plain - np.tensordot(coefficients, part.controls - means, 1)

    return pooled(parts)


class _Part(NamedTuple):
    """Contributions of a stretch: the products themselves, and their control variates along a leading axis."""

    chain: int
    num_draws: float
    plain: np.ndarray
    controls: np.ndarray


def _fitted(parts: Sequence[_Part]) -> np.ndarray:
    """The coefficients of the controls that leave the least spread over stretches, of all entries together."""
    plain = np.stack([part.plain for part in parts])
    controls = np.stack([part.controls for part in parts], axis=1).reshape(len(parts[0].controls), len(parts), -1)
    plain = (plain - plain.mean(axis=0)).ravel()
    controls = (controls - controls.mean(axis=1, keepdims=True)).reshape(len(controls), -1)
    return np.linalg.lstsq(controls @ controls.T, controls @ plain, rcond=1e-10)[0]


def _forms(draws: xr.DataTree, name: str, forms: xr.Dataset) -> _Forms:
    losses, u, v = (kept_series(draws, x) for x in (name, f"{name}_linear", f"{name}_stein"))
    if losses is None or u is None or v is None or f"{name}_root" not in forms:
        raise ValueError(
            f"controls need the draws of {name!r}, {name}_linear and {name}_stein, and the forms of {name!r}; record "
            "llc.influence_controls(…).observables, and give its forms."
        )
    root = forms[f"{name}_root"].to_numpy()
    if losses.shape[2] != len(root) or u.shape[2] != root.shape[0] * root.shape[1]:
        raise ValueError(
            f"controls of {name!r} need the rows that were recorded, got {len(root)} for {losses.shape[2]}; make both "
            "from the same data."
        )
    shape = (*losses.shape[:2], *root.shape[:2])
    v = v + variable(draws, CONSTANTS, f"init_{name}_stein").ravel()  # ∇U itself, not its change from w* on
    curvature = forms[f"{name}_curvature"].to_numpy()
    return _Forms(losses.astype(np.float64), u.astype(np.float64).reshape(shape), v.reshape(shape), root, curvature)


def _stretches(a: _Forms) -> Iterator[tuple[int, slice]]:
    num_chains, num_draws = a.losses.shape[:2]
    for chain in range(num_chains):
        for rows in np.array_split(np.arange(num_draws), max(1, min(STRETCHES, num_draws // 2))):
            yield chain, slice(rows[0], rows[-1] + 1)


def _of_rows(a: _Forms, chain: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    return a.u[chain, rows], a.v[chain, rows].astype(np.float64)


def _center(a: _Forms) -> np.ndarray:
    """Mean loss of every row, less its control variates v and ½ Σ κ (v u − A), fitted as those of the products."""
    parts = []
    for chain, rows in _stretches(a):
        u, v = _of_rows(a, chain, rows)
        squares = 0.5 * np.sum(a.curvature * np.mean(v[..., 1:] * u[..., 1:], axis=0), axis=1) - a.own
        losses = a.losses[chain, rows].mean(axis=0)
        parts.append(_Part(chain, float(len(u)), losses, np.stack([v[..., 0].mean(axis=0), squares])))
    coefficients, weights = _fitted(parts), np.array([part.num_draws for part in parts])
    means = np.stack([part.plain - np.tensordot(coefficients, part.controls, 1) for part in parts])
    return weights @ means / weights.sum()


def _gaussian(a: _Forms, b: _Forms) -> tuple[np.ndarray, np.ndarray]:
    """gᵀΣg and ½ tr(ΣHΣH) of the forms."""
    squares = np.zeros((len(a.root), len(b.root)))
    for k in range(a.curvature.shape[1]):
        for m in range(b.curvature.shape[1]):
            products = a.root[:, k + 1] @ b.root[:, m + 1].T
            squares += 0.5 * a.curvature[:, k, None] * b.curvature[None, :, m] * products**2
    return a.root[:, 0] @ b.root[:, 0].T, squares


def _control(
    a: _Forms, b: _Forms, of_a: tuple[np.ndarray, np.ndarray], of_b: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Means over a stretch of what stands for products of a's and b's forms, with v once in the place of a's u.

    Returns:
        (part, row of a, row of b): of two linear forms, of a linear one and squares, and of squares.
    """
    (u, v), (w, y) = of_a, of_b  # u and v of a, and of b
    number, off, off_b = len(u), u - v, (w - y).mean(axis=0)
    squares = 0.5 * np.einsum("dik,ik->di", w[..., 1:] ** 2, b.curvature)  # ½ Σ κ u² of b
    mixed = 0.5 * np.einsum("dik,ik->di", v[..., 1:] * u[..., 1:], a.curvature)  # ½ Σ κ v u of a
    linear, linear_b = v[..., 0], w[..., 0]
    one_square = (linear.T @ squares + mixed.T @ linear_b) / number
    one_square -= np.outer(linear.mean(axis=0), b.own) + np.outer(a.own, linear_b.mean(axis=0))
    both = (mixed - a.own).T @ (squares - b.own) / number
    for m in range(b.curvature.shape[1]):  # 2 A (u − v) of a square of b, with a's linear form
        one_square -= a.root[:, 0] @ b.root[:, m + 1].T * (b.curvature[:, m] * off_b[:, m + 1])
    for k in range(a.curvature.shape[1]):
        own, half = a.root[:, k + 1], 0.5 * a.curvature[:, k, None]
        one_square -= half * off[:, :, k + 1].mean(axis=0)[:, None] * (own @ b.root[:, 0].T)
        for m in range(b.curvature.shape[1]):
            products = off[:, :, k + 1].T @ w[:, :, m + 1] / number
            both -= half * b.curvature[:, m] * (own @ b.root[:, m + 1].T) * products
    return np.stack([linear.T @ linear_b / number, one_square, both])
