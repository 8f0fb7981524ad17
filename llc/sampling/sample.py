"""A whole run of chains from one call."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from llc.analysis.store import Store, opened
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.arguments import require_flag, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.chains import Chains
from llc.sampling.kernel import Sampler
from llc.sampling.observable import Observable
from llc.sampling.run_lengths import RunLengths


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
    step_energies: bool = False,
    spectrum: Spectrum | None = None,
    chain_method: str = "auto",
    keep_params: bool = False,
    observables: Mapping[str, Callable[..., Any] | Observable] | None = None,
    progress: bool | None = None,
    store: str | Path | Store | None = None,
    mesh: Mesh | None = None,
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
        step_energies: whether to record the energy that the minibatch of every step gives as well, and to estimate λ̂
            from both. It costs next to nothing where the loss comes per example (of a scalar, a forward pass a step).
            Minibatches are then drawn anew in each step, not within an epoch: other draws for the same key. With a
            larger `thinning`, which makes the evaluations fewer, λ̂ takes less time for the same error.
        spectrum: `llc.spectrum(posterior)`; where it has eigenvectors, every draw records the control variates that
            the zero-variance estimate needs, for two derivatives of the loss along a direction.
        chain_method: `"vectorized"` (vmap), `"sequential"`, `"parallel"` (chains spread over devices) or `"auto"`.
        keep_params: whether to keep the parameters of every draw, as `params.<path>`.
        observables: functions by name, `fn(params)`, `fn(params, batch)` of the posterior's data, or `llc.Observable`
            with data of its own; see the group `observables` below. Each costs an evaluation a draw.
        progress: whether to show a progress bar; None shows it on a terminal.
        store: a folder such as `"run.zarr"` in which the run is kept as it goes, so that the same call goes on from
            there after a kill, to the same bits, or with a larger `num_draws` after its end. `llc.load` reads it at any
            time. `llc.Store` sets how often. None keeps nothing.
        mesh: devices to spread the run over, of one host or of several: chains along its axis `"chain"`, and the rows
            of a gradient along `"data"` if it has one. Params that are spread over other axes of it stay so.

    Returns:
        DataTree with `posterior` (`loss`, `llc`), `sample_stats` (`potential`, `virial`, `grad_norm`, `distance`,
        `num_gradients` since the last draw, `diverging`, `acceptance_rate` where there is one, and `stein_curved` and
        `stein_flat`, x·A∇U − tr A, with a spectrum; `step_energy`, the mean of nβ (L_B(w) − L_B(w*)) over the steps
        since the last draw, with `step_energies`), the same for the warm-up, `constant_data`, and `pointwise`
        (moments of the loss differences, per example or piece) where the loss comes per example or from a subset. All
        losses in nats per example. With `observables` also the group of that name: φ(w) − φ(w*) of each, in its own
        unit and with its own dimensions after (chain, draw), or its moments in blocks of draws (`<name>.mean`,
        `<name>.variance`, `<name>.cov.loss`); φ(w*) is `init_<name>` in `constant_data`.

    Raises:
        ValueError: if a setting is out of range or does not fit the sampler, naming the setting; if the store is of a
            run with other settings, naming those, or another process writes to it.
        OSError: if the store can't be written; what was written before stays, and its `partial` is the DataTree of
            the draws so far.
        Interrupted: on Ctrl-C (and SIGTERM with a store), a KeyboardInterrupt whose `partial` is the DataTree of the
            draws so far.
    """
    require_type("spectrum", spectrum, Spectrum, "an llc.Spectrum", optional=True)
    require_flag("keep_params", keep_params)
    require_flag("progress", progress, optional=True)
    lengths = RunLengths(
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        step_energies=step_energies,
    )
    settings = {"spectrum": spectrum, "chain_method": chain_method, "keep_params": bool(keep_params), "mesh": mesh}
    with opened(store) as folder:
        chains = Chains(
            key, posterior, sampler, lengths, observables=observables, store=folder and folder.run(), **settings
        )
        if chains.asked < num_draws:  # of a run that was shorter; rounding is measured at the end of this one
            chains.rounding.squares.clear()
        chains.draw_until(num_draws, progress=progress)
        return chains.tree()
