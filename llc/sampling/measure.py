"""What is measured of a draw, and on which rows: its loss less that of w*, and the control variates of λ̂."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.control_variates import ControlVariates, make_control_variates
from llc.sampling.draws import Moments
from llc.sampling.energies import Evaluation, make_evaluation
from llc.sampling.kernel import center_gradient
from llc.sampling.observables import Recorded
from llc.sampling.placement import on_device
from llc.sampling.run_lengths import RunLengths
from llc.sampling.step_energies import StepEnergies, make_step_energies


class Measure(eqx.Module):
    """What a draw is measured with.

    Attributes:
        evaluation: the rows on which losses are evaluated.
        control_variates: those of λ̂; None without eigenvectors of the Hessian.
        baseline: losses of w* on the same rows, in the precision of the draws.
        observables: what is recorded beside the loss, by name.
        step_energies: the losses of w* for the energies of steps; None where only draws have energies.
    """

    evaluation: Evaluation
    control_variates: ControlVariates | None
    baseline: Float[Array, "unit"]
    observables: dict[str, Recorded]
    step_energies: StepEnergies | None = None


def make_measure(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    lengths: RunLengths,
    spectrum: Spectrum | None,
    observables: dict[str, Recorded] | None = None,
) -> Measure:
    """What the draws of a run are measured with; `key` chooses the rows where `lengths.eval_size` asks for a subset."""
    num_data, size = posterior.num_data, lengths.eval_size
    rows = slope = None
    if posterior.whole is not None:  # the data are a sample of more
        rows = np.arange(num_data)
    if size is not None and size < num_data:
        rows = np.sort(jax.device_get(jax.random.choice(key, num_data, (size,), replace=False)))
    if rows is not None:
        slope = _slope_at_center(posterior, lengths.batch_size)
    evaluation = make_evaluation(posterior, rows, center_grad=slope, batch_size=lengths.batch_size)
    evaluation = on_device(evaluation)
    # On a subset the control variates need a derivative along a direction, which a `jax.custom_vjp` does not have.
    usable = rows is None or slope is not None
    control_variates = make_control_variates(posterior, spectrum) if usable else None
    baseline, of_steps = _losses_at_center(posterior, evaluation), None
    if lengths.step_energies:
        of_steps = make_step_energies(posterior, evaluation, baseline, lengths.batch_size)
    return Measure(evaluation, control_variates, baseline, observables or {}, of_steps)


@eqx.filter_jit
def _losses_at_center(posterior: LocalPosterior, evaluation: Evaluation) -> Float[Array, "unit"]:
    """Losses of w*, in the precision of the draws."""
    return evaluation.losses(posterior, posterior.position)


@eqx.filter_jit
def _slope_at_center(posterior: LocalPosterior, batch_size: int | None) -> PyTree:
    """∇L(w*) over all the data, in the precision of the draws; None where the loss has no derivative along x."""
    return center_gradient(posterior, batch_size) if posterior.supports_jvp else None


@eqx.filter_jit
def gradient_at_center(posterior: LocalPosterior, batch_size: int | None) -> Float[Array, ""]:
    """‖∇L(w*)‖ over all the data, in the precision of the draws."""
    return jnp.asarray(optax.tree.norm(center_gradient(posterior, batch_size)))


class Evaluated(NamedTuple):
    """L(w) − L(w*), x·A∇U − tr A, and what is summed up for every unit."""

    delta: Array
    residuals: Array | None
    moments: Moments


def evaluate_draw(posterior: LocalPosterior, measure: Measure, position: PyTree, offset: PyTree) -> Evaluated:
    """One draw at `position`, `offset` away from w*, on the rows of the evaluation."""
    evaluation, variates, baseline = measure.evaluation, measure.control_variates, measure.baseline
    weights = jnp.asarray(evaluation.weights, baseline.dtype)
    slopes = residuals = None
    if variates is None:
        losses = evaluation.losses(posterior, position)
    elif evaluation.uses_all_data:  # one gradient serves all directions
        losses, gradient = evaluation.losses_and_gradient(posterior, position)
        directions = variates.directions(offset)
        along = jax.vmap(lambda direction: jnp.asarray(optax.tree.vdot(gradient, direction)))(directions)
        residuals = variates.residuals(posterior, offset, directions, along)
    else:
        directions = variates.directions(offset)
        losses, slopes = evaluation.losses_and_slopes(posterior, position, directions)
        if evaluation.center_grad is not None:
            slopes = slopes - evaluation.excess_slopes(posterior, directions)
        residuals = variates.residuals(posterior, offset, directions, slopes @ weights)
    difference = losses - baseline
    moments = Moments(difference, difference**2, jnp.exp(-difference), *(() if slopes is None else slopes))
    if evaluation.center_grad is None:
        return Evaluated(jnp.sum(weights * difference), residuals, moments)
    paired = difference - evaluation.excess_slopes(posterior, jax.tree.map(lambda x: x[None], offset))[0]
    moments = moments._replace(paired=paired, paired_second=paired**2)
    return Evaluated(jnp.sum(weights * paired), residuals, moments)
