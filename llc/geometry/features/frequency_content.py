r"""Frequency content: how the energy of a learnt function is spread over the frequencies of its inputs.

$$ f(x) \approx c_0 + \sum_\kappa a_\kappa \cos 2\pi \kappa \cdot x + b_\kappa \sin 2\pi \kappa \cdot x, \qquad
   E_\kappa = \tfrac12 ( a_\kappa^2 + b_\kappa^2 ), $$

by least squares over the inputs, wherever they lie: on a line, on a grid or scattered (a Fourier transform where they
are regular). Networks learn low frequencies first (Rahaman et al. 2019, arXiv 1806.08734; Xu et al. 2019, arXiv
1901.06523).

Where inputs have many dimensions: `llc.geometry.features.segment_frequency`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from llc.geometry.curvature.operators import JacobianOperator
from llc.geometry.features.behavioral_gradients import behavioral_gradients
from llc.posterior.precision import float64

_ALIAS = 1e-6  # least singular value of the design with columns of norm 1; those of aliases are round-off
_CLEAR = 0.1  # the same for the default, so that noise is hardly amplified
_MOST = 200  # frequencies of the default
_TINY = 1e-100  # in place of a zero, by whose square something may be divided


@dataclasses.dataclass(frozen=True)
class FrequencyContent:
    """Energy by frequency; build it with `frequency_content` or `segment_frequency_content`.

    Attributes:
        frequencies: κ, in cycles per unit of the inputs, (m,) on a line and (m, d) otherwise; along segments in cycles
            per segment.
        energy: E_κ, in the square of the outputs, summed over outputs: the mean square of that component.
        error: standard error of the energy: from what the frequencies leave unexplained, taken as noise, or over the
            segments.
        constant: mean square of c₀.
        residual: mean square of what is left.
        total: mean square of f over the points.
    """

    frequencies: Float[np.ndarray, "frequency *dim"]
    energy: Float[np.ndarray, "frequency"]
    error: Float[np.ndarray, "frequency"]
    constant: float
    residual: float
    total: float

    @property
    def magnitudes(self) -> Float[np.ndarray, "frequency"]:
        """|κ|."""
        return np.linalg.norm(self.frequencies.reshape(len(self.energy), -1), axis=1)

    @property
    def mean_frequency(self) -> float:
        """Σ |κ| E_κ / Σ E_κ; nan for a constant function."""
        total = float(self.energy.sum())
        return float(self.magnitudes @ self.energy) / total if total > self._roundoff else float("nan")

    @property
    def _roundoff(self) -> float:
        return (64 * np.finfo(np.float64).eps) ** 2 * self.total

    @property
    def shares(self) -> Float[np.ndarray, "frequency"]:
        """E_κ / Σ E_κ."""
        return self.energy / max(float(self.energy.sum()), np.finfo(np.float64).tiny)

    def share_above(self, frequency: float) -> float:
        """Share of the energy at |κ| > `frequency`."""
        return float(self.shares[self.magnitudes > frequency].sum())

    def __str__(self) -> str:
        if not self.energy.sum() > self._roundoff:
            return f"{len(self.energy)} frequencies, a constant function"
        top = int(np.argmax(self.energy))
        return (
            f"{len(self.energy)} frequencies, mean {self.mean_frequency:.4g}; most energy at |κ| = "
            f"{self.magnitudes[top]:.4g} ({self.shares[top]:.0%}); left unexplained "
            f"{self.residual / max(self.total, np.finfo(np.float64).tiny):.1%}"
        )


def frequency_content(
    predict_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    frequencies: PyTree = None,
) -> FrequencyContent:
    """Energy of a learnt function by frequency, on the inputs that are given, in float64.

    Args:
        predict_fn: `predict_fn(params, inputs)`, the outputs, an array (n, …).
        params: as for `LocalPosterior`.
        inputs: points of a line (n,) or (n, 1), or of space (n, d), evenly spaced or not.
        frequencies: κ, in cycles per unit of the inputs: (m,) on a line, (m, d) in space, one of each pair ±κ. On a
            line the default is 1/T, 2/T, … with T the range of the inputs and one mean spacing, as many of them as are
            told apart well at these inputs, at most (n − 1)/2 and 200; in space the same along each axis, in all
            combinations: the Fourier modes of a grid.

    Raises:
        ValueError: if the inputs are no numbers of one array, there are too many frequencies for them, or two can't be
            told apart at these points (aliases, a gap in the inputs).

    References:
        Rahaman et al. 2019, On the spectral bias of neural networks.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(32.0) / 32
        >>> content = frequency_content(lambda w, x: w[0] * jnp.sin(6 * jnp.pi * x), jnp.array([2.0]), x)
        >>> content.energy[:4].round(6).tolist()
        [0.0, 0.0, 2.0, 0.0]
    """
    points = _points(inputs)
    operator = behavioral_gradients(predict_fn, params, inputs).operator
    values = outputs_of(operator).reshape(len(points), -1)
    waves, fit = _fit(points, frequencies)
    coefficients, covariance = fit.inverse @ (fit.left.T @ values), fit.inverse @ fit.inverse.T
    residuals = values - fit.design @ coefficients
    noise = np.sum(residuals**2, axis=0) / max(len(points) - fit.design.shape[1], 1)
    m = len(waves)
    a, b = coefficients[1 : m + 1], coefficients[m + 1 :]
    own = np.diag(covariance)[:, None]
    aa, bb, ab = noise * own[1 : m + 1], noise * own[m + 1 :], noise * np.diag(covariance[1 : m + 1, m + 1 :])[:, None]
    variance = a**2 * aa + b**2 * bb + 2 * a * b * ab + (aa**2 + bb**2 + 2 * ab**2) / 2
    return FrequencyContent(
        frequencies=waves[:, 0] if points.shape[1] == 1 else waves,
        energy=0.5 * np.sum(a**2 + b**2, axis=1),
        error=np.sqrt(np.sum(np.maximum(variance, 0.0), axis=1)),
        constant=float(np.sum(coefficients[0] ** 2)),
        residual=float(np.sum(np.mean(residuals**2, axis=0))),
        total=float(np.sum(np.mean(values**2, axis=0))),
    )


class _Fit(NamedTuple):
    """Least squares on 1, cos and sin, by its singular values."""

    design: Float[np.ndarray, "point column"]
    left: Float[np.ndarray, "point column"]
    inverse: Float[np.ndarray, "column column"]
    smallest: float  # singular value of the design with columns of norm 1


def _fit(points: Float[np.ndarray, "point dim"], frequencies: PyTree) -> tuple[Float[np.ndarray, "m dim"], _Fit]:
    """The frequencies, and least squares on them."""
    n, dim = points.shape
    if frequencies is not None:
        waves = _waves(frequencies, dim)
        fit = _design(points, waves) if 2 * len(waves) < n else None
        if fit is None or fit.smallest < _ALIAS:
            raise ValueError(
                f"frequencies need to be told apart at the {n} inputs, got {len(waves)} that can't be; give at most "
                f"{(n - 1) // 2}, without 0, with one of κ and −κ, and without aliases of the inputs' spacing."
            )
        return waves, fit
    if n < 4 or not np.ptp(points, axis=0).all():
        raise ValueError(
            f"inputs need at least 4 points that differ along each axis, got {n} over {np.ptp(points, axis=0)}."
        )
    highest = (n - 1) // 2 if dim == 1 else int(n ** (1 / dim) / 2)
    while highest >= 1:
        waves = _lattice(points, min(highest, _MOST))
        if 2 * len(waves) < n and len(waves) <= _MOST:
            fit = _design(points, waves)
            if fit.smallest > _CLEAR:
                return waves, fit
        highest = highest // 2 if dim == 1 else highest - 1
    raise ValueError(
        f"frequencies are needed: no default can be told apart at these {n} inputs of {dim} dimensions; give κ as "
        f"(m, {dim}), or take llc.segment_frequency_content where inputs have many dimensions."
    )


def _lattice(points: Float[np.ndarray, "point dim"], highest: int) -> Float[np.ndarray, "m dim"]:
    """Whole numbers of cycles, up to `highest` along each axis and one of κ and −κ, over the inputs' range.

    The range has one more spacing than lies between the inputs, so that these are the Fourier modes of a grid.
    """
    steps = np.array([len(np.unique(column)) for column in points.T])
    spans = np.ptp(points, axis=0) * steps / (steps - 1)
    dim = points.shape[1]
    cycles = np.stack(np.meshgrid(*[np.arange(-highest, highest + 1)] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    return cycles[len(cycles) // 2 + 1 :] / spans


def _design(points: Float[np.ndarray, "point dim"], waves: Float[np.ndarray, "m dim"]) -> _Fit:
    phases = 2 * np.pi * (points - points.min(axis=0)) @ waves.T
    design = np.concatenate([np.ones((len(points), 1)), np.cos(phases), np.sin(phases)], axis=1)
    scales = np.maximum(np.linalg.norm(design, axis=0), _TINY)
    left, singular, right = scipy.linalg.svd(design / scales, full_matrices=False)
    kept = np.maximum(singular, _TINY)
    return _Fit(design, left, (right.T / kept) / scales[:, None], float(singular[-1]))


def _waves(frequencies: PyTree, dim: int) -> Float[np.ndarray, "m dim"]:
    try:
        waves = np.asarray(frequencies, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"frequencies need to be an array of numbers, got {type(frequencies).__name__}.") from error
    waves = waves[:, None] if waves.ndim == 1 and dim == 1 else waves
    if waves.ndim != 2 or waves.shape[1] != dim or not len(waves) or not np.isfinite(waves).all():
        raise ValueError(f"frequencies need finite numbers of shape (m, {dim}), got shape {np.shape(frequencies)}.")
    return waves


def _points(inputs: PyTree) -> Float[np.ndarray, "point dim"]:
    points = input_array(inputs)
    if points.ndim > 2:
        raise ValueError(
            f"inputs need shape (n,) or (n, d), got {points.shape}; take llc.segment_frequency_content for images."
        )
    return points.reshape(len(points), -1)


def input_array(inputs: PyTree) -> Float[np.ndarray, "point ..."]:
    """The inputs in float64; raises ValueError if they are not one array of finite floating-point numbers."""
    if not isinstance(inputs, (jax.Array, np.ndarray)) or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs need to be one array of floating-point numbers, got {type(inputs).__name__}.")
    if not inputs.ndim or not np.isfinite(np.asarray(inputs, np.float64)).all():
        raise ValueError(f"inputs need finite numbers with a leading axis, got shape {inputs.shape} or nan.")
    return np.asarray(inputs, np.float64)


def outputs_of(operator: JacobianOperator) -> Float[np.ndarray, "output"]:
    """All outputs of all inputs, flat; raises ValueError if they are not finite."""
    with float64():
        values = np.asarray(_evaluate(operator))
    if not np.isfinite(values).all():
        raise ValueError("predict_fn needs finite outputs, got nan or inf; check params.")
    return values


@eqx.filter_jit
def _evaluate(operator: JacobianOperator) -> Float[Array, "output"]:
    return operator.outputs()
