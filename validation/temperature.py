r"""Temperature: λ̂ over nβ from 10 to 10⁷ against the exact curve, and what a curve says about the multiplicity.

With t = nβ, $E[tK] = \lambda - (m-1) / \log t + O(1 / \log^2 t)$ (Watanabe 2009, theorem 6.7): where m > 1 an estimate
at one temperature lies below λ by far more than its standard error. A weighted straight line through λ̂ against 1/log t
gives λ (at 0) and −(m − 1) (its slope); the same line through the exact values shows how much of the distance to the
truth is the curve's own. Beside it the two-temperature estimator, from neighbouring t₁ < t₂, which needs no L(w*):

$$ \hat\lambda_{12} = \frac{E_{t_1}[K] - E_{t_2}[K]}{1 / t_1 - 1 / t_2} . $$
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import Column, Row, Study, table
from zoo import CASES
from zoo_case import Case

import llc

SAMPLERS = {"SGLD": None, "NUTS": llc.NUTS()}
COLORS = dict(zip(SAMPLERS, ("#0072B2", "#E69F00"), strict=True))


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 2
    num_chains: int = 16
    num_draws: int = 2000
    nbetas: tuple[float, ...] = tuple(10 ** (1 + 0.5 * i) for i in range(13))
    fitted_from: float = 1e3  # the smallest nβ in the straight line
    cases: tuple[str, ...] = (
        "w^4/2",
        "(w1^2 + w2^4)/2",
        "(w1 w2)^2/2",
        "(w1 w2 w3)^2/2",
        "reduced rank 2-2-2 zero",
        "polynomial net t^2, 2 layers",
    )


QUICK = Settings(num_chains=4, num_draws=200, nbetas=(1e3, 1e4, 1e5), cases=("w^4/2",))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("temperature", __doc__, Settings(), QUICK)
    settings = study.settings
    rows = study.rows(run, [f"{sampler} | {name}" for name in settings.cases for sampler in SAMPLERS])
    points = [point | {"case": row["case"]} for row in rows for point in row.get("points", [])]
    text = f"{table(points, COLUMNS)}\n\n{table(rows, FITS)}"
    print(text)
    far = [point for point in points if not abs(point["z"]) < 4]  # nan is far
    summary = {
        "points": len(points),
        "beyond 4 mcse": len(far),
        "of them with no failed check": sum(not point["failed"] for point in far),
        "cases that raised": sum("error" in row for row in rows),
    }
    study.save(rows, summary=summary, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """One case with one sampler, over all nβ."""
    sampler, name = case.split(" | ")
    model = next(c for c in CASES if c.name == name)
    posterior = model.build(jax.random.key(settings.seed), 1000)
    points, draws = zip(
        *(_point(model, posterior.with_scale(nbeta=t), sampler, settings, i) for i, t in enumerate(settings.nbetas)),
        strict=True,
    )
    for (low, high), (hot, cold) in zip(itertools.pairwise(points), itertools.pairwise(draws), strict=True):
        two = llc.two_temperatures(hot, cold)
        low["two"], low["two_mcse"] = two.value, two.mcse
        exact = [point["exact"] / point["nbeta"] for point in (low, high)]
        low["two_exact"] = (exact[0] - exact[1]) / (1 / low["nbeta"] - 1 / high["nbeta"])
    used = [point for point in points if point["nbeta"] >= settings.fitted_from and not point["failed"]]
    fits = {"estimate": line(used, "value"), "exact": line(used, "exact")} if len(used) > 2 else {}
    return {
        "learning_coefficient": model.learning_coefficient,
        "multiplicity": model.multiplicity,
        "points": points,
        "fits": fits,
        "fitted": len(used),
    }


def _point(
    model: Case, posterior: llc.LocalPosterior, sampler: str, settings: Settings, index: int
) -> tuple[Row, xr.DataTree]:
    exact = model.moments(*posterior.scale).mean
    report = llc.estimate(
        jax.random.key(settings.seed + index),
        posterior,
        sampler=SAMPLERS[sampler],
        num_chains=settings.num_chains,
        num_draws=settings.num_draws,
        progress=False,
    )
    value, mcse = report.llc.value, report.llc.mcse
    failed = ", ".join(check.name for check in report.checks if not check.passed)
    nbeta = float(posterior.nbeta)
    row = {"nbeta": nbeta, "exact": exact, "value": value, "mcse": mcse, "z": (value - exact) / mcse, "failed": failed}
    return row, report.draws


def line(points: list[Row], name: str) -> Row:
    """Weighted straight line through `name` against 1 / log nβ: λ at 0, −(m − 1) as slope, with standard errors."""
    weights = 1 / np.array([point["mcse"] for point in points])
    design = np.stack([np.ones(len(points)), [1 / math.log(point["nbeta"]) for point in points]], axis=1)
    covariance = np.linalg.inv((design * weights[:, None] ** 2).T @ design)
    values = np.array([point[name] for point in points])
    intercept, slope = covariance @ design.T @ (weights**2 * values)
    errors = np.sqrt(np.diag(covariance))
    return {"intercept": intercept, "slope": slope, "intercept_error": errors[0], "slope_error": errors[1]}


def _pair(name: str, error: str) -> Callable[[Row], str | None]:
    return lambda row: f"{row[name]:.4f} ± {row[error]:.4f}" if name in row else None


def _fit(kind: str, name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if kind not in row["fits"]:
            return "fewer than 3 good points"
        fit = row["fits"][kind]
        return f"{fit[name]:.3f} ± {fit[f'{name}_error']:.3f}" if kind == "estimate" else f"{fit[name]:.3f}"

    return cell


COLUMNS = [
    Column("case", "case"),
    Column("nβ", "nbeta", "{:.3g}"),
    Column("exact", "exact", "{:.4f}"),
    Column("λ̂ ± mcse", _pair("value", "mcse")),
    Column("z", "z", "{:+.1f}"),
    Column("two temperatures, to the next nβ", _pair("two", "two_mcse")),
    Column("exact", "two_exact", "{:.4f}"),
    Column("failed checks", "failed"),
]

FITS = [
    Column("case", "case"),
    Column("λ", "learning_coefficient", "{:.4f}"),
    Column("line at 1/log t = 0", _fit("estimate", "intercept")),
    Column("of the exact curve", _fit("exact", "intercept")),
    Column("−(m − 1)", lambda row: 1 - row["multiplicity"]),
    Column("slope", _fit("estimate", "slope")),
    Column("of the exact curve", _fit("exact", "slope")),
    Column("points", "fitted"),
]


def figure(rows: list[Row]) -> Figure:
    """λ̂ over nβ with the exact curve and λ, a panel a case; open marks where a check failed."""
    rows = [row for row in rows if "error" not in row]
    names = list(dict.fromkeys(row["case"].split(" | ")[1] for row in rows))
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    fig = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    for ax, name in zip(fig.subplots(lines, columns, squeeze=False).ravel(), names, strict=False):
        _panel(ax, name, [row for row in rows if row["case"].endswith(f" | {name}")])
    ax.legend(fontsize=8, title="open: a check failed", title_fontsize=8)
    return fig


def _panel(ax: Axes, name: str, rows: list[Row]) -> None:
    for row in rows:
        sampler = row["case"].split(" | ")[0]
        x, exact, y, error = (np.array([p[key] for p in row["points"]]) for key in ("nbeta", "exact", "value", "mcse"))
        good = np.array([not point["failed"] for point in row["points"]])
        x = x * (1.0 if sampler == "SGLD" else 1.12)
        ax.plot(x, exact, color="black", lw=0.8, label="exact" if sampler == "SGLD" else None)
        for part, fill, label in ((good, COLORS[sampler], sampler), (~good, "white", None)):
            style = {"fmt": "o", "ms": 4, "lw": 1, "color": COLORS[sampler], "mfc": fill, "label": label}
            ax.errorbar(x[part], y[part], 2 * error[part], **style)
    ax.axhline(rows[-1]["learning_coefficient"], color="black", lw=0.8, ls=":", label="λ")
    ax.set(title=name, xscale="log", xlabel="nβ", ylabel="λ̂ ± 2 mcse", ylim=(0, None))


if __name__ == "__main__":
    main()
