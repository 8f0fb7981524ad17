"""What rounding does to draws: to L(w) − L(w*), the difference of two numbers as large as the loss, and to the steps.

The first is measured: at the last draw of every chain the recorded difference is compared with the same difference in
float64, on the same rows and of the same rounded params. Its root mean square over chains is the error, since the
rounding of L(w*) is common to all draws and does not average out. Beside it stands the error that a rounding to nearest
has on average, u/√12 with u the spacing of numbers as large as a loss, for the case that few positions have it by
chance.

A step of size √ε that is added to a parameter is rounded to a multiple of u(w*), which adds a variance of u²/12 to ε:
a heating of every direction by u²/(12 ε), as much as ½ Σ u²/(12 ε) of λ̂ in all.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import as_float64, float64, lenient
from llc.sampling.energies import Evaluation
from llc.sampling.measure import Measure

_POSITIONS = 8  # that are compared; the error is one of all draws alike
_AT_ONCE = 2**20  # parameters whose spacing is looked at
_COSTLY = 1e8  # parameters times rows, above which one is: two losses of all rows in float64


class LossRounding:
    """Errors of recorded differences, collected over the first positions where chains stood."""

    def __init__(self, posterior: LocalPosterior, measure: Measure) -> None:
        self.posterior, self.measure = posterior, measure
        self.squares: list[float] = []

    def add(self, positions: Sequence[PyTree], deltas: Float[np.ndarray, "chain"]) -> None:
        """Compares the recorded L(w) − L(w*) of draws at `positions` with those of float64; non-finite ones count not.

        Args:
            positions: of the draws, in the precision of sampling.
            deltas: their recorded differences.
        """
        evaluation = self.measure.evaluation
        costly = self.posterior.num_params * evaluation.rows.num_rows > _COSTLY
        for position, delta in zip(positions, deltas, strict=True):
            if len(self.squares) >= (1 if costly else _POSITIONS):
                return
            if not math.isfinite(delta):
                continue
            slope = 0.0
            if evaluation.center_grad is not None:  # the difference was recorded less its slope at w*
                with lenient():
                    slope = float(_excess_slope(self.posterior, evaluation, position))
            with float64():
                exact = _difference(self.posterior, evaluation, position) - slope
            if math.isfinite(exact):
                self.squares.append((float(delta) - exact) ** 2)

    @property
    def error(self) -> float:
        """Error of L(w) − L(w*) by rounding, in the unit of the loss."""
        measured = math.sqrt(math.fsum(self.squares) / len(self.squares)) if self.squares else 0.0
        return math.hypot(measured, expected_error(self.measure))


def expected_error(measure: Measure) -> float:
    """The error of the mean of the losses of w*, each rounded to nearest."""
    losses = np.asarray(measure.baseline).astype(np.float64)
    spacing = float(jnp.finfo(measure.baseline.dtype).eps) * np.abs(losses)
    weights = np.asarray(measure.evaluation.weights, np.float64)
    return float(np.linalg.norm(weights * spacing)) / math.sqrt(12)


def params_rounding(posterior: LocalPosterior) -> float:
    """½ Σ u²/12 over the parameters that move: what rounding heats λ̂ by, at most, in units of 1/ε."""
    leaves = [np.asarray(jax.device_get(leaf)).ravel() for leaf in jax.tree.leaves(posterior.position)]
    parts = [leaf[i : i + _AT_ONCE] for leaf in leaves for i in range(0, len(leaf), _AT_ONCE)]
    return math.fsum(float(np.sum(np.square(np.spacing(np.abs(part)), dtype=np.float64))) for part in parts) / 24


def _difference(posterior: LocalPosterior, evaluation: Evaluation, position: PyTree) -> float:
    """L(w) − L(w*) in float64, of the rounded data and params that are sampled; params of one at a time are wide."""
    here, there = (np.asarray(_losses(posterior, evaluation, z)) for z in (position, posterior.position))
    return float(np.sum(np.asarray(evaluation.weights, np.float64) * (here - there)))


@eqx.filter_jit
def _losses(posterior: LocalPosterior, evaluation: Evaluation, position: PyTree) -> Float[Array, "unit"]:
    """Losses of every unit in float64; one piece of the data at a time is converted."""
    params = as_float64(posterior.params_at(position))
    return evaluation.rows.map(lambda batch: jnp.atleast_1d(posterior.loss_fn(params, as_float64(batch))))


@eqx.filter_jit
def _excess_slope(posterior: LocalPosterior, evaluation: Evaluation, position: PyTree) -> Array:
    offset = jax.tree.map(lambda x: x[None], optax.tree.sub(position, posterior.position))
    slopes = evaluation.excess_slopes(posterior, offset)[0]
    return jnp.sum(jnp.asarray(evaluation.weights, slopes.dtype) * slopes)
