"""What a run of minutes tells on standard error: what is going to be done, and each number as soon as it is known."""

import math
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from llc.analysis.series import plus_minus
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.costs import run_cost
from llc.calibration.localization import MAX_ANHARMONICITY
from llc.calibration.price import Price, spectrum_cost
from llc.calibration.record import PilotResult, Request
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.run_lengths import RequestedLengths, RunLengths

_SIZE, _REPEATS = 1024, 3  # of the matrix products that are timed, some 10 ms each on two cores
_EFFICIENCY = 0.4  # of their rate that gradients reach (.38 in the spectrum of a language model, on two cores)


def say(message: str | Callable[[], str], *, progress: bool | None) -> None:
    """A line on standard error with the time of day, beside the bars; where progress is False it is not even made."""
    if progress is False:
        return
    told = message if isinstance(message, str) else message()
    if told:
        tqdm.write(f"llc  {time.strftime('%H:%M:%S')}  {told}", file=sys.stderr)


def about(seconds: float) -> str:
    """A duration in words, to one or two figures: `about(95)` is "about 2 min".

    Example:
        >>> about(8.2), about(95.0), about(4000.0)
        ('about 10 s', 'about 2 min', 'about 1.1 h')
    """
    if seconds < 60:
        return f"about {max(round(seconds, -1), 10):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 3600 else f"about {seconds / 3600:.1f} h"


def forecast(posterior: LocalPosterior, price: Price, asked: RequestedLengths, *, has_spectrum: bool) -> str:
    """What is going to be done, before anything is known of the curvature."""
    of = f"gradients of {posterior.num_data:,} rows, {price.operations:.1g} operations each"
    seconds = _seconds_per_gradient(price)
    cost = spectrum_cost(posterior, price, asked.budget)
    spectrum = "" if has_spectrum else f"spectrum at most {cost:,.0f} ({about(cost * seconds)}), "
    budget = "" if asked.budget is None else f"; at most {asked.budget:,} ({about(asked.budget * seconds)}) in all"
    return f"planned work, in {of}: {spectrum}then γ, pilots with a first λ̂, and the run{budget}"


def curvature_found(spectrum: Spectrum, scale: float) -> str:
    """h_max, and λ_quad at γ/nβ = `scale`."""
    rows = "" if spectrum.row_share == 1 else f", from {spectrum.row_share:.1%} of the rows"
    return f"spectrum: h_max = {spectrum.largest:.4g}, λ_quad = {spectrum.quad(scale):.4g} at γ/nβ = {scale:.2g}{rows}"


def gamma_found(request: Request, gamma: float) -> str:
    """γ, where it was chosen."""
    if not request.chooses_gamma:
        return ""
    found = request.localization
    wanted = f"at most {MAX_ANHARMONICITY:g} is wanted"
    where = f"at {found.item}" if found is not None and found.item else "there"
    if found is None:
        return f"γ = {gamma:.4g}: chosen for the length of the run"
    share = f"; the loss is {found.share:.0%} of the way to that at params of zero" if found.decided_by_share else ""
    kappa = f"the Gaussian mean is {found.anharmonicity:.2g} times λ_quad {where}"
    return f"γ = {gamma:.4g}: {kappa}, {wanted}{share}"


def pilot_found(found: PilotResult) -> str:
    """A first λ̂: one draw of each chain."""
    energies = np.asarray(found.pilots[-1].energies)
    if len(energies) < 2 or not np.isfinite(energies).all():
        why = "no first λ̂, as their draws are too few or not finite"
        return f"{len(found.pilots)} pilots: ε = {found.step_size:.3g}; {why}"
    value = plus_minus(float(energies.mean()), float(energies.std(ddof=1) / math.sqrt(len(energies))))
    return f"{len(found.pilots)} pilots: ε = {found.step_size:.3g}, a first λ̂ = {value} from one draw of each chain"


def run_planned(lengths: RunLengths, num_data: int, *, doubled: bool, is_sample: bool = False) -> str:
    """What the run takes, in gradients; how long that is, its first steps tell (`run_forecast`).

    Args:
        lengths: of the run.
        num_data: rows of the data.
        is_sample: whether the data are the resident rows of a stream.
        doubled: whether steps have control variates.
    """
    cost = run_cost(lengths, num_data, doubled=doubled, is_sample=is_sample)
    return (
        f"run: {cost:,.0f} gradients, {lengths.num_chains} chains of {lengths.num_warmup:,} + "
        f"{lengths.num_draws:,} × {lengths.thinning} steps on {lengths.batch_size or num_data:,} rows"
    )


def run_forecast(seconds: float) -> str:
    """How long the run takes, from the time that its first steps took."""
    return f"run: {about(seconds)} at the pace of its first steps, less if λ̂ is accurate enough before"


def _seconds_per_gradient(price: Price) -> float:
    """What a gradient over all the data takes here, from the time of a matrix product of float32."""
    factor = jnp.ones((_SIZE, _SIZE), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    multiply(factor).block_until_ready()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        multiply(factor).block_until_ready()
    rate = 2 * _SIZE**3 * _REPEATS / (time.perf_counter() - start)
    return price.operations / (_EFFICIENCY * rate)
