r"""What the work costs before it is done, in gradients of the loss over all the data: the unit of a budget.

A step on a batch of B of n rows costs B/n gradients, twice that with control variates. A draw costs one gradient, which
gives the loss of all rows and its slopes, and a product with the Hessian about two. How many operations a gradient
takes is counted (operations.py). Counts do not depend on what else the machine does, so that the same settings are
chosen again.
"""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from llc.bounds.rank import rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.operations import gradient_operations
from llc.geometry.curvature.methods import spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.whole import on_resident_rows

_PRODUCTS = 1_500  # with the Hessian, that its spectrum takes where d is larger: probes of Lanczos, and the range of H
_GRADIENTS_A_PRODUCT = 4  # in float64
_SPECTRUM_GRADIENTS = 80  # of a spectrum without a budget: some forty products (set by eye)
_FEWEST_GRADIENTS = 40  # with fewer, neither h_max nor λ_quad is known well; rows are left out first
_FEWEST_ROWS = 16
_MOST_OPERATIONS = 1e13  # of a spectrum, two to three minutes on two cores
_ERROR, _SCALE = 0.05, 0.03  # wanted of λ_quad, and the γ/nβ in units of h_max at which, where γ is open
# Operations of the spectrum above which it is made for a price (set by eye). At 5e10 a second it takes 100 s. A model
# just below waits that long for a rank, one just above gets λ_quad and no rank.
_COSTLY = 5e12
_MINUTE = 1e12  # operations above which the whole has to promise bounds: those of a small CNN took three minutes
_SECONDS = 2e11  # operations of the whole spectrum up to which it is made whatever the budget


class Price(NamedTuple):
    """What a gradient over all the data costs.

    Attributes:
        operations: how many it takes (operations.py).
        costly: whether all eigenvalues of the Hessian, or a count of them by Lanczos, would take minutes or more.
    """

    operations: float
    costly: bool


def price_of(posterior: LocalPosterior, *, limit: float = _COSTLY) -> Price:
    """The price of a gradient of the loss.

    Args:
        posterior: loss, data and w*.
        limit: operations of all eigenvalues of the Hessian above which a model is costly.
    """
    operations = gradient_operations(posterior)
    return Price(operations, _whole_cost(posterior) * operations > limit)


class SpectrumPlan(NamedTuple):
    """What the spectrum of a costly model may take.

    Attributes:
        num_rows: rows whose mean loss it belongs to.
        work: most work, in gradients over those rows.
        cost: the same, in gradients over all the data.
    """

    num_rows: int
    work: int
    cost: float


def plan_spectrum(posterior: LocalPosterior, price: Price, budget: int | None) -> SpectrumPlan:
    """A third of the budget, on as many rows as that suffices for.

    Args:
        posterior: loss, data and w*.
        price: of a gradient.
        budget: of the whole run, in gradients; None takes what some forty products cost.
    """
    wanted = _SPECTRUM_GRADIENTS if budget is None else min(max(budget // 3, 1), 4 * _SPECTRUM_GRADIENTS)
    wanted = min(float(wanted), _MOST_OPERATIONS / price.operations)
    num_data = posterior.resident().num_data
    num_rows = min(max(int(num_data * wanted / _FEWEST_GRADIENTS), min(_FEWEST_ROWS, num_data)), num_data)
    work = max(int(wanted * num_data / num_rows), _FEWEST_GRADIENTS // 2)
    return SpectrumPlan(num_rows, work, work * num_rows / num_data)


def spectrum_cost(posterior: LocalPosterior, price: Price, budget: int | None) -> float:
    """Gradients over all the data that the spectrum takes at most.

    Args:
        posterior: loss, data and w*.
        price: of a gradient.
        budget: of the whole run, in gradients.
    """
    if _has_whole(posterior, price, budget):
        return float(_whole_cost(posterior))
    return plan_spectrum(posterior, price, budget).cost


def _whole_cost(posterior: LocalPosterior) -> int:
    """Gradients that all eigenvalues take, or a count of them by Lanczos."""
    return _GRADIENTS_A_PRODUCT * min(posterior.num_params, _PRODUCTS)


def _has_whole(posterior: LocalPosterior, price: Price, budget: int | None) -> bool:
    """Whether all of the spectrum is made: it takes seconds, or no more than a third of the budget, or than minutes."""
    if price.costly or budget is None:
        return not price.costly
    cost = _whole_cost(posterior)
    return cost <= budget / 3 or cost * price.operations <= _SECONDS


def affordable_spectrum(
    posterior: LocalPosterior, price: Price, budget: int | None, *, progress: bool | None
) -> Spectrum:
    """The spectrum of the Hessian: all of it where that is cheap, else λ_quad and the leading eigenvectors for a price.

    A third of the budget goes into it. Where that is too little for all rows, the curvature is that of some rows.

    Where all of it would take more than a minute, it is made for a price first. If that shows negative curvature, the
    rank gives no bounds, and nothing more is made. It is what there is, too, where γ is to be found and the whole has
    neither a gap nor known eigenvectors, which localization.py asks for.

    Args:
        posterior: loss, data and w*.
        price: of a gradient.
        budget: of the whole run, in gradients; None takes what some forty products cost.
        progress: as of `llc.spectrum`.
    """
    posterior = on_resident_rows(posterior)
    if not _has_whole(posterior, price, budget):
        return _for_a_price(posterior, price, budget, progress=progress)
    first = None
    if _whole_cost(posterior) * price.operations > _MINUTE:
        first = _for_a_price(posterior, price, budget, progress=progress)
        if not rank_bounds(first).valid:
            return first
    found = spectrum(posterior, progress=progress)
    if posterior.gamma is not None or found.vectors is not None or rank_bounds(found).rank_is_unique:
        return found
    return _for_a_price(posterior, price, budget, progress=progress) if first is None else first


def _for_a_price(posterior: LocalPosterior, price: Price, budget: int | None, *, progress: bool | None) -> Spectrum:
    """λ_quad, h_max and the leading eigenvectors."""
    num_rows, work, _ = plan_spectrum(posterior, price, budget)
    num_data = posterior.num_data
    settings = {"method": "deflated", "budget": work, "relative_error": _ERROR, "relative_scale": _SCALE}
    if num_rows >= num_data:
        return spectrum(posterior, progress=progress, **settings)
    rows = np.sort(np.random.default_rng(0).permutation(num_data)[:num_rows])  # data may be in order
    some = eqx.tree_at(lambda p: p.data, posterior, jax.tree.map(lambda x: x[rows], posterior.data))
    found = spectrum(some, progress=progress, **settings)
    return replace(found, row_share=found.row_share * num_rows / num_data)
