"""One γ for all items of a sweep: the largest that any of them asks for, so that it is local at each.

Each item's own γ is the weakest at which its loss is about quadratic (llc/calibration/localization.py). Along a
training run these differ by orders of magnitude, and not in order: at the γ of a trained network, λ̂ of checkpoints in
the middle of a transition can be many times their λ_quad. The spectra that this takes are those the items need anyway.

Items without such a γ have no say: those with a rank that is one number, for which γ follows from the length of the
run, those whose loss is quadratic at none, and those whose settings have a γ.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import NamedTuple

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.batch_size import nominal_rows
from llc.calibration.localization import Localization
from llc.calibration.pipeline import localization_for
from llc.calibration.price import Price, affordable_spectrum
from llc.calibration.run_length import is_overhead_bound
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.sampling.run_lengths import RequestedLengths
from llc.sweeps.execution import run_told
from llc.sweeps.items import Item
from llc.sweeps.task import Key

_MOST_BYTES = 2**31  # of the eigenvectors that are kept from here until an item is run; beyond, they are made again


class Survey(NamedTuple):
    """What is known of an item before γ is.

    Attributes:
        spectrum: of the Hessian at its w*.
        localization: the γ that it asks for; None where it has no say.
    """

    spectrum: Spectrum
    localization: Localization | None

    def __str__(self) -> str:
        found = self.localization
        asked = "no γ of its own" if found is None else f"γ = {found.gamma:.4g} at κ = {found.anharmonicity:.2g}"
        return f"h_max = {self.spectrum.largest:.4g}, {asked}"


@dataclass(frozen=True)
class SurveyTask:
    """All that the survey of an item takes.

    Attributes:
        item: of the sweep.
        key: of the points at which losses are looked at, the same for all items.
        nbeta: that was given for all, or None.
        asked: the lengths that were asked for.
        price: of a gradient of the reference.
    """

    item: Item
    key: Key
    nbeta: float | None
    asked: RequestedLengths
    price: Price


@lenient()
def survey(task: SurveyTask) -> Survey:
    """The spectrum of an item, and the γ that it asks for.

    Raises:
        ValueError: if the item has no posterior.
    """
    posterior = task.item.posterior().with_scale(nbeta=task.item.settings.get("nbeta", task.nbeta))
    return _surveyed(task, posterior, progress=False)


def _surveyed(task: SurveyTask, posterior: LocalPosterior, *, progress: bool | None) -> Survey:
    spectrum = affordable_spectrum(posterior, task.price, task.asked.budget, progress=progress)
    return Survey(spectrum, localization_for(task.key.typed(), posterior, task.asked, task.price, spectrum))


def survey_all(
    first: SurveyTask,
    posterior: LocalPosterior,
    items: Sequence[Item],
    executor: Executor | None,
    *,
    progress: bool | None,
) -> tuple[Localization | None, dict[str, Spectrum]]:
    """The localization of largest γ, and the spectra by item.

    Of a small model only the reference is looked at, as no item has a say.

    Args:
        first: of the reference. Another item that can't be surveyed has no say.
        posterior: of the reference.
        items: of the sweep.
        executor: as of `llc.sweep`.
        progress: as of `llc.sweep`.
    """
    found = {first.item.name: _surveyed(first, posterior, progress=progress)}
    if not is_overhead_bound(posterior, nominal_rows(posterior)):
        others = [item for item in items if item.name != first.item.name and "gamma" not in item.settings]
        tasks = [replace(first, item=item) for item in others]
        for name, outcome in run_told(survey, tasks, executor, name="spectrum", found=str, progress=progress):
            if outcome.value is not None:
                found[name] = outcome.value
    return _strictest(found), _kept({name: one.spectrum for name, one in found.items()})


def _strictest(found: Mapping[str, Survey]) -> Localization | None:
    """The localization of largest γ, with the name of its item."""
    asked = [
        one.localization._replace(item=name)
        for name, one in found.items()
        if one.localization is not None and one.localization.is_local
    ]
    return max(asked, key=lambda each: each.gamma, default=None)


def _kept(spectra: Mapping[str, Spectrum]) -> dict[str, Spectrum]:
    """As many of them as fit, the first ones."""
    kept, size = {}, 0
    for name, spectrum in spectra.items():
        size += 0 if spectrum.vectors is None else spectrum.vectors.nbytes
        if size > _MOST_BYTES:
            break
        kept[name] = spectrum
    return kept
