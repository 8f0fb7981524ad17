r"""Momentum: what `llc.calibrate` chooses, against SGLD at the step that its pilots find, for the same gradients.

- exact: zoo cases with an exact E[nβK] at n = 10⁴, the half of no_knobs.py; their models are overhead-bound, so that
  SGLD stays, and momentum at the same ε is shown beside it;
- linear, digits: the networks of no_knobs.py at the γ of its table, against its truth by NUTS;
- deep: the first networks of deep_linear.py at the γ of its table, on d₀ rows with the same density (`sufficient`),
  against its NUTS reference. The smallest are overhead-bound with so few rows.

Each case is calibrated at a given γ, then sampled by the chosen sampler and by SGLD with the step of the last pilot:
the same number of steps and draws of full batches, so that the gradients are equal. "Gain" is the squared standard
error of SGLD in units of that of momentum: of λ̂, and of the mean energy, which is λ̂ without control variates; that of
the default is 1 where SGLD stays, and momentum at the same ε is shown beside it all the same. The error and the
coverage count the error of the truth. A run is wrong where λ̂ is off by more than 2 % and three errors
and no check of the chains refuses it.

Target: a median gain of 4 over all cases, coverage 95 ± 4 %, no run wrong.

    python validation/momentum.py --processes 2
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import no_knobs
import numpy as np
from deep_linear import Settings as DeepLinear
from linear_nets import generate, make_posterior, sufficient
from matplotlib.figure import Figure
from study import Column, Row, Study, sample_keywords, table
from zoo import CASES
from zoo_halves import NAMES, half

import llc

RESULTS = Path(__file__).parent / "results"
WIDTH = 1.959964
OFF, ERRORS = 0.02, 3.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_repeats: int = 1
    num_deep: int = 40

    @property
    def cases(self) -> list[str]:
        """All cases, the groups mixed and small networks first, so that a study in parts has some of each."""
        deep = sorted(range(self.num_deep), key=lambda i: committed("deep_linear", str(i))["dim"])
        groups = [
            ["digits | 2", "digits | 4"],
            [f"linear | {i} | {noise}" for i in range(12) for noise in (0, 1)],
            [f"deep | {i}" for i in deep],
            [f"exact | {name}" for name in NAMES if half(name) == "report"],
        ]
        places = [(i / len(group), case) for group in groups for i, case in enumerate(group)]
        return [case for _, case in sorted(places, key=lambda place: place[0])]


@dataclasses.dataclass(frozen=True)
class Quick(Settings):
    """One network."""

    @property
    def cases(self) -> list[str]:
        """The smallest network."""
        return ["linear | 11 | 1"]


def main() -> None:
    """Runs, prints, writes."""
    study = Study("momentum", __doc__, Settings(), Quick())
    rows = study.rows(run, study.settings.cases)
    summary = summarize(rows)
    left = len(study.settings.cases) - len(rows)
    lines = [f"{name}: {value}" for name, value in summary.items()]
    left = f"{len(study.settings.cases) - len(rows)} of {len(study.settings.cases)} cases are left out"
    text = "\n".join([left, *lines, "", table(rows, COLUMNS)])
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """One case: the choice, and every repeat of the two samplers."""
    posterior, truth, truth_error = problem(case, settings)
    keys = jax.random.split(jax.random.key(settings.seed), settings.num_repeats + 1)
    calibration = llc.calibrate(keys[0], posterior, progress=False)
    step_size, choice = calibration.pilots[-1].step_size, calibration.choices["sampler"]
    chosen = isinstance(calibration.sampler, llc.SGHMC)
    samplers = {
        "sgld": llc.SGLD(step_size),
        "momentum": calibration.sampler if chosen else llc.SGHMC(step_size),
    }
    row: Row = {
        "group": case.split(" | ")[0],
        "dim": posterior.num_params,
        "gamma": posterior.scale.gamma,
        "truth": truth,
        "truth_error": truth_error,
        "chosen": chosen,
        "reason": choice.reason,
        "predicted_gain": choice.evidence.get("gain"),
        "step": float(np.asarray(calibration.sampler.step_size)) / step_size if chosen else 1.0,
        "thinning": calibration.lengths.thinning,
    }
    for name, sampler in samplers.items():
        row[name] = [one_run(key, calibration, sampler, truth, truth_error) for key in keys[1:]]
    return row


def problem(case: str, settings: Settings) -> tuple[llc.LocalPosterior, float, float]:
    """Posterior at its γ, truth, and the error of that."""
    group, *names = case.split(" | ")
    if group == "exact":
        model = next(c for c in CASES if c.name == names[0])
        posterior = model.build(jax.random.key(settings.seed), no_knobs.Settings().num_data)
        return posterior, model.moments(*posterior.scale).mean, 0.0
    if group == "deep":
        law, index, row = DeepLinear(), int(names[0]), committed("deep_linear", names[0])
        net = generate(law, index)
        posterior = sufficient(net, make_posterior(net, law, index)).with_scale(gamma=row["gamma"])
        return posterior, row["reference_value"], row["reference_mcse"]
    row = committed("no_knobs", case)
    posterior = no_knobs.make_posterior(case, no_knobs.Settings()).with_scale(gamma=row["gamma"])
    return posterior, row["truth"], row["truth_error"]


def committed(study: str, case: str) -> Row:
    """A row of another study's results."""
    rows = json.loads((RESULTS / f"{study}.json").read_text())["rows"]
    return next(row for row in rows if row["case"] == case)


def one_run(key: jax.Array, calibration: llc.Calibration, sampler: Any, truth: float, truth_error: float) -> Row:
    """λ̂ and the mean energy of one run, relative to the truth, and what refuses it."""
    spectrum = calibration.spectrum
    draws = llc.sample(
        key, calibration.posterior, sampler, **sample_keywords(calibration), spectrum=spectrum, progress=False
    )
    report, energy = llc.report(draws, spectrum=spectrum), llc.mean_energy(draws)
    error = math.hypot(report.llc.mcse, truth_error)
    off = report.llc.value - truth
    refused = [check.name for check in report.failed_of_chains]
    return {
        "error": off / truth,
        "mcse": report.llc.mcse / truth,
        "mcse_of_energy": energy.mcse / truth,
        "ess": energy.ess,
        "covered": abs(off) <= WIDTH * error,
        "refused": refused,
        "wrong": not refused and abs(off) > max(OFF * truth, ERRORS * error),
    }


def gain(row: Row, name: str) -> float:
    """Squared standard error of SGLD in units of that with momentum, chosen or not."""
    sgld, momentum = (np.mean([run[name] ** 2 for run in row[key]]) for key in ("sgld", "momentum"))
    return float(sgld / momentum)


def default(row: Row) -> list[Row]:
    """The runs of the sampler that calibration chose."""
    return row["momentum" if row["chosen"] else "sgld"]


def summarize(rows: Sequence[Row]) -> Row:
    """A line for all rows and one for each group."""
    good = [row for row in rows if "error" not in row]
    groups = {"all": good} | {name: [r for r in good if r["group"] == name] for name in {r["group"] for r in good}}
    return {name: _line(groups[name]) for name in ("all", *sorted(set(groups) - {"all"}))}


def _line(rows: Sequence[Row]) -> str:
    runs = [run for row in rows for run in default(row)]
    accepted = [run for run in runs if not run["refused"]]
    chosen = [row for row in rows if row["chosen"]]
    gains = [gain(row, "mcse") if row["chosen"] else 1.0 for row in rows]
    return (
        f"cases {len(rows)}, median gain of the default {np.median(gains):.2g}; momentum chosen {len(chosen)}, "
        f"median gain {_median(chosen)} there, {_median(rows)} in all cases; runs {len(runs)}, covered "
        f"{np.mean([run['covered'] for run in runs]):.1%}, refused {len(runs) - len(accepted)}, "
        f"wrong {sum(run['wrong'] for run in runs)}; of SGLD "
        f"covered {np.mean([run['covered'] for row in rows for run in row['sgld']]):.1%}, "
        f"refused {sum(bool(run['refused']) for row in rows for run in row['sgld'])}"
    )


def _median(rows: Sequence[Row]) -> str:
    """Median gain of λ̂ and of the mean energy."""
    if not rows:
        return "none"
    values = [np.median([gain(row, name) for row in rows]) for name in ("mcse", "mcse_of_energy")]
    return f"{values[0]:.2g} (mean energy {values[1]:.2g})"


def _shown(name: str) -> list[Column]:
    def errors(row: Row) -> str:
        return " ".join(f"{100 * run['error']:+.2f}" for run in row[name])

    def mcse(row: Row) -> float:
        return float(np.sqrt(np.mean([run["mcse"] ** 2 for run in row[name]])))

    def refused(row: Row) -> str:
        return " ".join(sorted({check for run in row[name] for check in run["refused"]}))

    return [Column(f"{name} off by %", errors), Column("± %", mcse, "{:.2%}"), Column("refused by", refused)]


COLUMNS = [
    Column("case", "case"),
    Column("d", "dim"),
    Column("truth", "truth", "{:.4g}"),
    Column("± %", lambda row: row["truth_error"] / row["truth"], "{:.2%}"),
    Column("chosen", lambda row: "momentum" if row["chosen"] else "SGLD"),
    Column("ε of SGLD's", "step", "{:.2g}"),
    Column("predicted gain", "predicted_gain", "{:.2g}"),
    Column("gain", lambda row: gain(row, "mcse"), "{:.2g}"),
    Column("of mean energy", lambda row: gain(row, "mcse_of_energy"), "{:.2g}"),
    *_shown("sgld"),
    *_shown("momentum"),
]


def figure(rows: Sequence[Row]) -> Figure:
    """Relative standard errors of the two samplers, a point a case."""
    fig = Figure(figsize=(6, 5), layout="constrained")
    ax = fig.subplots()
    good = [row for row in rows if "error" not in row]
    for name in sorted({row["group"] for row in good}):
        members = [row for row in good if row["group"] == name]
        sgld, momentum = (
            [np.mean([run["mcse"] for run in row[key]]) for row in members] for key in ("sgld", "momentum")
        )
        ax.loglog(sgld, momentum, "o", ms=4, alpha=0.7, label=name)
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="black", lw=0.8, label="equal")
    ax.plot(ends, ends / 2, color="black", lw=0.8, ls="--", label="a quarter of the squared error")
    ax.set(xlabel="relative standard error of λ̂, SGLD", ylabel="with momentum, for the same gradients")
    ax.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
