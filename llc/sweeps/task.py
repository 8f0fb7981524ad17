"""One item of a sweep, from its settings to its draws: what an executor runs, in this process or in another one.

All items run by the same key, so that items of one shape have the same noise and the same minibatches (common random
numbers), and by the same compiled programs, since a posterior is an argument of them.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.report import Report
from llc.analysis.reporting import report
from llc.analysis.slope import slope_of
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import to_dataset
from llc.calibration.further_runs import half_step_draws
from llc.calibration.pipeline import calibrate_for
from llc.calibration.price import affordable_spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.posterior.whole import loss_at_center
from llc.sampling.chains import Chains
from llc.sampling.kernel import Sampler
from llc.sampling.momentum import SGHMC
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from llc.sampling.sgmcmc import SGLD
from llc.sweeps.items import Item, digest
from llc.sweeps.plan import Plan
from llc.sweeps.reach import reach

_NO_SLOPE = 1e-3  # of λ̂, that a slope takes at most where nothing needs to be measured
_PILOTS, _HALF_STEP = 1, 2  # of the key of an item
_SLOWER = 4  # factor by which the step of an item shrinks whose chains are too hot, once
ITEM, DIGEST, RETRIED = "sweep_item", "sweep_params", "sweep_retried"  # attributes of an item's draws


@dataclass(frozen=True)
class Key:
    """A key as plain data, which every executor can send."""

    data: np.ndarray
    kind: str

    @classmethod
    def of(cls, key: jax.Array) -> "Key":
        """The data of a typed key."""
        return cls(np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key)))

    def typed(self) -> jax.Array:
        """The key."""
        return jax.random.wrap_key_data(jax.numpy.asarray(self.data), impl=self.kind)


@dataclass(frozen=True)
class Task:
    """All that running an item takes.

    Attributes:
        item: of the sweep.
        plan: of the sweep.
        key: of the run, the same for all items.
        sampler: that was given, or None.
        asked: the lengths that were asked for, where each item is calibrated.
        spectrum: of the item, where it is known already.
    """

    item: Item
    plan: Plan
    key: Key
    sampler: Sampler | None
    asked: RequestedLengths
    spectrum: Spectrum | None = None


@lenient()
def run_task(task: Task) -> xr.DataTree:
    """The draws of an item, with its spectrum among them.

    Raises:
        ValueError: if the item has no posterior, or a setting does not fit it.
    """
    item, plan = task.item, task.plan
    posterior = item.posterior().with_scale(
        nbeta=item.settings.get("nbeta", plan.nbeta), gamma=item.settings.get("gamma", plan.gamma)
    )
    spectrum = task.spectrum
    if spectrum is None:
        spectrum = affordable_spectrum(posterior, plan.price_record, plan.budget, progress=False)
    sampler, lengths = item.settings.get("sampler", task.sampler), plan.lengths_for(item.settings)
    own_step = sampler is None
    if own_step and plan.calibration == "each":
        sampler, lengths = _own_calibration(task, posterior, spectrum)
    elif own_step:
        sampler = plan.sampler_for(posterior, spectrum.largest)
    assert sampler is not None
    result = _drawn(task, posterior, sampler, lengths, spectrum)
    retried = own_step and _too_hot(result)
    if retried and isinstance(sampler, SGLD | SGHMC):
        smaller = replace(sampler, step_size=np.asarray(np.asarray(sampler.step_size) / _SLOWER))
        sampler, lengths = smaller, lengths.slower(_SLOWER)
        result = _drawn(task, posterior, sampler, lengths, spectrum)
    draws = result.draws
    if any(check.told_by_half_step for check in result.failed):
        half_key = jax.random.fold_in(task.key.typed(), _HALF_STEP)
        half = half_step_draws(half_key, posterior, sampler, lengths, spectrum, progress=False)
        if half is not None:
            draws[schema.HALF_STEP] = half
    draws.attrs[schema.GAMMA_ORIGIN] = "given" if "gamma" in item.settings else plan.gamma_origin
    draws.attrs |= {ITEM: item.name, DIGEST: digest(posterior), RETRIED: "a smaller step" if retried else ""}
    return draws


def _own_calibration(task: Task, posterior: LocalPosterior, spectrum: Spectrum) -> tuple[Sampler, RunLengths]:
    pilots = jax.random.fold_in(task.key.typed(), _PILOTS)
    found = calibrate_for(
        pilots, posterior, None, task.asked, task.plan.price_record, spectrum=spectrum, progress=False
    )
    return found.sampler, replace(found.lengths, num_draws=task.plan.lengths_for(task.item.settings).num_draws)


def _drawn(task: Task, posterior: LocalPosterior, sampler: Sampler, lengths: RunLengths, spectrum: Spectrum) -> Report:
    chains = Chains(task.key.typed(), posterior, sampler, lengths, spectrum=spectrum)
    chains.draw(lengths.num_draws, progress=False)
    draws = chains.tree()
    slope = slope_of(draws)
    if slope is not None and slope.most > _NO_SLOPE:
        reached = reach(posterior, lengths.batch_size)
        draws[schema.CONSTANTS] = (
            draws[schema.CONSTANTS]
            .to_dataset()
            .assign({schema.REACHED_CHANGE: reached.change, schema.REACHED_DISTANCE: reached.distance})
        )
    draws[schema.CURVATURE] = xr.DataTree(to_dataset(spectrum, None))
    draws[schema.CURVATURE].attrs["init_loss"] = loss_at_center(posterior)
    return report(draws)


def _too_hot(result: Report) -> bool:
    """Whether chains are dead, or hotter than their posterior by a check of the chains alone."""
    return any(check.direction == "hot" for check in result.failed_of_chains)
