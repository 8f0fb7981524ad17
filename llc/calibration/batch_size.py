r"""Rows of a minibatch, from the heating that they bring.

A minibatch of B rows heats the curved directions, at ε (nβ h_max + γ) = c, by about

$$ \frac{c}{4} \cdot \frac{2 \lambda_{quad}}{B} \qquad\text{and}\qquad
   \frac{\epsilon\, (n\beta)^2\, \mathrm{tr}(\Sigma A)}{4 B\, \lambda_{quad}} : $$

by the curvature that differs between examples, and by their gradients at w*, of covariance Σ, with
A = ½ nβH (nβH + γ)⁻¹. B keeps each below 3 %. Control variates take the second away, for twice the gradients: they are
used where it asks for more than twice the rows.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.record import Choice, PilotResult, Request
from llc.calibration.step_size import Settings
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.control_variates import make_control_variates
from llc.sampling.kernel import Sampler

_FULL_BATCH, _MINIBATCH, _LARGEST_BATCH = 4096, 512, 8192
_FEWEST, _BATCHES = 32, 20  # rows of a costly model at least, and minibatches of its data
MAX_HEATING = 0.03  # of λ_quad; the zero-variance estimate takes the first order of it away, `virial_curved` sees it
_NOISE_ROWS = 512  # examples from which the covariance of gradients is taken


class Batch(NamedTuple):
    """A minibatch, and what it brings.

    Attributes:
        rows: None takes all the data.
        heating: of the curved directions, predicted; relative to λ_quad.
        rows_without_control_variates: how many it would take without them; 0 where they are not used.
    """

    rows: int | None
    heating: float = 0.0
    rows_without_control_variates: int = 0

    @property
    def uses_control_variates(self) -> bool:
        """Whether minibatch gradients take those at w* as control variates."""
        return self.rows_without_control_variates > 0


class Heating(NamedTuple):
    """Predicted heating of λ̂ by minibatches of a single row: by the examples' curvature, and by their gradients."""

    of_curvature: float
    of_gradients: float


def plan_batch(request: Request, at_center: Settings) -> Batch:
    """A minibatch: the one that was given, all the data where they are few, or the rows that heat by less than 3 %.

    Args:
        request: what calibration started from.
        at_center: ε and γ from the curvature at w*, before any pilot.
    """
    given, sampler = request.lengths.batch_size, request.sampler
    needs_all = sampler is not None and sampler.needs_full_batch
    costly, num_data = request.price.costly, request.posterior.num_data
    if given is not None or needs_all or (num_data <= _FULL_BATCH and not costly and not request.is_sample):
        return Batch(given)
    fewest = fewest_rows(num_data) if costly else _MINIBATCH
    own = None if sampler is None else sampler.langevin_step
    posterior = request.posterior.with_scale(gamma=at_center.gamma)
    step_size = at_center.step_size if own is None else own
    heating = predict_heating(posterior, request.spectrum, step_size, num_rows=noise_rows(request))
    heat, without = max(heating), 0
    rows = rows_for(heat, fewest)
    if sampler is None and rows > 2 * (fewer := rows_for(heating.of_curvature, fewest)):
        heat, without, rows = heating.of_curvature, rows, fewer
    if request.is_sample:  # pilots run on the resident rows
        rows = min(rows, 2 ** int(math.log2(num_data)))
        return Batch(rows, heat / rows, without)
    # Where a minibatch would be half of the data, all of them cost little more.
    return Batch(None) if rows > posterior.num_data // 2 else Batch(rows, heat / rows, without)


def choose_batch_size(request: Request, batch: Batch) -> Choice[int | None]:
    """Rows of a minibatch."""
    if request.asked.batch_size is not None:
        return Choice(batch.rows, "given", "given")
    if batch.rows is None:
        return Choice(None, "chosen", "all rows in every step, so that there is no gradient noise", {"heating": 0.0})
    reason = f"rows; their noise is predicted to heat the curved directions by {batch.heating:.1%}"
    return Choice(batch.rows, "chosen", reason, {"heating": batch.heating})


def choose_sampler(request: Request, batch: Batch, found: PilotResult) -> Choice[Sampler]:
    """The one that was given, SGHMC where momentum pays, or SGLD: with control variates where noise asks for them."""
    if request.sampler is not None:
        return Choice(request.sampler, "given", "given")
    if not batch.uses_control_variates and found.trial is not None:
        return Choice(found.sampler, "chosen", found.trial.reason, found.trial.evidence)
    rows = batch.rows_without_control_variates
    reason = f"with control variates; without them the noise at w* would need batches of {rows:,} rows"
    return Choice(found.sampler, "chosen", reason, {"rows_without_control_variates": rows})


class RowNoise(NamedTuple):
    """What minibatches of a single row would heat by, at any γ and ε.

    Attributes:
        spectrum: of the Hessian at w*.
        variances: of the examples' gradients along its eigenvectors, (curved,).
    """

    spectrum: Spectrum
    variances: Float[np.ndarray, "curved"]

    def heating(self, nbeta: float, gamma: float, step_size: float) -> Heating:
        """Relative to λ_quad; B rows heat by one B-th of it."""
        quad = max(self.spectrum.quad(gamma / nbeta), 0.5)
        of_curvature = 0.25 * step_size * nbeta * self.spectrum.largest * 2 * quad
        curvatures = nbeta * self.spectrum.vector_eigenvalues[: len(self.variances)]
        noise = float(np.sum(0.5 * curvatures / (curvatures + gamma) * self.variances))
        return Heating(of_curvature, 0.25 * step_size * nbeta**2 * noise / quad)


def measure_noise(posterior: LocalPosterior, spectrum: Spectrum, *, num_rows: int = _NOISE_ROWS) -> RowNoise:
    """The noise of examples' gradients along the directions that show at the posterior's γ, and at stronger ones.

    Args:
        posterior: with γ.
        spectrum: of the Hessian at w*; without eigenvectors no noise of gradients is known.
        num_rows: examples from which it is taken.
    """
    variates = make_control_variates(posterior, spectrum)
    if variates is None or not variates.coefficients.size:
        return RowNoise(spectrum, np.zeros(0))
    rows = np.random.default_rng(0).permutation(posterior.num_data)[:num_rows]  # data may be in order
    some = jax.tree.map(lambda x: x[rows], posterior.data)
    variances = np.asarray(_variances(posterior, variates.vectors, some), np.float64)
    return RowNoise(spectrum, variances[: len(spectrum.vector_eigenvalues)])


def predict_heating(
    posterior: LocalPosterior, spectrum: Spectrum, step_size: float, *, num_rows: int = _NOISE_ROWS
) -> Heating:
    """Heating of λ̂ relative to λ_quad by minibatches of one row; B rows heat by one B-th of it."""
    return measure_noise(posterior, spectrum, num_rows=num_rows).heating(*posterior.scale, step_size)


def rows_for(heating: float, fewest: int) -> int:
    """The smallest power of two of rows that heats by 3 % at most, not below that of `fewest`, at most 8,192."""
    rows = 2 ** math.ceil(math.log2(max(heating / MAX_HEATING, fewest)))
    return min(rows, _LARGEST_BATCH)


def fewest_rows(num_data: int) -> int:
    """Rows of a minibatch of a costly model, at least."""
    return 2 ** math.ceil(math.log2(min(_MINIBATCH, max(_FEWEST, num_data // _BATCHES))))


def noise_rows(request: Request) -> int:
    """Examples from which the noise of gradients is taken."""
    return min(_NOISE_ROWS, max(request.posterior.num_data // 8, 1)) if request.price.costly else _NOISE_ROWS


def nominal_rows(posterior: LocalPosterior) -> int:
    """Rows of a minibatch before its heating is known."""
    return posterior.num_data if posterior.num_data <= _FULL_BATCH else _MINIBATCH


@eqx.filter_jit
def _variances(posterior: LocalPosterior, vectors: Float[Array, "curved dim"], data: PyTree) -> Float[Array, "curved"]:
    """Variance over examples of their gradients along `vectors`."""

    def along(example: PyTree) -> Float[Array, "curved"]:
        batch = jax.tree.map(lambda x: x[None], example)
        gradient = jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)
        return vectors @ ravel_pytree(gradient)[0]

    return jnp.var(jax.lax.map(along, data, batch_size=32), axis=0)
