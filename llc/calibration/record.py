"""The records of a calibration: what it starts from, one choice, one pilot, and all settings of a run."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from llc.bounds.spectral_measure import Spectrum
from llc.calibration.localization import MAX_ANHARMONICITY, Localization
from llc.calibration.price import Price
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths, RunLengths

Origin = Literal["given", "posterior", "chosen"]

_SMALLER = 4  # factor by which a step shrinks that was too large for places no pilot had seen
_WITHOUT_VALUE = {"step_size": "adapted"}  # how None is printed; of the numbers of rows it is all of them


@dataclass(frozen=True)
class Choice[T]:
    """One setting, and why it is what it is.

    Attributes:
        value: the setting.
        origin: `"given"` by the caller (the defaults of the signature included), of the `"posterior"`, or `"chosen"`.
        reason: why, as it is printed.
        evidence: the numbers behind the reason, by name.
    """

    value: T
    origin: Origin
    reason: str
    evidence: Mapping[str, int | float] = field(default_factory=lambda: MappingProxyType({}))


class Pilot(NamedTuple):
    """A short run.

    Attributes:
        gamma: its γ.
        step_size: its ε.
        stiffness: the largest ε (nβ h_max + γ) where it was, in units of what was aimed at.
        energies: nβ (L(w) − L(w*)) where its chains ended.
        ess_per_gradient: effective draws of λ̂ in its second half, by the gradients of that; nan where it drew too few.
        row_variance: (nβ)² times the variance over rows of ℓ(w) − ℓ(w*) at its only draw; nan where it has more, or the
            loss is a scalar.
    """

    gamma: float
    step_size: float
    stiffness: float
    energies: tuple[float, ...] = ()
    ess_per_gradient: float = math.nan
    row_variance: float = math.nan


class Trial(NamedTuple):
    """Whether momentum pays, and why.

    Attributes:
        sampler: SGHMC with its step size and friction; None where SGLD stays.
        reason: why.
        rate: at which its flat directions relax, a step; nan where SGLD stays.
        rows: of a minibatch that momentum takes; None takes all the data.
        evidence: the numbers behind the reason, by name.
    """

    sampler: Sampler | None
    reason: str
    rate: float = math.nan
    rows: int | None = None
    evidence: Mapping[str, int | float] = MappingProxyType({})


class PilotResult(NamedTuple):
    """What pilots found, or what holds without them.

    Attributes:
        posterior: with its γ.
        sampler: the one that was given, SGLD with its step size, or that of `trial`.
        step_size: ε, or that of SGLD beside a sampler that adapts its own; None without pilots.
        pilots: the short runs.
        trial: of momentum; None where the sampler was given.
        confirmed: whether the last one kept to places where the step is small enough. Where none did, γ or ε has moved
            once more after the last pilot.
    """

    posterior: LocalPosterior
    sampler: Sampler
    step_size: float | None = None
    pilots: tuple[Pilot, ...] = ()
    confirmed: bool = True
    trial: Trial | None = None

    @property
    def rate(self) -> float | None:
        """Twice the rate at which a flat direction relaxes, a step: εγ of SGLD."""
        if self.trial is not None and self.trial.sampler is not None:
            return 2 * self.trial.rate
        return None if self.step_size is None else self.step_size * self.posterior.scale.gamma


@dataclass(frozen=True)
class Request:
    """What calibration starts from: all that is known before the first choice.

    Attributes:
        posterior: its γ is kept if it has one.
        sampler: None leaves it to calibration.
        asked: the lengths as the user asked for them.
        lengths: the same, with what follows from the budget.
        spectrum: of the Hessian at w*.
        price: what a gradient costs.
        localization: the γ at which the loss is quadratic; None where γ follows from the length of the run.
        is_sample: whether the rows of the posterior are those of a stream that are resident, so that a step of the run
            can't take all rows, and what it costs is to read them.
    """

    posterior: LocalPosterior
    sampler: Sampler | None
    asked: RequestedLengths
    lengths: RequestedLengths
    spectrum: Spectrum
    price: Price
    localization: Localization | None = None
    is_sample: bool = False

    @property
    def local_posterior(self) -> LocalPosterior:
        """The posterior, with the γ of `localization` if there is one."""
        return self.posterior if self.localization is None else self.posterior.with_scale(gamma=self.localization.gamma)

    @property
    def num_draws(self) -> int:
        """Draws of a chain, at first."""
        if self.lengths.num_draws is None:
            raise ValueError("num_draws needs an integer here, got None; it is set by the budget or its default.")
        return self.lengths.num_draws

    @property
    def chooses_gamma(self) -> bool:
        """Whether γ is left to calibration."""
        return self.posterior.gamma is None

    @property
    def needs_pilots(self) -> bool:
        """Whether ε is to be found: for SGLD, and for a sampler that adapts the step of a Langevin proposal.

        The steps of the latter then say how long a run has to be.
        """
        return self.sampler is None or (self.sampler.adapts_step and not self.sampler.takes_trajectories)


@dataclass(frozen=True)
class Calibration:
    """Settings of a run, with the reason for each.

    Attributes:
        posterior: with γ.
        sampler: with its step size.
        lengths: of the run; `llc.sample(key, c.posterior, c.sampler, **c.lengths.keywords())` takes them.
        choices: a `Choice` for every setting, by its name.
        pilots: the short runs that γ and ε come from.
        spectrum: of the Hessian at w*.
        overhead_bound: whether a step costs little more than its overhead, so that runs may be many times longer, and
            neither the sampler nor the steps between draws and before them were given.
        enough_draws: of a run of minutes, whose λ̂ is told as draws come in: draws of a chain that it ends with unless
            an accuracy is asked for; None of a shorter run.
    """

    posterior: LocalPosterior
    sampler: Sampler
    lengths: RunLengths
    choices: Mapping[str, Choice[object]]
    pilots: tuple[Pilot, ...]
    spectrum: Spectrum
    overhead_bound: bool = False
    enough_draws: int | None = None

    def with_smaller_step(self) -> "Calibration":
        """A quarter of the step size and four times the steps between draws, for chains that were too hot.

        Raises:
            ValueError: if the model is not overhead-bound, or a length was given.
        """
        before = self.sampler.langevin_step
        if not self.overhead_bound or before is None:
            raise ValueError(
                "with_smaller_step needs a calibration that is overhead_bound, got one that is not, or given lengths."
            )
        step_size, lengths = before / _SMALLER, self.lengths.slower(_SMALLER)
        reason = f"a step of {before:.3g} was too large for places that the pilots had not seen"
        choices = dict(self.choices)
        choices["step_size"] = Choice(step_size, "chosen", reason, {"too_large": before})
        for name, value in (("num_warmup", lengths.num_warmup), ("thinning", lengths.thinning)):
            choices[name] = replace(choices[name], value=value)
        sampler = replace(self.sampler, step_size=np.asarray(step_size))
        choices["sampler"] = replace(choices["sampler"], value=sampler)
        return replace(self, sampler=sampler, lengths=lengths, choices=choices)

    @property
    def gamma_origin(self) -> Literal["given", "run length", "quadratic loss", "nearest to quadratic"]:
        """Whether γ was given, or what it was chosen by."""
        choice = self.choices["gamma"]
        if choice.origin != "chosen":
            return "given"
        if "anharmonicity" not in choice.evidence or choice.evidence.get("of_length"):
            return "run length"
        return "quadratic loss" if choice.evidence["anharmonicity"] <= MAX_ANHARMONICITY else "nearest to quadratic"

    @property
    def num_steps(self) -> int:
        """Steps of a chain, the warm-up included."""
        return self.lengths.num_steps

    @property
    def reasons(self) -> dict[str, str]:
        """Deprecated: use `choices`."""
        _warn("reasons", "choices[name].reason")
        return {name: choice.reason for name, choice in self.choices.items()}

    @property
    def cheap(self) -> bool:
        """Deprecated: use `overhead_bound`."""
        _warn("cheap", "overhead_bound")
        return self.overhead_bound

    def __str__(self) -> str:
        rows = ((name, _shown(name, choice.value), choice.reason) for name, choice in self.choices.items())
        return "\n".join(f"{name:<13} {value:>9}  {reason}" for name, value, reason in rows)


def _warn(old: str, new: str) -> None:
    message = f"Calibration.{old} will go in the next release; use Calibration.{new}."
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def _shown(name: str, value: object) -> str:
    """A value as it is printed."""
    if value is None:
        return _WITHOUT_VALUE.get(name, "all")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else type(value).__name__
