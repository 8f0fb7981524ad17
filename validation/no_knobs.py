r"""No knobs: `llc.estimate(key, posterior)` against truth, beside samplers that were tuned knowing it.

- exact: zoo cases with an exact E[nβK] at n = 10⁴, localization included: the half on which no constant of the
calibration
  was searched (constants.py);
- linear: deep linear networks of 64 to 2,000 parameters, without label noise and with noise of variance 1, polished to
  a minimum of the empirical loss; digits: a tanh network with a softmax on scikit-learn's digits. Their truth is a long
  NUTS run with control variates at the same nβ and γ, whose standard error is to be below 1 %.

Where the posterior has no γ the first estimate chooses it, and everything else on the case takes the same. Each case
has several repeats with independent keys. "Swept" is the mean energy of SGLD (Euler–Maruyama) and RMSProp-SGLD at the
best of a sweep of step sizes that is chosen knowing the truth, each at the gradients of the estimate's final chains
(the estimate has taken pilots and a run at 3γ besides, up to as many again). The best of a sweep is the luckiest too,
so that step runs again with as many other keys as the estimate; those errors are what it is compared with. "Range" is
the largest error of λ̂ over steps from 1/50 to 2 times the chosen one, where no check of the chains refuses it.

A reference whose error is above 1 % is no truth: its case stays in the table, but out of the errors and the coverage.
Elsewhere its error widens the intervals, for all repeats alike; "truth's error of mcse" says how much.

Targets: error <= 2 % in 95 % of the runs, 95 ± 4 % of the intervals cover, a third of the best sweep's error in the
median, range below 5 %.

    python validation/no_knobs.py --processes 2
"""

import dataclasses
import math
from typing import Any, NamedTuple

import deep_linear
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from study import Column, Row, Study, table
from zoo import CASES

import llc
from llc.analysis.series import constant

TWO_MINIMA = "|w|^8"  # their exact value integrates over a second minimum, see accuracy.py
NAMES = tuple(case.name for case in CASES if case.moments and TWO_MINIMA not in case.name)
HALVES = "search", "report"
SWEEP = {"SGLD": (0.01, 0.03, 0.1, 0.3, 1.0, 2.0), "RMSProp": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)}
RANGE = (0.02, 0.1, 0.5, 2.0)
WIDTH = 1.959964
COLORS = {"exact": "#0072B2", "linear": "#E69F00", "digits": "#009E73"}


def half(name: str) -> str:
    """Every other case of a family, so that both halves have all families of more than one."""
    family = next(case.family for case in CASES if case.name == name)
    members = [case.name for case in CASES if case.family == family and case.name in NAMES]
    return HALVES[members.index(name) % 2]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_data: int = 10_000  # of the exact cases
    num_repeats: int = 5
    swept_again: int = 5  # keys of the best step of a sweep
    cases: tuple[str, ...] = (
        *(f"exact | {name}" for name in NAMES if half(name) == "report"),
        *(f"linear | {i} | {noise}" for noise in (0, 1) for i in range(12)),
        *(f"digits | {hidden}" for hidden in (2, 4)),
    )
    layers: tuple[int, int] = (2, 4)
    widths: tuple[int, int] = (4, 20)
    rows: int = 1000  # of a linear network
    reference_warmup: int = 500
    reference_draws: int = 500
    reference_error: float = 0.01  # relative, that a reference may have


QUICK = Settings(
    num_repeats=1,
    swept_again=1,
    cases=("linear | 0 | 1",),
    layers=(2, 2),
    widths=(2, 4),
    rows=200,
    reference_warmup=200,
    reference_draws=200,
    reference_error=0.05,
)


class Truth(NamedTuple):
    """E[nβK] and its error."""

    value: float
    error: float


def main() -> None:
    """Runs, prints, writes."""
    study = Study("no_knobs", __doc__, Settings(), QUICK)
    rows = study.rows(run, study.settings.cases)
    summary = {group: summarize(members, study.settings.reference_error) for group, members in grouped(rows).items()}
    lines = [f"{name}: {text(value)}" for name, value in summary.items()]
    output = "\n".join([*lines, "", table(rows, COLUMNS)])
    print(output)
    study.save(rows, summary=summary, text=output, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """All repeats of one case, the sweeps and the range."""
    posterior = make_posterior(case, settings)
    index = settings.cases.index(case) if case in settings.cases else 0
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), index), settings.num_repeats + 3)
    reports = [llc.estimate(keys[0], posterior, progress=False)]
    first = reports[0]
    gamma = constant(first.draws, "gamma")
    posterior = posterior.with_scale(gamma=gamma)
    reports += [llc.estimate(key, posterior, progress=False) for key in keys[1 : settings.num_repeats]]
    true = truth(case, keys[-1], posterior, first.spectrum, settings)
    values, errors = (np.array([getattr(report.llc, name) for report in reports]) for name in ("value", "mcse"))
    return {
        "group": case.split(" | ")[0],
        "dim": posterior.num_params,
        "gamma": gamma,
        "truth": true.value,
        "truth_error": true.error,
        "values": values.tolist(),
        "errors": errors.tolist(),
        "energies": [llc.mean_energy(report.draws).value for report in reports],
        "covered": (np.abs(values - true.value) <= WIDTH * np.hypot(errors, true.error)).tolist(),
        "verdicts": [report.verdict for report in reports],
        "failed": sorted({check.name for report in reports for check in report.failed}),
        **{name: swept(name, keys[-2], posterior, first, true, settings.swept_again) for name in SWEEP},
        "range": over_range(keys[-3], posterior, first, true),
    }


def make_posterior(case: str, settings: Settings) -> llc.LocalPosterior:
    """The posterior of one case, without γ where the estimate is to choose it."""
    group, *names = case.split(" | ")
    if group == "exact":
        model = next(c for c in CASES if c.name == names[0])
        return model.build(jax.random.key(settings.seed), settings.num_data)
    if group == "digits":
        return digits(int(names[0]))
    nets = deep_linear.Settings(seed=settings.seed, layers=settings.layers, widths=settings.widths)
    net = deep_linear.generate(nets, int(names[0]))
    rng = np.random.default_rng([settings.seed, int(names[0]), 2])
    inputs = rng.normal(size=(settings.rows, net.widths[0])).astype(np.float32)
    posterior = deep_linear._posterior(net, inputs)
    if float(names[1]) == 0:
        return posterior
    x, y = posterior.data
    noisy = y + math.sqrt(float(names[1])) * rng.normal(size=y.shape).astype(np.float32)
    posterior = llc.LocalPosterior(posterior.loss_fn, posterior.center, (x, noisy))
    return llc.polish(posterior, max_steps=300, progress=False).posterior


def digits(hidden: int) -> llc.LocalPosterior:
    """A tanh network with `hidden` units on 500 of the digits, trained and polished."""
    whole = llc.demo.digits_posterior(jax.random.key(0)).data
    data = tuple(part[:500] for part in whole)
    sizes, keys = (data[0].shape[1], hidden, data[1].shape[1]), jax.random.split(jax.random.key(hidden), 2)
    params = tuple(
        llc.demo.Layer(jax.random.normal(key, (a, b)) / math.sqrt(a), jnp.zeros(b))
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
    trained = llc.demo._train(params, data)
    posterior = llc.LocalPosterior(
        llc.demo.cross_entropy, trained, data, predict_fn=lambda p, batch: llc.demo.logits(p, batch[0])
    )
    return llc.polish(posterior, max_steps=50, progress=False).posterior


def truth(
    case: str, key: jax.Array, posterior: llc.LocalPosterior, spectrum: llc.Spectrum | None, settings: Settings
) -> Truth:
    """Exact by integration, or by NUTS with four times the draws again until its error is small."""
    group, *names = case.split(" | ")
    if group == "exact":
        model = next(c for c in CASES if c.name == names[0])
        return Truth(model.moments(float(posterior.nbeta), float(posterior.gamma)).mean, 0.0)
    names = ("reference_warmup", "reference_draws", "reference_error")
    lengths = deep_linear.Settings(**{name: getattr(settings, name) for name in names})
    found = deep_linear.reference(key, posterior, spectrum, lengths)
    return Truth(found.value, found.mcse)


def swept(
    name: str, key: jax.Array, posterior: llc.LocalPosterior, report: llc.Report, true: Truth, repeats: int
) -> Row:
    """The mean energy at the best step of a sweep, with the gradients of the estimate; nan where all diverge.

    `again` are the errors of that step with other keys: the one that was chosen is the luckiest of the sweep, too.
    """
    chosen = float(report.settings["sampler"]["step_size"])
    lengths = {name: report.settings[name] for name in ("num_chains", "num_warmup", "num_draws", "thinning")}
    best: Row = {"factor": None, "error": math.nan}
    first, *others = jax.random.split(key, repeats + 1)

    def error_at(factor, key):
        step_size = factor * (2 * chosen if name == "SGLD" else 1.0 / float(posterior.nbeta))
        preconditioner = llc.Identity() if name == "SGLD" else llc.RMSProp()
        sampler = llc.SGLD(step_size, integrator="euler_maruyama", preconditioner=preconditioner)
        batch_size = report.settings["batch_size"]
        draws = llc.sample(key, posterior, sampler, **lengths, batch_size=batch_size, progress=False)
        return llc.mean_energy(draws).value / true.value - 1

    for factor in SWEEP[name]:
        error = error_at(factor, first)
        if math.isfinite(error) and not abs(error) >= abs(best["error"]):
            best = {"factor": factor, "error": error}
    if best["factor"] is None:
        return best | {"again": []}
    return best | {"again": [error_at(best["factor"], other) for other in others]}


def over_range(key: jax.Array, posterior: llc.LocalPosterior, report: llc.Report, true: Truth) -> list[Row]:
    """λ̂ at other step sizes, and the checks of the chains that refuse it."""
    chosen = float(report.settings["sampler"]["step_size"])
    lengths = {name: report.settings[name] for name in ("num_chains", "num_warmup", "num_draws", "thinning")}
    rows = []
    for factor in RANGE:
        sampler = llc.SGLD(factor * chosen)
        settings: dict[str, Any] = lengths | {"batch_size": report.settings["batch_size"], "spectrum": report.spectrum}
        draws = llc.sample(key, posterior, sampler, **settings, progress=False)
        there = llc.report(draws, spectrum=report.spectrum)
        refused = [check.name for check in there.failed_of_chains]
        error, mcse = there.llc.value / true.value - 1, there.llc.mcse / true.value
        rows.append({"factor": factor, "error": error, "mcse": mcse, "refused": refused})
    return rows


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by group, and all of them."""
    good = [row for row in rows if "error" not in row]
    return {"all": good} | {name: [row for row in good if row["group"] == name] for name in COLORS}


def errors(row: Row) -> np.ndarray:
    """Relative errors of the repeats."""
    return np.asarray(row["values"]) / row["truth"] - 1


def unrefused(row: Row) -> float:
    """Largest error over the range of steps, where nothing refuses it; infinite if that is nan."""
    errors = [abs(point["error"]) for point in row["range"] if not point["refused"]]
    return max((error if math.isfinite(error) else math.inf for error in errors), default=0.0)


def best_of_sweep(row: Row) -> float:
    """Median error of the better swept sampler at its best step, over other keys; infinite where all diverge."""
    medians = [np.median(np.abs(row[name]["again"])) for name in SWEEP if row[name]["again"]]
    return float(min((m if math.isfinite(m) else math.inf for m in medians), default=math.inf))


def summarize(rows: list[Row], truth_error: float) -> Row:
    """Targets against what was reached."""
    if not rows:
        return {}
    missed = [row for row in rows if row["truth_error"] > truth_error * row["truth"]]
    everything, rows = rows, [row for row in rows if row not in missed]
    if not rows:
        return {"cases": len(missed), "without truth": len(missed)}
    found = np.concatenate([errors(row) for row in rows])
    found[~np.isfinite(found)] = np.inf
    covered = np.concatenate([row["covered"] for row in rows])
    ratios = [np.median(np.abs(errors(row))) / best_of_sweep(row) for row in rows if best_of_sweep(row) < math.inf]
    return {
        "cases": len(everything),
        "without truth": len(missed),
        "runs": len(found),
        "within 2 %": float(np.mean(np.abs(found) <= 0.02)),
        "median error": float(np.median(np.abs(found))),
        "worst error": float(np.max(np.abs(found))),
        "covered": float(np.mean(covered)),
        "of the best sweep, median": float(np.median(ratios)) if ratios else math.nan,
        "truth's error of mcse": float(np.median([row["truth_error"] / np.mean(row["errors"]) for row in rows])),
        "range below 5 %": float(np.mean([unrefused(row) < 0.05 for row in rows])),
        "steps refused": float(np.mean([bool(point["refused"]) for row in rows for point in row["range"]])),
        "consistent": float(np.mean([verdict == "CONSISTENT" for row in rows for verdict in row["verdicts"]])),
    }


def text(summary: Row) -> str:
    """A summary in one line."""
    shares = ("within 2 %", "median error", "worst error", "covered", "range below 5 %", "steps refused", "consistent")
    return ", ".join(
        f"{name} {value:.1%}" if name in shares else f"{name} {value:.3g}" for name, value in summary.items()
    )


def _median(values: list[float]) -> float | None:
    return 100 * float(np.median(np.abs(values))) if values else None


COLUMNS = [
    Column("case", "case"),
    Column("d", "dim"),
    Column("truth", "truth", "{:.4f}"),
    Column("± %", lambda row: 100 * row["truth_error"] / row["truth"], "{:.2f}"),
    Column("λ̂ median error %", lambda row: 100 * float(np.median(np.abs(errors(row)))), "{:.2f}"),
    Column("worst %", lambda row: 100 * float(np.max(np.abs(errors(row)))), "{:.2f}"),
    Column("claimed ± %", lambda row: 100 * float(np.median(row["errors"])) / row["truth"], "{:.2f}"),
    Column("covered", lambda row: f"{sum(row['covered'])} of {len(row['covered'])}"),
    Column("SGLD swept %", lambda row: 100 * row["SGLD"]["error"], "{:+.2f}"),
    Column("again %", lambda row: _median(row["SGLD"]["again"]), "{:.2f}"),
    Column("RMSProp swept %", lambda row: 100 * row["RMSProp"]["error"], "{:+.2f}"),
    Column("again %", lambda row: _median(row["RMSProp"]["again"]), "{:.2f}"),
    Column("range %", lambda row: 100 * unrefused(row), "{:.2f}"),
    Column(
        "its ± %", lambda row: 100 * max((p["mcse"] for p in row["range"] if not p["refused"]), default=0.0), "{:.2f}"
    ),
    Column("refused", lambda row: f"{sum(bool(p['refused']) for p in row['range'])} of {len(row['range'])}"),
    Column("verdicts", lambda row: " ".join(sorted(set(row["verdicts"])))),
    Column("failed", lambda row: " ".join(row["failed"])),
]


def figure(rows: list[Row]) -> Figure:
    """Errors of the estimate against its claimed error, and against those of the sweeps."""
    fig = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    for group, members in grouped(rows).items():
        if group == "all" or not members:
            continue
        claimed = np.concatenate([np.asarray(row["errors"]) / row["truth"] for row in members])
        found = np.concatenate([np.abs(errors(row)) for row in members])
        left.loglog(100 * claimed, 100 * np.maximum(found, 1e-7), ".", color=COLORS[group], label=group)
        best = [best_of_sweep(row) for row in members]
        ours = [np.median(np.abs(errors(row))) for row in members]
        right.loglog(100 * np.maximum(best, 1e-7), 100 * np.maximum(ours, 1e-7), ".", color=COLORS[group], label=group)
    line = np.array([1e-5, 1e2])
    left.loglog(line, WIDTH * line, color="0.4", lw=0.8, label="95 % interval")
    left.axhline(2, color="0.4", ls="--", lw=0.8, label="2 %")
    right.loglog(line, line, color="0.4", lw=0.8, label="equal")
    right.loglog(line, line / 3, color="0.4", ls="--", lw=0.8, label="a third")
    left.set(xlabel="claimed standard error, %", ylabel="error of λ̂, %")
    right.set(xlabel="error of the best sweep, knowing the truth, %", ylabel="median error of λ̂, %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
