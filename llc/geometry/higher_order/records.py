"""What each probe says of λ, as a record."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from llc.bounds.bound import Bound
from llc.bounds.rank import Bounds
from llc.geometry.higher_order.components import Search, nearby_component, search_price
from llc.geometry.higher_order.excess import Excess, Scale
from llc.geometry.higher_order.forms import PRICE_OF_FORMS, leading_forms
from llc.geometry.higher_order.quartic import MOST_SEEN, essential_variables, quadratic_rank
from llc.geometry.higher_order.ranges import Splitting, Storage, count_residuals
from llc.geometry.higher_order.resolution import resolve
from llc.geometry.higher_order.splitting import PROFILE_PRICE
from llc.geometry.higher_order.symmetry import Symmetry

CERTIFICATE, ORDER, SYMMETRY = "certificate g ≡ 0", "order of g", "symmetry orbit"
QUARTIC, SQUARED, COMPONENT = "effective quartic", "squared loss", "nearby component"
RESOLUTION = "resolution"

_MOST_VARIABLES = 128  # points of the quartic where no d × d matrix fits: more can't narrow the bracket there
_HIGHEST = 8  # order of g of which the leading forms are computed
_NO_RESIDUALS = (
    "no predict_fn whose squared errors are the loss and vanish at w*, or whose cross-entropy has its minimum there"
)


class Point(NamedTuple):
    """What the probes start from."""

    excess: Excess
    splitting: Splitting
    scale: Scale
    storage: Storage
    orbit: int  # D
    spend: Callable[[int], None]

    @property
    def half(self) -> float:
        """r/2."""
        return self.splitting.rank / 2

    @property
    def free(self) -> int:
        """Number of variables that g may depend on, d − D − r."""
        return self.excess.dim - self.orbit - self.splitting.rank


def price_of(name: str, excess: Excess, storage: Storage) -> int:
    """The products that a probe may take, at most; that of the certificate has the range of H in it."""
    dense = storage.form == "dense"
    of_range = excess.dim if dense else storage.most
    prices = {
        CERTIFICATE: of_range + PROFILE_PRICE,
        QUARTIC: 16 * (excess.dim if dense else _MOST_VARIABLES),
        SQUARED: 2 * MOST_SEEN + 6,
        COMPONENT: 640 * (excess.dim + 2) if dense else search_price(of_range),
        RESOLUTION: PRICE_OF_FORMS,
    }
    return prices.get(name, 0)


def of_symmetry(symmetry: Symmetry, bounds: Bounds, *, by_shape: bool) -> Bound:
    """From the dimension of the symmetry orbit; `by_shape` says whether one was looked for."""
    if not (by_shape or symmetry.kinds or symmetry.rejected):
        return Bound(SYMMETRY, "not used", f"the fields of {bounds.dim:,} parameters make too large a matrix")
    rank = bounds.rank_interval[1]
    kinds = ", ".join(f"{count} {kind}" for kind, count in symmetry.kinds.items()) or "none"
    rejected = f"; {symmetry.rejected} of the given ones rejected" if symmetry.rejected else ""
    return Bound(
        SYMMETRY,
        "established",
        f"D = {symmetry.dimension} (verified fields: {kinds}{rejected})",
        "the loss is invariant everywhere, as it is at random points",
        upper=rank / 2 + max(bounds.dim - symmetry.dimension - rank, 0) / 4,
        evaluations=symmetry.evaluations,
        number=symmetry.dimension,
    )


def of_certificate(point: Point, *, certified: bool) -> Bound:
    """Whether g is zero, as its profile says."""
    if not certified:
        return Bound(CERTIFICATE, "undecided", "g is not zero, or can't be told from zero", evaluations=PROFILE_PRICE)
    finding = "the minimum of K over the range of H is zero at random points of the kernel of H"
    assumption, half = f"no part of g is of order above 12{_but_left(point)}", point.half
    return Bound(CERTIFICATE, "established", finding, assumption, half, half, evaluations=PROFILE_PRICE)


def of_independent_residuals(point: Point) -> Bound | None:
    """That g is zero, where all residuals have independent gradients: their zeros are a manifold then; else None."""
    if point.splitting.rank != count_residuals(point.excess):
        return None
    finding = (
        f"the gradients of all {point.splitting.rank:,} residuals are independent, so that their zeros are a manifold"
    )
    return Bound(CERTIFICATE, "established", finding, _residuals(point), point.half, point.half)


def of_order(point: Point, leading: int | None) -> Bound:
    """From the order of g."""
    if leading is None:
        return Bound(ORDER, "undecided", "g follows no single power law along random directions")
    finding = f"g ~ t^{leading} along random directions"
    lower, upper = point.half + 1 / leading, point.half + point.free / leading
    assumption = f"no part of g of lower order below round-off{_but_left(point)}"
    return Bound(ORDER, "established", finding, assumption, lower, upper, number=leading)


def of_quartic(point: Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    """From the variables of the effective quartic."""
    most = point.excess.dim + _MOST_VARIABLES if point.storage.form == "dense" else _MOST_VARIABLES
    rank = essential_variables(point.excess, point.splitting, key, most=most, spend=point.spend)
    if rank.is_cut:
        finding = f"q has more variables than {most} of its gradients show"
        return Bound(QUARTIC, "undecided", finding, evaluations=rank.evaluations)
    if rank.value is None:
        return Bound(QUARTIC, "undecided", "the gradients of q have no clear rank", evaluations=rank.evaluations)
    upper = point.half + rank.value / 4 + max(point.free - rank.value, 0) / 6
    assumption = "derivatives up to the fourth, above round-off"
    found = Bound(QUARTIC, "established", f"d₄ = {rank.value}", assumption, upper=upper, number=rank.value)
    return replace(found, evaluations=rank.evaluations)


def of_squared(point: Point, _leading: int | None, key: PRNGKeyArray) -> Bound:
    """From one combination of the residuals' quadratic forms."""
    if not point.excess.exact_fit:
        return Bound(SQUARED, "not used", _NO_RESIDUALS)
    rank = quadratic_rank(point.excess, point.splitting, key)
    if rank.value is None:
        return Bound(SQUARED, "undecided", "the quadratic form has no clear rank", evaluations=rank.evaluations)
    lower = point.half + min(0.5, rank.value / 4)
    finding = f"ρ = {rank.value}" + " or more" * (rank.value == MOST_SEEN)
    found = Bound(SQUARED, "established", finding, _residuals(point), lower=lower, number=rank.value)
    return replace(found, evaluations=rank.evaluations)


def of_component(point: Point, leading: int | None, key: PRNGKeyArray) -> Bound:
    """From the smooth components of the zero set near w*."""
    if leading is None:
        return Bound(COMPONENT, "undecided", "without the order of g, no zero near w* can be certified")
    if point.storage.form != "dense" and not point.excess.exact_fit:
        return Bound(COMPONENT, "not used", f"without a d × d matrix it needs residuals: {_NO_RESIDUALS}")
    found = nearby_component(Search(point.excess, point.scale, point.storage, leading, point.spend), key)
    seen = ", ".join("none" if rank is None else str(rank) for rank in found.found)
    if found.rank is None:
        return Bound(
            COMPONENT,
            "undecided",
            f"codimensions at up to two distances from w*: {seen}; or none was found nearer",
            evaluations=found.evaluations,
        )
    finding = f"a manifold of zeros of codimension {found.rank} at two distances from w*"
    bound = Bound(COMPONENT, "established", finding, "it comes arbitrarily near w*", upper=found.rank / 2)
    return replace(bound, evaluations=found.evaluations, number=found.rank)


def of_resolution(point: Point, leading: int | None, key: PRNGKeyArray) -> Bound:
    """From the leading forms of the residuals on the kernel of H."""
    if not point.excess.exact_fit:
        return Bound(RESOLUTION, "not used", _NO_RESIDUALS)
    if leading is None or leading > _HIGHEST:
        return Bound(RESOLUTION, "undecided", f"it needs an order of g of at most {_HIGHEST}")
    forms_key, key = jax.random.split(key)
    forms = leading_forms(point.excess, point.splitting, leading // 2, forms_key)
    if forms is None:
        return Bound(RESOLUTION, "undecided", "the residuals' forms on the kernel of H do not fit in memory")
    if not np.abs(forms).max() > 0:
        return Bound(RESOLUTION, "undecided", "the residuals have no forms of that order on the kernel of H")
    found = resolve(forms, np.random.default_rng(np.asarray(jax.random.key_data(key))))
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(found.ranks.items())) or "none"
    finding = (
        f"forms of degree {leading // 2} in {found.num_variables} variables have lct ≥ {found.value:.4g}; "
        f"zeros that could lower it: {ranks}"
    )
    assumption = f"{_residuals(point)}; no zero of another kind among the leading forms"
    return Bound(RESOLUTION, "established", finding, assumption, lower=point.half + found.value / 2)


def _but_left(point: Point) -> str:
    """That K was told from zero no better than to the loss that training left."""
    left = point.scale.left
    return f"; zero means less than the {left:.1g} that training left of the loss" if left > 0 else ""


def _residuals(point: Point) -> str:
    return "exact fit" if point.excess.roots is None else "an output loss with its minimum at the outputs of w*"
