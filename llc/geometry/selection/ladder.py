r"""Selected samples at rising σ, which show where the ranks depend on σ.

With K = ½ σ² zᵀHz + O(σ³), the order of the losses and so C do not depend on σ until higher terms matter. At small σ
noise of the loss hides the quadratic part. At large σ quartic terms select along the kernel, and the variance there
falls below σ².
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from llc.geometry.selection.laws import stein_edge
from llc.geometry.selection.sampling import checked_winners, default_sigmas, require_sigma, select
from llc.geometry.selection.winners import SelectedSamples
from llc.posterior.arguments import require_type
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior


@dataclasses.dataclass(frozen=True)
class SigmaLadder:
    """Selected samples at rising σ, from the same z.

    Attributes:
        rungs: one for each σ, least first.
        agree: whether C is the same, up to chance, at a rung and the next.
        kernel_variances: variance of the winners, in σ², in the kernel as the first rung certifies it; nan if it is 0.
        kernel_error: standard error of each.
    """

    rungs: tuple[SelectedSamples, ...]
    agree: tuple[bool, ...]
    kernel_variances: tuple[float, ...]
    kernel_error: float

    def __str__(self) -> str:
        lines = [
            f"σ = {rung.sigma:.3g}: rank ≥ {rung.rank}, kernel variance {variance:.3f} ± {self.kernel_error:.3f}"
            for rung, variance in zip(self.rungs, self.kernel_variances, strict=True)
        ]
        accepted = self.accepted
        end = "no plateau: try other σ" if accepted is None else f"plateau up to σ = {accepted.sigma:.3g}"
        if self.quartic:
            end += "; flat directions are selected too as σ grows (quartic terms, or noise that hid them at small σ)"
        return "\n".join([*lines, end])

    @property
    def accepted(self) -> SelectedSamples | None:
        """The rung of the largest σ at which C is still that of the rung below; None if there is none."""
        return next((rung for rung, agrees in zip(self.rungs[:0:-1], self.agree[::-1], strict=True) if agrees), None)

    @property
    def quartic(self) -> bool:
        """Whether the kernel's variance falls along the ladder, by more than four standard errors."""
        drop = self.kernel_variances[0] - min(self.kernel_variances)
        return bool(drop > 4 * np.sqrt(2) * self.kernel_error)


def sigma_ladder(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    noisy_loss_fn: Callable[[PRNGKeyArray, PyTree], Array] | None = None,
    num_candidates: int = 5,
    num_winners: int | None = None,
    sigmas: Sequence[float] | None = None,
    progress: bool | None = None,
) -> SigmaLadder:
    """`selected_covariance` at rising σ with the same z, which shows where the ranks depend on σ.

    On a quadratic without noise the same candidates win at every σ. Noise of the loss changes the winners at small σ,
    and terms beyond the quadratic, most of all quartic ones along the kernel, change them at large σ.

    Args:
        key: see `selected_covariance`, as for all others.
        posterior: loss, data, w* and mask.
        noisy_loss_fn: a noisy loss instead.
        num_candidates: m.
        num_winners: R, at each σ.
        sigmas: at least two rising σ. Default 0.001, 0.01 and 0.1 RMS(w*).
        progress: whether to show a progress bar.

    Raises:
        ValueError: as `selected_covariance`, or if `sigmas` do not rise.
    """
    check_key(key)
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    num_winners = checked_winners(posterior, num_candidates, num_winners)
    if sigmas is None:
        sigmas = default_sigmas(posterior)
    if isinstance(sigmas, str) or not isinstance(sigmas, (Sequence, np.ndarray)):
        raise ValueError(f"sigmas needs two or more rising numbers, got {type(sigmas).__name__}.")
    sigmas = tuple(require_sigma(posterior, sigma, "sigmas") for sigma in sigmas)
    if len(sigmas) < 2 or any(a >= b for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"sigmas needs two or more rising numbers, got {sigmas}.")
    rungs = select(key, posterior, noisy_loss_fn, num_candidates, num_winners, sigmas, progress=progress)
    # The difference of two moments is a sum over 2R winners of weights ±2. Selection makes it smaller, not larger.
    limit = 2 * stein_edge(np.array([rungs[0].dim]), 2 * num_winners, np.array([-1.0, 1.0]))[0]
    moments = [rung.covariance / rung.sigma**2 for rung in rungs]
    agree = [bool(np.linalg.norm(b - a, 2) < limit) for a, b in itertools.pairwise(moments)]
    kernel = np.linalg.eigh(rungs[0].halves[0])[1][:, rungs[0].certified_rank :]
    size = kernel.shape[1] or math.nan
    variances = [float(np.sum(kernel * (rung.halves[1] @ kernel)) / size) for rung in rungs]
    return SigmaLadder(rungs, tuple(agree), tuple(variances), math.sqrt(2 / (size * (num_winners // 2))))
