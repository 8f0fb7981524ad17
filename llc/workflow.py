"""The whole way from a loss and a minimum to a checked estimate: curvature, settings, draws, bounds, report."""

import xarray as xr
from jaxtyping import PRNGKeyArray

from llc.analysis.estimators import constant
from llc.analysis.report import Report, assemble
from llc.geometry.bounds import Bounds, rank_bounds
from llc.geometry.spectrum import Spectrum
from llc.geometry.spectrum import spectrum as hessian_spectrum
from llc.posterior import LocalPosterior
from llc.sampling.calibration import settings_from_curvature
from llc.sampling.chains import sample
from llc.sampling.sgmcmc import SGLD


def estimate(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    num_chains: int = 4,
    num_warmup: int = 2000,
    num_draws: int = 2000,
    thinning: int = 5,
    batch_size: int | None = None,
    eval_size: int | None = None,
    progress: bool | None = None,
) -> Report:
    """Report on λ at w*, from one call: spectrum, settings, SGLD draws, bounds, checks and a verdict.

    The step size is ε = 0.5 / (nβ h_max + γ). Where the posterior has no γ it is set for the length of the run; λ_corr
    undoes its effect on the curved directions.

    Args:
        key: `jax.random.key(seed)`.
        posterior: loss, data and w*, trained to a minimum.
        num_chains: independent chains.
        num_warmup: steps discarded.
        num_draws: recorded draws a chain.
        thinning: steps between draws; a draw evaluates the loss on `eval_size` rows.
        batch_size: rows of a minibatch. None takes all the data up to 4,096 rows and 512 beyond; minibatches heat the
            chains, which the `virial` check sees.
        eval_size: rows on which L(w) − L(w*) is evaluated; None takes all.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is out of range or the curvature at w* gives no scale.

    References:
        Lau et al., The local learning coefficient, arXiv 2308.12108.
    """
    num_steps = num_warmup + num_draws * thinning
    spectrum = hessian_spectrum(posterior)
    settings = settings_from_curvature(posterior, spectrum.largest, num_steps)
    posterior = posterior.with_scale(gamma=settings.gamma)
    if batch_size is None and posterior.num_data > _FULL_BATCH:
        batch_size = _MINIBATCH
    draws = sample(
        key,
        posterior,
        SGLD(step_size=settings.step_size),
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        progress=progress,
    )
    return report(draws, spectrum=spectrum)


_FULL_BATCH, _MINIBATCH = 4096, 512


def report(draws: xr.DataTree, *, bounds: Bounds | None = None, spectrum: Spectrum | None = None) -> Report:
    """Report on draws: estimates, checks and the verdict against bounds.

    Args:
        draws: of `llc.sample`, or `llc.load`ed from a file. A `curvature` group serves where no spectrum is given; a
            spectrum that is given becomes that group, so that the file holds all of the report.
        bounds: on the asymptotic λ; None makes them from the spectrum at the draws' nβ and γ. Bounds that were made at
            another scale are made anew where there is a spectrum, so that λ_quad belongs to the draws.
        spectrum: of the Hessian at w*.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes.

    Example:
        See the quickstart in the README.
    """
    if spectrum is None and "curvature" in draws:
        spectrum = Spectrum.from_dataset(draws["curvature"])
    elif spectrum is not None:
        draws["curvature"] = xr.DataTree(spectrum.to_dataset())
    if spectrum is not None and "constant_data" in draws:
        nbeta, gamma = constant(draws, "nbeta"), constant(draws, "gamma")
        if bounds is None or bounds.noise_scale != gamma / nbeta:
            bounds = rank_bounds(spectrum, nbeta=nbeta, gamma=gamma)
    return assemble(draws, bounds=bounds, spectrum=spectrum)
