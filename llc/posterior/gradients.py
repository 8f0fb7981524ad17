"""Whether a posterior has the gradient that samplers and curvature need; losses alone can do without."""

from llc.posterior.arguments import require_type
from llc.posterior.local_posterior import LocalPosterior


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
