"""Accuracy: every sampler on every zoo case with an exact finite-n value, at n = 10³, 10⁴ and 10⁵.

Each cell is one call of `llc.estimate` with its defaults (SGLD) or with the named sampler at its defaults. SGHMC and
SGNHT have none: they take the step and the lengths that `llc.calibrate` gives SGLD, and critical friction at the
stiffest direction, 2 √(c / ε). Nothing is set by hand but the number of chains and draws, the same for all cases, so
that Monte Carlo error does not hide a bias:

    z = (λ̂ − E[nβK]) / mcse,    error = λ̂ / E[nβK] − 1,    efficiency = ESS / gradient evaluations.

The exact E[nβK] is that of the same posterior, localization included (validation/exact.py). Targets: |z| < 4 in every
cell, median error <= 1 %, worst <= 5 %. The verdict is about λ, which most cells can't tell at their one γ: cells made
before the verdict SCALE_DEPENDENT call that CONSISTENT too.

(w₁ − 1)²|w|⁸ has two minima, 1 apart, and its exact value integrates over both of them. The chains stay at w* from
n = 10⁴ on, as a local estimate should; so it is summed up apart.
"""

import collections
import dataclasses
import math
import statistics

import jax
import numpy as np
from matplotlib.figure import Figure
from study import Column, Row, Study, sample_keywords, table
from verdicts import counts, listed
from zoo import CASES

import llc
from llc.calibration.step_size import COURANT

SAMPLERS = {
    "SGLD": None,
    "SGHMC": llc.SGHMC,
    "SGNHT": llc.SGNHT,
    "MALA": llc.MALA(),
    "HMC": llc.HMC(),
    "NUTS": llc.NUTS(),
}
TWO_MINIMA = "|w|^8"
TICKS = (-50, -10, -2, -1, 0, 1, 2, 10, 50)
COLORS = dict(zip(SAMPLERS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7"), strict=True))


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    num_chains: int = 16
    num_draws: tuple[int, ...] = (8000, 2000, 2000, 4000, 4000, 4000)  # by sampler; for a relative mcse of about 1 %
    cases: tuple[str, ...] | None = None  # None takes all


QUICK = Settings(
    sizes=(1_000,), samplers=("SGLD", "NUTS"), num_chains=8, num_draws=(400, 200), cases=("w^2/2", "(w1 w2)^2/2")
)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("accuracy", __doc__, Settings(), QUICK)
    names = [c.name for c in CASES if c.moments and (study.settings.cases is None or c.name in study.settings.cases)]
    rows = study.rows(run, [f"{sampler} | {name}" for sampler in study.settings.samplers for name in names])
    cells = cells_of(rows)
    failed = [row for row in rows if "error" in row]
    summary = {group: summarize(members) for group, members in grouped(cells, "group").items()}
    parts = [table(cells, COLUMNS), table([{"cases": k, **v} for k, v in summary.items()], SUMMARY)]
    text = "\n\n".join([*parts, *([table(failed, [Column("failed", "case")])] if failed else [])])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(cells))


def cells_of(rows: list[Row]) -> list[Row]:
    """A row for each n, with its sampler and the group in which it is summed up."""
    return [
        cell
        | {"sampler": row["sampler"], "name": row["name"]}
        | {"group": row["sampler"] + (", two minima" if TWO_MINIMA in row["name"] else "")}
        for row in rows
        for cell in row.get("cells", [])
    ]


def run(case: str, settings: Settings) -> Row:
    """One sampler on one case, at every n; n enters through nβ only, so that one compilation serves all."""
    sampler, name = case.split(" | ")
    model = next(c for c in CASES if c.name == name)
    posterior = model.build(jax.random.key(settings.seed), settings.sizes[0])
    cells = []
    for i, size in enumerate(settings.sizes):
        scaled = posterior.with_scale(nbeta=size / np.log(size))
        lengths = {"num_chains": settings.num_chains}
        lengths["num_draws"] = dict(zip(settings.samplers, settings.num_draws, strict=True))[sampler]
        key = jax.random.key(settings.seed + i)
        if isinstance(SAMPLERS[sampler], type):
            report = with_momentum(key, scaled, SAMPLERS[sampler], lengths)
        else:
            report = llc.estimate(key, scaled, sampler=SAMPLERS[sampler], progress=False, **lengths)
        cells.append({"n": size} | judged(report, model.moments(*scaled.scale).mean))
    return {"sampler": sampler, "name": name, "cells": cells}


def judged(report: llc.Report, exact: float) -> Row:
    """An estimate against the exact value."""
    groups = [group for group in ("sample_stats", "warmup_sample_stats") if group in report.draws]
    gradients = sum(float(report.draws[group]["num_gradients"].sum()) for group in groups)
    estimate = report.llc
    return {
        "exact": exact,
        "value": estimate.value,
        "mcse": estimate.mcse,
        "z": (estimate.value - exact) / estimate.mcse,
        "relative": estimate.value / exact - 1,
        "ess": estimate.ess,
        "efficiency": estimate.ess / gradients,
        "verdict": report.verdict,
        "gamma_converged": report.gamma_converged,
        "failed": ", ".join(check.name for check in report.failed),
    }


def with_momentum(key: jax.Array, posterior: llc.LocalPosterior, make: type, asked: dict[str, int]) -> llc.Report:
    """SGHMC or SGNHT with the step and the lengths of SGLD, and friction that is critical in the stiffest direction."""
    pilot_key, key = jax.random.split(key)
    calibration = llc.calibrate(pilot_key, posterior, **asked)
    step_size = float(np.asarray(calibration.sampler.step_size))  # pyright: ignore[reportAttributeAccessIssue] - of SGLD
    sampler = make(step_size, friction=2 * math.sqrt(COURANT / step_size))
    spectrum = calibration.spectrum
    lengths = sample_keywords(calibration)
    draws = llc.sample(key, calibration.posterior, sampler, spectrum=spectrum, progress=False, **lengths)
    return llc.report(draws, spectrum=spectrum)


def summarize(cells: list[Row]) -> Row:
    """Targets against what was reached."""
    errors = [abs(cell["relative"]) if math.isfinite(cell["relative"]) else math.inf for cell in cells]
    far = [cell for cell in cells if not abs(cell["z"]) < 4]  # nan is far
    return {
        "cells": len(cells),
        "median error": statistics.median(errors),
        "worst error": max(errors),
        "beyond 5 %": sum(error > 0.05 for error in errors),
        "worst z": max((cell["z"] for cell in cells), key=abs),
        "beyond 4": len(far),
        "unnoticed": sum(not cell["failed"] for cell in far),
        "verdicts": counts(cell["verdict"] for cell in cells),
        "efficiency": statistics.median(cell["efficiency"] for cell in cells),
    }


def grouped(cells: list[Row], key: str) -> dict[str, list[Row]]:
    """Cells by the value of `key`, in the order of their first appearance."""
    groups = collections.defaultdict(list)
    for cell in cells:
        groups[cell[key]].append(cell)
    return groups


COLUMNS = [
    Column("case", "name"),
    Column("n", "n", "{:,}"),
    Column("sampler", "sampler"),
    Column("exact", "exact", "{:.4f}"),
    Column("estimate", "value", "{:.4f}"),
    Column("mcse", "mcse", "{:.4f}"),
    Column("z", "z", "{:+.1f}"),
    Column("error", "relative", "{:+.1%}"),
    Column("ESS", "ess", "{:.0f}"),
    Column("ESS/grad", "efficiency", "{:.1e}"),
    Column("verdict", "verdict"),
    Column("failed checks", "failed"),
]

SUMMARY = [
    Column("cases", "cases"),
    Column("cells", "cells"),
    Column("median |error|", "median error", "{:.2%}"),
    Column("worst |error|", "worst error", "{:.1%}"),
    Column("> 5 %", "beyond 5 %"),
    Column("worst z", "worst z", "{:+.1f}"),
    Column("|z| >= 4", "beyond 4"),
    Column("of them with no failed check", "unnoticed"),
    Column("median ESS/grad", "efficiency", "{:.1e}"),
    Column("verdicts", lambda row: listed(row["verdicts"])),
]


def figure(cells: list[Row]) -> Figure:
    """Relative error with its standard error, a panel an n."""
    sizes = sorted({cell["n"] for cell in cells})
    names, samplers = list(grouped(cells, "name")), grouped(cells, "sampler")
    fig = Figure(figsize=(3 + 3.2 * len(sizes), 1.5 + 0.28 * len(names)), layout="constrained")
    for ax, size in zip(np.atleast_1d(fig.subplots(1, len(sizes), sharex=True, sharey=True)), sizes, strict=True):
        ax.axvspan(-1, 1, color="#E4E4E4", lw=0, zorder=0)
        ax.axvline(0, color="black", lw=0.8)
        for i, (sampler, group) in enumerate(grouped([c for c in cells if c["n"] == size], "sampler").items()):
            y = [names.index(c["name"]) + 0.7 * ((i + 0.5) / len(samplers) - 0.5) for c in group]
            error, bar = [100 * c["relative"] for c in group], [100 * c["mcse"] / c["exact"] for c in group]
            ax.errorbar(error, y, xerr=bar, fmt="o", ms=3, lw=1, color=COLORS[sampler], label=sampler)
        ax.set(title=f"n = {size:,}", xlabel="error of λ̂ in %, ± mcse", yticks=range(len(names)), yticklabels=names)
        ax.set_xscale("symlog", linthresh=2)
        ax.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS], fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(samplers), fontsize=9)
    return fig


if __name__ == "__main__":
    main()
