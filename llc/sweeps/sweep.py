"""A sweep: λ̂ of many posteriors at one scale, each with its error, and of neighbours the difference with its own."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import xarray as xr
from jaxtyping import PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from llc.analysis.estimators import mean_energy
from llc.analysis.reporting import report
from llc.analysis.series import plus_minus
from llc.analysis.sweep_table import Row, sweep_table
from llc.calibration.price import affordable_spectrum
from llc.calibration.telling import about, say
from llc.posterior.arguments import require_integer, require_option, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths
from llc.sampling.validation import check_key
from llc.sweeps.execution import Outcome, run_all
from llc.sweeps.items import Item, digest, make_items, step_of
from llc.sweeps.plan import Calibrated, Plan, make_plan, price_for
from llc.sweeps.store import Store, differing
from llc.sweeps.task import DIGEST, RETRIED, Key, Task
from llc.sweeps.wanted import Wanted

_SILENT = 10.0  # seconds after which a sweep tells of each item
_DRAWS = "draws"  # the group of the result under which the items' draws lie


def sweep(
    key: PRNGKeyArray,
    posteriors: LocalPosterior | Sequence[LocalPosterior] | Mapping[str, LocalPosterior],
    *,
    checkpoints: Mapping[str, PyTree] | Sequence[PyTree] | None = None,
    masks: Mapping[str, PyTree] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str | None = None,
    calibration: Calibrated = "shared",
    sampler: Sampler | None = None,
    nbeta: float | None = None,
    gamma: float | None = None,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    thinning: int | None = None,
    batch_size: int | None = None,
    eval_size: int | None = None,
    step_energies: bool | None = None,
    budget: int | None = None,
    prefix: str = "",
    executor: Executor | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> xr.DataTree:
    """λ̂ of many posteriors at one scale, with bounds, verdicts, and the differences between neighbours.

    nβ and γ are those of one item, the reference, for all of them: without that their λ̂ could not be compared. All run
    by the same key, so that a difference between neighbours has a far smaller error than the two λ̂ (common random
    numbers), and by one compiled program for each shape. An item that fails is tried once more; if it fails again, the
    result says why, and the others go on. So does an item whose chains turn out too hot, by a quarter of the step.

    Args:
        key: `jax.random.key(seed)`.
        posteriors: one `LocalPosterior`, the template of checkpoints, masks or settings; or a list or dict of them.
        checkpoints: params of the template's model: a list of files (see `llc.load_params`), or params or files in a
            list or by name. They are read when they are run.
        masks: components by name, each a mask as of `LocalPosterior`.
        settings: other settings by name, each a dict with some of nbeta, gamma, sampler, num_warmup, num_draws,
            thinning, batch_size, eval_size, step_energies. Checkpoints, masks and settings are combined: all products
            are items.
        reference: the item at which γ (where none was given) and the calibration are chosen; None takes the last.
        calibration: `"shared"`: lengths and batch of the reference for all, the step size by each item's curvature;
            `"each"`: pilots for every item.
        sampler: for all items; None takes SGLD.
        nbeta: nβ; None takes that of the reference.
        gamma: γ; None takes that of the reference, or chooses it there.
        num_chains: as of `llc.calibrate`, and so are the other lengths and the budget, which is one of each item.
        num_warmup: see num_chains.
        num_draws: see num_chains.
        thinning: see num_chains.
        batch_size: see num_chains.
        eval_size: see num_chains.
        step_energies: see num_chains.
        budget: see num_chains.
        prefix: of the params in the checkpoints' files.
        executor: any `concurrent.futures.Executor` that runs the items, such as a thread or process pool, or dask's
            `client.get_executor()`. Beyond this process, loss_fn has to be importable there: a function of a module.
        out: a folder (or a store that ends in `.zarr`) for the draws of every item, as it ends. A rerun with the same
            settings skips the items that are there, and may have more of them; with others it is refused.
        progress: whether to show a progress bar, and a line for each item of a sweep that takes more than ten seconds;
            None shows the bar on a terminal only.

    Returns:
        DataTree whose root is a table over `checkpoint` (see docs, "Following λ along a training run"): `llc`, `mcse`,
        `quad`, `lower`, `upper`, `loss`, `verdict`, `difference`, `difference_mcse`, …, with the draws of every item,
        its spectrum included, under `draws/<name>`: `llc.report(tree["draws"]["step_100"])`.

    Raises:
        ValueError: if a setting is out of range, the reference can't be run, or `out` has a sweep of other settings;
            the message names them.

    Example:
        `llc.sweep(jax.random.key(0), posterior, checkpoints=sorted(Path("run").glob("*.npz")), out="training")`
    """
    check_key(key)
    require_type("sampler", sampler, Sampler, "a sampler, such as llc.NUTS()", optional=True)
    require_option("calibration", calibration, ("shared", "each"))
    require_type("reference", reference, str, "the name of an item", optional=True)
    require_type("prefix", prefix, str, "the name of a part of the files")
    require_type("out", out, (str, Path), "the path of a folder or store", optional=True)
    require_integer("batch_size", batch_size, least=1, optional=True)
    require_integer("eval_size", eval_size, least=1, optional=True)
    if isinstance(executor, type) or not (executor is None or callable(getattr(executor, "submit", None))):
        raise ValueError(f"executor needs a concurrent.futures.Executor or None, got {type(executor).__name__}.")
    items = make_items(posteriors, checkpoints=checkpoints, masks=masks, settings=settings, prefix=prefix)
    asked = RequestedLengths(
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        batch_size=batch_size,
        eval_size=eval_size,
        step_energies=step_energies,
        budget=budget,
    )
    wanted = Wanted(items, reference, calibration, sampler, nbeta, gamma, asked)
    store = None if out is None else Store(out)
    tasks = _tasks(key, wanted, store, progress=progress)
    return _collected(tasks, wanted, store, executor, progress=progress)


def _tasks(key: PRNGKeyArray, wanted: Wanted, store: Store | None, *, progress: bool | None) -> list[Task]:
    """A task for each item, by the plan of the folder or by a new one from the reference."""
    pilots, runs = jax.random.split(key)
    identity, found = wanted.identity(key), None if store is None else store.settings()
    spectra = {}
    if found is not None:
        assert store is not None
        plan = _plan_in(store, found["plan"])
        given = {"reference": plan.reference if wanted.reference is None else wanted.reference}
        if wrong := differing(found["settings"] | {"reference": plan.reference}, identity | given):
            said = ", ".join(f"{name} {a} (here {b})" for name, (a, b) in wrong.items())
            raise ValueError(
                f"out has a sweep of other settings in {store.path}: {said}; give the same ones to go on with it, or "
                "another out."
            )
    else:
        item = wanted.item(wanted.reference)
        # At the scale of all, which settings of its own may leave.
        posterior = item.posterior().with_scale(nbeta=wanted.nbeta, gamma=wanted.gamma)
        price = price_for(posterior)
        spectra[item.name] = affordable_spectrum(posterior, price, wanted.asked.budget, progress=progress)
        plan = make_plan(
            pilots,
            item.name,
            posterior,
            item.settings.get("sampler", wanted.sampler),
            wanted.asked,
            spectra[item.name],
            calibration=wanted.calibration,
            price=price,
            progress=progress,
        )
        if store is not None:
            store.put_settings(identity, plan.to_json())
    return [
        Task(item, plan, Key.of(runs), wanted.sampler, wanted.asked, spectra.get(item.name)) for item in wanted.items
    ]


def _plan_in(store: Store, data: Mapping[str, Any]) -> Plan:
    try:
        return Plan.from_json(data)
    except ValueError as error:
        raise ValueError(f"out needs a sweep as it was written, but {store.path} is damaged: {error}") from error


def _collected(
    tasks: Sequence[Task], wanted: Wanted, store: Store | None, executor: Executor | None, *, progress: bool | None
) -> xr.DataTree:
    """The result, from items that were finished before and those that are run now."""
    outcomes: dict[str, Outcome] = {}
    if store is not None:
        for task in tasks:
            draws = store.get(task.item.name)
            if draws is not None:
                _check_same(task.item, draws, store)
                outcomes[task.item.name] = Outcome(draws, retried=str(draws.attrs.get(RETRIED, "")))
    missing = [task for task in tasks if task.item.name not in outcomes]
    start, num_before = time.perf_counter(), len(outcomes)
    with (
        tqdm(total=len(missing), disable=None if progress is None else not progress, desc="sweep", unit="item") as bar,
        closing(run_all(missing, executor)) as finished,
    ):
        for name, outcome in finished:
            outcomes[name] = outcome
            if store is not None and outcome.draws is not None:
                store.put(name, outcome.draws)
            bar.update()
            seconds = time.perf_counter() - start
            if seconds > _SILENT:
                done = len(outcomes) - num_before
                to_go = seconds / done * (len(missing) - done)
                say(_finished(name, outcome, f"{done} of {len(missing)} items", to_go), progress=progress)
    return _result(tasks, outcomes, wanted, store)


def _finished(name: str, outcome: Outcome, count: str, to_go: float) -> str:
    """What came of an item, how many are done, and the seconds that the rest takes at their pace."""
    if outcome.draws is None:
        return f"{name}: {outcome.failed} ({count})"
    llc = mean_energy(outcome.draws)
    rest = f", {about(to_go)} to go" if to_go > 0 else ""
    return f"{name}: mean energy {plus_minus(llc.value, llc.mcse)} ({count}{rest})"


def _check_same(item: Item, draws: xr.DataTree, store: Store) -> None:
    """Refuses draws of another w* under the name of an item."""
    try:
        here = digest(item.unchecked_posterior())
    except (ValueError, OSError):  # the checkpoint is gone or damaged, and its draws are what is left
        return
    if draws.attrs.get(DIGEST, here) != here:
        raise ValueError(
            f"item {item.name!r} needs the params that its draws in {store.path} were made with, got others; remove "
            "that item from there, or give another out."
        )


def _result(tasks: Sequence[Task], outcomes: Mapping[str, Outcome], wanted: Wanted, store: Store | None) -> xr.DataTree:
    """Table and draws as one tree; the table goes to the folder too."""
    rows = []
    for task in tasks:
        name, outcome = task.item.name, outcomes[task.item.name]
        step = step_of(task.item.labels.get("point", name))
        made = None if outcome.draws is None else report(outcome.draws)
        rows.append(Row(name, made, outcome.failed, step, task.item.labels, outcome.retried))
    table = sweep_table(rows, _attributes(tasks[-1].plan, wanted))
    if store is not None:
        store.put_table(table)
    tree = xr.DataTree(table)
    found = {name: outcome.draws for name, outcome in outcomes.items() if outcome.draws is not None}
    tree[_DRAWS] = xr.DataTree(children={row.name: found[row.name] for row in rows if row.name in found})
    return tree


def _attributes(plan: Plan, wanted: Wanted) -> dict[str, str]:
    """What holds for all items, in words."""
    chosen = "given" if wanted.gamma is not None else f"of the item {plan.reference}"
    shared = f"shared: lengths and batch of the item {plan.reference}, the step size by each item's curvature"
    if wanted.calibration == "each":
        shared = "each item's own, by pilots; nβ and γ are shared"
    if wanted.sampler is not None:
        shared = f"shared: lengths of the item {plan.reference}, and the sampler that was given"
    return {
        "reference": plan.reference,
        "scale": f"Scale: nβ = {plan.nbeta:.6g} and γ = {plan.gamma:.6g}, {chosen}, for all items.",
        "calibration": f"Calibration {shared}.",
        "random_numbers": "Random numbers are common to all items, and differences are those of paired draws.",
        "settings_reasons": plan.reasons,
    }
