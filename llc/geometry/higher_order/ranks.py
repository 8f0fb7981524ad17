"""The spectrum from which the probes beyond the rank start: all eigenvalues that are not zero, at any size."""

import math
from dataclasses import replace

import jax

from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.dense import MAX_ORDER
from llc.geometry.curvature.methods import by_range_finder, by_sketch, spectrum
from llc.geometry.curvature.problem import Limits, Settings, problem_of
from llc.geometry.higher_order.excess import excess_loss
from llc.geometry.higher_order.ranges import count_residuals
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import free_memory
from llc.posterior.precision import float64
from llc.posterior.whole import on_resident_rows

_COPIES, _SHARE = 3, 0.5  # of the range finder's vectors while they are made, and of the free memory that they take
_WORTH, _SPARE = 2, 512  # eigenvalues that are looked for, in units of those that Lanczos resolves, and beyond them
_RESIDUALS = 1e-6  # part of the Hessian beyond its Gauss–Newton part, above which their ranks may differ


def complete_spectrum(posterior: LocalPosterior, *, progress: bool | None = None) -> Spectrum:
    """By the cheapest method that sees every eigenvalue; of Lanczos where there are too many.

    Dense up to d = 5,000. At an exact fit of at most 5,000 residuals the Gram matrix of the outputs. Else Lanczos
    counts those that it resolves. If twice as many and 512 are all, the range finder or, where its vectors do not fit,
    a sketch finds them.

    Args:
        posterior: loss, data and w*.
        progress: whether to show a progress bar; None shows it on a terminal.
    """
    if posterior.num_params <= MAX_ORDER:
        return spectrum(posterior, method="dense", progress=progress)
    try:
        return _of_outputs(posterior, progress=progress)
    except ValueError:  # no outputs, too many, or the loss is another function of them
        pass
    counted = spectrum(posterior, method="lanczos", progress=progress)
    most = math.ceil(_WORTH * counted.count(counted.resolution)) + _SPARE
    if most > MAX_ORDER + _SPARE:
        return counted
    vectors = _COPIES * 8 * most * posterior.num_params <= _SHARE * free_memory()
    try:
        with float64():
            settings, limits = Settings(progress=progress), Limits(order=min(most, MAX_ORDER))
            problem = problem_of(on_resident_rows(posterior), settings, limits)
            found = by_range_finder(problem) if vectors else by_sketch(problem)
    except ValueError:  # more eigenvalues than that
        return counted
    return replace(found, row_share=counted.row_share)


def _of_outputs(posterior: LocalPosterior, *, progress: bool | None) -> Spectrum:
    """The spectrum of the Gauss–Newton matrix where it is the Hessian; ValueError elsewhere."""
    with float64():
        num_residuals = count_residuals(excess_loss(posterior, jax.random.key(0)))
    if num_residuals is None or num_residuals > MAX_ORDER:
        raise ValueError(f"at most {MAX_ORDER:,} residuals fit, got {num_residuals}.")
    found = spectrum(posterior, matrix="ggn", method="gram", progress=progress)
    if not found.gauss_newton_discrepancy <= _RESIDUALS:
        raise ValueError("the Hessian is not its Gauss–Newton part.")
    return found
