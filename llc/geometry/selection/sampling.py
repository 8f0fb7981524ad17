r"""Selection around w*: draw m points from N(w*, σ² I), keep the one of least loss, and repeat.

$$ C = \frac{1}{R} \sum_{g=1}^{R} z_g z_g^\top, \quad z_g = \arg\min_{z \in \text{group } g} L(w^* + \sigma z), \qquad
   S = \frac{1}{N} \sum_j s_j (z_j z_j^\top - 1) \to E\, \nabla_z^2\, E[s \mid z] $$

(Shir & Yehudayoff, arXiv 1806.03674; Stein's identity for S). Only the order of the losses within a group enters, and
neither a gradient nor the loss itself, so that any comparison is enough. winners.py says what follows from C and S.

Use it where there is no gradient, and where few directions are curved among many parameters. All r directions of a flat
spectrum are seen in C from N ≈ 16 d r losses on, and in S from about half as many. From d²/2 losses on, a least-squares
fit of a quadratic (to the losses, or to the normal scores of their ranks) takes fewer losses, and Hessian-vector
products always do (`llc.spectrum`; validation/selected_samples.py).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.geometry.curvature.operators import CurvatureOperator, curvature_operator
from llc.geometry.selection.laws import flat_rank, normal_scores
from llc.geometry.selection.winners import SelectedSamples
from llc.posterior.arguments import require_callable, require_flag, require_integer, require_number, require_type
from llc.posterior.keys import check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import float64
from llc.posterior.programs import bytes_alive

_CHUNK_BYTES = 2**27  # of candidates, and of losses computed at a time
_CHUNK = 2**14  # candidates at a time, at most
_MAX_PARAMS = 4096  # d: seven matrices of d² float64 take 0.9 GiB
_MAX_EVALUATIONS = 2**20  # of the default num_winners
_LADDER = (1e-3, 1e-2, 1e-1)  # σ / RMS(w*)


class Losses(eqx.Module):
    """Loss at w* + offset, in float64 (differences of losses are small) and over all the data, or as the user has it.

    Build it with `losses_around`, under `float64()`.
    """

    operator: CurvatureOperator
    noisy_loss_fn: Callable[[PRNGKeyArray, PyTree], Array] | None = eqx.field(static=True)
    batch: int = eqx.field(static=True)  # losses computed at a time

    @property
    def dim(self) -> int:
        """Number of parameters that move, d."""
        return self.operator.dim

    def at(self, keys: Key[Array, "*shape"], offsets: Float[Array, "*shape dim"]) -> Float[Array, "*shape"]:
        """Losses at w* + offsets, with a key each for the noise; inf where not finite."""
        flat_keys, rows = keys.reshape(-1), offsets.reshape(-1, self.dim)
        if len(rows) <= self.batch:
            losses = jax.vmap(self._one)(flat_keys, rows)
        else:
            losses = jax.lax.map(lambda x: self._one(*x), (flat_keys, rows), batch_size=self.batch)
        return jnp.where(jnp.isfinite(losses), losses, jnp.inf).reshape(offsets.shape[:-1])

    def _one(self, key: PRNGKeyArray, offset: Float[Array, "dim"]) -> Float[Array, ""]:
        operator = self.operator
        params = self._params(offset)
        if self.noisy_loss_fn is not None:
            return self.noisy_loss_fn(key, params)
        return operator.rows.mean(lambda batch: operator.posterior.loss(params, batch), jnp.zeros(()))

    def _params(self, offset: Float[Array, "dim"]) -> PyTree:
        posterior = self.operator.posterior
        flat, unravel = ravel_pytree(posterior.position)
        return posterior.params_at(unravel(flat + offset))

    def bytes(self) -> int:
        """Memory of one loss: what one piece of the data keeps alive."""
        return bytes_alive(self._one, jax.random.key(0), jnp.zeros(self.dim))


def losses_around(posterior: LocalPosterior, noisy_loss_fn: Callable[[PRNGKeyArray, PyTree], Array] | None) -> Losses:
    """The losses of `posterior` around w*, or `noisy_loss_fn` there; under `float64()`."""
    losses = Losses(curvature_operator(posterior), noisy_loss_fn, 1)
    return dataclasses.replace(losses, batch=max(1, _CHUNK_BYTES // max(1, losses.bytes())))


def selected_covariance(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    *,
    noisy_loss_fn: Callable[[PRNGKeyArray, PyTree], Array] | None = None,
    num_candidates: int = 5,
    num_winners: int | None = None,
    sigma: float | None = None,
    progress: bool | None = None,
) -> SelectedSamples:
    """Covariance of the winners of best-of-m around w*, and the all-sample matrix: a rank from comparisons alone.

    Memory: seven d × d matrices in float64, 2 · 128 MiB for a chunk of candidates and their losses (more if one group
    or one loss takes more), whatever the number of evaluations. Time: num_candidates · num_winners losses, and as many
    products zzᵀ.

    Args:
        key: of the candidates; a group's draws depend on it and the group's number only.
        posterior: loss, data, w* and the parameters that move (mask); nβ and γ do not enter.
        noisy_loss_fn: `noisy_loss_fn(key, params)`, a scalar that orders params, instead of the posterior's loss over
            all its data: of a minibatch, with noise, or any increasing function of a loss. Its noise does not depend
            on where the kernel's coordinates are, or the ranks are not valid.
        num_candidates: m. 5 is best for the rank (N for a given precision goes as m/κ_m², 3.70 at 5, 15.9 at 100);
            the shape of the inverse Hessian takes 500 or more, and a rank of at most about 5.
        num_winners: R. None takes four times what shows a flat spectrum of full rank, N = 64 d², and at
            least 256 winners, up to N = 2²⁰.
        sigma: σ in units of the parameters. None takes 0.01 RMS(w*); `sigma_ladder` tells whether it matters.
        progress: whether to show a progress bar; None shows it on a terminal.

    Raises:
        ValueError: if a setting is out of range, if w* is 0 and `sigma` None, if most losses are not finite, or if it
            can not show a single direction: too many parameters, or too few winners (N ≈ 16 d).

    References:
        Shir & Yehudayoff, On the covariance-Hessian relation in evolution strategies, arXiv 1806.03674.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> curvatures = jnp.array([1.0, 2.0, 0.0, 0.0])
        >>> posterior = LocalPosterior(lambda w, x: 0.5 * jnp.sum(curvatures * w**2), np.zeros(4), np.zeros((10, 1)))
        >>> selected = selected_covariance(jax.random.key(0), posterior, sigma=0.1)
        >>> selected.rank, selected.certified_rank, selected.stein_rank
        (2, 2, 2)
    """
    check_key(key)
    require_type("posterior", posterior, LocalPosterior, "an llc.LocalPosterior")
    num_winners = checked_winners(posterior, num_candidates, num_winners)
    sigma = require_sigma(posterior, sigma)
    return select(key, posterior, noisy_loss_fn, num_candidates, num_winners, (sigma,), progress=progress)[0]


def checked_winners(posterior: LocalPosterior, num_candidates: int, num_winners: int | None) -> int:
    """R, by default what `selected_covariance` says; raises ValueError where no direction could be seen."""
    dim = posterior.num_params
    require_integer("num_candidates", num_candidates, least=2)  # 5 is best for the rank
    require_integer("num_winners", num_winners, least=1, optional=True)
    cure = "let fewer parameters move (mask), or take llc.spectrum (Hessian-vector products)"
    if dim > _MAX_PARAMS:
        raise ValueError(
            f"the covariance of selected samples needs too many losses beyond {_MAX_PARAMS:,} parameters (about 16 "
            f"losses a parameter and direction of the rank, and matrices of d²), got d = {dim:,}; {cure}."
        )
    # Winners that show one direction of a flat spectrum, and C of full rank with room below the bulk.
    need = max(math.ceil(1 / flat_rank(dim, num_candidates, 1)), 4 * dim)
    if num_winners is None:
        wanted = max(math.ceil(64 * dim**2 / num_candidates), 4 * need, 256)
        num_winners = min(wanted, _MAX_EVALUATIONS // num_candidates)
    if num_winners < need:
        raise ValueError(
            f"num_winners needs at least {need:,} to show one direction of d = {dim:,} at num_candidates = "
            f"{num_candidates}, got {num_winners:,}: with fewer no direction stands out; draw more winners, {cure}."
        )
    return num_winners


def require_sigma(posterior: LocalPosterior, sigma: float | None, name: str = "sigma") -> float:
    """`sigma`, or 0.01 RMS(w*) for None; raises ValueError if it is not a finite number > 0."""
    if sigma is None:
        return default_sigmas(posterior)[1]
    require_number(name, sigma)
    return sigma


def default_sigmas(posterior: LocalPosterior) -> tuple[float, ...]:
    """0.001, 0.01 and 0.1 RMS(w*); raises ValueError where that is 0."""
    flat = np.asarray(ravel_pytree(posterior.position)[0], np.float64)
    rms = float(np.sqrt(np.mean(flat**2)))
    if rms == 0:
        raise ValueError("sigma needs to be given where w* = 0, got None (it is a part of RMS(w*) by default).")
    return tuple(rung * rms for rung in _LADDER)


class _Sums(NamedTuple):  # arrays, of the first three the fields of SelectedSamples
    halves: Any
    stein: Any
    mean: Any
    failed: Any


def select(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    noisy_loss_fn: Callable[[PRNGKeyArray, PyTree], Array] | None,
    num_candidates: int,
    num_winners: int,
    sigmas: tuple[float, ...],
    *,
    progress: bool | None,
) -> tuple[SelectedSamples, ...]:
    """Selected samples at each σ from the same z, by one program."""
    require_callable("noisy_loss_fn", noisy_loss_fn, "a function of (key, params)", optional=True)
    require_flag("progress", progress, optional=True)
    if noisy_loss_fn is not None:
        out = eqx.filter_eval_shape(noisy_loss_fn, key, posterior.center)
        if getattr(out, "shape", None) != ():
            raise ValueError(f"noisy_loss_fn needs to return a scalar, got {type(out).__name__}: {out}.")
    dim = posterior.num_params
    most = min(_CHUNK_BYTES // (32 * num_candidates * dim), _CHUNK // num_candidates, num_winners)
    groups = 2 ** int(math.log2(max(1, most)))  # few different ones: a program each
    total = num_candidates * num_winners
    results = []
    with (
        float64(),
        tqdm(
            total=total * len(sigmas), disable=None if progress is None else not progress, desc="selection", unit="loss"
        ) as bar,
    ):
        losses = losses_around(posterior, noisy_loss_fn)
        scores = normal_scores(num_candidates)
        for sigma in sigmas:
            square, vector = np.zeros((dim, dim)), np.zeros(dim)
            sums = jax.device_put(_Sums(np.stack([square, square]), square, vector, np.zeros(())))
            for start in range(0, num_winners, groups):
                span = np.asarray(start), np.asarray(num_winners)
                sums = _accumulate(sums, key, losses, scores, np.asarray(sigma), span, groups)
                jax.block_until_ready(sums.failed)
                bar.update(num_candidates * min(groups, num_winners - start))
            halves, stein, mean, failed = (np.asarray(x) for x in jax.device_get(sums))
            if failed > 0.5 * total:
                raise ValueError(
                    f"the losses around w* need to be finite, got {failed:.0f} of {total} that are not at "
                    f"sigma = {sigma:.3g}; reduce sigma."
                )
            sizes = np.array([num_winners - num_winners // 2, num_winners // 2])[:, None, None]
            moments = halves / sizes, stein / total, mean / num_winners
            results.append(SelectedSamples(*moments, float(sigma), num_candidates, num_winners, float(failed) / total))
    return tuple(results)


@eqx.filter_jit
def _accumulate(
    sums: _Sums,
    key: PRNGKeyArray,
    losses: Losses,
    scores: Float[Array | np.ndarray, "candidate"],
    sigma: Float[Array | np.ndarray, ""],
    span: tuple[Array | np.ndarray, Array | np.ndarray],
    groups: int,
) -> _Sums:
    """`sums` with those of the groups start … start + `groups`, as far as they exist; `span` is (start, R)."""
    start, num_winners = map(jnp.asarray, span)
    index = start + jnp.arange(groups)

    def draw(number: Array) -> tuple[Float[Array, "candidate dim"], Key[Array, "candidate"]]:
        point_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
        # Drawn with 24 bits, which no statistic sees, and exact from there on.
        z = jax.random.normal(point_key, (len(scores), losses.dim), jnp.float32)
        return z.astype(jnp.float64), jax.random.split(noise_key, len(scores))

    z, noise_keys = jax.vmap(draw)(index)
    values = losses.at(noise_keys, jnp.asarray(sigma) * z)
    order = jnp.argsort(values, axis=1)
    exists = (index < num_winners).astype(z.dtype)
    winners = exists[:, None] * jnp.take_along_axis(z, order[:, :1, None], axis=1)[:, 0]
    odd = (index % 2).astype(z.dtype)[:, None]
    # Scores of a group add up to 0, so that the 1 in zzᵀ − 1 drops out.
    weights = exists[:, None] * scores[jnp.argsort(order, axis=1)]
    rows, failed = z.reshape(-1, losses.dim), exists[:, None] * jnp.isinf(values)
    return _Sums(
        sums.halves + jnp.stack([((1 - odd) * winners).T @ winners, (odd * winners).T @ winners]),
        sums.stein + (weights.reshape(-1, 1) * rows).T @ rows,
        sums.mean + jnp.sum(winners, axis=0),
        sums.failed + jnp.sum(failed),
    )
