r"""How a component of a model reacts to a shift of its data, from a run of the whole and a run of the component.

Move the data a little towards others, L → L + hΔL with ΔL = L′ − L. The observable of a component C is the excess loss
φ = L(w) − L(w*) with all other parameters held at w*. Its susceptibility is the response per nβ (Baker et al. 2025,
arXiv 2504.18274, with the same sign):

$$ \chi_C = \frac{1}{n\beta} \frac{\partial}{\partial h} \langle \varphi_C \rangle_h \Big|_{h=0}
   = -\big( \mathrm{E}_C[\varphi\, \Delta L] - \mathrm{E}_C[\varphi]\, \mathrm{E}_W[\Delta L] \big), $$

E_C over the posterior in which only the component moves, E_W over that of the whole, which normalizes; of the whole
itself it is −Cov(φ, ΔL). The run of the whole serves all components: each one more costs a run of its own.

The same draws, weighted by exp(−nβ h ΔL), give the response at a finite h,

$$ r(h) = \frac{\mathrm{E}_C[\varphi\, e^{-n\beta h \Delta L}]}{\mathrm{E}_W[e^{-n\beta h \Delta L}]} , $$

and r(h) − r(0) − nβ h χ, whose error is small as both are of the same draws, says how far χ can be carried.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from llc.analysis import schema
from llc.analysis.covariance import LOSS, STRETCHES, Pooled, Stretch, entry_dims, kept_series, pooled, stretches
from llc.analysis.files import same
from llc.analysis.schema import constant
from llc.posterior.arguments import require_type

_LINEAR = 0.1  # departure relative to the linear response that still passes for linear
_ERRORS = 3.0  # standard errors of the departure that pass
_LEAST_SHARE = 0.1  # of the draws that weighted means have to rest on (Kish's effective sample)
_COLUMNS = 512  # entries that are weighted at once; bounds the memory


def susceptibility(
    whole: xr.DataTree,
    shift: str,
    *,
    component: xr.DataTree | None = None,
    reference: str | None = LOSS,
    shifts: Sequence[float] = (0.01, 0.1),
) -> xr.Dataset:
    """χ of a component to a shift of the data towards each entry of an observable, with a test of linearity.

    Negative χ: data that the component has learnt to fit, as more of them lower its excess loss.

    Args:
        whole: draws of `llc.sample` of all parameters, with the observable.
        shift: its name: the mean loss of other data (one number), or losses by row (a shift towards each).
        component: draws of the same posterior with a mask, and the same observable; None takes the whole.
        reference: the loss that the shift replaces, "loss" (of the posterior's data) or another observable of one
            number; None adds the shift to the data instead, L + h L′.
        shifts: sizes h at which linearity is tested, the share of the data that is replaced; where draws are kept.

    Returns:
        Dataset with `value` and `mcse`, with the dimensions of the observable, in nats²; with kept draws also, for each
        `shift`, the exact `response` r(h) − r(0) of E[φ] in nats, its `departure` from nβ h χ with `departure_mcse`,
        `effective_share` of the draws behind it, and `linear`: the departure is at most 10 % of the linear response or
        three standard errors of its own. Where the share is below a tenth, nothing is known and `linear` is False.

    Raises:
        ValueError: if an observable was not recorded, or the two runs are not of one posterior.

    References:
        Baker et al., Structural inference: interpreting small language models with susceptibilities, arXiv 2504.18274;
        Elliott & Murfet, Linear response estimators for singular statistical models, arXiv 2605.07970.

    Example:
        `llc.susceptibility(draws, "code", component=draws_of_head)`
    """
    require_type("whole", whole, xr.DataTree, "draws of llc.sample or llc.load")
    require_type("component", component, xr.DataTree, "draws of llc.sample or llc.load", optional=True)
    require_type("shift", shift, str, "the name of an observable")
    require_type("reference", reference, str, "the name of an observable", optional=True)
    sizes = _checked_shifts(shifts)
    dims, shape = entry_dims(whole, shift)
    component = whole if component is None else component
    _check_pair(whole, component, shift, shape)
    if reference is not None and math.prod(entry_dims(whole, reference)[1]) != 1:
        raise ValueError(f"susceptibility needs a reference of one number, got {reference!r} of more.")
    result = _at_zero(whole, component, shift, reference)
    attributes = {name: constant(whole, name) for name in (schema.NBETA, schema.GAMMA, schema.NUM_DATA)}
    dataset = xr.Dataset(
        {
            "value": (dims, result.value.reshape(shape)),
            "mcse": (dims, result.mcse.reshape(shape)),
            "chain_ratio": ((), result.chain_ratio),
        },
        attrs=attributes,
    )
    own = _run(component, shift, reference)
    everything = own if component is whole else _run(whole, shift, reference)
    if own is None or everything is None or not sizes.size:
        return dataset
    found = _linearity(everything, own, attributes[schema.NBETA], sizes)
    linear = attributes[schema.NBETA] * sizes[:, None] * result.value.ravel()
    allowed = np.maximum(_LINEAR * np.abs(linear), _ERRORS * found["mcse"])
    fits = (np.abs(found["departure"]) <= allowed) & (found["share"] >= _LEAST_SHARE)
    names = ("response", "departure", "departure_mcse", "effective_share")
    variables = dict(zip(names, found.values(), strict=True)) | {"linear": fits}
    axes = ("shift", *dims)
    return dataset.assign({k: (axes, x.reshape(-1, *shape)) for k, x in variables.items()}).assign_coords(shift=sizes)


def _checked_shifts(shifts: object) -> Float[np.ndarray, "shift"]:
    """The shifts h as numbers."""
    try:
        sizes = np.asarray(shifts).ravel()
    except ValueError:  # of lists of different lengths
        sizes = np.array([None])
    if sizes.dtype.kind not in "iuf" or not (np.isfinite(sizes).all() and (sizes != 0).all()):
        raise ValueError(f"susceptibility needs shifts that are finite numbers and not 0, got {shifts!r}.")
    return sizes.astype(np.float64)


def _check_pair(whole: xr.DataTree, component: xr.DataTree, shift: str, shape: tuple[int, ...]) -> None:
    if entry_dims(component, shift)[1] != shape:
        raise ValueError(
            f"susceptibility needs {shift!r} of one shape in both runs, got {shape} and "
            f"{entry_dims(component, shift)[1]}."
        )
    names = (schema.NBETA, schema.GAMMA, schema.NUM_DATA, schema.INIT_LOSS)
    wrong = {name: (constant(whole, name), constant(component, name)) for name in names}
    wrong = {name: pair for name, pair in wrong.items() if not same(*pair)}
    if wrong or constant(component, schema.NUM_PARAMS) > constant(whole, schema.NUM_PARAMS):
        wrong = wrong or {schema.NUM_PARAMS: tuple(constant(x, schema.NUM_PARAMS) for x in (whole, component))}
        raise ValueError(
            f"susceptibility needs draws of one posterior at one scale, whole and masked, got {wrong} (whole, "
            "component); sample both with the same data, w*, nbeta and gamma."
        )


class _Part(NamedTuple):
    """Of one stretch: means of φ and ΔL, and of their product."""

    chain: int
    num_draws: float
    loss: float
    shift: np.ndarray
    product: np.ndarray


def _parts(draws: xr.DataTree, shift: str, reference: str | None) -> list[_Part]:
    """Of every stretch, ΔL being the shift less the reference."""
    found = list(stretches(draws, LOSS, shift))
    others = [(0.0, 0.0)] * len(found) if reference is None else _reference(draws, reference, found)
    parts = []
    for s, (mean, covariance) in zip(found, others, strict=True):
        loss, shifted = float(s.first[0]), s.second - mean
        parts.append(_Part(s.chain, s.count, loss, shifted, s.covariance[0] - covariance + loss * shifted))
    return parts


def _reference(draws: xr.DataTree, name: str, found: Sequence[Stretch]) -> list[tuple[float, float]]:
    """Mean of the reference and its covariance with the loss, in the same stretches."""
    values, losses = kept_series(draws, name), kept_series(draws, LOSS)
    if values is None or losses is None:
        blocks = list(stretches(draws, LOSS, name))
        if [(s.chain, s.count) for s in blocks] != [(s.chain, s.count) for s in found]:
            raise ValueError(
                f"susceptibility needs the reference {name!r} recorded as the shift is, draws or moments of both, got "
                "one of each; give both the same moments=…."
            )
        return [(float(s.second[0]), float(s.covariance[0, 0])) for s in blocks]
    ends: dict[int, int] = {}
    result = []
    for s in found:  # in the order of draws, chain by chain or block by block
        begin = ends.get(s.chain, 0)
        ends[s.chain] = end = begin + int(s.count)
        x, y = (series[s.chain, begin:end, 0].astype(np.float64) for series in (values, losses))
        result.append((float(x.mean()), float(np.mean((x - x.mean()) * (y - y.mean())))))
    return result


def _mean(parts: Sequence[_Part], field: str) -> np.ndarray:
    weights = np.array([part.num_draws for part in parts])
    return np.tensordot(weights / weights.sum(), np.stack([getattr(part, field) for part in parts]), 1)


def _at_zero(whole: xr.DataTree, component: xr.DataTree, shift: str, reference: str | None) -> Pooled:
    own = _parts(component, shift, reference)
    everything = own if component is whole else _parts(whole, shift, reference)
    loss, product, normal = float(_mean(own, "loss")), _mean(own, "product"), _mean(everything, "shift")
    of_component = [(p.chain, p.num_draws, p.product - product - (p.loss - loss) * normal) for p in own]
    of_whole = [(p.chain, p.num_draws, -loss * (p.shift - normal)) for p in everything]
    spread = _spread(of_component, of_whole, together=component is whole)
    return Pooled(-(product - loss * normal), spread.mcse, spread.chain_ratio)


_Contributions = Sequence[tuple[int, float, np.ndarray]]


def _spread(of_component: _Contributions, of_whole: _Contributions, *, together: bool) -> Pooled:
    """Error of a sum of contributions of two runs, or of the same draws."""
    if together:
        both = [(chain, n, x + y) for (chain, n, x), (_, _, y) in zip(of_component, of_whole, strict=True)]
        return pooled(lambda: both)
    first, second = pooled(lambda: of_component), pooled(lambda: of_whole)
    ratio = max(first.chain_ratio, second.chain_ratio)
    return Pooled(first.value, np.hypot(first.mcse, second.mcse), ratio)


class _Run(NamedTuple):
    """Draws of φ (chain, draw), of the shift (chain, draw, entry) and of the reference (chain, draw, 1)."""

    loss: np.ndarray
    shift: np.ndarray
    reference: np.ndarray | None

    def differences(self, columns: slice) -> np.ndarray:
        """ΔL of some entries."""
        values = self.shift[:, :, columns].astype(np.float64)
        return values if self.reference is None else values - self.reference


def _run(draws: xr.DataTree, shift: str, reference: str | None) -> _Run | None:
    """The draws of one run; None where they were not kept."""
    values, loss = kept_series(draws, shift), kept_series(draws, LOSS)
    other = None if reference is None else kept_series(draws, reference)
    if values is None or loss is None or (reference is not None and other is None):
        return None
    return _Run(loss[:, :, 0], values, other)


def _linearity(whole: _Run, component: _Run, nbeta: float, shifts: np.ndarray) -> dict[str, np.ndarray]:
    """Response, departure, its error and the effective share, each (shift, entry)."""
    number = component.shift.shape[2]
    found = {name: np.empty((len(shifts), number)) for name in ("response", "departure", "mcse", "share")}
    for start in range(0, number, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        own = component.differences(columns)
        everything = own if component is whole else whole.differences(columns)
        center = everything.mean(axis=(0, 1))
        for i, h in enumerate(shifts):
            values = _response(component.loss, nbeta * h * (own - center), nbeta * h * (everything - center))
            for name, value in zip(found, values, strict=True):
                found[name][i, columns] = value
    return found


def _response(
    loss: np.ndarray, own: np.ndarray, everything: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Response at one h, from φ of the component and the exponents nβ h ΔL of both runs, of mean 0 in the whole."""
    least = np.minimum(own.min(axis=(0, 1)), everything.min(axis=(0, 1)))
    weights, normal = np.exp(least - own), np.exp(least - everything)
    share = np.minimum(*(x.mean(axis=(0, 1)) ** 2 / np.mean(x**2, axis=(0, 1)) for x in (weights, normal)))
    loss, mean, norm = loss[:, :, None], loss.mean(), normal.mean(axis=(0, 1))
    ratio = np.mean(loss * weights, axis=(0, 1)) / norm
    linear = -np.mean(loss * own, axis=(0, 1))
    of_component = _by_stretch(loss * weights / norm - loss + loss * own)
    of_whole = _by_stretch(-(ratio / norm) * normal - mean * everything)
    spread = _spread(of_component, of_whole, together=own is everything)
    return ratio - mean, ratio - mean - linear, spread.mcse, share


def _by_stretch(values: np.ndarray) -> _Contributions:
    number = max(1, min(STRETCHES, values.shape[1] // 2))
    return [
        (chain, float(len(part)), part.mean(axis=0))
        for chain in range(len(values))
        for part in np.array_split(values[chain], number)
    ]
