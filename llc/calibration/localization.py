r"""How strong a localization has to be for λ̂ to say something of w*: its posterior lies where the loss is quadratic.

If the loss were quadratic, the posterior would be the Gaussian $N(w^*, (n\beta H + \gamma)^{-1})$, and the mean excess
loss under it would be λ_quad. The ratio of the two,

$$ \kappa(\gamma) = \frac{n\beta\, \mathbb{E}_\gamma [L(w) - L(w^*)]}{\lambda_{quad}(\gamma)}, $$

needs losses at a few Gaussian points only, no chain. It is 1 as γ → ∞ and grows where the Gaussian reaches beyond the
quadratic part. In d dimensions its flat directions carry it √(d/γ) away from w*, which for a network may be farther
than w* is from zero: the loss there is at chance, and λ̂ says nothing of w*. γ is the weakest localization with κ ≤ 2
at which the mean loss is at most a quarter of the way from L(w*) to the loss at zero: one that flattens out, as that of
a saturated network, has κ < 1 where nothing is left of what was learnt. A posterior avoids high losses, so that κ is an
upper estimate of λ̂ / λ_quad, and its mean loss is taken to be that of the quadratic where κ > 1.

All κ of a search are of the same points, scaled, and of the same rows, so that κ(γ) is smooth and κ = 2 can be solved
for. What is left is the noise of the points, which other keys show (validation/checkpoints.py).

At γ found from the last checkpoint of a transformer (102,656 parameters, addition modulo 29), κ was 2.2 with another
key and λ̂/λ_quad 1.89 ± .22 there. At the same γ, which was not chosen for them, earlier checkpoints had κ = .97 and .91
and λ̂/λ_quad = .96 and .90.

This is for spectra without a gap. Where the rank is one number, directions are either curved or flat, λ_corr adds what
localization hides, and γ follows from the length of the run alone (step_size.py).
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from llc.bounds.rank import rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.reference import reference_loss
from llc.posterior.rows import Rows, in_pieces, rows_that_fit

MAX_ANHARMONICITY = 2.0  # κ; λ̂/λ_quad is about κ where γ decides, and 3 is not to be passed with a noise of 16 %
_MAX_SHARE = 0.25  # of the way to the loss at zero (set by eye, as in llc/analysis/character.py)
_STRONGEST = 4.0**6  # γ/nβ in units of h_max from which the search goes down
_STEP = 4.0  # factor between two γ that are tried until κ = 2 lies between them
_REFINEMENTS, _CLOSE = 5, 1.02  # times that the interval is cut, at most, and the factor at which it is narrow enough
_PAIRS = 16  # of points w* ± x; with 4 log γ varied by .11–.25 from key to key, with 16 by .11–.16 (two transformers)
_FEWEST_PAIRS = 4  # where points cost more than that; what a pair differs by is of first order in 1/√d
_ROWS = 512  # of the data, at most
_OF_CHANCE = (
    0.1  # of the way to the loss at zero that the named weaker γ goes (set by eye: draws had a degree of 3.4 there)
)
_OPERATIONS = 2e12  # of all losses together, which bounds the rows of a large model


class Localization(NamedTuple):
    """A γ, and how it was found.

    Attributes:
        gamma: γ.
        anharmonicity: κ there; nan if the run's length alone decides.
        profile: the (γ, κ) that were tried, strongest first.
        weaker: a weaker γ, at which the Gaussian's mean loss is a tenth of the way from L(w*) to the loss at zero, so
            that its points lie in the basin, quadratic or not; nan if there is none.
        share: of the way from L(w*) to the loss at zero, of the posterior's mean loss; nan where that is no higher.
        item: of a sweep, at whose w* it was found; empty for that of the posterior itself.
    """

    gamma: float
    anharmonicity: float
    profile: tuple[tuple[float, float], ...]
    weaker: float = math.nan
    share: float = math.nan
    item: str = ""

    @property
    def is_of_length(self) -> bool:
        """Whether the loss is about quadratic at the weakest γ that the length of the run allows."""
        return self.is_local and all(gamma >= self.gamma for gamma, _ in self.profile)

    @property
    def decided_by_share(self) -> bool:
        """Whether a weaker γ was refused for how near the loss at zero is, and not for κ."""
        return self.share / _MAX_SHARE > self.anharmonicity / MAX_ANHARMONICITY and not self.is_of_length

    @property
    def is_local(self) -> bool:
        """Whether the Gaussian at γ lies where the loss is quadratic, to a factor of 2."""
        return self.anharmonicity <= MAX_ANHARMONICITY


def has_use_for_localization(spectrum: Spectrum) -> bool:
    """Whether γ is to be found this way: the spectrum has no gap, and its eigenvectors are known."""
    known = spectrum.vectors is not None and len(spectrum.vectors) > 0
    return known and spectrum.largest > 0 and not rank_bounds(spectrum).rank_is_unique


def choose_localization(
    key: PRNGKeyArray, posterior: LocalPosterior, spectrum: Spectrum, weakest: float, *, operations: float
) -> Localization:
    """The weakest localization, not below `weakest`, whose Gaussian lies where the loss is quadratic.

    Args:
        key: of the Gaussian points and the rows.
        posterior: loss, data and w*.
        spectrum: with eigenvectors.
        weakest: γ that the length of the run allows.
        operations: of a gradient over all the data (operations.py).
    """
    points_key, rows_key = jax.random.split(key)
    probe = _Probe(points_key, rows_key, posterior, spectrum, operations)
    to_zero = _to_zero(posterior)
    gamma = max(_STRONGEST * probe.nbeta * spectrum.largest, weakest)
    tried = [probe.tried(gamma, to_zero)]
    # Where the strongest γ leave so little loss that it is lost in rounding, the first κ mean nothing: go on down.
    while (tried[-1].is_local or not any(one.is_local for one in tried)) and tried[-1].gamma > weakest:
        tried.append(probe.tried(max(tried[-1].gamma / _STEP, weakest), to_zero))
    if not tried[-1].is_local and any(one.is_local for one in tried):
        tried += _refined(probe, tried[-2], tried[-1], to_zero)
    local = [one for one in tried if one.is_local]
    found = min(local) if local else _nearest(tried)
    profile = tuple(sorted(((one.gamma, one.anharmonicity) for one in tried), reverse=True))
    weaker = _weaker(probe, found.gamma, weakest, to_zero) if local else math.nan
    return Localization(found.gamma, found.anharmonicity, profile, weaker, found.share)


class _Tried(NamedTuple):
    """A γ, κ there, and how far the posterior's mean loss is on the way to that at zero, as of `Localization`."""

    gamma: float
    anharmonicity: float
    share: float

    @property
    def strain(self) -> float:
        """At most 1 where the Gaussian lies where the loss is quadratic, and below chance."""
        return float(np.fmax(self.anharmonicity / MAX_ANHARMONICITY, self.share / _MAX_SHARE))

    @property
    def gaussian_share(self) -> float:
        """The same of the Gaussian's mean loss."""
        return max(self.anharmonicity, 1.0) * self.share

    @property
    def is_local(self) -> bool:
        return self.strain <= 1


def _to_zero(posterior: LocalPosterior) -> float:
    """The loss at zero less L(w*); nan where that is not positive."""
    zero = reference_loss(posterior)
    height = math.nan if zero is None else zero - posterior.init_loss()
    return height if height > 0 else math.nan


def _nearest(tried: list[_Tried]) -> _Tried:
    """The one of least κ of a loss that is quadratic nowhere, at most a tenth of the way to the loss at zero."""
    near = [one for one in tried if math.isfinite(one.anharmonicity) and not one.gaussian_share > _OF_CHANCE]
    return min(near, key=lambda one: one.anharmonicity) if near else tried[0]


def _weaker(probe: "_Probe", gamma: float, weakest: float, to_zero: float) -> float:
    """γ at which the mean loss is a tenth of the way to the loss at zero; nan unless it is below `gamma`."""
    limit = _OF_CHANCE * to_zero
    before, here = math.nan, probe.excess(gamma)
    while here < limit and gamma > weakest:
        gamma = max(gamma / _STEP, weakest)
        before, here = here, probe.excess(gamma)
    if not before < limit <= here < math.inf:
        return math.nan
    return gamma * _STEP ** (math.log(here / limit) / math.log(here / before))


def _refined(probe: "_Probe", strong: _Tried, weak: _Tried, to_zero: float) -> list[_Tried]:
    """More γ between one that is local and one that is not, nearer to the weakest local one."""
    tried = []
    for _ in range(_REFINEMENTS):
        if strong.gamma < _CLOSE * weak.gamma:
            break
        one = probe.tried(_between(strong, weak), to_zero)
        tried.append(one)
        strong, weak = (one, weak) if one.is_local else (strong, one)
    return tried


def _between(strong: _Tried, weak: _Tried) -> float:
    """γ where the line through both in logarithms has a strain of 1, inside of the interval; its middle without one."""
    part = 0.5
    if np.isfinite(weak.strain) and 0 < strong.strain < 1:
        part = np.log(1 / strong.strain) / np.log(weak.strain / strong.strain)
    return float(strong.gamma * (weak.gamma / strong.gamma) ** np.clip(part, 0.02, 0.98))


def anharmonicity(
    key: PRNGKeyArray, posterior: LocalPosterior, spectrum: Spectrum, gamma: float, *, operations: float
) -> float:
    """κ(γ) at one γ, by the points that `choose_localization` takes with the same key.

    Args:
        key: of the Gaussian points and the rows.
        posterior: loss, data and w*.
        spectrum: with eigenvectors.
        gamma: γ.
        operations: of a gradient over all the data (operations.py).
    """
    points_key, rows_key = jax.random.split(key)
    return _Probe(points_key, rows_key, posterior, spectrum, operations).tried(gamma, math.nan).anharmonicity


class _Probe:
    """Losses of Gaussian points on a few rows; the same points, scaled, and the same rows for every γ."""

    def __init__(
        self,
        key: PRNGKeyArray,
        rows_key: PRNGKeyArray,
        posterior: LocalPosterior,
        spectrum: Spectrum,
        operations: float,
    ) -> None:
        num_data = posterior.num_data
        a_row = max(operations / num_data / 3, 1.0)  # a loss is a third of a gradient
        size = int(min(_ROWS, num_data, max(_OPERATIONS / (20 * 2 * _FEWEST_PAIRS * a_row), 8)))
        rows = jax.device_get(jax.random.choice(rows_key, num_data, (size,), replace=False))
        data = jax.tree.map(lambda x: x[rows], posterior.data)
        length = rows_that_fit(lambda batch: posterior.loss(posterior.center, batch), data, size)
        self.posterior, self.spectrum, self.data = posterior, spectrum, in_pieces(data, length)
        self.nbeta = float(posterior.nbeta)
        num_pairs = int(np.clip(_OPERATIONS / (20 * 2 * a_row * size), _FEWEST_PAIRS, _PAIRS))
        dtype = jnp.result_type(*jax.tree.leaves(posterior.position))
        self.normals = jax.random.normal(key, (num_pairs, spectrum.dim), dtype)
        vectors = spectrum.vectors if spectrum.vectors is not None else np.zeros((0, spectrum.dim))
        self.vectors = jnp.asarray(vectors, self.normals.dtype)
        self.curvatures = spectrum.vector_eigenvalues

    def tried(self, gamma: float, to_zero: float) -> _Tried:
        """κ(γ), inf where a loss is not finite, and the part of the way to the loss at zero."""
        quad = self.spectrum.quad(gamma / self.nbeta)
        kappa = self.nbeta * self.excess(gamma) / quad if quad > 0 else np.inf
        kappa = float(kappa) if np.isfinite(kappa) else np.inf
        return _Tried(gamma, kappa, min(kappa, 1.0) * quad / self.nbeta / to_zero)

    def excess(self, gamma: float) -> float:
        """Mean of L(w) − L(w*) over the points of γ."""
        shrunk = np.sqrt(gamma / (self.nbeta * np.maximum(self.curvatures, 0.0) + gamma)) - 1
        scales = jnp.asarray(shrunk, self.normals.dtype)
        root = jnp.asarray(np.sqrt(gamma), self.normals.dtype)
        return float(_mean_excess(self.posterior, self.data, self.normals, self.vectors, scales, root))


@eqx.filter_jit
def _mean_excess(
    posterior: LocalPosterior,
    data: Rows,
    normals: Float[Array, "point dim"],
    vectors: Float[Array, "curved dim"],
    scales: Float[Array, "curved"],
    root: Float[Array, ""],
) -> Float[Array, ""]:
    """Mean of L(w) − L(w*) over the points w* ± x; slopes at w* drop out of a pair."""
    flat, unravel = ravel_pytree(posterior.position)

    def losses(position: Float[Array, "dim"]) -> Array:
        params = posterior.params_at(unravel(position))
        return data.map(lambda batch: jnp.atleast_1d(posterior.loss_fn(params, batch)))

    here = losses(flat)

    def of_pair(normal: Float[Array, "dim"]) -> Array:
        offset = (normal + (scales * (vectors @ normal)) @ vectors) / root
        return 0.5 * jnp.mean(losses(flat + offset) - here + losses(flat - offset) - here)

    return jnp.mean(jax.lax.map(of_pair, normals))
