r"""λ from the least of m losses: no gradient, no Hessian, no chain.

Where P(K < e) ~ c e^λ under z ~ N(0, I), K = L(w* + σz) − L(w*), the least of m independent K has

$$ E \log \min(K_1, …, K_m) = -\frac{\log m}{\lambda} + \text{const} + o(1) , $$

because m c K_min^λ tends to an exponential variable. A multiplicity of 2 or more adds a term log log m, by which λ̂ is
too low. The mean over all subsets of m in a group of M is known exactly, as a weighted sum of its ordered logarithms.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import gammaln
from tqdm.auto import tqdm

from llc.geometry.selection.sampling import Losses, losses_around, require_sigma
from llc.posterior.arguments import require_flag, require_integer, require_type
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_SUBSETS = (64, 16, 4)  # M / m: small enough a part of the group that its least loss repeats, large enough to be rare
_LARGEST = 3.0  # λ above which m^(−1/λ) is too close to 1 for K_min to be near its limit (20 % low at λ = 5)


@dataclasses.dataclass(frozen=True)
class BestOf:
    """λ from the slope of E log K_min on log m.

    Attributes:
        value: λ̂ = −1 / slope from m = M/64 to M/4.
        stderr: its standard error over the groups.
        bend: λ̂ from M/16 to M/4 less λ̂ from M/64 to M/16, its trend as m grows; of the order of the remaining bias.
        bend_stderr: its standard error.
        sigma: σ.
        num_candidates: M, losses in a group.
        num_groups: groups.
        message: what is wrong with the number, and what to do about it; empty where nothing is wrong.
    """

    value: float
    stderr: float
    bend: float
    bend_stderr: float
    sigma: float
    num_candidates: int
    num_groups: int
    message: str

    def __str__(self) -> str:
        text = (
            f"λ = {self.value:.3f} ± {self.stderr:.3f} by the best of m = {self.num_candidates // 64} … "
            f"{self.num_candidates // 4} losses, σ = {self.sigma:.3g}; bend {self.bend:+.3f} ± {self.bend_stderr:.3f}"
        )
        return f"{text}\n{self.message}" if self.message else text


def best_of_slope(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    sigma: float | None = None,
    num_candidates: int = 4096,
    num_groups: int = 64,
    progress: bool | None = None,
) -> BestOf:
    """A check of λ ≲ 3 from losses alone: −1 over the slope of the log of the best of m losses in log m.

    Memory: as `selected_covariance`, without its matrices. Time: num_candidates · num_groups losses.

    Args:
        key: of the candidates.
        posterior: loss, data, w* and mask.
        sigma: σ; λ is that of w*'s neighbourhood of this size. None takes 0.01 RMS(w*).
        num_candidates: M; m goes from M/64 to M/4. A larger M comes nearer to m → ∞.
        num_groups: independent groups, for the standard error.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if a setting is out of range, or a loss near w* is not above that of w* (no minimum, or noise).

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> posterior = LocalPosterior(lambda w, x: jnp.sum(w**2) ** 2, np.zeros(2), np.zeros((10, 1)))  # λ = 1/2
        >>> result = best_of_slope(jax.random.key(0), posterior, sigma=0.1)
        >>> abs(result.value - 0.5) < 4 * result.stderr
        True
    """
    check_key(key)
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    require_integer("num_candidates", num_candidates, least=256)
    require_integer("num_groups", num_groups, least=2)
    require_flag("progress", progress, optional=True)
    sigma = require_sigma(posterior, sigma)
    sizes = np.array([num_candidates // part for part in _SUBSETS])
    with float64():
        losses, weights = losses_around(posterior, None), jnp.asarray(_subset_weights(num_candidates, sizes))
        logs = _of_groups(key, losses, sigma, weights, num_groups, progress=progress)
    return _from_logs(logs, sizes, sigma, num_candidates)


def _of_groups(
    key: PRNGKeyArray,
    losses: Losses,
    sigma: float,
    weights: Float[Array, "candidate size"],
    num_groups: int,
    *,
    progress: bool | None,
) -> Float[np.ndarray, "group size"]:
    """E log K_min over the subsets of each size, group by group."""
    logs = np.zeros((num_groups, weights.shape[1]))
    with tqdm(
        total=len(weights) * num_groups,
        disable=None if progress is None else not progress,
        desc="best of m",
        unit="loss",
    ) as bar:
        center = losses.at(key[None], jnp.zeros((1, losses.dim)))[0]
        for group in range(num_groups):
            group_key = jax.random.fold_in(key, group)
            logs[group], least = jax.device_get(_group(group_key, losses, center, jnp.asarray(sigma), weights))
            if not least > 0:
                raise ValueError(
                    f"the losses around w* need to be above that of w*, got {least:.2g} at sigma = {sigma:.3g}: w* "
                    "is no minimum of this loss, or the differences are round-off; train on, or choose a larger sigma."
                )
            if not np.isfinite(logs[group]).all():
                raise ValueError(
                    f"the losses around w* need to be finite, got too many others at sigma = {sigma:.3g}; "
                    "take a smaller one."
                )
            bar.update(len(weights))
    return logs


def _from_logs(logs: Float[np.ndarray, "group size"], sizes: np.ndarray, sigma: float, num_candidates: int) -> BestOf:
    """λ̂ and its bend from the slopes of the logarithms, with errors over the groups."""
    num_groups = len(logs)
    steps = np.diff(np.log(sizes))
    slopes = np.column_stack([np.diff(logs, axis=1) / steps, (logs[:, -1] - logs[:, 0]) / steps.sum()])
    mean = slopes.mean(axis=0)
    # dλ̂ = d slope / slope², for the first half, the second half and the whole.
    pulls = (slopes - mean) / mean**2
    error = np.std(pulls, axis=0, ddof=1) / math.sqrt(num_groups)
    first, second, value = -1 / mean
    bend_error = np.std(pulls[:, 1] - pulls[:, 0], ddof=1) / math.sqrt(num_groups)
    message = ""
    if value > _LARGEST:
        message = (
            f"λ needs to be below about {_LARGEST:.0f} for this check, got {value:.2f}, which is too low: K_min falls "
            "as m^(−1/λ), and has not reached its limit yet. Sample instead (llc.estimate)."
        )
    return BestOf(
        value=float(value),
        stderr=float(error[2]),
        bend=float(second - first),
        bend_stderr=float(bend_error),
        sigma=sigma,
        num_candidates=num_candidates,
        num_groups=num_groups,
        message=message,
    )


def _subset_weights(num_candidates: int, sizes: np.ndarray) -> Float[np.ndarray, "candidate size"]:
    """Probability that the i-th least of M is the least of a random subset of m: C(M − i, m − 1) / C(M, m)."""
    rest = num_candidates - np.arange(1, num_candidates + 1)[:, None]
    with np.errstate(invalid="ignore"):
        log = _log_binomial(rest, sizes - 1) - _log_binomial(num_candidates, sizes)
    return np.where(rest >= sizes - 1, np.exp(log), 0.0)


def _log_binomial(total: np.ndarray | int, part: np.ndarray) -> np.ndarray:
    return gammaln(total + 1) - gammaln(part + 1) - gammaln(np.maximum(total - part, 0) + 1)


@eqx.filter_jit
def _group(
    key: PRNGKeyArray,
    losses: Losses,
    center: Float[Array, ""],
    sigma: Float[Array, ""],
    weights: Float[Array, "candidate size"],
) -> tuple[Float[Array, "size"], Float[Array, ""]]:
    """E log K_min over the subsets of one group, and the least K."""
    point_key, noise_key = jax.random.split(key)
    z = jax.random.normal(point_key, (len(weights), losses.dim))
    keys = jax.random.split(noise_key, len(weights))  # only a loss with noise uses them
    excess = jnp.sort(losses.at(keys, sigma * z) - center)
    parts = jnp.where(weights > 0, jnp.log(excess)[:, None] * weights, 0.0)  # losses that are not finite come last
    return jnp.sum(parts, axis=0), excess[0]
