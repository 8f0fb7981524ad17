"""How the items of a sweep are run: one scale, and one calibration for all or one for each.

The reference item is calibrated as `llc.estimate` would calibrate it, except that γ is the largest which an item asks
for (scale.py). All items take its nβ and γ, without which their λ̂ could not be compared. With a shared calibration they
take its lengths, batch size and sampler too, with the step size that their own curvature asks for: ε (nβ h_max + γ) is
that of the reference, h_max the item's own.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import PRNGKeyArray

from llc.analysis.contents import short
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.localization import Localization
from llc.calibration.pipeline import calibrate_for
from llc.calibration.price import Price, price_of
from llc.calibration.record import Calibration
from llc.posterior.arguments import require_number, require_option, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.momentum import SGHMC
from llc.sampling.run_lengths import RequestedLengths, RunLengths
from llc.sampling.sgmcmc import SGLD
from llc.sweeps.items import LENGTHS

Calibrated = Literal["shared", "each"]
_DRAWS_OF_COSTLY = 2  # times those of a short run: 400 gave 270–390 effective ones along a transformer's training


@dataclass(frozen=True)
class Plan:
    """What all items of a sweep have in common.

    Attributes:
        reference: the name of the item at which nβ and what is shared were chosen.
        nbeta: nβ of all items.
        gamma: γ of all items.
        calibration: whether lengths, batch and step size are those of the reference, or each item's own.
        lengths: of the reference.
        stiffness: ε (nβ h_max + γ) of the reference; None with a sampler that was given.
        damping: α √ε of the reference's SGHMC, the share of momentum that friction takes in a step; None of SGLD.
        control_variates: whether minibatch gradients take those at w* as control variates.
        price: of a gradient, in operations.
        costly: whether the whole spectrum of an item would take minutes or more.
        budget: of each item, in gradients.
        strictest: the name of the item that asked for γ; empty where γ was given or is that of the reference.
        gamma_origin: as of `Calibration`, or "sweep" where an item asked for γ.
        reasons: the reference's settings with their reasons, a line each.
    """

    reference: str
    nbeta: float
    gamma: float
    calibration: Calibrated
    lengths: RunLengths
    stiffness: float | None
    control_variates: bool
    price: float
    costly: bool
    budget: int | None = None
    damping: float | None = None
    strictest: str = ""
    gamma_origin: str = "given"
    reasons: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the sweep's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """From `to_json`.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            plan = cls(**{**data, "lengths": RunLengths(**data["lengths"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the plan of a sweep needs the fields of one, got {short(data)}.") from error
        for name in ("nbeta", "gamma", "price", "stiffness", "damping"):
            require_number(name, getattr(plan, name), strict=False, optional=name in ("stiffness", "damping"))
        require_type("reference", plan.reference, str, "the name of an item")
        require_option("calibration", plan.calibration, ("shared", "each"))
        return plan

    @property
    def price_record(self) -> Price:
        """The price of a gradient, as calibration takes it."""
        return Price(self.price, self.costly)

    def lengths_for(self, settings: Mapping[str, Any]) -> RunLengths:
        """The lengths of an item, with its own where it has some."""
        own = {name: settings[name] for name in LENGTHS if name in settings}
        if "sampler" in settings:  # its steps may have no energies
            own.setdefault("step_energies", False)
        return replace(self.lengths, **own)

    def sampler_for(self, posterior: LocalPosterior, largest: float) -> SGLD | SGHMC:
        """The sampler of the reference with the step that a curvature allows.

        Args:
            posterior: with nβ and γ.
            largest: h_max of the item.
        """
        if self.stiffness is None:
            raise ValueError("sampler_for needs a plan that chose its sampler, got one whose sampler was given.")
        nbeta, gamma = posterior.scale
        step_size = self.stiffness / (nbeta * max(largest, 0.0) + gamma)
        if self.damping is not None:
            return SGHMC(np.asarray(step_size), np.asarray(self.damping / math.sqrt(step_size)))
        return SGLD(np.asarray(step_size), control_variates=self.control_variates)


def make_plan(
    key: PRNGKeyArray,
    name: str,
    posterior: LocalPosterior,
    sampler: Sampler | None,
    asked: RequestedLengths,
    spectrum: Spectrum,
    localization: Localization | None = None,
    *,
    calibration: Calibrated,
    price: Price,
    progress: bool | None,
) -> Plan:
    """The plan of a sweep from its reference.

    Args:
        key: of the pilots.
        name: of the reference.
        posterior: of the reference; its γ is kept if it has one.
        sampler: that was given, or None.
        asked: the lengths as they were asked for.
        spectrum: of the reference.
        localization: of all items, where γ is open; None takes that of the reference.
        calibration: `"shared"` or `"each"`.
        price: of a gradient of the reference.
        progress: as of `llc.calibrate`.
    """
    found = calibrate_for(
        key, posterior, sampler, asked, price, spectrum=spectrum, localization=localization, progress=progress
    )
    nbeta, gamma = found.posterior.scale
    stiffness = damping = None
    if sampler is None:
        assert isinstance(found.sampler, SGLD | SGHMC)  # nothing else is chosen
        step_size = float(np.asarray(found.sampler.step_size))
        stiffness = step_size * (nbeta * max(spectrum.largest, 0.0) + gamma)
        if isinstance(found.sampler, SGHMC):
            damping = float(np.asarray(found.sampler.friction)) * math.sqrt(step_size)
    return Plan(
        reference=name,
        nbeta=nbeta,
        gamma=gamma,
        calibration=calibration,
        lengths=_with_more_draws(found, asked),
        stiffness=stiffness,
        control_variates=bool(getattr(found.sampler, "control_variates", False)),
        price=price.operations,
        costly=price.costly,
        budget=asked.budget,
        damping=damping,
        strictest="" if localization is None else localization.item,
        gamma_origin=found.gamma_origin if localization is None else "sweep",
        reasons=str(found),
    )


def _with_more_draws(found: Calibration, asked: RequestedLengths) -> RunLengths:
    """The lengths for all items, which get no more draws where their chains mix more slowly than the reference's."""
    num_draws, most = found.lengths.num_draws, found.enough_draws
    if asked.num_draws is not None or asked.budget is not None or most is None:
        return found.lengths
    return replace(found.lengths, num_draws=min(_DRAWS_OF_COSTLY * num_draws, most))


def price_for(posterior: LocalPosterior) -> Price:
    """The price of a gradient of the reference, which stands for all items."""
    return price_of(posterior)
