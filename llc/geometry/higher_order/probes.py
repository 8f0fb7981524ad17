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

They rest on the assumptions of the rank's bounds, on an analytic loss, and on a rank that is one number. Three bounds
that look like them are false: λ ≥ r/2 + d₄/4 (for (|t|² − s²)², t ∈ R³), λ ≤ half the number of equations (|x|⁴ in R³),
and λ ≤ half the generic rank off the zero set.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm.auto import tqdm

from llc.bounds.assumptions import Assumption
from llc.bounds.rank import Bound, Bounds, rank_bounds, tighten
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.geometry.higher_order.components import nearby_component
from llc.geometry.higher_order.excess import Excess, Scale, dense_metric, excess_loss, measure_scale
from llc.geometry.higher_order.quartic import essential_variables, quadratic_rank
from llc.geometry.higher_order.splitting import Splitting, order, remainder_profile, split, vanishes
from llc.geometry.higher_order.symmetry import Generator, Symmetry, symmetry_dimension
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
    """The tightest valid bounds on λ that the Hessian's rank and the loss beyond it give, with a record of each.

    Everything is dense and in float64: about 10 d² numbers, d Hessian products for the Hessian, up to 5,000 for the
    order of g, 16 gradients for each of the d − r + 5 points of the quartic, and about 10 Hessians with their
    eigenvectors for each of 64 starts of the search for components. What comes after a probe that decides is left out.

    Args:
        posterior: loss, data and w*. With `predict_fn`, and a squared loss at exact fit, g is known to the square of
            round-off.
        spectrum: of the Hessian; None computes the dense one.
        bounds: of the rank, whose assumptions hold for all of them; None takes those at the posterior's nβ and γ.
        key: of the random directions and starts.
        generators: symmetries beside those that the shapes of the params propose: `generator(params)` is the tangent of
            a flow along which the loss stays, a pytree like the params. One along which it changes is rejected.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        `bounds` with the largest lower and the smallest upper bound, `source` naming both, and `records`.

    Raises:
        ValueError: if the d × d matrices need more than 2 GiB (d ≈ 5,000), or the spectrum isn't that of the posterior.

    References:
        Watanabe 2009, Algebraic geometry and statistical learning theory, Theorem 6.5 (splitting lemma).
    """
    size = _MATRICES * 8 * posterior.num_params**2
    if size > _BYTES:
        raise ValueError(
            f"higher_bounds needs dense matrices, about {size / 2**30:.1f} GiB for d = {posterior.num_params:,}, and "
            f"takes at most {_BYTES / 2**30:.0f} GiB; restrict the posterior by mask=, or use llc.rank_bounds."
        )
    if spectrum is None:
        spectrum = hessian_spectrum(posterior, method="dense")
    if spectrum.dim != posterior.num_params:
        raise ValueError(
            f"higher_bounds needs the spectrum of the posterior's {posterior.num_params} parameters, got one of order "
            f"{spectrum.dim}; leave it out, or pass llc.spectrum(posterior)."
        )
    if bounds is None:
        scale = {} if posterior.gamma is None else {"nbeta": float(posterior.nbeta), "gamma": float(posterior.gamma)}
        bounds = rank_bounds(spectrum, **scale)
    if not bounds.valid:
        failed = ", ".join(assumption.name for assumption in bounds.assumptions if not assumption.holds)
        return tighten(bounds, tuple(Bound(name, "not used", f"fails: {failed}") for name in NAMES))
    if spectrum.unstable_eigenvalues.size:
        return tighten(bounds, tuple(Bound(name, "undecided", "w* is beside a minimum: polish it") for name in NAMES))
    with (
        float64(),
        tqdm(total=len(NAMES), desc="bounds", disable=None if progress is None else not progress) as bar,
    ):
        records = tuple(_records(posterior, bounds, key, generators, bar))
        bar.update(len(NAMES) - bar.n)
    if not any(record.status == "not used" and record.name == ORDER for record in records):
        return tighten(bounds, records)
    message = "the loss falls from w* in the kernel of the Hessian: w* is a saddle, train further"
    saddle = Assumption("no descent in the kernel", False, message, "minimum")  # noqa: FBT003
    return replace(bounds, lower=np.nan, upper=np.nan, assumptions=(*bounds.assumptions, saddle), records=records)


NAMES = (SYMMETRY, CERTIFICATE, ORDER, QUARTIC, SQUARED, COMPONENT)


def _records(posterior, bounds: Bounds, key, generators, bar: tqdm) -> list[Bound]:
    keys = jax.random.split(key, 7)
    excess = excess_loss(posterior, keys[0])
    start = time.perf_counter()
    symmetry = symmetry_dimension(excess, keys[1], generators)
    records = [_timed(_of_symmetry(symmetry, bounds), start)]
    bar.update()
    if not bounds.rank_is_unique:
        return records + [Bound(name, "undecided", "the rank has no gap") for name in NAMES[1:]]
    splitting = split(np.asarray(dense_metric(excess, jnp.zeros(excess.dim))), bounds.threshold)
    if splitting.rank != bounds.rank:
        return records + [Bound(name, "undecided", "the spectrum is not that of w*") for name in NAMES[1:]]
    if splitting.rank == excess.dim:
        return records + [Bound(name, "not needed", "the Hessian has full rank: λ = d/2") for name in NAMES[1:]]
    point = _Point(excess, splitting, measure_scale(excess, splitting.kernel, keys[2]), symmetry.dimension)
    start = time.perf_counter()
    profile = remainder_profile(excess, splitting, point.scale, keys[3])
    pinned, leading = vanishes(profile, point.scale), order(profile)
    records.append(_timed(_of_certificate(point, pinned), start))
    bar.update()
    if pinned:
        return records + [Bound(name, "not needed", "λ = r/2 is known") for name in NAMES[2:]]
    if order(profile._replace(values=-profile.values)) is not None:
        return records + [Bound(name, "not used", "w* is a saddle: g < 0") for name in NAMES[2:]]
    records.append(_of_order(point, leading))
    probes = (QUARTIC, _quartic), (SQUARED, _squared), (COMPONENT, _component)  # from the cheapest on
    for (name, probe), probe_key in zip(probes, keys[4:], strict=True):
        bar.update()
        bar.set_postfix_str(name)
        narrowed = tighten(bounds, tuple(records))
        if narrowed.lower == narrowed.upper:
            records.append(Bound(name, "not needed", "λ is known"))
            continue
        start = time.perf_counter()
        records.append(_timed(probe(point, leading, probe_key), start))
    return records


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


def _timed(bound: Bound, start: float) -> Bound:
    return replace(bound, seconds=time.perf_counter() - start)


def _of_symmetry(symmetry: Symmetry, bounds: Bounds) -> Bound:
    rank = bounds.rank_interval[1]
    kinds = ", ".join(f"{count} {kind}" for kind, count in symmetry.kinds.items()) or "none"
    finding = f"D = {symmetry.dimension} (verified fields: {kinds}" + f"; {symmetry.rejected} given rejected)"
    return Bound(
        SYMMETRY,
        "established",
        finding if symmetry.rejected else finding.replace("; 0 given rejected", ""),
        "the loss is invariant where it is so at random points",
        upper=rank / 2 + max(bounds.dim - symmetry.dimension - rank, 0) / 4,
        evaluations=symmetry.evaluations,
    )


def _of_certificate(point: _Point, pinned: bool) -> Bound:  # noqa: FBT001
    if not pinned:
        return Bound(CERTIFICATE, "undecided", "g is not zero, or not known to be", evaluations=_PROFILE)
    finding = "min over range H of K vanishes at random points of ker H"
    assumption, half = "no part of g is of order above 12", point.half
    return Bound(CERTIFICATE, "established", finding, assumption, half, half, evaluations=_PROFILE)


def _of_order(point: _Point, leading: int | None) -> Bound:
    if leading is None:
        return Bound(ORDER, "undecided", "no one power law of g along random directions")
    finding = f"g ~ t^{leading} along random directions"
    lower, upper = point.half + 1 / leading, point.half + point.free / leading
    return Bound(ORDER, "established", finding, "no part of g of lower order below round-off", lower, upper)


def _quartic(point: _Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    rank = essential_variables(point.excess, point.splitting, key)
    if rank.value is None:
        return Bound(QUARTIC, "undecided", "the gradients of q have no clear rank", evaluations=rank.evaluations)
    upper = point.half + rank.value / 4 + max(point.free - rank.value, 0) / 6
    assumption = "derivatives up to the fourth, above round-off"
    return Bound(QUARTIC, "established", f"d₄ = {rank.value}", assumption, upper=upper, evaluations=rank.evaluations)


def _squared(point: _Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    if not point.excess.exact_fit:
        return Bound(SQUARED, "not used", "no predict_fn whose squared errors are the loss and vanish at w*")
    rank = quadratic_rank(point.excess, point.splitting, key)
    if rank.value is None:
        return Bound(SQUARED, "undecided", "the quadratic form has no clear rank", evaluations=rank.evaluations)
    lower = point.half + min(0.5, rank.value / 4)
    return Bound(SQUARED, "established", f"ρ = {rank.value}", "exact fit", lower=lower, evaluations=rank.evaluations)


def _component(point: _Point, leading: int | None, key: PRNGKeyArray) -> Bound:
    if leading is None:
        return Bound(COMPONENT, "undecided", "without the order of g no zero nearby can be certified")
    found = nearby_component(point.excess, point.scale, leading, key)
    seen = ", ".join("none" if rank is None else str(rank) for rank in found.found)
    if found.rank is None:
        return Bound(
            COMPONENT,
            "undecided",
            f"codimensions at two distances: {seen}, or none nearer",
            evaluations=found.evaluations,
        )
    finding = f"a manifold of zeros of codimension {found.rank} at two distances from w*"
    assumption = "it comes arbitrarily near w*"
    return Bound(COMPONENT, "established", finding, assumption, upper=found.rank / 2, evaluations=found.evaluations)
