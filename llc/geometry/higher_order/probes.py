r"""Bounds on λ beyond those of the Hessian's rank, each from one probe of the loss around w*.

With r = rank H, g the rest of the loss (splitting.py) of order 2k, D the dimension of the symmetry orbit (symmetry.py),
d₄ the number of variables of the effective quartic and ρ the rank of one combination of the residuals' quadratic forms
(quartic.py):

| name | bound |
|---|---|
| order of g | r/2 + 1/2k ≤ λ ≤ r/2 + (d − D − r)/2k |
| certificate g ≡ 0 | λ = r/2 |
| symmetry orbit | λ ≤ r/2 + (d − D − r)/4 |
| effective quartic | λ ≤ r/2 + d₄/4 + (d − D − r − d₄)/6 |
| nearby component | λ ≤ r'/2, r' the codimension of smooth zeros that come near w* (components.py) |
| squared loss | λ ≥ r/2 + min(½, ρ/4), with residuals |
| resolution | λ ≥ r/2 + ½ lct of the residuals' leading forms (resolution.py) |

The last two need residuals: a squared error at exact fit, or a cross-entropy whose targets are the model's own
probabilities. All rest on the assumptions of the rank's bounds, on an analytic loss, and on a unique rank.

Three bounds that look similar are false: λ ≥ r/2 + d₄/4 (counterexample (|t|² − s²)², t ∈ R³), λ ≤ half the number of
equations (|x|⁴ in R³), and λ ≤ half of the generic rank off the zero set.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray
from tqdm.auto import tqdm

from llc.bounds.assumptions import NO_DESCENT, Assumption
from llc.bounds.bound import Bound, Status
from llc.bounds.rank import Bounds, rank_bounds, tighten
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.higher_order.excess import Excess, excess_loss, measure_scale
from llc.geometry.higher_order.ranges import (
    MAX_ORDER,
    RangeError,
    Storage,
    decompose,
    project,
    require_fit,
    storage_for,
)
from llc.geometry.higher_order.ranks import complete_spectrum
from llc.geometry.higher_order.records import (
    CERTIFICATE,
    COMPONENT,
    ORDER,
    QUARTIC,
    RESOLUTION,
    SQUARED,
    SYMMETRY,
    Point,
    of_certificate,
    of_component,
    of_independent_residuals,
    of_order,
    of_quartic,
    of_resolution,
    of_squared,
    of_symmetry,
    price_of,
)
from llc.geometry.higher_order.splitting import order, remainder_profile, vanishes
from llc.geometry.higher_order.symmetry import Generator, symmetry_dimension
from llc.posterior.arguments import require_flag, require_integer, require_number, require_option, require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

METHODS = ("auto", "dense", "matrix_free")
_ROUNDING = 1e-9  # of bounds that are sums of fractions


def higher_bounds(
    posterior: LocalPosterior,
    spectrum: Spectrum | None = None,
    bounds: Bounds | None = None,
    *,
    key: PRNGKeyArray,
    generators: Sequence[Generator] = (),
    method: str = "auto",
    memory: float | None = None,
    budget: int | None = None,
    progress: bool | None = None,
) -> Bounds:
    """The tightest valid bounds on λ from the Hessian's rank and the loss beyond it, with a record of each probe.

    In float64, over all the data. Probes that come after λ is known are left out. What they cost, in products of the
    Hessian, the Jacobian of the residuals, or gradients, for d parameters, r = rank H and m residuals (n examples times
    their outputs, at an exact fit):

    | step | `"dense"` | `"matrix_free"` |
    |---|---|---|
    | range of H | d | m where m ≤ 5,000, else about r + 64 |
    | certificate and order of g | up to 5,544 | the same |
    | effective quartic | 16 for each of up to d − r + 5 points | 2,048 at most |
    | squared loss | 36 | 36 |
    | nearby component | about 10 d for each of 64 starts | about 2,000 + m for each of 8, with residuals only |
    | resolution | about 6,000, at most 15,000 | the same |

    Args:
        posterior: loss, data and w*. With `predict_fn`, and a squared loss at exact fit, g is known to the square of
            round-off.
        spectrum: of the Hessian; None computes one with all eigenvalues that are not zero, if there are at most 5,000.
        bounds: of the rank, whose assumptions all bounds share; None takes those at the posterior's nβ and γ.
        key: of the random directions and starts.
        generators: symmetries beside those that the shapes of the params propose. `generator(params)` is the tangent
            of a flow that leaves the loss unchanged, a pytree like the params. A flow along which the loss changes is
            rejected.
        method: `"dense"` makes d × d matrices, `"matrix_free"` keeps what the range of the Hessian takes; `"auto"` is
            dense up to d = 5,000. Beyond it no symmetries but those of `generators` are looked for.
        memory: most GiB that are taken beside the data: 80 d² bytes if dense; else 80 m² + 1024 d, or about 32 r d
            where m > 5,000 or there are no residuals. None takes 8, and no more than 80 % of what is free.
        budget: most products of one probe. One that may take more is left out, and says so. None sets no limit.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        `bounds` with the largest lower and the smallest upper bound, `source` naming both, and `records`.

    Raises:
        ValueError: if it does not fit in `memory`, a setting is unknown or out of range, or the spectrum is not of the
            same order as the posterior.

    References:
        Watanabe 2009, Algebraic geometry and statistical learning theory, Theorem 6.5 (splitting lemma).
    """
    check_key(key)
    require_differentiable(posterior)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_flag("progress", progress, optional=True)
    if not (isinstance(generators, Sequence) and all(map(callable, generators))):
        raise ValueError(f"generators needs a list of functions of params, got {type(generators).__name__}.")
    require_option("method", method, METHODS)
    require_number("memory", memory, optional=True)
    require_integer("budget", budget, least=1, optional=True)
    with float64():
        excess_key, key = jax.random.split(key)
        excess = excess_loss(posterior, excess_key)
        storage = storage_for(excess, dense={"auto": None, "dense": True, "matrix_free": False}[method], memory=memory)
    if spectrum is None:
        spectrum = complete_spectrum(posterior, progress=progress)
    if spectrum.dim != posterior.num_params:
        raise ValueError(
            f"higher_bounds needs the spectrum of the posterior's {posterior.num_params} parameters, got one of order "
            f"{spectrum.dim}; leave it out, or pass llc.spectrum(posterior)."
        )
    if bounds is not None and bounds.dim != posterior.num_params:
        needed = f"bounds need to be of the posterior's {posterior.num_params} parameters, got those of {bounds.dim}"
        raise ValueError(f"{needed}; leave them out, or pass llc.rank_bounds(spectrum).")
    if bounds is None:
        scale = {} if posterior.gamma is None else posterior.scale._asdict()
        bounds = rank_bounds(spectrum, **scale)
    if not bounds.valid:
        failed = ", ".join(assumption.name for assumption in bounds.assumptions if not assumption.holds)
        return tighten(bounds, _all(NAMES, "not used", f"an assumption of the rank's bounds fails: {failed}"))
    if spectrum.unstable_eigenvalues.size:
        seen = "w* is not at a minimum but beside one; move it there by llc.polish"
        return tighten(bounds, _all(NAMES, "undecided", seen))
    hidden = None if progress is None else not progress
    with float64(), tqdm(desc="bounds", unit="product", disable=hidden) as bar:
        seen = _probe(excess, storage, bounds, key, generators, _Work(bar, budget, excess, storage))
    if not seen.is_saddle:
        return tighten(bounds, seen.records)
    message = "the loss falls below that of w* in the kernel of the Hessian, so that w* is a saddle; train further"
    saddle = Assumption(NO_DESCENT, holds=False, message=message, kind="minimum")
    assumptions = (*bounds.assumptions, saddle)
    return replace(bounds, lower=np.nan, upper=np.nan, assumptions=assumptions, records=seen.records, is_saddle=True)


NAMES = (SYMMETRY, CERTIFICATE, ORDER, QUARTIC, SQUARED, COMPONENT, RESOLUTION)


def _all(names: Sequence[str], status: Status, finding: str) -> tuple[Bound, ...]:
    """The same said of several probes."""
    return tuple(Bound(name, status, finding) for name in names)


class _Seen(NamedTuple):
    """A record of each probe, and whether the loss was seen to fall below that of w*."""

    records: tuple[Bound, ...]
    is_saddle: bool = False


@dataclass
class _Work:
    """The bar over the products of all probes that are left, and the most that one of them may take."""

    bar: tqdm
    budget: int | None
    excess: Excess
    storage: Storage

    def begin(self, names: Sequence[str]) -> None:
        """The first of `names` begins, and the others are to come."""
        self.bar.total = self.bar.n + sum(price_of(name, self.excess, self.storage) for name in names)
        self.bar.set_postfix_str(names[0])

    def too_dear(self, name: str) -> Bound | None:
        """The record of a probe that is left out for its price."""
        price = price_of(name, self.excess, self.storage)
        if self.budget is None or price <= self.budget:
            return None
        return Bound(name, "undecided", f"it may take {price:,} products, more than budget={self.budget:,}")

    def spend(self, products: int) -> None:
        """Some products were taken."""
        self.bar.update(products)


def _probe(
    excess: Excess,
    storage: Storage,
    bounds: Bounds,
    key: PRNGKeyArray,
    generators: Sequence[Generator],
    work: _Work,
) -> _Seen:
    """All probes, from the cheapest on, up to where λ is known."""
    keys = jax.random.split(key, 7)
    work.begin(NAMES)
    start = time.perf_counter()
    by_shape = excess.dim <= MAX_ORDER
    symmetry = symmetry_dimension(excess, keys[0], generators, by_shape=by_shape)
    records = (_timed(of_symmetry(symmetry, bounds, by_shape=by_shape), start),)
    if not bounds.rank_is_unique:
        return _Seen(records + _all(NAMES[1:], "undecided", _why_not_unique(bounds)))
    if bounds.rank == excess.dim:
        return _Seen(records + _all(NAMES[1:], "not needed", "the Hessian has full rank, so λ = d/2"))
    work.begin(NAMES[1:])
    if (dear := work.too_dear(CERTIFICATE)) is not None:
        return _Seen(records + _all(NAMES[1:], dear.status, dear.finding))
    try:
        require_fit(storage, int(bounds.rank))
        splitting = decompose(excess, jnp.zeros(excess.dim), storage).above(bounds.threshold)
    except RangeError as error:
        return _Seen(records + _all(NAMES[1:], "undecided", str(error)))
    if splitting.rank != bounds.rank:
        return _Seen(records + _all(NAMES[1:], "undecided", "the rank is not that of the Hessian at w*"))
    scale = measure_scale(excess, lambda points: project(splitting, points), keys[1])
    point = Point(excess, splitting, scale, storage, symmetry.dimension, work.spend)
    if (independent := of_independent_residuals(point)) is not None:
        return _Seen((*records, independent, *_all(NAMES[2:], "not needed", "λ = r/2 is known")))
    start = time.perf_counter()
    profile = remainder_profile(excess, splitting, scale, keys[2], spend=work.spend)
    certified, leading = vanishes(profile, scale), order(profile)
    records += (_timed(of_certificate(point, certified=certified), start),)
    if certified:
        return _Seen(records + _all(NAMES[2:], "not needed", "λ = r/2 is known"))
    if order(profile._replace(values=-profile.values)) is not None:
        return _Seen(records + _all(NAMES[2:], "not used", "w* is a saddle, since g < 0"), is_saddle=True)
    return _Seen(_beyond_the_order(point, leading, bounds, (*records, of_order(point, leading)), keys[3:], work))


def _why_not_unique(bounds: Bounds) -> str:
    if not np.isnan(bounds.gap):
        return "the rank is not unique, since the spectrum has no gap"
    return "the rank is an estimate; leave spectrum= out, unless there are more than 5,000 curvatures"


def _beyond_the_order(
    point: Point,
    leading: int | None,
    bounds: Bounds,
    records: tuple[Bound, ...],
    keys: Key[Array, "probe"],
    work: _Work,
) -> tuple[Bound, ...]:
    """`records`, and those of the probes that are left."""
    probes: dict[str, Callable[[Point, int | None, PRNGKeyArray], Bound]] = {
        QUARTIC: of_quartic,
        SQUARED: of_squared,
        COMPONENT: of_component,
        RESOLUTION: of_resolution,
    }
    for index, (name, probe) in enumerate(probes.items()):
        work.begin(list(probes)[index:])
        narrowed = tighten(bounds, records)
        if narrowed.lower == narrowed.upper:
            records += _all((name,), "not needed", "λ is known")
            continue
        start = time.perf_counter()
        record = work.too_dear(name) or probe(point, leading, keys[index])
        if record.lower > narrowed.upper + _ROUNDING:  # what rests on a search gives way
            finding = f"λ ≥ {record.lower:.4g} by the zeros found, above λ ≤ {narrowed.upper:.4g}: some are missing"
            record = replace(record, status="undecided", finding=finding, lower=-np.inf)
        records += (_timed(record, start),)
    return records


def _timed(bound: Bound, start: float) -> Bound:
    return replace(bound, seconds=time.perf_counter() - start)
