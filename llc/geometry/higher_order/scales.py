r"""The loss around w* along directions of all curvatures, from which llc/bounds/scales.py makes the order spectrum.

Directions are of three kinds. Eigenvectors that the spectrum knows are probed as they are, all of them or every k-th.
Symmetry directions (symmetry.py) are not probed: K is constant along their orbit. The rest are those without a known
eigenvector. Where they are few, all are probed, in the basis in which the gradient of K at some distance varies most,
so that directions on which K does not depend are told from those on which it does. Where they are many, some are drawn
at random: each is then a mixture, and a part of the rest that is flat shows in the size of K and not in its order.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.stats import qmc
from tqdm.auto import tqdm

from llc.bounds.line_profiles import mean_energies
from llc.bounds.scales import Rays, ScaleSpectrum
from llc.bounds.spectral_measure import Spectrum
from llc.geometry.curvature.methods import spectrum as hessian_spectrum
from llc.geometry.higher_order.excess import Excess, excess_loss, rounding, typical_size
from llc.geometry.higher_order.profiles import Stiff, beside, orthonormal, relaxed_profiles
from llc.geometry.higher_order.symmetry import Generator, symmetry_dimension
from llc.posterior.arguments import require_flag, require_integer, require_number, require_type
from llc.posterior.gradients import require_differentiable
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64

_NUM_STEPS = 20  # distances on each side
_FIRST = 0.3  # distance, in units of the width of the stiffest direction
_SMALLEST = 1e-4  # the first distance, in units of the reach, where there is no curvature
_OWN = 8.0  # widths of a direction of its own beyond which the sampler never is
_REACH = 10.0  # in units of a typical parameter
_SIGMAS = 5.0  # of a flat direction at the posterior's γ
_LARGE = 5_000  # parameters up to which symmetries are looked for, as a matrix of D · d numbers
_TURNED = 0.03  # of the reach: distance at which the gradient's variation chooses the basis of the rest
_MORE = 5  # gradients beyond the number of directions
_TINY = 1e-9  # distance at which K along the rest is round-off
_RESOLVED = 100.0  # times the round-off of K
_UNSEEN = 1e-6  # nβK that no sampler sees
_CHUNK = 16  # directions at a time
_MOST_JOINT = 16  # directions without curvature that are also taken together, by rays
_NUM_RAYS, _NUM_RELAXED = 1024, 128  # and as many opposite ones; where nothing, or something, has to be relaxed
_ADDS = 0.02  # to λ̂ by all directions without curvature, below which they are not taken together


def scale_spectrum(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    spectrum: Spectrum | None = None,
    *,
    num_directions: int = 64,
    reach: float | None = None,
    generators: Sequence[Generator] = (),
    progress: bool | None = None,
) -> ScaleSpectrum:
    """Curvature and orders of the loss around w* at every scale, for a network without a gap as for one with it.

    In float64. Costs the spectrum, and at most 1,600 gradients a direction; a few hundred where the loss is smooth.
    Where 2 to 16 directions without curvature add to λ̂, 128 rays (1,024 if nothing is curved) cost as much each. No
    d × d matrix but in a dense spectrum.

    Args:
        key: of random directions.
        posterior: loss, data, w* and nβ, by which a distance belongs to a scale. γ may be missing.
        spectrum: of the Hessian, with eigenvectors; None computes one, dense up to d = 5,000 and deflated above it.
        num_directions: directions that are probed, half of them at most without a known eigenvector. With d or more
            all are.
        reach: largest distance from w*, in units of the parameters. None takes ten times the root mean square of w*, or
            five standard deviations 1/√γ where that is more. λ̂ is predicted down to γ = (2 / reach)².
        generators: symmetries beside those that the shapes of the params propose, as for `llc.higher_bounds`.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        The curvatures and profiles: `print` it for a table, or ask `order_spectrum(scales)` and `predicted_llc(gamma)`.

    Raises:
        ValueError: if the spectrum has no eigenvectors or is not of the same order as the posterior, or a setting is
            out of range.

    Example:
        ```python
        scales = llc.scale_spectrum(jax.random.key(0), posterior)
        print(scales, scales.predicted_llc(gamma=1.0))
        llc.plot_scales(scales)
        ```

    References:
        Watanabe 2009, Algebraic geometry and statistical learning theory, Theorem 6.5 (splitting lemma).
    """
    _check(key, posterior, spectrum, num_directions, reach, generators, progress=progress)
    if spectrum is None:
        method = "dense" if posterior.num_params <= _LARGE else "deflated"
        spectrum = hessian_spectrum(posterior, method=method, progress=progress)
    vectors = spectrum.vectors if spectrum.largest > 0 else np.zeros((0, posterior.num_params))
    if vectors is None:
        raise ValueError(
            f"scale_spectrum needs a spectrum with eigenvectors, got one of method {spectrum.method!r} or from a file; "
            "leave it out, or pass llc.spectrum(posterior, method='deflated')."
        )
    if spectrum.dim != posterior.num_params:
        raise ValueError(
            f"scale_spectrum needs the spectrum of the posterior's {posterior.num_params} parameters, got one of order "
            f"{spectrum.dim}; leave it out, or pass llc.spectrum(posterior)."
        )
    with float64():
        return _profiled(key, posterior, spectrum, vectors, num_directions, reach, generators, progress=progress)


def _check(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    spectrum: Spectrum | None,
    num_directions: int,
    reach: float | None,
    generators: Sequence[Generator],
    *,
    progress: bool | None,
) -> None:
    check_key(key)
    require_differentiable(posterior)
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_integer("num_directions", num_directions, least=2)
    require_number("reach", reach, optional=True)
    require_flag("progress", progress, optional=True)
    if not (isinstance(generators, Sequence) and all(map(callable, generators))):
        raise ValueError(f"generators needs a list of functions of params, got {type(generators).__name__}.")


class _Directions(NamedTuple):
    """Unit vectors, their curvatures, how many each stands for, and which were drawn at random."""

    vectors: Float[np.ndarray, "direction dim"]
    curvatures: Float[np.ndarray, "direction"]
    weights: Float[np.ndarray, "direction"]
    is_random: np.ndarray


class _Found(NamedTuple):
    """`Profiles` as arrays of NumPy."""

    values: Float[np.ndarray, "direction side step"]
    ends: Float[np.ndarray, "direction side dim"]


class _Point(NamedTuple):
    """What directions are probed with."""

    excess: Excess
    stiff: Stiff
    nbeta: float
    reach: float
    floor: float
    bar: tqdm

    def values(self, directions: _Directions) -> tuple[np.ndarray, np.ndarray]:
        """Distances, and K there on both sides."""
        first, last = self._distances(directions.curvatures)
        steps = np.geomspace(np.full_like(last, first), last, _NUM_STEPS, axis=1)
        return steps, self.profiles(directions.vectors, directions.curvatures, steps).values

    def profiles(self, vectors: np.ndarray, curvatures: np.ndarray, steps: np.ndarray) -> _Found:
        """Profiles of any number of directions, some at a time."""
        parts = []
        for start in range(0, len(steps), _CHUNK):
            rows = np.arange(start, start + _CHUNK) % len(steps)  # whole chunks: one program
            given = vectors[rows], curvatures[rows], steps[rows], self.nbeta, self.floor
            found = relaxed_profiles(self.excess, self.stiff, *map(jnp.asarray, given))
            parts.append([np.asarray(x)[: len(steps) - start] for x in found])
            self.bar.update(len(parts[-1][0]))
        return _Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _distances(self, curvatures: np.ndarray) -> tuple[float, np.ndarray]:
        """The first distance, and the last of each direction."""
        largest = float(np.max(self.stiff.curvatures, initial=0.0))
        first = _SMALLEST * self.reach
        if largest > 0:
            first = min(_FIRST / np.sqrt(self.nbeta * largest), self.reach / 100)
        own = _OWN / np.sqrt(self.nbeta * np.maximum(curvatures, np.finfo(np.float64).tiny))
        return first, np.clip(own, 30 * first, self.reach)


def _profiled(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    spectrum: Spectrum,
    vectors: Float[np.ndarray, "known dim"],
    num_directions: int,
    reach: float | None,
    generators: Sequence[Generator],
    *,
    progress: bool | None,
) -> ScaleSpectrum:
    """All directions, chosen and probed."""
    excess_key, symmetry_key, rest_key = jax.random.split(key, 3)
    excess = excess_loss(posterior, excess_key)
    known = orthonormal(np.asarray(vectors, np.float64))
    stiff = Stiff(jnp.asarray(spectrum.vector_eigenvalues[: len(known)]), jnp.asarray(known))
    tangents = np.zeros((0, excess.dim))
    if excess.dim <= _LARGE:
        tangents = symmetry_dimension(excess, symmetry_key, generators).tangents
    taken = np.concatenate([known, orthonormal(beside(tangents, known))])
    if reach is None:
        reach = _REACH * typical_size(excess)
        reach = reach if not posterior.gamma else max(reach, _SIGMAS / float(posterior.gamma) ** 0.5)
    num_rest = min(excess.dim - len(taken), max(num_directions // 2, num_directions - len(known)))
    rest = orthonormal(beside(np.asarray(jax.random.normal(rest_key, (num_rest, excess.dim))), taken))
    floor = max(_round_off(excess, rest), _UNSEEN / float(posterior.nbeta))
    with tqdm(desc="scales", disable=None if progress is None else not progress) as bar:
        point = _Point(excess, stiff, float(posterior.nbeta), reach, floor, bar)
        if len(rest) == excess.dim - len(taken) and len(rest) > 1:
            rest = _turned(point, rest, np.random.default_rng(len(rest)))
        directions = _chosen(point, known, rest, excess.dim - len(taken), num_directions)
        steps, values = point.values(directions)
        whole = len(rest) == excess.dim - len(taken) and 2 <= len(rest) <= _MOST_JOINT
        alone = mean_energies(steps, values, point.nbeta, (_SIGMAS / reach) ** 2)[directions.is_random]
        rays = _rays(point, rest, steps[0, 0]) if whole and alone.sum() > _ADDS else None
    return ScaleSpectrum(
        spectrum=replace(spectrum, vectors=None),
        nbeta=point.nbeta,
        orbit=len(taken) - len(known) if excess.dim <= _LARGE else None,
        reach=reach,
        floor=floor,
        curvatures=directions.curvatures,
        weights=directions.weights,
        is_random=directions.is_random,
        steps=steps,
        values=values,
        rays=rays,
    )


def _chosen(point: _Point, known: np.ndarray, rest: np.ndarray, num_rest: int, num_directions: int) -> _Directions:
    """Eigenvectors, all or every k-th, and the rest."""
    wanted = min(len(known), num_directions - len(rest))
    rows = ((np.arange(wanted) + 0.5) * len(known) / max(wanted, 1)).astype(int)
    curvatures = np.asarray(_curvatures(point.excess, jnp.asarray(rest))) if len(rest) else np.zeros(0)
    return _Directions(
        np.concatenate([known[rows], rest]),
        np.concatenate([np.asarray(point.stiff.curvatures)[rows], curvatures]),
        np.concatenate(
            [np.full(wanted, len(known) / max(wanted, 1)), np.full(len(rest), num_rest / max(len(rest), 1))]
        ),
        np.arange(wanted + len(rest)) >= wanted,
    )


def _rays(point: _Point, basis: np.ndarray, first: float) -> Rays:
    """K along uniform rays in the span of `basis`, as far as a Gaussian of its dimension reaches."""
    dim = len(basis)
    number = _NUM_RAYS if not len(point.stiff.curvatures) else _NUM_RELAXED
    uniform = qmc.Sobol(dim, rng=np.random.default_rng(dim)).random(number)
    shares = scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    shares /= np.linalg.norm(shares, axis=1, keepdims=True)
    steps = np.geomspace(first, point.reach * np.sqrt(dim), _NUM_STEPS)
    found = point.profiles(shares @ basis, np.zeros(number), np.tile(steps, (number, 1)))
    return Rays(dim, steps, found.values.reshape(2 * number, -1))


def _turned(point: _Point, basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The basis along whose first vectors the gradient of K at some distance varies most, and least along the last."""
    shares = rng.normal(size=(len(basis) + _MORE, len(basis)))
    distances = point.reach * _TURNED * np.geomspace(0.01, 1.0, _NUM_STEPS)
    steps = np.tile(distances, (len(shares), 1))
    ends = point.profiles(shares @ basis, np.zeros(len(shares)), steps).ends
    gradients = np.asarray(_gradients(point.excess, jnp.asarray(ends.reshape(-1, ends.shape[-1]))))
    return np.linalg.svd(gradients @ basis.T)[2] @ basis


@eqx.filter_jit
def _gradients(excess: Excess, offsets: Float[Array, "point dim"]) -> Float[Array, "point dim"]:
    return jax.lax.map(excess.gradient, offsets)


@eqx.filter_jit
def _curvatures(excess: Excess, vectors: Float[Array, "direction dim"]) -> Float[Array, "direction"]:
    return jax.lax.map(lambda v: v @ excess.product(jnp.zeros_like(v), v), vectors)


@eqx.filter_jit
def _values(excess: Excess, offsets: Float[Array, "point dim"]) -> Float[Array, "point"]:
    return jax.lax.map(excess.value, offsets)


def _round_off(excess: Excess, rest: np.ndarray) -> float:
    """K that can't be told from zero: that of the rest next to w*, and ten roundings of the loss or of the outputs."""
    least = float(np.finfo(np.float64).tiny) + float(rounding(excess))
    if not len(rest):
        return least
    seen = np.abs(np.asarray(_values(excess, jnp.asarray(_TINY * typical_size(excess) * rest[:4]))))
    return max(_RESOLVED * float(seen.max()), least)
