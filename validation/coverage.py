"""Coverage: how often the 95 % interval λ̂ ± 1.96 mcse contains the exact finite-n value.

Each case is estimated many times by `llc.estimate` with its defaults, from independent keys. An honest standard error
covers in 95 % of the repeats, up to the binomial error of the repeats (±3.0 points at 200, two standard deviations);
"z" is the root mean square of (λ̂ − exact) / mcse, 1 for an honest error, and "spread" the standard deviation of λ̂ over
the repeats in units of the mean mcse. Target: 95 ± 4 % in every case. The same for the mean energy, of which λ̂ is a
variant with less variance. On a quadratic loss λ̂ has no variance but round-off, which its
error bounds rather than measures.
"""

import dataclasses
import math

import jax
import numpy as np
from matplotlib.figure import Figure
from study import Column, Row, Study, table
from tqdm.auto import tqdm
from verdicts import counts, listed
from zoo import CASES

import llc

SAMPLERS = {"SGLD": None, "NUTS": llc.NUTS()}
LEVEL, WIDTH = 0.95, 1.959964


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 1
    num_repeats: int = 200
    num_data: int = 10_000
    cases: tuple[str, ...] = (
        *(f"SGLD | {name}" for name in ("w^2/2", "w^4/2", "(w1 w2)^2/2", "(w1^2 + w2^4)/2", "reduced rank 2-2-2 zero")),
        *(f"NUTS | {name}" for name in ("w^4/2", "(w1 w2)^2/2", "reduced rank 2-2-2 zero")),
    )


QUICK = Settings(num_repeats=5, cases=("SGLD | w^2/2", "SGLD | w^4/2"))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("coverage", __doc__, Settings(), QUICK)
    rows = study.rows(run, study.settings.cases)
    text = table(rows, COLUMNS)
    print(text)
    covered = {row["case"]: row.get("coverage") for row in rows}
    within = sum(abs((share or 0.0) - LEVEL) <= 0.04 for share in covered.values())
    study.save(rows, summary={"within 95 ± 4 %": within, "of": len(rows)}, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """All repeats of one case; the programs compile in the first and serve the others."""
    sampler, name = case.split(" | ")
    model = next(c for c in CASES if c.name == name)
    posterior = model.build(jax.random.key(settings.seed), settings.num_data)
    exact = model.moments(*posterior.scale).mean
    keys = jax.random.split(jax.random.key(settings.seed), settings.num_repeats)
    reports = [
        llc.estimate(key, posterior, sampler=SAMPLERS[sampler], progress=False)
        for key in tqdm(keys, desc=case, leave=False)
    ]
    energies = [llc.mean_energy(report.draws) for report in reports]
    row = _of([report.llc for report in reports], exact)
    return row | {
        "exact": exact,
        "of_energy": _of(energies, exact),
        "passed": float(np.mean([not report.failed for report in reports])),
        "verdicts": counts(report.verdict for report in reports),
    }


def _of(estimates: list[llc.Estimate], exact: float) -> Row:
    """How estimates and their errors agree with the exact value."""
    values, errors = (np.array([getattr(estimate, name) for estimate in estimates]) for name in ("value", "mcse"))
    z = (values - exact) / errors
    return {
        "mean": values.mean(),
        "mean_error": values.std(ddof=1) / math.sqrt(len(values)),
        "mcse": errors.mean(),
        "spread": values.std(ddof=1) / errors.mean(),
        "rms_z": float(np.sqrt(np.mean(z**2))),
        "coverage": float(np.mean(np.abs(z) <= WIDTH)),
        "values": values.tolist(),
        "errors": errors.tolist(),
    }


COLUMNS = [
    Column("case", "case"),
    Column("exact", "exact", "{:.4f}"),
    Column("mean λ̂", lambda row: f"{row['mean']:.5f} ± {row['mean_error']:.5f}"),
    Column("mean mcse", "mcse", "{:.2g}"),
    Column("spread", "spread", "{:.2f}"),
    Column("z", "rms_z", "{:.2f}"),
    Column("covered", "coverage", "{:.1%}"),
    Column("mean energy: mcse", lambda row: row["of_energy"]["mcse"], "{:.2g}"),
    Column("z", lambda row: row["of_energy"]["rms_z"], "{:.2f}"),
    Column("covered", lambda row: row["of_energy"]["coverage"], "{:.1%}"),
    Column("all checks passed", "passed", "{:.0%}"),
    Column("verdicts", lambda row: listed(row["verdicts"]) if "verdicts" in row else None),
]


def figure(rows: list[Row]) -> Figure:
    """Every repeat's interval against the exact value, sorted, a panel a case."""
    rows = [row for row in rows if "error" not in row]
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    fig = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
    for ax, row in zip(fig.subplots(lines, columns, squeeze=False).ravel(), rows, strict=False):
        order = np.argsort(row["values"])
        values = 100 * (np.array(row["values"])[order] / row["exact"] - 1)
        errors = 100 * np.array(row["errors"])[order] / row["exact"]
        missed = np.abs(values) > WIDTH * errors
        for part, color in ((~missed, "#0072B2"), (missed, "#D55E00")):
            ax.errorbar(np.flatnonzero(part), values[part], WIDTH * errors[part], fmt=".", ms=2, lw=0.6, color=color)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=f"{row['case']}\n{row['coverage']:.1%} covered", xlabel="repeat, sorted", ylabel="error of λ̂, %")
        ax.title.set_fontsize(9)
    return fig


if __name__ == "__main__":
    main()
