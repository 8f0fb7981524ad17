r"""What influence needs beside the losses so that its Gaussian part is known and not sampled (docs/theory.md §8).

With x = w − w* and Σ = (nβH + γ)⁻¹ a loss is near w* a linear form g·x and the squares of a few others, from the
eigenvalues κ of Σ^½ H_i Σ^½. For each of these forms b the draws record

$$ u = b \cdot x \qquad\text{and}\qquad v = b \cdot \Sigma \nabla U(w) , $$

which are the same on a quadratic loss. Whatever the loss is, their products have known means, E[v_i u_j] = b_i·Σb_j, by
integration by parts. The price of a draw is one gradient over all the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import require_memory
from llc.posterior.precision import as_float64, float64, lenient
from llc.sampling.observable import Observable, check_rows

_MOST_PARAMS = 2000  # whose Hessian of a single row is a dense matrix with its eigenvalues, row by row
_MOST_FORMS = 16  # squares that a loss is written by
_LEFT = 0.01  # share of tr (ΣH_i)² that may be left to sampling


@dataclass(frozen=True)
class InfluenceControls:
    """What to record, and what `llc.influence(…, controls=…)` takes.

    Attributes:
        observables: for `llc.sample`: `<name>_linear`, u, and `<name>_stein`, v, of every set.
        forms: `<name>_root`, the forms times Σ^½ (row, form, param), the first that of the gradient, and
            `<name>_curvature`, κ of the others.
    """

    observables: dict[str, Observable]
    forms: xr.Dataset


def influence_controls(posterior: LocalPosterior, spectrum: Spectrum, sets: Mapping[str, PyTree]) -> InfluenceControls:
    """Control variates of influence, for losses by row of the sets of data.

    Args:
        posterior: with γ > 0 and a loss per example, of at most 2,000 parameters.
        spectrum: `llc.spectrum(posterior)` with eigenvectors; a part of them serves, at more noise and no bias.
        sets: data by the name under which their losses are recorded; None stands for the posterior's data.

    Raises:
        ValueError: if the model is too large, γ is 0, the loss comes as a mean, or there are no eigenvectors.

    Example:
        ```
        controls = llc.influence_controls(posterior, spectrum, {"train": None, "query": queries})
        observables = {"train": loss_fn, "query": llc.Observable(loss_fn, data=queries), **controls.observables}
        draws = llc.sample(key, posterior, llc.NUTS(), observables=observables)
        llc.influence(draws, "train", "query", controls=controls.forms)
        ```
    """
    require_differentiable(posterior)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum")
    require_type("sets", sets, Mapping, "a dict of data, or None, by the name of their observable")
    if not sets:
        raise ValueError("sets needs at least one set of data, got none.")
    _check(posterior, spectrum)
    root, inverse = _roots(posterior, spectrum)
    observables, variables = {}, {}
    for name, data in sets.items():
        _check_set(posterior, name, data)
        gradients, hessians = _derivatives(posterior, posterior.data if data is None else data, root)
        values, vectors = np.linalg.eigh(hessians)
        order = np.argsort(-np.abs(values), axis=1)
        values = np.take_along_axis(values, order, axis=1)
        number = _num_forms(values)
        vectors = np.take_along_axis(vectors, order[:, None, :], axis=2)[:, :, :number].transpose(0, 2, 1)
        scaled = np.concatenate([(gradients @ root)[:, None], vectors], axis=1)  # forms times Σ^½
        with lenient():
            observables |= _observables(posterior, name, scaled @ inverse, scaled @ root)
        variables[f"{name}_root"] = ((f"{name}_row", f"{name}_form", "param"), scaled)
        variables[f"{name}_curvature"] = ((f"{name}_row", f"{name}_square"), values[:, :number])
    return InfluenceControls(observables, xr.Dataset(variables))


def _check_set(posterior: LocalPosterior, name: object, data: PyTree) -> None:
    """Raises ValueError if a name is none of an observable, or the loss does not work on the data."""
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"sets need names that are identifiers, got {name!r}; rename it.")
    if data is None:
        return
    check_rows(data, f"sets[{name!r}]")
    try:
        eqx.filter_eval_shape(posterior.loss_fn, posterior.center, data)
    except Exception as error:  # the user's function may raise anything
        raise ValueError(
            f"sets[{name!r}] needs rows like those of the posterior's data, but on it loss_fn raises "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}."
        ) from error


def _check(posterior: LocalPosterior, spectrum: Spectrum) -> None:
    if posterior.num_params > _MOST_PARAMS or not posterior.per_example:
        raise ValueError(
            f"influence_controls needs a loss per example of at most {_MOST_PARAMS:,} parameters, got "
            f"{posterior.num_params:,} and {'one' if posterior.per_example else 'a mean'}; take llc.influence without "
            "controls."
        )
    if posterior.stream is not None:
        raise ValueError(
            "influence_controls needs the gradient over all the data in every draw, got a stream; read the data into "
            "arrays (llc.read_batches), or take llc.influence without controls."
        )
    if posterior.weights is not None:
        raise ValueError(
            "influence_controls needs a posterior without weights, whose losses per example are those of loss_fn; take "
            "llc.influence without controls."
        )
    if not posterior.scale.gamma > 0:
        raise ValueError("influence_controls needs gamma > 0, or flat directions have no variance; got 0.")
    if spectrum.vectors is None or spectrum.vectors.shape[1] != posterior.num_params:
        got = "none" if spectrum.vectors is None else f"those of {spectrum.vectors.shape[1]} parameters"
        raise ValueError(
            f"influence_controls needs eigenvectors of the {posterior.num_params} parameters that move, got {got}; "
            "compute llc.spectrum(posterior)."
        )


def _roots(posterior: LocalPosterior, spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Σ^½ and Σ^−½; a direction without a vector counts as flat."""
    nbeta, gamma = posterior.scale
    vectors = np.asarray(spectrum.vectors, np.float64)
    values = nbeta * np.maximum(np.asarray(spectrum.vector_eigenvalues, np.float64), 0.0) + gamma
    identity = np.eye(posterior.num_params)

    def power(p: float) -> np.ndarray:
        return gamma**p * identity + (vectors.T * (values**p - gamma**p)) @ vectors

    return power(-0.5), power(0.5)


def _derivatives(
    posterior: LocalPosterior, data: PyTree, root: np.ndarray
) -> tuple[Float[np.ndarray, "row dim"], Float[np.ndarray, "row dim dim"]]:
    """Gradients of rows at w*, and Σ^½ H_i Σ^½, in float64."""
    num_rows, dim = len(jax.tree.leaves(data)[0]), len(root)
    require_memory(24 * num_rows * dim**2, f"the Hessians of {num_rows:,} rows", "fewer rows in each of the sets")
    with float64():
        gradients, hessians = _of_rows(as_float64(posterior), as_float64(data), jnp.asarray(root))
        return np.asarray(gradients), np.asarray(hessians)


@eqx.filter_jit
def _of_rows(posterior: LocalPosterior, data: PyTree, root: Array) -> tuple[Array, Array]:
    flat, unravel = ravel_pytree(posterior.position)

    def one(row: PyTree) -> tuple[Array, Array]:
        batch = jax.tree.map(lambda x: x[None], row)

        def loss(z: Array) -> Array:
            return posterior.loss_fn(posterior.params_at(unravel(z)), batch)[0]

        hessian = root @ jax.hessian(loss)(flat) @ root
        return jax.grad(loss)(flat), 0.5 * (hessian + hessian.T)

    return jax.lax.map(one, data)


def _num_forms(values: Float[np.ndarray, "row dim"]) -> int:
    """Squares that every row needs; `values` are in the order of their sizes."""
    squares = np.cumsum(values[:, :_MOST_FORMS] ** 2, axis=1)
    missing = np.sum(np.sum(values**2, axis=1, keepdims=True) - squares, axis=0) / max(np.sum(values**2), 1e-300)
    enough = np.flatnonzero(missing <= _LEFT)
    return int(enough[0]) + 1 if len(enough) else len(missing)


def _observables(posterior: LocalPosterior, name: str, forms: np.ndarray, stein: np.ndarray) -> dict[str, Observable]:
    """U and v as functions of the params; both forms are (row, form, param)."""
    dtype = jnp.result_type(*jax.tree.leaves(posterior.position))
    directions, scaled = jnp.asarray(forms, dtype), jnp.asarray(stein, dtype)
    nbeta, gamma = posterior.scale

    def offset(params: PyTree) -> Array:
        return ravel_pytree(posterior.position_of(params))[0] - ravel_pytree(posterior.position)[0]

    def linear(params: PyTree) -> Array:
        return directions @ offset(params)

    def slope(params: PyTree, batch: PyTree) -> Array:
        gradient = jax.grad(lambda z: posterior.loss(posterior.params_at(z), batch))(posterior.position_of(params))
        return scaled @ (nbeta * ravel_pytree(gradient)[0] + gamma * offset(params))

    dims = f"{name}_row", f"{name}_form"
    return {
        f"{name}_linear": Observable(linear, dims=dims, moments=False),
        f"{name}_stein": Observable(slope, data=posterior.data, dims=dims, moments=False),
    }
