r"""Constants of the calibration: searched on one half of the zoo, reported on the other.

`llc.estimate` rests on a few constants: c, the part of the stable range of ε (nβ h_max + γ); how much of it is allowed
where chains go into stiff places (far, in units of c: another c moves the absolute limit too); and how often the
slowest direction relaxes over a run. Each is varied with the others as they are. The zoo's cases with an exact E[nβK]
are dealt out to two halves, family by family: "search" is to choose on, "report" tells what was chosen. Of the three
only the relaxations were chosen so; c and far are from before, and c = 1 or far = 1 would cost less on both halves.

A run's cost is its gradients (of the final chains: neither pilots nor runs that were made again) times the square of
its relative error, in units of the library's own constants on the same case (below 1 is better); the table has its
geometric mean over the cases. The claimed error makes the cost, not the error found, which is one number; what was
found tells whether the claim is right: share of the 95 % intervals that cover, worst z, runs whose checks all passed.

    python validation/constants.py --processes 2
"""

import dataclasses
import math
from unittest import mock

import jax
import numpy as np
from matplotlib.figure import Figure
from no_knobs_results import WIDTH
from study import Column, Row, Study, table
from zoo import CASES
from zoo_halves import HALVES, NAMES, half

import llc

OWN = "as they are"
VARIANTS = {
    OWN: {},
    "c = 0.25": {"COURANT": 0.25},
    "c = 1": {"COURANT": 1.0},
    "far = 0.25": {"_FAR": 0.25},
    "far = 1": {"_FAR": 1.0},
    "relaxations = 80": {"_RELAXATIONS": 80},
    "relaxations = 320": {"_RELAXATIONS": 320},
}
PLACES = {  # modules that read a constant
    "COURANT": ("llc.calibration.step_size", "llc.calibration.pilots"),
    "_RELAXATIONS": ("llc.calibration.run_length",),
    "_FAR": ("llc.calibration.pilots",),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 7
    num_data: int = 10_000
    num_repeats: int = 2
    cases: tuple[str, ...] = tuple(f"{variant} | {name}" for name in NAMES for variant in VARIANTS)


QUICK = Settings(num_repeats=1, cases=tuple(f"{v} | {n}" for n in ("w^4/2", "w^2/2") for v in (OWN, "c = 1")))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("constants", __doc__, Settings(), QUICK)
    rows = study.rows(run, study.settings.cases)
    summaries = [summarize(rows, half, variant) for half in HALVES for variant in VARIANTS]
    summaries = [summary for summary in summaries if summary]
    text = table(summaries, SUMMARY) + "\n\n" + table(rows, COLUMNS)
    print(text)
    study.save(rows, summary={"halves": summaries}, text=text, figure=figure(summaries))


def run(case: str, settings: Settings) -> Row:
    """All repeats of one case with one variant of the constants."""
    variant, name = case.split(" | ")
    model = next(c for c in CASES if c.name == name)
    posterior = model.build(jax.random.key(settings.seed), settings.num_data)
    exact = model.moments(*posterior.scale).mean
    patches = [
        mock.patch(f"{place}.{constant}", value)
        for constant, value in VARIANTS[variant].items()
        for place in PLACES[constant]
    ]
    for patch in patches:
        patch.start()
    try:
        keys = jax.random.split(jax.random.key(settings.seed), settings.num_repeats)
        reports = [llc.estimate(key, posterior, progress=False) for key in keys]
    finally:
        for patch in patches:
            patch.stop()
    values, errors = (np.array([getattr(report.llc, name) for report in reports]) for name in ("value", "mcse"))
    return {
        "half": half(name),
        "variant": variant,
        "name": name,
        "exact": exact,
        "values": values.tolist(),
        "errors": errors.tolist(),
        "gradients": [_gradients(report) for report in reports],
        "passed": [not report.failed for report in reports],
    }


def _gradients(report: llc.Report) -> float:
    groups = [group for group in ("sample_stats", "warmup_sample_stats") if group in report.draws]
    return sum(float(report.draws[group]["num_gradients"].sum()) for group in groups)


def summarize(rows: list[Row], half: str, variant: str) -> Row:
    """One variant on one half; empty if there is no case of it."""
    good = [row for row in rows if "error" not in row and row["half"] == half]
    own = {row["name"]: cost(row) for row in good if row["variant"] == OWN}
    here = [row for row in good if row["variant"] == variant and row["name"] in own]
    if not here:
        return {}
    z = np.concatenate([(np.array(row["values"]) - row["exact"]) / np.array(row["errors"]) for row in here])
    found = np.concatenate([np.array(row["values"]) / row["exact"] - 1 for row in here])
    return {
        "half": half,
        "variant": variant,
        "runs": len(z),
        "cost": math.exp(np.mean([math.log(cost(row) / own[row["name"]]) for row in here])),
        "gradients": float(np.median([np.median(row["gradients"]) for row in here])),
        "median error": float(np.median(np.abs(found))),
        "worst error": float(np.abs(found).max()),
        "covered": float(np.mean(np.abs(z) <= WIDTH)),
        "worst z": float(z[np.abs(z).argmax()]),
        "passed": float(np.mean(np.concatenate([row["passed"] for row in here]))),
    }


def cost(row: Row) -> float:
    """Gradients times the claimed relative variance."""
    return float(np.mean(np.array(row["gradients"]) * (np.array(row["errors"]) / row["exact"]) ** 2))


SUMMARY = [
    Column("half", "half"),
    Column("constants", "variant"),
    Column("runs", "runs"),
    Column("cost", "cost", "{:.2f}"),
    Column("gradients, median", "gradients", "{:,.0f}"),
    Column("median |error|", "median error", "{:.2%}"),
    Column("worst", "worst error", "{:.1%}"),
    Column("covered", "covered", "{:.1%}"),
    Column("worst z", "worst z", "{:+.1f}"),
    Column("all checks passed", "passed", "{:.0%}"),
]
COLUMNS = [
    Column("half", "half"),
    Column("case", "name"),
    Column("constants", "variant"),
    Column("exact", "exact", "{:.4f}"),
    Column("λ̂", lambda row: " ".join(f"{value:.4f}" for value in row["values"])),
    Column("mcse, mean", lambda row: float(np.mean(row["errors"])), "{:.4f}"),
    Column("gradients, mean", lambda row: float(np.mean(row["gradients"])), "{:,.0f}"),
    Column("passed", lambda row: f"{sum(row['passed'])} of {len(row['passed'])}"),
]


def figure(summaries: list[Row]) -> Figure:
    """Cost and coverage of the variants, on both halves."""
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    variants = list(dict.fromkeys(summary["variant"] for summary in summaries))
    for summary in summaries:
        second = summary["half"] == HALVES[1]
        place = variants.index(summary["variant"]) + 0.16 * (1 if second else -1)
        color = "#D55E00" if second else "#0072B2"
        left.plot(summary["cost"], place, "o", color=color)
        error = 100 * math.sqrt(0.95 * 0.05 / summary["runs"])
        right.errorbar(100 * summary["covered"], place, xerr=error, fmt="o", color=color, label=summary["half"])
    left.axvline(1, color="0.4", lw=0.8)
    right.axvline(95, color="0.4", lw=0.8)
    left.set(xscale="log", xlabel="gradients × relative variance, own constants = 1", yticks=range(len(variants)))
    ticks = [0.5, 0.7, 1, 1.4, 2, 3]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.set_yticklabels(variants)
    left.invert_yaxis()
    right.set(xlabel="95 % intervals that cover, %, ± 1 binomial error")
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    left.legend(unique.values(), unique.keys(), fontsize=8, loc="center right")
    return fig


if __name__ == "__main__":
    main()
