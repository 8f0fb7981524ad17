"""A report on draws and what is known of λ from the geometry."""

import math

import xarray as xr

from llc.analysis import schema, validation
from llc.analysis.assembly import assemble
from llc.analysis.files import same
from llc.analysis.report import Report
from llc.analysis.schema import constant, source_of
from llc.analysis.values import check_values
from llc.bounds.rank import Bounds, at_scale, rank_bounds
from llc.bounds.spectral_measure import Spectrum
from llc.bounds.storage import add_beyond, to_dataset
from llc.posterior.arguments import require_number, require_type


def report(
    draws: xr.DataTree,
    *,
    bounds: Bounds | None = None,
    spectrum: Spectrum | None = None,
    reference_loss: float | None = None,
) -> Report:
    """Report on draws: estimates, checks and the verdict against bounds.

    Args:
        draws: of `llc.sample`, or `llc.load`ed from a file; they are left as they are. A `curvature` group serves where
            no spectrum is given; a spectrum that is given becomes that group of `Report.draws`, so that a file of those
            holds all of the report.
        bounds: on the asymptotic λ; None makes them from the spectrum at the draws' nβ and γ, with what is known beyond
            the rank if the draws' file holds it (`llc bounds --higher`). Bounds that were made at another scale are
            made anew where there is a spectrum, so that λ_quad belongs to the draws. Without a spectrum, bounds are
            compared with λ̂ itself, and on their upper side only, unless they were made at the draws' nβ and γ.
        spectrum: of the Hessian at w*.
        reference_loss: mean loss, in nats per example, of a model that has learnt nothing, by which `report.character`
            tells draws that left the basin of w*; it becomes part of `Report.draws`. None takes the one in the draws:
            the loss with all parameters at zero, which is chance for most networks.

    Raises:
        ValueError: if `draws` lacks what `llc.sample` writes, the spectrum is of other parameters or another w*, or
            reference_loss is not finite.

    Example:
        See the quickstart in the README.
    """
    require_type("bounds", bounds, Bounds, "llc.Bounds", optional=True)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    validation.require(draws)
    check_values(draws, source_of(draws))
    draws = draws.copy()  # shallow: the arrays are shared, the groups are not
    if reference_loss is not None:
        require_number("reference_loss", reference_loss, least=-math.inf)
        set_reference(draws, float(reference_loss))
    beyond = str(draws[schema.CURVATURE].attrs.get("beyond", "")) if schema.CURVATURE in draws else ""
    given, spectrum = spectrum, _spectrum_of(draws, spectrum)
    if spectrum is not None:
        nbeta, gamma = constant(draws, schema.NBETA), constant(draws, schema.GAMMA)
        if bounds is None:
            bounds = add_beyond(rank_bounds(spectrum, nbeta=nbeta, gamma=gamma), beyond)
        elif bounds.localization_scale != gamma / nbeta:
            bounds = at_scale(bounds, spectrum, nbeta=nbeta, gamma=gamma)
    if given is not None:
        draws[schema.CURVATURE] = xr.DataTree(to_dataset(given, bounds))
    return assemble(draws, bounds=bounds, spectrum=spectrum)


def set_reference(draws: xr.DataTree, reference_loss: float) -> None:
    """Sets the loss of reference, of a run and of those that lie beside it."""
    beside = [draws.children[name] for name in (schema.LOCALIZED, schema.HALF_STEP) if name in draws.children]
    for run in (draws, *beside):
        constants = run[schema.CONSTANTS].to_dataset()
        run[schema.CONSTANTS] = xr.DataTree(constants.assign({schema.REFERENCE_LOSS: reference_loss}))


def _spectrum_of(draws: xr.DataTree, spectrum: Spectrum | None) -> Spectrum | None:
    """The given spectrum or the one among the draws, if it is of the same parameters and the same w*."""
    if spectrum is None and schema.CURVATURE not in draws:
        return None
    if spectrum is None:
        spectrum = Spectrum.from_dataset(draws[schema.CURVATURE])
        written = float(draws[schema.CURVATURE].attrs.get("init_loss", math.nan))
        if not same(written, here := constant(draws, schema.INIT_LOSS)):
            raise ValueError(
                f"draws need a spectrum at their own w*, got one where L(w*) = {written:.9g} for draws around one "
                f"where it is {here:.9g}; compute it anew (llc bounds --out)."
            )
    if spectrum.dim != (num_params := constant(draws, schema.NUM_PARAMS)):
        raise ValueError(
            f"draws need a spectrum of their own {num_params:.0f} parameters, got one of {spectrum.dim}; compute it "
            "for this posterior (llc.spectrum, or llc bounds --out)."
        )
    return spectrum
