"""What a run of minutes tells on standard error: what is going to be done, and each number as soon as it is known."""

import math
import sys
import time

import numpy as np
from tqdm.auto import tqdm

from llc.analysis.series import plus_minus
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.localization import MAX_ANHARMONICITY
from llc.calibration.price import Price, plan_spectrum
from llc.calibration.record import PilotResult, Request
from llc.calibration.run_length import run_cost
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.run_lengths import RequestedLengths, RunLengths


def say(message: str, *, progress: bool | None) -> None:
    """A line on standard error with the time of day, beside the bars; nothing where progress is False."""
    if message and progress is not False:
        tqdm.write(f"llc  {time.strftime('%H:%M:%S')}  {message}", file=sys.stderr)


def forecast(posterior: LocalPosterior, price: Price, asked: RequestedLengths, *, has_spectrum: bool) -> str:
    """What is going to be done, before anything is known of the curvature."""
    of = f"gradients of {posterior.num_data:,} rows, {price.flops:.1g} operations each"
    spectrum = "" if has_spectrum else f"spectrum at most {plan_spectrum(posterior, price, asked.budget).cost:.0f}, "
    budget = "" if asked.budget is None else f"; all of it at most {asked.budget:,}"
    return f"work in {of}: {spectrum}then γ, pilots with a first λ̂, and the run{budget}"


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
    why = "for the length of the run" if found is None else f"κ = {found.anharmonicity:.2g} there, {wanted}"
    return f"γ = {gamma:.4g}: {why}"


def pilot_found(found: PilotResult) -> str:
    """A first λ̂: one draw of each chain."""
    energies = np.asarray(found.pilots[-1].energies)
    if len(energies) < 2 or not np.isfinite(energies).all():
        return f"{len(found.pilots)} pilots: ε = {found.step_size:.3g}; their chains do not give a first λ̂"
    value = plus_minus(float(energies.mean()), float(energies.std(ddof=1) / math.sqrt(len(energies))))
    return f"{len(found.pilots)} pilots: ε = {found.step_size:.3g}, a first λ̂ = {value} from a draw of each chain"


def run_forecast(lengths: RunLengths, num_data: int, *, doubled: bool) -> str:
    """What the run takes, in gradients.

    Args:
        lengths: of the run.
        num_data: rows of the data.
        doubled: whether steps have control variates.
    """
    cost = run_cost(lengths, num_data, doubled=doubled)
    return (
        f"run: about {cost:,.0f} gradients, {lengths.num_chains} chains of {lengths.num_warmup:,} + "
        f"{lengths.num_draws:,} × {lengths.thinning} steps on {lengths.batch_size or num_data:,} rows"
    )
