"""The gradient that samplers and curvature need: whether a posterior has it, and what memory it takes."""

from collections.abc import Callable, Hashable

import jax
from jaxtyping import PyTree

from llc.posterior.arguments import require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import in_loops
from llc.posterior.rows import alive_bytes, shapes_of


def require_differentiable(posterior: object) -> None:
    """Raises ValueError if `posterior` is no `LocalPosterior`, or if its loss has no gradient, naming the cure."""
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    reason = getattr(getattr(posterior, "loss_fn", None), "no_gradient", None)
    if reason is not None:
        raise ValueError(
            f"loss_fn needs a gradient, but JAX has none of it: {reason} Take lax.scan, or lax.fori_loop with fixed "
            "bounds, in place of lax.while_loop, and functions of JAX in place of a callback to Python, or give the "
            "derivative with jax.custom_jvp. Without one, llc.selected_covariance and llc.best_of_slope look at losses "
            "alone."
        )


def gradient_bytes(posterior: LocalPosterior, rows: int) -> int:
    """Bytes that the gradient on so many rows keeps alive; 0 where it can't be traced."""
    gradient, program = gradient_of_rows(posterior)
    return alive_bytes(gradient, posterior.data, rows, program) or 0


def gradient_of_rows(posterior: LocalPosterior) -> tuple[Callable[[PyTree], PyTree], Hashable]:
    """The gradient of a batch, and what tells its program from others."""

    def gradient(batch: PyTree) -> PyTree:
        return jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position)

    return in_loops(posterior.loss_fn, gradient), (
        "gradient",
        posterior.loss_fn,
        shapes_of(posterior.center),
        shapes_of(posterior.position),
    )
