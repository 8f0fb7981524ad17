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
| squared loss | λ ≥ r/2 + min(½, ρ/4), at exact fit |

They rest on the assumptions of the rank's bounds, on an analytic loss, and on a unique rank. Three bounds that look
similar are false: λ ≥ r/2 + d₄/4 (counterexample (|t|² − s²)², t ∈ R³), λ ≤ half the number of equations (|x|⁴ in R³),
and λ ≤ half of the generic rank off the zero set.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray
from tqdm.auto import tqdm

from llc.bounds.assumptions import NO_DESCENT, Assumption
from llc.bounds.rank import Bound, Bounds, Status, rank_bounds, tighten
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.geometry.higher_order.components import nearby_component
from llc.geometry.higher_order.excess import Excess, Scale, dense_metric, excess_loss, measure_scale
from llc.geometry.higher_order.quartic import essential_variables, quadratic_rank
from llc.geometry.higher_order.splitting import Splitting, order, remainder_profile, split, vanishes
from llc.geometry.higher_order.symmetry import Generator, Symmetry, symmetry_dimension
from llc.posterior.arguments import require_flag, require_type
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

CERTIFICATE, ORDER, SYMMETRY = "certificate g ≡ 0", "order of g", "symmetry orbit"
QUARTIC, SQUARED, COMPONENT = "effective quartic", "squared loss", "nearby component"

_MATRICES = 10  # of d × d float64 numbers at a time
_BYTES = 2.0**31
_PROFILE = 42 * 12 * 11  # Hessian products of the order probe, at most


def higher_bounds(
    posterior: LocalPosterior,
    spectrum: Spectrum | None = None,
    bounds: Bounds | None = None,
    *,
    key: PRNGKeyArray,
    generators: Sequence[Generator] = (),
    progress: bool | None = None,
) -> Bounds:
    """The tightest valid bounds on λ from the Hessian's rank and the loss beyond it, with a record of each probe.

    Everything is dense and in float64, with about 10 d² numbers in memory. It takes d Hessian products for the Hessian,
    up to 5,000 for the order of g, 16 gradients for each of the d − r + 5 points of the quartic, and about 10 Hessians
    with their eigenvectors for each of 64 starts of the search for components. Probes that come after λ is known are
    left out.

    Args:
        posterior: loss, data and w*. With `predict_fn`, and a squared loss at exact fit, g is known to the square of
            round-off.
        spectrum: of the Hessian; None computes the dense one.
        bounds: of the rank, whose assumptions all bounds share; None takes those at the posterior's nβ and γ.
        key: of the random directions and starts.
        generators: symmetries beside those that the shapes of the params propose. `generator(params)` is the tangent
            of a flow that leaves the loss unchanged, a pytree like the params. A flow along which the loss changes is
            rejected.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        `bounds` with the largest lower and the smallest upper bound, `source` naming both, and `records`.

    Raises:
        ValueError: if the d × d matrices need more than 2 GiB (d ≈ 5,000), or the spectrum is not of the same order as
            the posterior.

    References:
        Watanabe 2009, Algebraic geometry and statistical learning theory, Theorem 6.5 (splitting lemma).
    """
    check_key(key)
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_flag("progress", progress, optional=True)
    if not (isinstance(generators, Sequence) and all(map(callable, generators))):
        raise ValueError(f"generators needs a list of functions of params, got {type(generators).__name__}.")
    _require_room(posterior.num_params)
    if spectrum is None:
        spectrum = hessian_spectrum(posterior, method="dense")
    if spectrum.dim != posterior.num_params:
        raise ValueError(
            f"higher_bounds needs the spectrum of the posterior's {posterior.num_params} parameters, got one of order "
            f"{spectrum.dim}; leave it out, or pass llc.spectrum(posterior)."
        )
    if bounds is None:
        scale = {} if posterior.gamma is None else posterior.scale._asdict()
        bounds = rank_bounds(spectrum, **scale)
    if not bounds.valid:
        failed = ", ".join(assumption.name for assumption in bounds.assumptions if not assumption.holds)
        return tighten(bounds, _all(NAMES, "not used", f"an assumption of the rank's bounds fails: {failed}"))
    if spectrum.unstable_eigenvalues.size:
        seen = "w* is not at a minimum but beside one; move it there by llc.polish"
        return tighten(bounds, _all(NAMES, "undecided", seen))
    with (
        float64(),
        tqdm(total=len(NAMES), desc="bounds", disable=None if progress is None else not progress) as bar,
    ):
        seen = _probe(posterior, bounds, key, generators, bar)
        bar.update(len(NAMES) - bar.n)
    if not seen.is_saddle:
        return tighten(bounds, seen.records)
    message = "the loss falls below that of w* in the kernel of the Hessian, so that w* is a saddle; train further"
    saddle = Assumption(NO_DESCENT, holds=False, message=message, kind="minimum")
    assumptions = (*bounds.assumptions, saddle)
    return replace(bounds, lower=np.nan, upper=np.nan, assumptions=assumptions, records=seen.records, is_saddle=True)


NAMES = (SYMMETRY, CERTIFICATE, ORDER, QUARTIC, SQUARED, COMPONENT)


def _require_room(dim: int) -> None:
    size = _MATRICES * 8 * dim**2
    if size > _BYTES:
        raise ValueError(
            f"higher_bounds needs dense matrices, about {size / 2**30:.1f} GiB for d = {dim:,}, and takes at most "
            f"{_BYTES / 2**30:.0f} GiB; restrict the posterior by mask=, or use llc.rank_bounds."
        )


def _all(names: Sequence[str], status: Status, finding: str) -> tuple[Bound, ...]:
    """The same said of several probes."""
    return tuple(Bound(name, status, finding) for name in names)


class _Point(NamedTuple):
    """What the probes start from."""

    excess: Excess
    splitting: Splitting
    scale: Scale
    orbit: int  # D

    @property
    def half(self) -> float:
        """r/2."""
        return self.splitting.rank / 2

    @property
    def free(self) -> int:
        """Number of variables that g may depend on, d − D − r."""
        return self.excess.dim - self.orbit - self.splitting.rank


class _Seen(NamedTuple):
    """A record of each probe, and whether the loss was seen to fall below that of w*."""

    records: tuple[Bound, ...]
    is_saddle: bool = False


def _probe(
    posterior: LocalPosterior, bounds: Bounds, key: PRNGKeyArray, generators: Sequence[Generator], bar: tqdm
) -> _Seen:
    """All probes, from the cheapest on, up to where λ is known."""
    keys = jax.random.split(key, 7)
    excess = excess_loss(posterior, keys[0])
    start = time.perf_counter()
    symmetry = symmetry_dimension(excess, keys[1], generators)
    records = (_timed(_of_symmetry(symmetry, bounds), start),)
    bar.update()
    if not bounds.rank_is_unique:
        return _Seen(records + _all(NAMES[1:], "undecided", "the rank is not unique, since the spectrum has no gap"))
    splitting = split(np.asarray(dense_metric(excess, jnp.zeros(excess.dim))), bounds.threshold)
    if splitting.rank != bounds.rank:
        return _Seen(records + _all(NAMES[1:], "undecided", "the rank is not that of the Hessian at w*"))
    if splitting.rank == excess.dim:
        return _Seen(records + _all(NAMES[1:], "not needed", "the Hessian has full rank, so λ = d/2"))
    point = _Point(excess, splitting, measure_scale(excess, splitting.kernel, keys[2]), symmetry.dimension)
    start = time.perf_counter()
    profile = remainder_profile(excess, splitting, point.scale, keys[3])
    certified, leading = vanishes(profile, point.scale), order(profile)
    records += (_timed(_of_certificate(point, certified=certified), start),)
    bar.update()
    if certified:
        return _Seen(records + _all(NAMES[2:], "not needed", "λ = r/2 is known"))
    if order(profile._replace(values=-profile.values)) is not None:
        return _Seen(records + _all(NAMES[2:], "not used", "w* is a saddle, since g < 0"), is_saddle=True)
    return _Seen(_beyond_the_order(point, leading, bounds, (*records, _of_order(point, leading)), keys[4:], bar))


def _beyond_the_order(
    point: _Point,
    leading: int | None,
    bounds: Bounds,
    records: tuple[Bound, ...],
    keys: Key[Array, "probe"],
    bar: tqdm,
) -> tuple[Bound, ...]:
    """`records`, and those of the probes that are left."""
    probes = (QUARTIC, _quartic), (SQUARED, _squared), (COMPONENT, _component)
    for (name, probe), probe_key in zip(probes, keys, strict=True):
        bar.update()
        bar.set_postfix_str(name)
        narrowed = tighten(bounds, records)
        if narrowed.lower == narrowed.upper:
            records += _all((name,), "not needed", "λ is known")
            continue
        start = time.perf_counter()
        records += (_timed(probe(point, leading, probe_key), start),)
    return records


def _timed(bound: Bound, start: float) -> Bound:
    return replace(bound, seconds=time.perf_counter() - start)


def _of_symmetry(symmetry: Symmetry, bounds: Bounds) -> Bound:
    rank = bounds.rank_interval[1]
    kinds = ", ".join(f"{count} {kind}" for kind, count in symmetry.kinds.items()) or "none"
    rejected = f"; {symmetry.rejected} of the given ones rejected" if symmetry.rejected else ""
    return Bound(
        SYMMETRY,
        "established",
        f"D = {symmetry.dimension} (verified fields: {kinds}{rejected})",
        "the loss is invariant where it is so at random points",
        upper=rank / 2 + max(bounds.dim - symmetry.dimension - rank, 0) / 4,
        evaluations=symmetry.evaluations,
        number=symmetry.dimension,
    )


def _of_certificate(point: _Point, *, certified: bool) -> Bound:
    if not certified:
        return Bound(CERTIFICATE, "undecided", "g is not zero, or can't be told from zero", evaluations=_PROFILE)
    finding = "the minimum of K over the range of H is zero at random points of the kernel of H"
    assumption, half = "no part of g is of order above 12", point.half
    return Bound(CERTIFICATE, "established", finding, assumption, half, half, evaluations=_PROFILE)


def _of_order(point: _Point, leading: int | None) -> Bound:
    if leading is None:
        return Bound(ORDER, "undecided", "g follows no single power law along random directions")
    finding = f"g ~ t^{leading} along random directions"
    lower, upper = point.half + 1 / leading, point.half + point.free / leading
    assumption = "no part of g of lower order below round-off"
    return Bound(ORDER, "established", finding, assumption, lower, upper, number=leading)


def _quartic(point: _Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    rank = essential_variables(point.excess, point.splitting, key)
    if rank.value is None:
        return Bound(QUARTIC, "undecided", "the gradients of q have no clear rank", evaluations=rank.evaluations)
    upper = point.half + rank.value / 4 + max(point.free - rank.value, 0) / 6
    assumption = "derivatives up to the fourth, above round-off"
    found = Bound(QUARTIC, "established", f"d₄ = {rank.value}", assumption, upper=upper, number=rank.value)
    return replace(found, evaluations=rank.evaluations)


def _squared(point: _Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    if not point.excess.exact_fit:
        return Bound(SQUARED, "not used", "no predict_fn whose squared errors are the loss and vanish at w*")
    rank = quadratic_rank(point.excess, point.splitting, key)
    if rank.value is None:
        return Bound(SQUARED, "undecided", "the quadratic form has no clear rank", evaluations=rank.evaluations)
    lower = point.half + min(0.5, rank.value / 4)
    found = Bound(SQUARED, "established", f"ρ = {rank.value}", "exact fit", lower=lower, number=rank.value)
    return replace(found, evaluations=rank.evaluations)


def _component(point: _Point, leading: int | None, key: PRNGKeyArray) -> Bound:
    if leading is None:
        return Bound(COMPONENT, "undecided", "without the order of g, no zero near w* can be certified")
    found = nearby_component(point.excess, point.scale, leading, key)
    seen = ", ".join("none" if rank is None else str(rank) for rank in found.found)
    if found.rank is None:
        return Bound(
            COMPONENT,
            "undecided",
            f"codimensions at two distances from w*: {seen}; or none was found nearer",
            evaluations=found.evaluations,
        )
    finding = f"a manifold of zeros of codimension {found.rank} at two distances from w*"
    bound = Bound(COMPONENT, "established", finding, "it comes arbitrarily near w*", upper=found.rank / 2)
    return replace(bound, evaluations=found.evaluations, number=found.rank)
