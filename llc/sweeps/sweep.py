"""A sweep: λ̂ of many posteriors at one scale, each with its error, and of neighbours the difference with its own."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import xarray as xr
from jaxtyping import PRNGKeyArray, PyTree

from llc.analysis.estimators import mean_energy
from llc.analysis.reporting import report
from llc.analysis.series import plus_minus
from llc.analysis.sweep_table import Row, sweep_table
from llc.bounds.spectral_measure import Spectrum
from llc.calibration.price import affordable_spectrum
from llc.posterior.arguments import require_integer, require_option, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.precision import lenient
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths
from llc.sampling.validation import check_key
from llc.sweeps.execution import Outcome, run_told
from llc.sweeps.items import Item, digest, make_items, step_of
from llc.sweeps.plan import Calibrated, Plan, make_plan, price_for
from llc.sweeps.scale import SurveyTask, survey_all
from llc.sweeps.store import Store, differing
from llc.sweeps.task import DIGEST, RETRIED, Key, Task, run_task
from llc.sweeps.wanted import Wanted

_POINTS = 1  # of the key of the plan
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
        reference: the item at which the calibration is chosen, and γ where no loss decides it; None takes the last.
        calibration: `"shared"`: lengths and batch of the reference for all, the step size by each item's curvature;
            `"each"`: pilots for every item.
        sampler: for all items; None takes SGLD.
        nbeta: nβ; None takes that of the reference.
        gamma: γ; None takes that of the reference, or chooses it: the largest of what the items ask for, each of which
            is the weakest at which its loss is about quadratic, and that of the reference where the rank is one number.
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
    with lenient():
        tasks = _tasks(key, wanted, store, executor, progress=progress)
        return _collected(tasks, wanted, store, executor, progress=progress)


def _tasks(
    key: PRNGKeyArray, wanted: Wanted, store: Store | None, executor: Executor | None, *, progress: bool | None
) -> list[Task]:
    """A task for each item, by the plan of the folder or by a new one."""
    pilots, runs = jax.random.split(key)
    identity, found = wanted.identity(key), None if store is None else store.settings()
    spectra: dict[str, Spectrum] = {}
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
        plan, spectra = _new_plan(pilots, wanted, executor, progress=progress)
        if store is not None:
            store.put_settings(identity, plan.to_json())
    return [
        Task(item, plan, Key.of(runs), wanted.sampler, wanted.asked, spectra.get(item.name)) for item in wanted.items
    ]


def _new_plan(
    key: PRNGKeyArray, wanted: Wanted, executor: Executor | None, *, progress: bool | None
) -> tuple[Plan, dict[str, Spectrum]]:
    """The plan from the reference, and from the γ that items ask for if it is open; with spectra by item."""
    item = wanted.item(wanted.reference)
    # At the scale of all, which settings of its own may leave.
    posterior = item.posterior().with_scale(nbeta=wanted.nbeta, gamma=wanted.gamma)
    price, localization = price_for(posterior), None
    if posterior.gamma is None and wanted.sampler is None:
        points = Key.of(jax.random.fold_in(key, _POINTS))
        first = SurveyTask(item, points, wanted.nbeta, wanted.asked, price)
        localization, spectra = survey_all(first, posterior, wanted.items, executor, progress=progress)
    else:
        spectra = {item.name: affordable_spectrum(posterior, price, wanted.asked.budget, progress=progress)}
    plan = make_plan(
        key,
        item.name,
        posterior,
        item.settings.get("sampler", wanted.sampler),
        wanted.asked,
        spectra[item.name],
        localization,
        calibration=wanted.calibration,
        price=price,
        progress=progress,
    )
    return plan, spectra


def _plan_in(store: Store, data: Mapping[str, Any]) -> Plan:
    try:
        return Plan.from_json(data)
    except ValueError as error:
        raise ValueError(f"out needs a sweep as it was written, but {store.path} is damaged: {error}") from error


def _collected(
    tasks: Sequence[Task], wanted: Wanted, store: Store | None, executor: Executor | None, *, progress: bool | None
) -> xr.DataTree:
    """The result, from items that were finished before and those that are run now."""
    outcomes: dict[str, Outcome[xr.DataTree]] = {}
    if store is not None:
        for task in tasks:
            draws = store.get(task.item.name)
            if draws is not None:
                _check_same(task.item, draws, store)
                outcomes[task.item.name] = Outcome(draws)
    missing = [task for task in tasks if task.item.name not in outcomes]
    ran = run_told(run_task, missing, executor, name="sweep", found=_energy, progress=progress)
    with closing(ran):
        for name, outcome in ran:
            outcomes[name] = outcome
            if store is not None and outcome.value is not None:
                store.put(name, outcome.value)
    return _result(tasks, outcomes, wanted, store)


def _energy(draws: xr.DataTree) -> str:
    """λ̂ of an item, as it is told while the others run."""
    llc = mean_energy(draws)
    return f"mean energy {plus_minus(llc.value, llc.mcse)}"


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


def _result(
    tasks: Sequence[Task], outcomes: Mapping[str, Outcome[xr.DataTree]], wanted: Wanted, store: Store | None
) -> xr.DataTree:
    """Table and draws as one tree; the table goes to the folder too."""
    rows = []
    for task in tasks:
        name, outcome = task.item.name, outcomes[task.item.name]
        step = step_of(task.item.labels.get("point", name))
        made = None if outcome.value is None else report(outcome.value)
        retried = outcome.retried or ("" if outcome.value is None else str(outcome.value.attrs.get(RETRIED, "")))
        rows.append(Row(name, made, outcome.failed, step, task.item.labels, retried))
    table = sweep_table(rows, _attributes(tasks[-1].plan, wanted))
    if store is not None:
        store.put_table(table)
    tree = xr.DataTree(table)
    found = {name: outcome.value for name, outcome in outcomes.items() if outcome.value is not None}
    tree[_DRAWS] = xr.DataTree(children={row.name: found[row.name] for row in rows if row.name in found})
    return tree


def _attributes(plan: Plan, wanted: Wanted) -> dict[str, str]:
    """What holds for all items, in words."""
    chosen = "given" if wanted.gamma is not None else f"of the item {plan.reference}"
    if plan.strictest:
        chosen = f"the largest that an item needs ({plan.strictest})"
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
