r"""Grokking: does λ̂ fall while a network that knows its training pairs by heart learns to add, and what else falls?

The transformer of `examples/modular_addition.py` learns addition modulo 23: first the training pairs, then, with weight
decay, the others. All checkpoints are measured at one nβ and γ, since λ̂ at different ones can't be compared. γ is about
that at which the mean loss of the Gaussian posterior at the last checkpoint of the first start is a tenth of the way to
chance (415). The γ at which it is at most twice what λ_quad says, as `llc.calibrate` takes it, is 8,288 there: with a
loss of 6e-5 the curvature is nearly gone, and λ_quad at that γ is .003.

The claim has two parts, both from the first checkpoint at which 99 % of the training pairs are right to the last one:
λ̂ falls, and so does the test loss. The first one can't be told where a start is missing or the chains of such a
checkpoint fail a check. λ̂ is that of the draws less the share of the slope, which is nβ times what L falls by from w*
to the minimum of the localized potential (a checkpoint is no minimum); both are in the table.

Published for a larger network of this kind, without errors and at a scale set by hand: tr H 43,413 → 818, h_max 750 →
19.8, and λ̂ 1,380 → 1,290.

Geometric complexity is that of the logits over one-hot tokens; the tangent kernel is that of some training pairs.

    uv run --directory validation python -m inductive_bias.grokking --quick
"""

import dataclasses
import math
import sys
from pathlib import Path

import jax
import numpy as np
from inductive_bias.verdict import headline
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from study import Column, Row, Study, table

import llc
from llc.sweeps.reach import reach

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import modular_addition


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = (0, 1, 2)
    p: int = modular_addition.Settings.p
    width: int = modular_addition.Settings.width
    hidden: int = modular_addition.Settings.hidden
    steps: tuple[int, ...] = (200, 400, 600, 850, 1200, 1700, 2400, 5000)
    gamma: float = 400.0  # of all checkpoints; nβ = n / log n
    spectrum_budget: int = 400  # gradients, for λ_quad, h_max, tr H and the rank
    num_warmup: int = 600  # steps of SGLD with all the data, as the draws; with 150 + 450 in all R-hat was 1.08 to 1.19
    num_draws: int = 400  # of each of four chains
    thinning: int = 5
    num_complexity: int = 96  # training pairs of the geometric complexity
    num_kernel: int = 24  # training pairs of the tangent kernel


QUICK = Settings(
    seeds=(0,),
    p=5,
    width=4,
    hidden=4,
    steps=(100, 400),
    spectrum_budget=100,
    num_warmup=50,
    num_draws=50,
)
COLORS = ("#0072B2", "#E69F00", "#009E73")
PUBLISHED = {"tr H": (43_413, 818), "h_max": (750, 19.8), "λ̂": (1380, 1290)}
STIFFNESS = 0.2  # ε (nβ h_max + γ) at the stiffest checkpoint, far below the limit of stability
KNOWN = 0.99  # share of the training pairs that are right where they are known by heart


def main() -> None:
    """Runs, prints, writes."""
    study = Study("grokking", __doc__, Settings(), QUICK, folder="inductive_bias")
    rows = study.rows(run, [str(seed) for seed in study.settings.seeds])
    good = [row for row in rows if "error" not in row]
    pairs = [ends(row["points"]) for row in good]
    complete = len(good) == len(study.settings.seeds)
    sound = all(point["verdict"] != "UNRESOLVED" for pair in pairs for point in pair)
    falls = changed([(a["polished"], a["mcse"], b["polished"], b["mcse"]) for a, b in pairs])
    parts = [falls if complete and sound else None, changed([(a["test"], 0.0, b["test"], 0.0) for a, b in pairs])]
    known = ", ".join(str(first["step"]) for first, _ in pairs)
    found = (
        f"{len(good)} of {len(study.settings.seeds)} starts; the chains at both ends "
        f"{'pass' if sound else 'do not all pass'} their checks. From the training pairs known by heart (step {known}) "
        f"to the last checkpoint, a start after the other:\n{_changes(pairs)}\n"
        "Published: " + ", ".join(f"{name} {a:,g} → {b:,g}" for name, (a, b) in PUBLISHED.items()) + "."
    )
    points = [point | {"case": row["case"]} for row in good for point in row["points"]]
    text = f"{headline(parts, 'λ̂ falls through grokking while the test loss falls', found)}\n{table(points, COLUMNS)}"
    print(text)
    changes = {name: [[a[name], b[name]] for a, b in pairs] for name in TITLES}
    study.save(rows, summary={"changes": changes}, text=text, figure=figure(good))


def ends(points: list[Row]) -> tuple[Row, Row]:
    """The first checkpoint at which the training pairs are known by heart, and the last one."""
    return next((point for point in points if point["right"] >= KNOWN), points[0]), points[-1]


def changed(values: list[tuple[float, float, float, float]]) -> bool | None:
    """Whether a number falls from every start, by more than two standard errors; False where it rises from one.

    Args:
        values: for each start the first number and its standard error, and the last one and its own.
    """
    scores = [(b - a) / max(math.hypot(error, other), 1e-300) for a, error, b, other in values]
    if any(score > 2 for score in scores):
        return False
    return True if scores and all(score < -2 for score in scores) else None


def _changes(pairs: list[tuple[Row, Row]]) -> str:
    return "\n".join(
        f"  {title}: " + "; ".join(f"{_number(a, name)} → {_number(b, name)}" for a, b in pairs)
        for name, title in TITLES.items()
    )


def _number(point: Row, name: str) -> str:
    error = ERRORS.get(name)
    return f"{point[name]:.4g}" + (f" ± {point[error]:.2g}" if error else "")


def run(case: str, settings: Settings) -> Row:
    """One training, and its checkpoints."""
    network = modular_addition.Settings(settings.p, settings.width, settings.hidden, seed=int(case))
    data, others = modular_addition.split(network)
    trained = modular_addition.trained(data, network, settings.steps)
    posteriors = {
        step: llc.LocalPosterior(modular_addition.loss_fn, params, data, gamma=settings.gamma)
        for step, params in trained.items()
    }
    spectra = {
        step: llc.spectrum(posterior, method="deflated", budget=settings.spectrum_budget, progress=False)
        for step, posterior in posteriors.items()
    }
    nbeta, gamma = posteriors[settings.steps[-1]].scale
    step_size = STIFFNESS / (nbeta * max(spectrum.largest for spectrum in spectra.values()) + gamma)
    points = []
    for step, params in trained.items():
        losses = {
            "train": modular_addition.measured_loss(params, data),
            "test": modular_addition.measured_loss(params, others),
            "right": modular_addition.accuracy(params, data),
            "test_right": modular_addition.accuracy(params, others),
        }
        sampled = _sampled(jax.random.key(int(case)), posteriors[step], spectra[step], step_size, settings)
        points.append({"step": step} | losses | sampled | _features(params, data, settings))
    return {"seed": int(case), "nbeta": nbeta, "gamma": gamma, "step_size": step_size, "points": points}


def _sampled(
    key: Array, posterior: llc.LocalPosterior, spectrum: llc.Spectrum, step_size: float, settings: Settings
) -> Row:
    """λ̂ at the scale of all, what of it comes from the slope, and the curvature."""
    lengths = {"num_warmup": settings.num_warmup, "num_draws": settings.num_draws, "thinning": settings.thinning}
    draws = llc.sample(key, posterior, llc.SGLD(step_size), spectrum=spectrum, progress=False, **lengths)
    report = llc.report(draws, spectrum=spectrum)
    bounds = report.bounds
    assert bounds is not None
    return {
        "llc": report.llc.value,
        "mcse": report.llc.mcse,
        "rhat": report.llc.rhat,
        "polished": report.llc.value - posterior.scale.nbeta * reach(posterior).change,
        "quad": bounds.quad,
        "quad_stderr": bounds.quad_stderr,
        "rank_low": bounds.rank_interval[0],
        "rank_high": bounds.rank_interval[1],
        "lower": _finite(bounds.lower),
        "upper": _finite(bounds.upper),
        "trace": spectrum.sum(lambda h: h),
        "trace_stderr": spectrum.stderr(lambda h: h),
        "sharpness": spectrum.largest,
        "verdict": report.verdict,
        "character": "" if report.character is None else report.character.name,
        "failed": [check.name for check in report.failed],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _features(params: modular_addition.Params, data: modular_addition.Data, settings: Settings) -> Row:
    """Geometric complexity over one-hot tokens, and the tangent kernel."""
    tokens, sums = data
    one_hot = np.eye(settings.p + 1)[tokens[: settings.num_complexity]]
    complexity = llc.geometric_complexity(_of_one_hot, params, one_hot)
    labels = np.eye(settings.p)[sums[: settings.num_kernel]]
    kernel = llc.tangent_kernel(modular_addition.predict, params, tokens[: settings.num_kernel], labels=labels)
    return {
        "complexity": complexity.value,
        "kernel_trace": kernel.trace,
        "effective_rank": kernel.effective_rank,
        "alignment": kernel.alignment,
    }


def _of_one_hot(params: modular_addition.Params, rows: Array) -> Array:
    return modular_addition.logits(params, rows @ params["embed"])


TITLES = {
    "llc": "λ̂",
    "polished": "λ̂ without the slope",
    "quad": "λ_quad",
    "test": "test loss",
    "trace": "tr H",
    "sharpness": "h_max",
    "rank_low": "rank, at least",
    "complexity": "geometric complexity",
    "effective_rank": "effective rank of the tangent kernel",
    "alignment": "its alignment with the labels",
}
ERRORS = {"llc": "mcse", "polished": "mcse", "quad": "quad_stderr", "trace": "trace_stderr"}

COLUMNS = [
    Column("start", "case"),
    Column("step", "step"),
    Column("train", "train", "{:.2e}"),
    Column("right", "right", "{:.0%}"),
    Column("test", "test", "{:.2e}"),
    Column("right", "test_right", "{:.0%}"),
    Column("λ̂", "llc", "{:.1f}"),
    Column("mcse", "mcse", "{:.1f}"),
    Column("R-hat", "rhat", "{:.2f}"),
    Column("less slope", "polished", "{:.1f}"),
    Column("λ_quad", "quad", "{:.1f}"),
    Column("tr H", "trace", "{:.3g}"),
    Column("±", "trace_stderr", "{:.1g}"),
    Column("h_max", "sharpness", "{:.3g}"),
    Column("rank", lambda point: f"{point['rank_low']:.0f} … {point['rank_high']:.0f}"),
    Column("complexity", "complexity", "{:.1f}"),
    Column("kernel rank", "effective_rank", "{:.1f}"),
    Column("alignment", "alignment", "{:.3f}"),
    Column("character", "character"),
    Column("verdict", "verdict"),
    Column("failed", lambda point: " ".join(point["failed"])),
]


def figure(rows: list[Row]) -> Figure:
    """Losses, λ̂ beside λ_quad, curvature, and features along the trainings, a colour for each start."""
    fig = Figure(figsize=(13, 6.4), layout="constrained")
    loss, llcs, curvature, rank, complexity, kernel = fig.subplots(2, 3, sharex=True).ravel()
    for row, color in zip(rows, COLORS, strict=False):
        steps = [point["step"] for point in row["points"]]
        values = {name: np.array([point[name] for point in row["points"]], float) for name in SHOWN}
        loss.loglog(steps, values["train"], "--", color=color, lw=1)
        loss.loglog(steps, values["test"], "o-", color=color, ms=4, lw=1)
        llcs.errorbar(steps, values["polished"], 2 * values["mcse"], fmt="o-", ms=4, lw=1, capsize=2, color=color)
        llcs.plot(steps, values["quad"], ":", color=color)
        curvature.loglog(steps, values["trace"], "o-", color=color, ms=4, lw=1)
        curvature.loglog(steps, values["sharpness"], "--", color=color, lw=1)
        rank.plot(steps, values["rank_low"], "o-", color=color, ms=4, lw=1)
        complexity.loglog(steps, values["complexity"], "o-", color=color, ms=4, lw=1)
        kernel.plot(steps, values["effective_rank"], "o-", color=color, ms=4, lw=1)
    shown = [point["step"] for point in rows[0]["points"]] if rows else []
    titles = ("loss: test (dots), training (dashed)", "λ̂ without the slope ± 2 mcse; dotted: λ_quad")
    titles += ("tr H (dots) and h_max (dashed)", "eigenvalues above 10 γ/nβ: the least rank", "geometric complexity")
    titles += ("effective rank of the tangent kernel",)
    for ax, title in zip(fig.axes, titles, strict=True):
        ax.set(xscale="log", title=title)
        ax.set_xticks(shown, [str(step) for step in shown], rotation=45)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
    for ax in fig.axes[3:]:
        ax.set_xlabel("step")
    return fig


SHOWN = ("train", "test", "polished", "mcse", "quad", "trace", "sharpness", "rank_low", "complexity")
SHOWN += ("effective_rank",)

if __name__ == "__main__":
    main()
