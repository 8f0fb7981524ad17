"""The table of a sweep: a row for each item, in numbers and words that a figure or a file needs.

Differences are those of an item to the one before it, of the same mask and setting. Where draws are paired (common
random numbers) their error is that of the paired difference, which is far smaller than the errors of both suggest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from llc.analysis import schema
from llc.analysis.compare import compare
from llc.analysis.report import Report
from llc.analysis.series import plus_minus
from llc.analysis.slope import slope_of

ITEM_DIM = "checkpoint"
FAILED = "FAILED"  # the verdict of an item without draws
_NUMBERS = (
    *("llc", "mcse", "quad", "quad_stderr", "singular", "singular_mcse", "lower", "upper", "corrected"),
    *("corrected_mcse", "loss", "grad_norm", "slope", "polished", "nbeta", "gamma", "step_size", "num_params"),
    *("ess", "rhat"),
)


@dataclass(frozen=True)
class Row:
    """An item of a sweep.

    Attributes:
        name: of the item.
        report: on its draws; None where it failed.
        failed: why it failed; empty where it did not.
        step: the number in its name, by which it is plotted; nan where there is none.
        labels: of its mask and its setting, where there are several.
        retried: what was changed in a second try; empty where the first was taken.
    """

    name: str
    report: Report | None
    failed: str = ""
    step: float = math.nan
    labels: Mapping[str, str] = field(default_factory=dict)
    retried: str = ""


def sweep_table(rows: Sequence[Row], attributes: Mapping[str, Any]) -> xr.Dataset:
    """All rows as variables over the dimension `checkpoint`.

    Args:
        rows: in order.
        attributes: of the sweep.

    Returns:
        Per item: `llc`, `mcse`, `quad` (λ_quad) and `quad_stderr`, `singular` (λ̂ − λ_quad) and `singular_mcse`, `lower`
        and `upper` bounds, `corrected` and `corrected_mcse`, `loss` and `grad_norm` at w*, `slope` (its share of λ̂)
        and `polished` (λ̂ without it), `difference` (to the item before), `difference_mcse` and
        `difference_correlation`, `nbeta`, `gamma`, `step_size`, `num_params`, `ess`, `rhat`; and as text `verdict`,
        `reason`, `failed`, `retried`. Numbers are nan where there are none.
    """
    names = [row.name for row in rows]
    columns = [_columns(row) | _difference(before, row) for before, row in zip(_before(rows), rows, strict=True)]
    variables = {name: (ITEM_DIM, np.array([column[name] for column in columns])) for name in columns[0]}
    coords: dict[str, Any] = {ITEM_DIM: names, "step": (ITEM_DIM, np.array([row.step for row in rows]))}
    for label in ("point", "mask", "setting"):
        if all(label in row.labels for row in rows):
            coords[label] = (ITEM_DIM, [row.labels[label] for row in rows])
    table = xr.Dataset(variables, coords, dict(attributes))
    table.attrs["same_scale"] = int(_same_scale(table))
    return table


def _same_scale(table: xr.Dataset) -> bool:
    """Whether all items that have draws have one nβ and one γ."""
    values = (table[name].to_numpy() for name in ("nbeta", "gamma"))
    found = [x[np.isfinite(x)] for x in values]
    return all(np.allclose(x, x[0], rtol=1e-6, atol=0) for x in found if x.size)


def _before(rows: Sequence[Row]) -> list[Row | None]:
    """For each row the last one before it that has draws, of the same mask and setting."""
    last: dict[tuple[str, str], Row] = {}
    before = []
    for row in rows:
        kind = row.labels.get("mask", ""), row.labels.get("setting", "")
        before.append(last.get(kind))
        if row.report is not None:
            last[kind] = row
    return before


def _columns(row: Row) -> dict[str, float | str]:
    report = row.report
    numbers = dict.fromkeys(_NUMBERS, math.nan)
    words = {"verdict": FAILED, "reason": "", "failed": row.failed, "retried": row.retried}
    if report is None:
        return numbers | words
    draws, llc, bounds, corrected = report.draws, report.llc, report.bounds, report.corrected
    numbers |= {"llc": llc.value, "mcse": llc.mcse, "ess": llc.ess, "rhat": llc.rhat}
    for name, constant in (("loss", schema.INIT_LOSS), ("nbeta", schema.NBETA), ("gamma", schema.GAMMA)):
        numbers[name] = schema.constant(draws, constant)
    numbers["num_params"] = schema.constant(draws, schema.NUM_PARAMS)
    step_size = schema.settings_of(draws)["sampler"].get("step_size")
    numbers["step_size"] = math.nan if step_size is None else float(step_size)
    if bounds is not None:
        numbers |= {"lower": bounds.lower, "upper": bounds.upper}
    if report.quad is not None and bounds is not None and report.singular is not None:
        numbers |= {"quad": report.quad, "quad_stderr": bounds.quad_stderr, "singular": report.singular}
        numbers["singular_mcse"] = math.hypot(llc.mcse, bounds.quad_stderr)
    if corrected is not None:
        numbers |= {"corrected": corrected.value, "corrected_mcse": corrected.mcse}
    if (slope := slope_of(draws, report.spectrum)) is not None:
        numbers |= {"grad_norm": slope.grad_norm, "slope": slope.share, "polished": llc.value - slope.share}
    return numbers | words | {"verdict": report.verdict, "reason": report.reason}


def _difference(before: Row | None, row: Row) -> dict[str, float]:
    names = ("difference", "difference_mcse", "difference_correlation")
    if before is None or before.report is None or row.report is None:
        return dict.fromkeys(names, math.nan)
    found = compare(before.report.draws, row.report.draws)
    return dict(zip(names, (found.value, found.mcse, found.correlation), strict=True))


def table_text(table: xr.Dataset) -> str:
    """The table for a terminal: a line for each item, and what holds for all of them.

    Args:
        table: of `sweep_table`.
    """
    names = [str(name) for name in table[ITEM_DIM].to_numpy()]
    width = max(10, *map(len, names))
    header = f"{'':<{width}} {'λ̂':>19} {'difference':>19} {'λ_quad':>8} {'bounds':>16} {'loss':>10}  verdict"
    lines = [header.rstrip()]
    for i, name in enumerate(names):
        row = {str(key): value.to_numpy()[i].item() for key, value in table.data_vars.items()}
        if row["failed"]:
            lines.append(f"{name:<{width}} {FAILED}: {row['failed']}")
            continue
        bounds = f"[{row['lower']:.4g}, {row['upper']:.4g}]" if math.isfinite(row["lower"]) else "none"
        difference = plus_minus(row["difference"], row["difference_mcse"])
        lines.append(
            f"{name:<{width}} {plus_minus(row['llc'], row['mcse']):>19} "
            f"{'' if difference == 'nan' else difference:>19} {row['quad']:>8.4g} {bounds:>16} {row['loss']:>10.4g}  "
            f"{row['verdict']}"
        )
        if math.isfinite(row["slope"]) and abs(row["slope"]) > 0.02 * max(row["polished"], 0.5):
            lines.append(
                f"{'':<{width}} no minimum, ‖∇L‖ = {row['grad_norm']:.2g}: the slope takes {-row['slope']:.3g} from λ̂, "
                f"which is {row['polished']:.4g} without it"
            )
    return "\n".join([*lines, "", *_notes(table)])


def _notes(table: xr.Dataset) -> list[str]:
    lines = [str(table.attrs[name]) for name in ("scale", "calibration", "random_numbers") if name in table.attrs]
    if not table.attrs["same_scale"]:
        lines.append(
            "The items are NOT at one scale (see nbeta and gamma), so their differences mix models and scales."
        )
    return lines
