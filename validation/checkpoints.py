r"""One γ along a training: λ̂ of six checkpoints that can be compared, and how sure γ is.

Two transformers on modular addition (real_networks.py) are trained with AdamW: modulo 11 (4,428 parameters) and modulo
29 (102,656). The last checkpoint is estimated without a scale; the γ that calibration finds there serves all the others
(`like=report`), since λ̂ at different scales can't be compared. A row holds λ̂ with its error beside λ_quad at the same
scale, the character of the run with its evidence, the verdict, and what failed. Wanted are λ̂ / λ_quad between 0.3 and 3
and no UNRESOLVED but for untrained points.

- **Reference.** On the small network NUTS samples the same posteriors; z is the difference in standard errors.
- **Spread.** γ of the last checkpoint is found with five keys; the search has the noise of its Gaussian points.
- **κ** = nβ E_Gauss[ΔL] / λ_quad at the γ that was found, of the last checkpoint, where it was chosen, and of the
  others, where it was not.
- **Left the basin.** A hundredth of that γ is tried at the last checkpoint, where draws are far on their way to chance.

    python validation/checkpoints.py
"""

import dataclasses
import math
import time

import jax
import numpy as np
from matplotlib.figure import Figure
from nuts_reference import ReferenceLengths, reference
from real_networks import Training, TransformerSize, train, transformer
from study import Column, Row, Study, constant, table
from timing import busy_seconds, share_of_others
from verdicts import COLORS, counts

import llc
from llc.calibration.localization import anharmonicity, choose_localization
from llc.calibration.operations import gradient_operations


@dataclasses.dataclass(frozen=True)
class Settings(ReferenceLengths):
    """All that is set by hand."""

    seed: int = 0
    networks: tuple[str, ...] = ("mod 11", "mod 29")
    small: TransformerSize = dataclasses.field(
        default_factory=lambda: TransformerSize(modulus=11, width=18, layers=1, heads=2)
    )
    large: TransformerSize = dataclasses.field(default_factory=TransformerSize)
    steps: tuple[int, ...] = (100, 300, 700, 1500, 2500, 4000)  # of training, at which checkpoints are taken
    trained: float = 0.1  # loss in nats per example below which a checkpoint is trained; chance is log p
    num_keys: int = 5  # that γ is found with
    num_warmup: int = 400  # steps of the small network; where γ decides, a direction relaxes in some four of them
    num_draws: int = 400  # of a chain of the small network
    thinning: int = 4
    budget: int = 1000  # gradients of the large network, for spectrum, pilots, run and the further runs
    spectrum_budget: int = 400  # gradients, of the small network
    reference_warmup: int = 100
    reference_draws: int = 100
    reference_error: float = 0.05
    weaker: float = 100.0  # times that the last γ is divided by


QUICK = Settings(
    networks=("mod 11",),
    small=TransformerSize(modulus=7, width=12, layers=1, heads=2, training=Training(300, batch_size=49)),
    steps=(50, 300),
    num_warmup=20,
    num_draws=40,
    thinning=2,
    spectrum_budget=60,
    num_keys=2,
    reference_warmup=20,
    reference_draws=20,
    reference_error=1.0,
)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("checkpoints", __doc__, Settings(), QUICK)
    study.processes = 1  # time is measured
    rows = study.rows(run, study.settings.networks)
    points = [{"case": row["case"]} | point for row in rows for point in row.get("points", [])]
    summary = summarize(points, rows)
    text = table(points, COLUMNS) + "\n\n" + "\n".join(f"{name}: {value}" for name, value in summary.items())
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(points))


def run(case: str, settings: Settings) -> Row:
    """A network along its training."""
    is_small = case == "mod 11"
    network = transformer(jax.random.key(settings.seed), settings.small if is_small else settings.large)
    train_key, key, *keys = jax.random.split(jax.random.key(settings.seed), 2 + settings.num_keys)
    trained = train(train_key, network, settings.steps)
    points: list[Row] = []
    last: llc.Report | None = None
    spread: list[float] = []
    for steps, params in reversed(trained.items()):
        posterior = llc.LocalPosterior(network.loss_fn, params, network.data)
        spectrum = _spectrum(posterior, settings) if is_small else None
        report, point = estimate(key, posterior, spectrum, settings, like=last)
        found = report.spectrum
        assert found is not None
        operations = gradient_operations(posterior)
        point["kappa"] = anharmonicity(key, posterior, found, point["gamma"], operations=operations)
        if is_small:
            point |= against_nuts(key, report, posterior, settings)
        if last is None:
            last = report
            spread = [_gamma(k, posterior, found) for k in keys]
            weaker = posterior.with_scale(gamma=point["gamma"] / settings.weaker)
            points.append({"steps": steps} | estimate(key, weaker, found if is_small else None, settings)[1])
        points.append({"steps": steps} | point)
    return {"points": points[::-1], "gammas": spread}


def _spectrum(posterior: llc.LocalPosterior, settings: Settings) -> llc.Spectrum:
    """λ_quad and the leading eigenvectors, for a price."""
    return llc.spectrum(posterior, method="deflated", budget=settings.spectrum_budget, progress=False)


def _gamma(key: jax.Array, posterior: llc.LocalPosterior, spectrum: llc.Spectrum) -> float:
    """γ by the points of another key."""
    weakest = 1e-3 * float(posterior.nbeta) * spectrum.largest
    return choose_localization(key, posterior, spectrum, weakest, operations=gradient_operations(posterior)).gamma


def estimate(
    key: jax.Array,
    posterior: llc.LocalPosterior,
    spectrum: llc.Spectrum | None,
    settings: Settings,
    *,
    like: llc.Report | None = None,
) -> tuple[llc.Report, Row]:
    """One estimate, and its row."""
    before, start = busy_seconds(), time.perf_counter()
    if spectrum is None:
        report = llc.estimate(key, posterior, like=like, budget=settings.budget, progress=False)
    else:
        report = llc.estimate(
            key,
            posterior,
            spectrum=spectrum,
            like=like,
            num_warmup=settings.num_warmup,
            num_draws=settings.num_draws,
            thinning=settings.thinning,
            progress=False,
        )
    seconds = time.perf_counter() - start
    character = report.character
    loss = constant(report.draws, "init_loss")
    return report, {
        "num_params": posterior.num_params,
        "init_loss": loss,
        "trained": loss < settings.trained,
        "seconds": seconds,
        "others": share_of_others(before, seconds),
        "nbeta": constant(report.draws, "nbeta"),
        "gamma": constant(report.draws, "gamma"),
        "llc": _finite(report.llc.value),
        "mcse": _finite(report.llc.mcse),
        "rhat": _finite(report.llc.rhat),
        "quad": report.quad,
        "character": None if character is None else character.name,
        "evidence": None
        if character is None
        else {name: _finite(value) for name, value in dataclasses.asdict(character.evidence).items()},
        "verdict": report.verdict,
        "failed": [check.name for check in report.failed],
    }


def against_nuts(key: jax.Array, report: llc.Report, posterior: llc.LocalPosterior, settings: Settings) -> Row:
    """The same posterior by NUTS, and the difference in standard errors of both."""
    at = posterior.with_scale(gamma=constant(report.draws, "gamma"))
    found = reference(jax.random.fold_in(key, 1), at, report.spectrum, settings)
    z = (report.llc.value - found.value) / math.hypot(report.llc.mcse, found.mcse)
    return {"nuts": found.value, "nuts_mcse": found.mcse, "nuts_rhat": found.rhat, "z": _finite(z)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# Results


def summarize(points: list[Row], rows: list[Row]) -> Row:
    """How the checkpoints of one γ compare, and how far γ itself moves with the key."""
    scales = {point["case"]: max(p["gamma"] for p in points if p["case"] == point["case"]) for point in points}
    along = [point for point in points if point["gamma"] == scales[point["case"]]]
    trained = [point for point in along if point["trained"]]
    ratios = [point["llc"] / point["quad"] for point in trained if point["llc"] and point["quad"]]
    spreads = {row["case"]: row["gammas"] for row in rows if "gammas" in row}
    return {
        "checkpoints": len(along),
        "trained": len(trained),
        "of them with λ̂ / λ_quad within 0.3 and 3": sum(0.3 <= ratio <= 3 for ratio in ratios),
        "of them UNRESOLVED": sum(point["verdict"] == "UNRESOLVED" for point in trained),
        "verdicts": counts(point["verdict"] for point in trained),
        "largest |z| against NUTS": max((abs(p["z"]) for p in along if p.get("z") is not None), default=None),
        "γ of other keys": {case: [f"{gamma:.3g}" for gamma in gammas] for case, gammas in spreads.items()},
        "standard deviation of log γ": {case: _spread(gammas) for case, gammas in spreads.items()},
        "errors": sum("error" in row for row in rows),
    }


def _spread(gammas: list[float]) -> float:
    return round(float(np.log(gammas).std(ddof=1)), 3)


def _ratio(point: Row) -> float | None:
    return point["llc"] / point["quad"] if point["llc"] and point["quad"] else None


COLUMNS = [
    Column("case", "case"),
    Column("steps", "steps", "{:,}"),
    Column("L(w*)", "init_loss", "{:.4f}"),
    Column("seconds", "seconds", "{:.0f}"),
    Column("others", lambda point: 100 * point["others"], "{:.0f} %"),
    Column("γ", "gamma", "{:.3g}"),
    Column("κ", lambda point: point.get("kappa"), "{:.2f}"),
    Column("λ̂", "llc", "{:.4g}"),
    Column("±", "mcse", "{:.2g}"),
    Column("λ̂/λ_quad", _ratio, "{:.2f}"),
    Column("NUTS", lambda point: point.get("nuts"), "{:.4g}"),
    Column("z", lambda point: point.get("z"), "{:+.1f}"),
    Column("degree", lambda point: point["evidence"] and point["evidence"]["degree"], "{:.2f}"),
    Column("to chance", lambda point: point["evidence"] and point["evidence"]["reference"], "{:.3f}"),
    Column("share", lambda point: point["evidence"] and point["evidence"]["share"], "{:.2f}"),
    Column("character", lambda point: point["character"] or "not told"),
    Column("verdict", "verdict"),
    Column("failed", lambda point: " ".join(point["failed"])),
]


def figure(points: list[Row]) -> Figure:
    """λ̂ and λ_quad along the training, coloured by the verdict."""
    cases = list(dict.fromkeys(point["case"] for point in points))
    fig = Figure(figsize=(5 * max(len(cases), 1), 3.6), layout="constrained")
    for ax, case in zip(fig.subplots(1, max(len(cases), 1), squeeze=False)[0], cases, strict=False):
        mine = [point for point in points if point["case"] == case]
        gamma = max(point["gamma"] for point in mine)
        line = [point for point in mine if point["gamma"] == gamma]
        steps = [point["steps"] for point in line]
        values, errors, quads = (np.array([p[name] for p in line], float) for name in ("llc", "mcse", "quad"))
        ax.errorbar(steps, values, yerr=2 * errors, fmt="-", lw=1, capsize=2, label="λ̂ ± 2 mcse")
        ax.scatter(steps, values, c=[COLORS[point["verdict"]] for point in line], zorder=3)
        ax.plot(steps, quads, "s--", ms=4, label="λ_quad")
        ax.set(xscale="log", yscale="log", xlabel="steps of training", title=f"{case}, γ = {gamma:.3g}")
        ax.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
