"""The lengths of a run: made and validated once, and passed whole through sampling, calibration and the workflow.

`RequestedLengths` is what a user asks calibration for, where None leaves a length to be chosen. `RunLengths` is what a
run has: nothing in it is open.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import TypedDict

import numpy as np

from llc.posterior.arguments import plain, require_flag, require_integer

_MOST: dict[str, int] = {"budget": 2**53, "max_steps": 2**63}  # integers that no compiled loop counts


class SampleKeywords(TypedDict):
    """The keywords of `llc.sample` that set its lengths."""

    num_chains: int
    num_warmup: int
    num_draws: int
    thinning: int
    batch_size: int | None
    eval_size: int | None
    step_energies: bool


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """What both records share: the fields that are never chosen, and the checks.

    Attributes:
        num_chains: independent chains.
        batch_size: rows of a minibatch; None takes all the data.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all the data.
        step_energies: whether every step's own minibatch gives an energy as well (see step_energies.py).
    """

    num_chains: int
    batch_size: int | None = None
    eval_size: int | None = None
    step_energies: bool | None = False

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        require_flag("step_energies", self.step_energies, optional=isinstance(self, RequestedLengths))
        for field in fields(self):
            if field.name not in ("batch_size", "eval_size", "step_energies"):  # see check_rows
                least = int(field.name != "num_warmup")
                most = _MOST[field.name] if field.name in _MOST else 2**31 - 1
                value = getattr(self, field.name)
                if not (value is None and field.default is None):
                    require_integer(field.name, value, least=least, most=most)

    def check_rows(self, num_data: int) -> None:
        """Raises ValueError if batch_size or eval_size is no integer from 1 to `num_data`, naming it."""
        for name, value in (("batch_size", self.batch_size), ("eval_size", self.eval_size)):
            right = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value <= num_data
            if not (right or value is None):
                raise ValueError(
                    f"{name} needs an integer from 1 to n = {num_data}, got {value!r}; None takes all the data."
                )


@dataclass(frozen=True, kw_only=True)
class RequestedLengths(_Lengths):
    """The lengths that a user asks for; None leaves one to calibration.

    Attributes:
        num_draws: recorded draws a chain.
        num_warmup: steps discarded.
        thinning: steps between two draws.
        budget: most work of all chains together, in gradients of the loss over all the data; None sets no limit.

    Raises:
        ValueError: if a length is out of range.
    """

    num_draws: int | None = None
    num_warmup: int | None = None
    thinning: int | None = None
    budget: int | None = None
    step_energies: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RunLengths(_Lengths):
    """The lengths of a run.

    Attributes:
        num_draws: recorded draws a chain.
        num_warmup: steps discarded.
        thinning: steps between two draws.
        max_steps: most steps of a chain, draws that are added included; None sets no limit.

    Raises:
        ValueError: if a length is out of range, naming it.

    Example:
        >>> RunLengths(num_chains=4, num_warmup=500, num_draws=1000, thinning=10).num_steps
        10500
    """

    num_draws: int
    num_warmup: int
    thinning: int
    max_steps: int | None = None
    step_energies: bool = False

    @property
    def num_steps(self) -> int:
        """Steps of a chain, the warm-up included."""
        return self.num_warmup + self.num_draws * self.thinning

    @property
    def num_warmup_draws(self) -> int:
        """Draws of the warm-up, which is rounded up to whole draws."""
        return -(-self.num_warmup // self.thinning)

    def max_draws(self, max_factor: int) -> int:
        """Draws that a chain may have: as many as `max_steps` allows, or `max_factor` times the first ones."""
        if self.max_steps is None:
            return max_factor * self.num_draws
        return max((self.max_steps - self.num_warmup) // self.thinning, self.num_draws)

    def slower(self, factor: int) -> "RunLengths":
        """The same draws with `factor` times the steps between them and before them."""
        return replace(self, num_warmup=factor * self.num_warmup, thinning=factor * self.thinning)

    def shorter(self, factor: int) -> "RunLengths":
        """One part in `factor` of the draws and of the warm-up, at least one of each."""
        num_draws, num_warmup = max(1, self.num_draws // factor), max(1, self.num_warmup // factor)
        return replace(self, num_draws=num_draws, num_warmup=num_warmup)

    def keywords(self) -> SampleKeywords:
        """The keywords of `llc.sample`: `llc.sample(key, posterior, sampler, **lengths.keywords())`."""
        fields = asdict(self)
        del fields["max_steps"]
        return SampleKeywords(**fields)
