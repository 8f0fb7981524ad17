r"""An energy from every step's own minibatch, beside those of draws on the full data.

A step evaluates the loss of a batch B at w to take its gradient. Less the loss of w* on the same rows, and less the
difference of the slopes at w* where the gradient has these as control variates, it is an energy that costs no pass:

$$ e_t = n\beta\, \Big( L_{B_t}(w_t) - L_{B_t}(w^*) - (\nabla L_{B_t}(w^*) - \nabla L(w^*)) \cdot (w_t - w^*) \Big) ,
   \qquad \mathbb{E}[e_t \mid w_t] = n\beta\, (L(w_t) - L(w^*)) . $$

The expectation holds because w_t is the position before the step and B_t is drawn without regard to the batches before
it (`independent_minibatch`). Within an epoch it does not: rows that are still to come have not been descended. Losses
of w* are computed once where they come per example, and are then read where the rows are; a scalar loss takes a forward
pass at w* in each step. A draw records the mean over the steps since the one before.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.energies import Evaluation, make_evaluation
from llc.sampling.kernel import Sampler
from llc.sampling.placement import on_device


class StepEnergies(eqx.Module):
    """What pairs the loss of a batch with that of w* on it.

    Attributes:
        center_losses: of every row, at w*, so that they are drawn together with the rows; None of a scalar loss.
    """

    center_losses: Float[Array, "n"] | None

    def center_loss(self, posterior: LocalPosterior, batch: tuple[PyTree, Array | None]) -> Float[Array, ""]:
        """The mean loss of w* on a batch: its rows, and the losses of w* on them where they are known."""
        rows, losses = batch
        return posterior.loss(posterior.params_at(posterior.position), rows) if losses is None else jnp.mean(losses)


def make_step_energies(
    posterior: LocalPosterior, evaluation: Evaluation, baseline: Float[Array, "unit"], batch_size: int | None
) -> StepEnergies:
    """Pairs with the losses of w* on all rows; with those of the draws' evaluation where it has them."""
    if not posterior.per_example:
        return StepEnergies(None)
    if evaluation.uses_all_data:
        return StepEnergies(baseline)
    whole = on_device(make_evaluation(posterior, batch_size=batch_size))
    return StepEnergies(_losses(posterior, whole))


@eqx.filter_jit
def _losses(posterior: LocalPosterior, evaluation: Evaluation) -> Float[Array, "n"]:
    return evaluation.losses(posterior, posterior.position)


def check_step_energies(sampler: Sampler) -> None:
    """Raises ValueError if the steps of a sampler have no loss of a batch."""
    if not sampler.has_batch_loss:
        name = type(sampler).__name__
        raise ValueError(
            f"step_energies needs a sampler whose step says the loss of its batch (SGLD, SGHMC and SGNHT do), got "
            f"{name}; leave it False: draws of {name} are evaluated on the data as before."
        )
