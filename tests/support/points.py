"""K around w*, with its Hessian split in one of the forms in which probes beyond the rank take it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import llc
from llc.geometry.higher_order.excess import Excess, Scale, excess_loss, measure_scale
from llc.geometry.higher_order.ranges import Splitting, Storage, count_residuals, decompose, project


class Around(NamedTuple):
    """What probes start from."""

    excess: Excess
    splitting: Splitting
    scale: Scale
    storage: Storage


def forms(*, exact_fit: bool) -> list[str]:
    """Of a splitting; that by residuals needs them."""
    return ["dense", "residuals", "vectors"] if exact_fit else ["dense", "vectors"]


def around(posterior: llc.LocalPosterior, form: str = "dense", *, threshold: float = 1e-10) -> Around:
    """The excess loss, range and kernel at w*; to be called under `float64()`."""
    excess = excess_loss(posterior, jax.random.key(0))
    storage = Storage(form, count_residuals(excess) or 0 if form == "residuals" else excess.dim)
    splitting = decompose(excess, jnp.zeros(excess.dim), storage).above(threshold)
    scale = measure_scale(excess, lambda points: project(splitting, points), jax.random.key(1))
    return Around(excess, splitting, scale, storage)


CASES = {
    f"{form} of the {'outputs' if exact_fit else 'loss'}": (form, exact_fit)
    for exact_fit in (False, True)
    for form in forms(exact_fit=exact_fit)
}
