"""`llc sweep` and `llc compare`."""

import argparse
import glob
import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import xarray as xr

import llc
from llc.analysis.paths import expand
from llc.analysis.sweep_table import FAILED, ITEM_DIM, table_text
from llc.analysis.text import printable
from llc.cli import inputs, outputs
from llc.cli.terminal import complain, say, under_way
from llc.sweeps.items import in_natural_order

_SAMPLERS = {"sgld": None, "nuts": "NUTS", "hmc": "HMC", "mala": "MALA"}
_STATUS = {"CONSISTENT": 0, "SCALE_DEPENDENT": 0, "UNRESOLVED": 1, FAILED: 1, "BELOW": 2, "ABOVE": 2}
_OTHER_SCALE = 1


def sweep(arguments: argparse.Namespace) -> int:
    """`llc sweep`: all checkpoints, a table, and the worst of their statuses."""
    import jax  # not for llc compare

    model = inputs.model_file(arguments.posterior)
    outputs.check(figure=arguments.figure, folder=arguments.out, reads=(model,))
    paths = _found(arguments.checkpoints)
    template = inputs.load_posterior(arguments.posterior)
    name = _SAMPLERS[arguments.sampler]
    names = ("reference", "calibration", "nbeta", "gamma", "num_chains", "num_warmup", "num_draws", "thinning")
    names += ("batch_size", "eval_size", "step_energies", "budget", "prefix", "out")
    settings = {name: getattr(arguments, name) for name in names}
    with ExitStack() as stack:
        executor = None
        if arguments.workers != 1:
            executor = _pool(arguments.workers, arguments.posterior)
            stack.enter_context(executor)
        run = llc.sweep  # imported before a stop is dealt with here
        under_way()
        try:
            tree = run(
                jax.random.key(arguments.seed),
                template,
                checkpoints=paths,
                sampler=None if name is None else getattr(llc, name)(),
                executor=executor,
                **settings,
            )
        except KeyboardInterrupt:
            there = f"; what is finished is in {arguments.out}, and the same command goes on from there"
            raise KeyboardInterrupt(f"interrupted{there if arguments.out is not None else ''}") from None
    return _told(tree, arguments)


def _told(tree: xr.DataTree, arguments: argparse.Namespace) -> int:
    """Prints and draws the result; the status is the worst of the items'."""
    table = tree.to_dataset()
    if arguments.figure is not None:
        llc.save_figure(llc.plot_sweep(tree), arguments.figure)
        complain(f"Figure: {arguments.figure}")
    say(_json(table) if arguments.json else table_text(table), kept=arguments.out)
    if arguments.out is not None:
        complain(f"Written to {arguments.out}.")
    return max(_STATUS[verdict] for verdict in table["verdict"].to_numpy().tolist())


def _found(patterns: list[str]) -> list[Path]:
    """The files of all patterns, in natural order.

    Raises:
        ValueError: naming the pattern that matches nothing.
    """
    found = []
    for pattern in patterns:
        matches = glob.glob(str(expand(pattern, "checkpoints")))
        if not matches:
            raise ValueError(f"checkpoints need files, but nothing matches {pattern!r}; see that the folder is right.")
        found += [Path(match) for match in matches]
    return in_natural_order(list(dict.fromkeys(found)))


def _pool(workers: int, posterior: str) -> ProcessPoolExecutor:
    """Processes that know the model's file: its functions are found by the name of its module."""
    if workers < 1:
        raise ValueError(f"--workers needs an integer >= 1, got {workers}.")
    context = multiprocessing.get_context("spawn")  # a fork of a process with JAX's threads hangs
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_know, initargs=(posterior,))


def _know(posterior: str) -> None:
    """In a worker: executes the model's file, as the parent did."""
    inputs.load_posterior(posterior)


def _json(table: xr.Dataset) -> str:
    """The table as JSON, a record for each item; numbers that are not finite are null."""
    items = []
    for i in range(table.sizes[ITEM_DIM]):
        row = {str(name): x.to_numpy()[i].item() for name, x in {**table.coords, **table.data_vars}.items()}
        items.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    return printable(json.dumps({"items": items, "attributes": table.attrs}, indent=2, ensure_ascii=False))


def compare(arguments: argparse.Namespace) -> int:
    """`llc compare`: the difference of two files, and the worst of the statuses of both."""
    first, second = (llc.load(path) for path in (arguments.first, arguments.second))
    found = llc.compare(first, second)
    verdicts = [llc.report(draws).verdict for draws in (first, second)]
    if arguments.json:
        fields = {"verdicts": verdicts, "same_scale": found.same_scale, **asdict(found)}
        say(printable(json.dumps(_without_nan(fields), indent=2, ensure_ascii=False)))
    else:
        say(f"{found}\n{'verdicts':<18} {verdicts[0]}, {verdicts[1]}")
    return max(*(_STATUS[verdict] for verdict in verdicts), 0 if found.same_scale else _OTHER_SCALE)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
