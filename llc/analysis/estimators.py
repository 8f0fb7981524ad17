r"""From draws to estimates of λ and its relatives, each with a Monte Carlo standard error.

With t = nβ, expectations over draws, and ℓ_i the loss of example i:

    mean energy           λ̂ = t (E[L(w)] − L(w*))                      Lau et al. 2023, eq. 14
    zero variance         mean energy − Σ c (E[x·A∇U] − tr A)           see `zero_variance`
    two temperatures      (E₁[L] − E₂[L]) / (1/t₁ − 1/t₂)               Watanabe 2013, Corollary 3
    energy variance       t² Var[L(w)]                                  Watanabe 2013, Theorem 4 (tK is Gamma(λ, 1))
    steps and draws       with the minibatches of all steps            see step_energies.py
    WBIC                  n E[L(w)] at β = 1 / log n                    Watanabe 2013, eq. 20

Where the losses come from a fixed subset of the data, its sampling error is part of the standard error.
"""

import math
from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema, validation
from llc.analysis.estimate import Estimate as Estimate
from llc.analysis.estimate import nothing, of_series
from llc.analysis.fitting import batch_means, fitted_coefficients, fitted_error, most_controls
from llc.analysis.pointwise import Moments, subset_share, subset_stderr, subset_variance
from llc.analysis.schema import POSTERIOR, SAMPLE_STATS, constant, variable
from llc.analysis.series import finite_chains, monte_carlo_error
from llc.analysis.step_energies import combined_energy, steps_and_controls
from llc.posterior.arguments import require_number, require_type

_ROUNDING = 8 * float(np.finfo(np.float32).eps)  # of a difference of two sums in the precision of the draws


def mean_energy(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate:
    """λ̂ = nβ (E[L(w)] − L(w*)), the LLC.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    energy = variable(draws, POSTERIOR, schema.ENERGY)
    stderr = float(np.hypot(subset_stderr(draws, moments=moments), loss_rounding(draws)))
    return of_series("mean energy", energy, energy.mean(axis=1), stderr=constant(draws, schema.NBETA) * stderr)


def loss_rounding(draws: xr.DataTree) -> float:
    """Standard error of E[L(w)] − L(w*) by rounding, as `llc.sample` measured it; 0 of older files."""
    return schema.optional_constant(draws, schema.LOSS_ROUNDING)


def zero_variance(
    draws: xr.DataTree, coefficients: tuple[float, float] | None = None, *, moments: Moments | None = None
) -> Estimate | None:
    """λ̂ less its control variates x·A∇U − tr A, whose means are zero; None where the draws do not have them.

    The harmonic part of the loss drops out with c = 1: of the variance, and of the sampler's bias with it. Only for
    chains that have mixed: a chain that has not left w* gives λ_quad with a small error (see the `virial` checks).

    Args:
        draws: of `llc.sample` with a spectrum.
        coefficients: c of the curved directions and of the rest; None fits them to the draws, by least squares, and
            the standard error has their part.
        moments: of `moments_of(draws)`; None computes them.

    References:
        Mira, Solgi & Imparato, Zero variance Markov chain Monte Carlo for Bayesian estimators, 2013, eq. 7.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    if coefficients is not None:
        _check_coefficients(coefficients)
    if not schema.has(draws, SAMPLE_STATS, schema.STEIN_CURVED):
        return None
    llc = variable(draws, POSTERIOR, schema.ENERGY)
    names = schema.STEIN_CURVED, schema.STEIN_FLAT
    controls = np.stack([variable(draws, SAMPLE_STATS, name) for name in names], axis=-1)
    finite = finite_chains(llc) & np.isfinite(controls).all(axis=(1, 2))
    if not finite.any():
        return nothing("zero variance", llc)
    batches = batch_means(np.concatenate([llc[finite][..., None], controls[finite]], axis=-1))
    fitted = fitted_coefficients(batches) if coefficients is None else np.asarray(coefficients, float)
    series = np.where(finite[:, None], llc - controls @ fitted, np.nan)
    nbeta = constant(draws, schema.NBETA)
    of_products = _ROUNDING * (abs(llc[finite].mean()) + abs(fitted[0]) * constant(draws, schema.TRACE_CURVED))
    of_losses = nbeta * np.hypot(
        subset_stderr(draws, (1.0, *map(float, -fitted)), moments=moments), loss_rounding(draws)
    )
    others = float(np.hypot(of_losses, of_products))
    estimate = of_series("zero variance", series, series.mean(axis=1), stderr=others)
    if coefficients is not None:
        return estimate
    return replace(estimate, mcse=max(estimate.mcse, math.hypot(fitted_error(batches), others)))


def _check_coefficients(coefficients: object) -> None:
    if not (isinstance(coefficients, (tuple, list, np.ndarray)) and len(coefficients) == 2):
        raise ValueError(f"coefficients needs two numbers or None, got {type(coefficients).__name__}.")
    for value in coefficients:
        require_number("coefficients", value, least=-np.inf)


def best_energy(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate:
    """The estimate of least error: with the energies of steps where there are any, and with control variates.

    That is `combined_energy` where steps have energies (and draws on a subset of the data have not a smaller error),
    else `zero_variance`, or the mean energy where there is none, where it has the larger error, or where trajectories
    diverged.

    Control variates help as far as the loss is quadratic. Where it is far from that, their coefficients are uncertain:
    at a logistic regression on separable data, which has no minimum, the error was .063 with them and .010 without.

    Trajectories that diverge miss the narrow arms of a singular minimum. The energy is nearly the same in them, so its
    mean hardly suffers; x·∇U grows along them, so its mean is no longer tr A (NUTS on (w₁w₂)²/2: 63 % of the 95 %
    intervals covered with control variates, 96 % without).

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    finite = finite_chains(variable(draws, POSTERIOR, schema.ENERGY))
    diverged = variable(draws, SAMPLE_STATS, schema.DIVERGING)[finite].any()
    of_draws, mean = (None if diverged else zero_variance(draws, moments=moments)), mean_energy(draws, moments=moments)
    if of_draws is None or mean.mcse < of_draws.mcse:
        of_draws = mean
    combined = combined_energy(draws)
    if combined is None or (subset_share(draws) < 1 and of_draws.mcse < combined.mcse):
        return of_draws
    return combined


def energy_and_controls(
    draws: xr.DataTree,
) -> tuple[Float[np.ndarray, "chain draw"], Float[np.ndarray, "chain draw control"]]:
    """nβ (L(w) − L(w*)) of each draw, or of the steps before it, and its control variates, as many as there are.

    Args:
        draws: of `llc.sample`.
    """
    if (series := steps_and_controls(draws)) is not None:
        return series
    llc = variable(draws, POSTERIOR, schema.ENERGY)
    diverged = variable(draws, SAMPLE_STATS, schema.DIVERGING)[finite_chains(llc)].any()
    if diverged or not schema.has(draws, SAMPLE_STATS, schema.STEIN_CURVED):
        return llc, np.zeros((*llc.shape, 0))
    names = schema.STEIN_CURVED, schema.STEIN_FLAT
    return llc, np.stack([variable(draws, SAMPLE_STATS, name) for name in names], axis=-1)


def with_controls(
    values: Float[np.ndarray, "chain draw"], controls: Float[np.ndarray, "chain draw control"]
) -> tuple[float, float]:
    """Mean of a series less its control variates, fitted to the draws, and its standard error with that of the fit.

    Args:
        values: of finite draws.
        controls: of the same draws, with means of zero.
    """
    batches = batch_means(np.concatenate([values[..., None], controls], axis=-1))
    number = most_controls(batches)
    if not number:
        return float(values.mean()), monte_carlo_error(values)
    batches, controls = batches[:, : 1 + number], controls[..., :number]
    series = values - controls @ fitted_coefficients(batches)
    return float(series.mean()), max(monte_carlo_error(series), fitted_error(batches))


def two_temperatures(hot: xr.DataTree, cold: xr.DataTree) -> Estimate:
    """λ from the mean energies at two nβ, (E₁[L] − E₂[L]) / (1/t₁ − 1/t₂), which needs no L(w*).

    Args:
        hot: draws at the smaller nβ.
        cold: draws at the larger nβ, of the same posterior otherwise (and of the same key where losses are evaluated
            on a subset, which the key chooses).

    Raises:
        ValueError: if the two are at the same nβ, or differ in more than nβ.
    """
    for name, draws in (("hot", hot), ("cold", cold)):
        require_type(name, draws, xr.DataTree, "a DataTree of llc.sample or llc.load")
        validation.require(draws)
    first, second = constant(hot, schema.NBETA), constant(cold, schema.NBETA)
    if not 0 < first < second:
        raise ValueError(f"two_temperatures needs two nβ, the smaller one first, got {first:g} and {second:g}.")
    for name in (schema.INIT_LOSS, schema.GAMMA, schema.NUM_DATA, schema.EVAL_SIZE):
        here, there = constant(hot, name), constant(cold, name)
        if not math.isclose(here, there, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"two_temperatures needs the same {name} in both runs, got {here:g} and {there:g}.")
    parts = [(best_energy(draws), constant(draws, schema.NBETA)) for draws in (hot, cold)]
    width = 1 / first - 1 / second
    return Estimate(
        method="two temperatures",
        value=(parts[0][0].value / first - parts[1][0].value / second) / width,
        mcse=math.hypot(*(part.mcse / nbeta for part, nbeta in parts)) / width,
        per_chain=(),
        ess=min(part.ess for part, _ in parts),
        rhat=max(part.rhat for part, _ in parts),
    )


def energy_variance(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate:
    """(nβ)² Var[L(w)], which needs no L(w*); the noise of an evaluation subset is subtracted.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    llc = variable(draws, POSTERIOR, schema.ENERGY)
    finite = llc[finite_chains(llc)]
    if not finite.size:
        return nothing("energy variance", llc)
    noise = constant(draws, schema.NBETA) ** 2 * subset_variance(draws, moments=moments)
    return of_series("energy variance", (llc - finite.mean()) ** 2 - noise, llc.var(axis=1) - noise)


def wbic(draws: xr.DataTree, *, moments: Moments | None = None) -> Estimate | None:
    """WBIC = n E[L(w)] in nats, an estimate of the free energy; None unless nβ = n / log n, where it is defined.

    Args:
        draws: of `llc.sample`.
        moments: of `moments_of(draws)`; None computes them.
    """
    validation.require(draws)
    require_type("moments", moments, Moments, "moments_of(draws)", optional=True)
    num_data = constant(draws, schema.NUM_DATA)
    if not math.isclose(constant(draws, schema.NBETA), num_data / math.log(num_data), rel_tol=1e-6):
        return None
    loss = num_data * variable(draws, POSTERIOR, schema.LOSS)  # that of w* is over all the data
    stderr = float(np.hypot(subset_stderr(draws, moments=moments), loss_rounding(draws)))
    return of_series("WBIC", loss, loss.mean(axis=1), stderr=num_data * stderr)
