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
from collections.abc import Sequence
from dataclasses import replace
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
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.geometry.higher_order.excess import dense_metric, excess_loss, measure_scale
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
    of_order,
    of_quartic,
    of_resolution,
    of_squared,
    of_symmetry,
)
from llc.geometry.higher_order.splitting import order, remainder_profile, split, vanishes
from llc.geometry.higher_order.symmetry import Generator, symmetry_dimension
from llc.posterior.arguments import require_flag, require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_MATRICES = 10  # of d × d float64 numbers at a time
_BYTES = 2.0**31
_ROUNDING = 1e-9  # of bounds that are sums of fractions


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
    require_differentiable(posterior)
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


NAMES = (SYMMETRY, CERTIFICATE, ORDER, QUARTIC, SQUARED, COMPONENT, RESOLUTION)


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


class _Seen(NamedTuple):
    """A record of each probe, and whether the loss was seen to fall below that of w*."""

    records: tuple[Bound, ...]
    is_saddle: bool = False


def _probe(
    posterior: LocalPosterior, bounds: Bounds, key: PRNGKeyArray, generators: Sequence[Generator], bar: tqdm
) -> _Seen:
    """All probes, from the cheapest on, up to where λ is known."""
    keys = jax.random.split(key, 8)
    excess = excess_loss(posterior, keys[0])
    start = time.perf_counter()
    symmetry = symmetry_dimension(excess, keys[1], generators)
    records = (_timed(of_symmetry(symmetry, bounds), start),)
    bar.update()
    if not bounds.rank_is_unique:
        return _Seen(records + _all(NAMES[1:], "undecided", "the rank is not unique, since the spectrum has no gap"))
    splitting = split(np.asarray(dense_metric(excess, jnp.zeros(excess.dim))), bounds.threshold)
    if splitting.rank != bounds.rank:
        return _Seen(records + _all(NAMES[1:], "undecided", "the rank is not that of the Hessian at w*"))
    if splitting.rank == excess.dim:
        return _Seen(records + _all(NAMES[1:], "not needed", "the Hessian has full rank, so λ = d/2"))
    point = Point(excess, splitting, measure_scale(excess, splitting.kernel, keys[2]), symmetry.dimension)
    start = time.perf_counter()
    profile = remainder_profile(excess, splitting, point.scale, keys[3])
    certified, leading = vanishes(profile, point.scale), order(profile)
    records += (_timed(of_certificate(point, certified=certified), start),)
    bar.update()
    if certified:
        return _Seen(records + _all(NAMES[2:], "not needed", "λ = r/2 is known"))
    if order(profile._replace(values=-profile.values)) is not None:
        return _Seen(records + _all(NAMES[2:], "not used", "w* is a saddle, since g < 0"), is_saddle=True)
    return _Seen(_beyond_the_order(point, leading, bounds, (*records, of_order(point, leading)), keys[4:], bar))


def _beyond_the_order(
    point: Point,
    leading: int | None,
    bounds: Bounds,
    records: tuple[Bound, ...],
    keys: Key[Array, "probe"],
    bar: tqdm,
) -> tuple[Bound, ...]:
    """`records`, and those of the probes that are left."""
    probes = (QUARTIC, of_quartic), (SQUARED, of_squared), (COMPONENT, of_component), (RESOLUTION, of_resolution)
    for (name, probe), probe_key in zip(probes, keys, strict=True):
        bar.update()
        bar.set_postfix_str(name)
        narrowed = tighten(bounds, records)
        if narrowed.lower == narrowed.upper:
            records += _all((name,), "not needed", "λ is known")
            continue
        start = time.perf_counter()
        record = probe(point, leading, probe_key)
        if record.lower > narrowed.upper + _ROUNDING:  # what rests on a search gives way
            finding = (
                f"λ ≥ {record.lower:.4g} by the zeros that were found, above λ ≤ {narrowed.upper:.4g}: some are missing"
            )
            record = replace(record, status="undecided", finding=finding, lower=-np.inf)
        records += (_timed(record, start),)
    return records


def _timed(bound: Bound, start: float) -> Bound:
    return replace(bound, seconds=time.perf_counter() - start)
