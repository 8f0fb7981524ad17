"""Checks of kind "chains": whether the draws are those of their posterior, whatever w* is and wherever bounds lie."""

import numpy as np
import scipy.special
import xarray as xr

from llc.analysis import schema
from llc.analysis.advice import more_rows, stronger_gamma
from llc.analysis.cause import Cause
from llc.analysis.check import MAX_BIAS, Check, make_check
from llc.analysis.estimators import Estimate, mean_energy, zero_variance
from llc.analysis.pointwise import Moments, subset_share
from llc.analysis.potential_check import potential_check
from llc.analysis.rounding_checks import rounding_checks
from llc.analysis.schema import POSTERIOR, SAMPLE_STATS, constant, variable
from llc.analysis.series import LEAST_DRAWS, finite_chains, monte_carlo_error
from llc.analysis.step_energies import combined_energy, step_energies_check
from llc.analysis.virial_checks import virial_checks
from llc.bounds.shrinkage import shrink
from llc.bounds.spectral_measure import Spectrum

MIN_ESS = 400.0  # below it R-hat and ESS themselves are unreliable (Vehtari et al. 2021, §4)
_MIN_ESS_OF_DRAWS = 100.0  # whatever control variates do: below it an error is a fifth too small (fitting.py)
_MAX_RHAT = 1.05  # at ESS 400 eight half-chains give 1.01 on average and 1.04 at four sigma (χ²₇ / 7 times 8 / ESS)
_MAX_Z = 4.0
_MIN_ROWS = 100  # of an evaluation subset: at 15 and 30 rows errors were 1.4 to 1.75 times too small, at 100 right
_FINITE = {  # what every chain that is still there has
    POSTERIOR: (schema.ENERGY,),
    SAMPLE_STATS: (
        schema.VIRIAL,
        schema.DISTANCE,
        schema.STEIN_CURVED,
        schema.STEIN_FLAT,
        schema.STEP_ENERGY,
    ),
}
_STABLE, _SAFE = 4.0, 2.0  # ε (nβ h + γ) from which Euler–Maruyama is unstable, and up to which it is trusted


def chain_checks(
    draws: xr.DataTree, mean: Estimate, spectrum: Spectrum | None, moments: Moments | None, cause: Cause
) -> tuple[Check, ...]:
    """All checks of the chains that the draws have the variables for.

    Args:
        draws: of one run.
        mean: the mean energy λ̂.
        spectrum: of the Hessian, from which the bias of the step size is predicted; None if unknown.
        moments: of `moments_of(draws)`.
        cause: of energies that are not what was expected.
    """
    checks = [
        _finite(draws),
        _divergences(draws),
        _rhat(draws, mean),
        _ess(draws, mean),
        _drift(draws),
        *virial_checks(draws, mean, cause, moments),
        _control_variates(draws, mean, moments),
        _evaluation_rows(draws),
        None if spectrum is None else _step_size(draws, spectrum),
        *rounding_checks(draws, mean),
        step_energies_check(draws, moments),
        potential_check(draws),
    ]
    return tuple(check for check in checks if check is not None)


def has_mixed(draws: xr.DataTree, least_ess: float = 0.0) -> bool:
    """Whether the chains agree, do not drift, and have enough effective draws: what more draws could cure.

    Args:
        draws: of one run.
        least_ess: of the draws themselves, whatever the energies of steps add.
    """
    mean = mean_energy(draws)
    return mean.ess >= least_ess and all(
        check.passed for check in (_rhat(draws, mean), _ess(draws, mean), _drift(draws))
    )


def _finite(draws: xr.DataTree) -> Check:
    """Whether all chains are there to the end, of a run beside the draws too."""
    dead, number = _dead_chains(draws), draws[POSTERIOR].sizes["chain"]
    beside = (("the run at 3γ", schema.localized_run(draws)), ("the run at half the step", schema.half_step_run(draws)))
    others = [(where, _dead_chains(run)) for where, run in beside if run is not None]
    seen = "; ".join(
        [
            f"{len(dead)} of {number} chains have non-finite losses{_named(dead)}",
            *(f"{len(found)} chains of {where} have{_named(found)}" for where, found in others if found),
        ]
    )
    total = len(dead) + sum(len(found) for _, found in others)
    return make_check(
        "finite_chains",
        "chains",
        total,
        0,
        passed=not total,
        seen=seen,
        cure=f"they are left out of the estimates; lower step_size, or give {stronger_gamma(draws)}",
        direction="hot",
    )


def _dead_chains(draws: xr.DataTree) -> dict[int, str]:
    """The chains of a run that are not finite to the end, each with the first variable that shows it."""
    dead: dict[int, str] = {}
    for group, names in _FINITE.items():
        for name in (name for name in names if schema.has(draws, group, name)):
            for chain in np.flatnonzero(~finite_chains(variable(draws, group, name))):
                dead.setdefault(int(chain), name)
    return dead


def _named(dead: dict[int, str]) -> str:
    """Which chains, and in which variables where it is not the energy."""
    named = [f"{chain}" + (f" in {name}" if name != schema.ENERGY else "") for chain, name in sorted(dead.items())]
    return f" (chain {', '.join(named)})" if named else ""


def _divergences(draws: xr.DataTree) -> Check:
    share = float(variable(draws, SAMPLE_STATS, schema.DIVERGING).mean())
    return make_check(
        "divergences",
        "chains",
        share,
        0,
        passed=share == 0,
        seen=f"{share:.2%} of the draws diverged",
        cure="narrow regions of the posterior are missed; lower step_size, or raise target_accept",
    )


def _rhat(draws: xr.DataTree, mean: Estimate) -> Check:
    num_draws = draws[POSTERIOR].sizes["draw"]
    seen, cure = f"R-hat {mean.rhat:.3f}", "the chains disagree; take more draws and warm-up, or a larger step_size"
    if num_draws < LEAST_DRAWS:
        seen = f"{num_draws} draws a chain"
        cure = f"too few to compare the chains with each other, which takes at least {LEAST_DRAWS}; take more draws"
    passed = mean.rhat <= _MAX_RHAT
    return make_check("rhat", "chains", mean.rhat, _MAX_RHAT, passed=passed, seen=seen, cure=cure, cured_by_draws=True)


def _ess(draws: xr.DataTree, mean: Estimate) -> Check:
    """Effective draws of the mean energy; with energies of steps, as many as would give λ̂ the error that it has.

    Of the draws themselves there have to be a quarter as many, or none of these errors can be told.
    """
    number, seen = mean.ess, ""
    combined = combined_energy(draws)
    if combined is not None and 0 < combined.mcse < mean.mcse:
        energy = variable(draws, POSTERIOR, schema.ENERGY)
        number = float(energy[finite_chains(energy)].var() / combined.mcse**2)
        seen = f" with the energies of steps, {mean.ess:.0f} without"
    return make_check(
        "ess",
        "chains",
        number,
        MIN_ESS,
        passed=number >= MIN_ESS and mean.ess >= _MIN_ESS_OF_DRAWS,
        seen=f"{number:.0f} effective draws{seen}",
        cure="too few for a reliable standard error; take more draws, a larger thinning, or a larger step_size if "
        "step_size_bias allows",
        cured_by_draws=True,
    )


def _drift(draws: xr.DataTree) -> Check:
    """Last third against first third: by the errors of the two, and by the spread of the difference over chains.

    A slow drift inflates the errors of both thirds, but chains that drift alike differ little in it (Student's t).
    """
    energy = variable(draws, POSTERIOR, schema.ENERGY)
    energy = energy[finite_chains(energy)]
    third = max(1, energy.shape[1] // 3)
    first, last = energy[:, :third], energy[:, -third:]
    change = last.mean(axis=1) - first.mean(axis=1)
    z = change.mean() / np.hypot(monte_carlo_error(first), monte_carlo_error(last)) if len(energy) else np.nan
    if len(energy) > 1 and change.std() > 0:
        student = change.mean() / (change.std(ddof=1) / np.sqrt(len(change)))
        normal = np.sign(student) * -scipy.special.ndtri(scipy.special.stdtr(len(change) - 1, -abs(student)))
        z = max(z, normal, key=abs)
    return make_check(
        "drift",
        "chains",
        z,
        _MAX_Z,
        passed=abs(z) <= _MAX_Z,
        seen=f"the last third of the draws differs from the first by {z:+.1f} standard errors",
        cure="the chains have not reached their stationary distribution; raise num_warmup, then num_draws",
        cured_by_draws=True,
    )


def _control_variates(draws: xr.DataTree, mean: Estimate, moments: Moments | None) -> Check | None:
    """Whether the mean energy, with and without control variates, is the same: the gradient enters only one of them."""
    finite = finite_chains(variable(draws, POSTERIOR, schema.ENERGY))
    if variable(draws, SAMPLE_STATS, schema.DIVERGING)[finite].any():
        return None  # the control variates are off in the arms of a singular minimum, and are not used
    zero = zero_variance(draws, moments=moments)
    if zero is None or not finite.any():
        return None
    difference = zero.value - mean.value
    # What the control variates remove of the bias of the step size is allowed, as much as a report claims.
    threshold = max(_MAX_Z * np.hypot(zero.mcse, mean.mcse), MAX_BIAS * abs(mean.value))
    return make_check(
        "control_variates",
        "chains",
        difference,
        threshold,
        passed=abs(difference) <= threshold,
        seen=f"the zero-variance estimate minus the mean energy of the same draws is {difference:+.3g}",
        cure="the gradient may not be the derivative of the loss (a custom derivative, stop_gradient), or the chains "
        "have not explored the posterior; check loss_fn, then take more draws and warm-up",
    )


def _evaluation_rows(draws: xr.DataTree) -> Check | None:
    """Whether the subset on which losses are evaluated is large enough for its error to be known."""
    if subset_share(draws) >= 1:
        return None
    rows = constant(draws, schema.EVAL_SIZE)
    return make_check(
        "evaluation_rows",
        "chains",
        rows,
        _MIN_ROWS,
        passed=rows >= _MIN_ROWS,
        seen=f"the losses of draws were evaluated on {rows:.0f} of {constant(draws, schema.NUM_DATA):.0f} rows",
        cure=f"with so few rows the standard error is too small; {more_rows(draws, _MIN_ROWS)}",
    )


def _step_size(draws: xr.DataTree, spectrum: Spectrum) -> Check | None:
    settings = schema.settings_of(draws)["sampler"]
    plain = settings["name"] == "SGLD" and settings["preconditioner"]["name"] == "Identity"
    if not (plain or settings["name"] == "SGHMC"):  # which has the same limit, and no bias on a quadratic
        return None
    nbeta, gamma, step_size = constant(draws, schema.NBETA), constant(draws, schema.GAMMA), settings["step_size"]
    stiffest = step_size * (nbeta * spectrum.largest + gamma)
    scale = gamma / nbeta
    bias = 0.0
    if settings.get("integrator") == "euler_maruyama":
        # Variance 1 / (a (1 − εa/4)) instead of 1 / a, a = nβh + γ; unstable from εa = 4 on.

        def excess(h: np.ndarray) -> np.ndarray:
            a = np.minimum(step_size * (nbeta * np.maximum(h, 0.0) + gamma), _STABLE - 0.01)
            return shrink(h, scale) * a / (_STABLE - a)

        quad = spectrum.quad(scale)
        bias = spectrum.sum(excess) / quad if quad > 0 else 0.0
    too_stiff = stiffest > _SAFE
    value, threshold = (stiffest, _SAFE) if too_stiff else (bias, MAX_BIAS)
    return make_check(
        "step_size_bias",
        "chains",
        value,
        threshold,
        passed=bias <= MAX_BIAS and not too_stiff,
        seen=f"ε (nβ h_max + γ) = {stiffest:.2g} (stable below 4); predicted bias of λ̂ on the Gaussian part "
        f"{bias:+.1%}",
        cure="the step is too large for the stiffest directions; lower step_size to about 0.5 / (nβ h_max + γ), or "
        "take integrator='leimkuhler_matthews'",
    )
