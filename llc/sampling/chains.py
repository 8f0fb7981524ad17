"""The one sampling loop: chains of any `Sampler`, from w* to draws in ArviZ's schema.

Chains run in compiled segments of equal length; between two segments the host reads the finished draws and moves the
progress bar, inside of one nothing leaves the device. A draw is taken every `thinning` steps; its loss is evaluated on
the full data (or one fixed subset), as the difference to the loss of w* on the same rows:

    llc = nβ (L(w) − L(w*)).
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.control_variates import make_control_variates
from llc.sampling.draws import Recorder, describe
from llc.sampling.energies import make_evaluation
from llc.sampling.kernel import Sampler
from llc.sampling.loop import Settings, losses_at_center, run_segment, slope_at_center, start
from llc.sampling.validation import check_key, check_settings, choose_method

_CAPACITY = 64  # draws that a segment can hold, at least, so that short and long runs share a program
_NUM_SEGMENTS = 40  # progress steps of a run; each costs one dispatch and one read of its draws


def sample(
    key: PRNGKeyArray,
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    num_chains: int = 4,
    num_warmup: int = 1000,
    num_draws: int = 1000,
    thinning: int = 1,
    batch_size: int | None = None,
    eval_size: int | None = None,
    spectrum: Any = None,
    chain_method: str = "auto",
    keep_params: bool = False,
    progress: bool | None = None,
) -> xr.DataTree:
    """Draws from `posterior`, as a DataTree in ArviZ's schema.

    Args:
        key: `jax.random.key(seed)`; the same key, settings and machine give the same bits.
        posterior: the density; its `gamma` must be set.
        sampler: `SGLD(step_size)`, `NUTS()`, `HMC()`, `MALA()`.
        num_chains: independent chains from w*, each with its own key and minibatches.
        num_warmup: steps discarded from the estimates (kept in `warmup_posterior`) in which samplers adapt.
        num_draws: recorded draws a chain; the chain takes `num_draws * thinning` steps after the warm-up.
        thinning: steps between two draws. A draw costs an evaluation of the loss on `eval_size` rows.
        batch_size: rows of a minibatch, without replacement within an epoch; None takes all data in every step.
        eval_size: rows of one fixed random subset on which L(w) and L(w*) are evaluated, with the slope at w* as a
            control variate; None takes all data. The subset's sampling error enters the standard error.
        spectrum: `llc.spectrum(posterior)`; where it has eigenvectors, every draw records the control variates that
            the zero-variance estimate needs, for two derivatives of the loss along a direction.
        chain_method: `"vectorized"` (vmap), `"sequential"`, `"parallel"` (chains spread over devices) or `"auto"`.
        keep_params: whether to keep the parameters of every draw, as `params.<path>`.
        progress: whether to show a progress bar; None shows it on a terminal.

    Returns:
        DataTree with `posterior` (`loss`, `llc`), `sample_stats` (`potential`, `virial`, `grad_norm`, `distance`,
        `num_gradients` since the last draw, `diverging`, `acceptance_rate` where there is one, and `stein_curved` and
        `stein_flat`, x·A∇U − tr A, with a spectrum), the same for the warm-up, `constant_data`, and `pointwise`
        (moments of the loss differences, per example or piece) where the loss comes per example or from a subset. All
        losses in nats per example.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting.
    """
    chains = Chains(
        key,
        posterior,
        sampler,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        spectrum=spectrum,
        chain_method=chain_method,
        keep_params=keep_params,
    )
    chains.draw(num_draws, progress=progress)
    return chains.tree()


@contextlib.contextmanager
def _full_products() -> Iterator[None]:
    """Matrix products of float32 in float32, in `loss_fn` too, unless the user has set JAX's default.

    JAX's own default is TF32 on a GPU, of 10 bits: too few for the difference of two losses that are nearly the same.
    Of a linear model of 512 parameters at nβ = 10⁷ it made λ̂ 298.0 ± 1.1 for 253.4, and 253.4 in float32 (on an H200).
    """
    chosen = jax.config.jax_default_matmul_precision
    with jax.default_matmul_precision(chosen or "highest"):
        yield


class Chains:
    """Chains under way: `draw` goes on where they stand, `tree` gives what they have drawn so far.

    The arguments are those of `sample`; `num_draws` is how many `draw` is asked for at first.
    """

    @_full_products()
    def __init__(
        self,
        key,
        posterior,
        sampler,
        *,
        num_chains,
        num_warmup,
        num_draws,
        thinning,
        batch_size,
        eval_size=None,
        spectrum=None,
        chain_method="auto",
        keep_params=False,
    ):
        check_key(key)
        self.posterior = _on_device(posterior)  # w* in float64 is sampled in JAX's precision
        check_settings(
            self.posterior, sampler, num_chains, num_warmup, num_draws, thinning, batch_size, eval_size, keep_params
        )
        self.sampler, self.num_chains, self.thinning = sampler, num_chains, thinning
        self.method = choose_method(chain_method, posterior, num_chains)
        self.vectorize = self.method != "sequential"
        step_key, subset_key, init_key = jax.random.split(key, 3)

        num_data = posterior.num_data
        rows = None
        if eval_size is not None and eval_size < num_data:
            rows = np.sort(jax.device_get(jax.random.choice(subset_key, num_data, (eval_size,), replace=False)))
        slope = None if rows is None else slope_at_center(self.posterior, batch_size)
        self.evaluation = _on_device(make_evaluation(self.posterior, rows, center_grad=slope, batch_size=batch_size))
        on_a_subset = rows is not None and slope is None  # its slopes would need a derivative that there is not
        self.stein = None if on_a_subset else make_control_variates(self.posterior, spectrum)
        self.baseline = losses_at_center(self.posterior, self.evaluation)

        self.warmup = math.ceil(num_warmup / thinning)
        self.size = max(1, math.ceil((self.warmup + num_draws) / _NUM_SEGMENTS))
        capacity = max(_CAPACITY, 2 ** math.ceil(math.log2(self.size)))  # few different ones: a program each
        self.settings = Settings(None if batch_size == num_data else batch_size, capacity, keep_params)
        keys, init_keys = jax.random.split(step_key, num_chains), jax.random.split(init_key, num_chains)
        if self.method == "parallel":
            keys, init_keys = _spread(keys, num_chains), _spread(init_keys, num_chains)
        self.keys = [keys] if self.vectorize else list(keys)
        # A sampler that does not adapt starts the same whatever the length: one program for all.
        adapts = self.warmup * thinning if sampler.needs_full_batch else 0
        self.states = [
            start(k, self.posterior, sampler, adapts, self.vectorize)
            for k in ([init_keys] if self.vectorize else init_keys)
        ]
        self.recorder = Recorder(self.warmup, num_draws)
        self.done = 0  # draws so far, of the warm-up too
        self.given = posterior  # w* in its own precision
        self.constants = {
            "nbeta": float(self.posterior.nbeta),
            "gamma": float(self.posterior.gamma),
            "num_data": num_data,
            "num_params": posterior.num_params,
            "eval_size": num_data if rows is None else len(rows),
        }
        if self.stein is not None:
            self.constants["trace_curved"] = float(self.stein.trace)
        self.record = {
            "sampler": describe(sampler),
            "num_chains": num_chains,
            "num_warmup": num_warmup,
            "thinning": thinning,
            "batch_size": num_data if batch_size is None else batch_size,
            "eval_size": self.constants["eval_size"],
            "chain_method": self.method,
        }
        self.seed = np.asarray(jax.random.key_data(key)).tolist()

    @_full_products()
    def draw(self, num_draws: int, *, progress: bool | None = None) -> None:
        """`num_draws` more draws of every chain; the first ones after the warm-up."""
        end = max(self.done, self.warmup) + num_draws
        with tqdm(
            total=(end - self.done) * self.num_chains,
            disable=None if progress is None else not progress,
            desc="sampling",
            unit="draw",
        ) as bar:
            for first, count in _segments(self.done, self.warmup, end, self.size):
                span = np.int32(first), np.int32(count), np.int32(self.thinning)  # Python integers would retrace
                parts = []
                for i, keys in enumerate(self.keys):
                    self.states[i], segment = run_segment(
                        keys,
                        self.posterior,
                        self.sampler,
                        self.evaluation,
                        self.stein,
                        self.baseline,
                        self.states[i],
                        span,
                        self.settings,
                        self.vectorize,
                    )
                    part = jax.device_get(segment)
                    parts.append(part if self.vectorize else jax.tree.map(lambda x: x[None], part))
                    bar.update(count * (self.num_chains if self.vectorize else 1))
                self.recorder.add(first, count, jax.tree.map(lambda *x: np.concatenate(x), *parts))
        self.done = end

    @property
    def positions(self) -> list[PyTree]:
        """Where each chain stands."""
        ends = [jax.device_get(state.position) for state in self.states]
        if not self.vectorize:
            return ends
        return [jax.tree.map(lambda leaf: leaf[i], ends[0]) for i in range(self.num_chains)]  # noqa: B023 - used at once

    def tree(self) -> xr.DataTree:
        """All draws so far, as `sample` returns them."""
        attributes = {
            "sampler": type(self.sampler).__name__,
            "settings": json.dumps(self.record | {"num_draws": self.done - self.warmup}),
            "seed": json.dumps(self.seed),
            "versions": json.dumps({name: version(name) for name in ("llc", "jax", "numpyro", "arviz")}),
        }
        # L(w*) over all data: a draw's loss is this and its difference on the rows.
        constants = {"init_loss": self.init_loss} | self.constants
        return self.recorder.tree(constants, attributes, self.posterior, np.asarray(self.evaluation.weights))

    @functools.cached_property
    def init_loss(self) -> float:
        """L(w*), in float64; pilots need none."""
        return self.given.init_loss()


def _segments(done: int, warmup: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """(first draw, number of draws) of every segment; none crosses the end of the warm-up."""
    for begin, stop in ((done, warmup), (max(done, warmup), end)):
        for first in range(begin, stop, size):
            yield first, min(size, stop - first)


def _on_device(tree: PyTree) -> PyTree:
    """`tree` with its arrays on the device, once instead of in every segment."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays), rest)


def _spread(keys: PRNGKeyArray, num_chains: int) -> PRNGKeyArray:
    mesh = jax.make_mesh((math.gcd(num_chains, jax.device_count()),), ("chain",), axis_types=(AxisType.Auto,))
    return jax.device_put(keys, NamedSharding(mesh, P("chain")))
