r"""Which data a model's losses hang on together: Bayesian influence, and the kernel of losses.

Give example i the weight β_i in the loss of which the posterior is made, exp(−(nβ/n) Σ β_i ℓ_i − …). The expectation of
any function φ of the params then moves by

$$ \frac{\partial\, \mathbb{E}[\varphi]}{\partial \beta_i} = -\frac{n\beta}{n}\, \mathrm{Cov}(\ell_i, \varphi) , $$

and with a weight ε in the mean loss, L + ε ℓ_i, by −nβ Cov(ℓ_i, φ). The Bayesian influence function is the covariance
with its sign, −Cov(ℓ_i, φ) (Kreer et al. 2025, arXiv 2509.26544, where nβ = n); times nβ it tends to the classical
influence −∇ℓ_i·H⁻¹∇φ as nβ grows at a regular minimum. It is as large for an example that is not in the data.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.covariance import LOSS, Pooled, covariance, entry_dims, means, pooled, stretches
from llc.analysis.influence_controls import controlled_covariance
from llc.analysis.schema import constant
from llc.posterior.arguments import require_flag, require_type


def influence(draws: xr.DataTree, first: str, second: str, *, controls: xr.Dataset | None = None) -> xr.Dataset:
    """−Cov(a, b) over draws: what more weight on an entry of `first` does to each of `second`.

    A positive number: more weight raises the other loss (the two compete); a negative one: it lowers it (they help each
    other). Times nβ (the attribute `nbeta`) it is the derivative of E[b] by ε where L becomes L + ε a; taking example i
    out of n is ε = −1/n.

    Args:
        draws: of `llc.sample` with observables.
        first: name of an observable, losses by row as a rule, or "loss" for L(w) of all the data.
        second: name of another one, or the same.
        controls: `llc.influence_controls(…).forms`, where its observables were recorded: the Gaussian part is then
            known, and only what is beyond it has an error.

    Returns:
        Dataset with `value` and `mcse` (Monte Carlo standard error), with the dimensions of `first` and then of
        `second`, in the product of their units (nats²); `chain_ratio` above 1 by more than chance says that chains are
        too short (see `llc.analysis.covariance`), and the errors are then those between chains.

    Raises:
        ValueError: if an observable was not recorded, or only its moments without their covariance.

    References:
        Kreer et al., Bayesian influence functions for Hessian-free data attribution, arXiv 2509.26544.

    Example:
        `llc.influence(llc.sample(…, observables={"train": loss_fn, "query": llc.Observable(loss_fn, data=queries)}),
        "train", "query")`
    """
    require_type("first", first, str, "the name of an observable")
    require_type("second", second, str, "the name of an observable")
    for name in (first, second):
        entry_dims(draws, name)
    if controls is None:
        result = covariance(draws, first, second)
    else:
        result = controlled_covariance(draws, first, second, controls)
    return _dataset(draws, first, second, Pooled(-result.value, result.mcse, result.chain_ratio))


def loss_kernel(draws: xr.DataTree, first: str, second: str | None = None, *, correlation: bool = False) -> xr.Dataset:
    """Cov(a, b) over draws, or their correlation: which data react to the same directions of the params.

    Args:
        draws: of `llc.sample` with observables.
        first: name of an observable, losses by row as a rule.
        second: of another one; None takes the first against itself.
        correlation: whether to divide by the standard deviations of both. Entries that do not move give nan.

    Returns:
        Dataset as of `influence`.

    Raises:
        ValueError: as of `influence`.

    References:
        Adam et al., The loss kernel, arXiv 2509.26537.
    """
    require_type("first", first, str, "the name of an observable")
    require_type("second", second, str, "the name of an observable", optional=True)
    require_flag("correlation", correlation)
    second = first if second is None else second
    if correlation:
        return _dataset(draws, first, second, _correlation(draws, first, second), units="correlation")
    return _dataset(draws, first, second, covariance(draws, first, second))


def _correlation(draws: xr.DataTree, first: str, second: str) -> Pooled:
    """C_ij / √(V_i V_j), its error from the first order in the contributions to all three."""
    if LOSS in (first, second):
        raise ValueError("correlation needs two observables, got 'loss'; record the mean loss as one.")
    a, b = means(draws, first, second)

    def contributions() -> Iterator[tuple[int, float, np.ndarray, np.ndarray, np.ndarray]]:
        for s in stretches(draws, first, second):
            x, y = s.first - a, s.second - b
            v, w = s.variances
            yield s.chain, s.count, s.covariance + np.outer(x, y), v + x**2, w + y**2

    size, cov, v, w = 0.0, np.zeros(()), np.zeros(()), np.zeros(())
    for _, count, m, p, q in contributions():
        size, cov, v, w = size + count, cov + count * m, v + count * p, w + count * q
    cov, v, w = cov / size, v / size, w / size
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.outer(v, w))
        value = cov / scale

        def parts() -> Iterator[tuple[int, float, np.ndarray]]:
            for chain, count, m, p, q in contributions():
                change = m / scale - 0.5 * value * ((p / v)[:, None] + (q / w)[None, :])
                yield chain, count, change

        spread = pooled(parts)  # of mean 0: the value's own part and that of the variances cancel
    return Pooled(value, spread.mcse, spread.chain_ratio)


def _dataset(draws: xr.DataTree, first: str, second: str, result: Pooled, units: str = "nats²") -> xr.Dataset:
    (dims, shape), (other_dims, other_shape) = entry_dims(draws, first), entry_dims(draws, second)
    axes = dims + tuple(f"{dim}_2" if dim in dims else dim for dim in other_dims)
    values = {
        name: (axes, array.reshape(shape + other_shape), {"units": units})
        for name, array in (("value", result.value), ("mcse", result.mcse))
    }
    attributes = {name: constant(draws, name) for name in (schema.NBETA, schema.GAMMA, schema.NUM_DATA)}
    return xr.Dataset({**values, "chain_ratio": ((), result.chain_ratio)}, attrs=attributes)
