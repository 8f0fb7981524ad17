r"""Deep linear networks in the published setting: the estimate against three truths.

A network $f(x) = x W_1 \cdots W_L$ is drawn as in Furman & Lau 2024 (arXiv 2402.03698): 2–19 layers, widths 2–29,
weights from a normal law cut at two standard deviations of $1 / \sqrt{d_{i-1}}$; every second matrix keeps its largest
singular values only, their number uniform from 1 to all; $n = 10^4$ inputs uniform on $[-10, 10]^{d_0}$. The targets
are the network's own outputs, without noise, so w* is the true parameter. Ours: the loss ½‖f(x) − y‖², that of unit
noise, where the published one is the mean of squares over outputs; and γ from calibration.

λ̂ is `llc.estimate(key, posterior)`, without settings. The large network takes fewer steps, a spectrum of more Lanczos
steps, and the d₀ rows of below, which have its density. The truths:

1. finite temperature: E[nβK] at the same nβ and γ, by long NUTS chains with control variates; kept where their virial
   ratio is within 3 % of 1, their standard error within 2 %, R-hat within 1.05, and the mean energy without control
   variates within four of its standard errors (the virial is an average over all directions, so it sees little). Full
   batches need no n rows: the loss depends on the inputs through $S = X^\top X / n$ only, so $d_0$ rows
   $\sqrt{d_0}\, S^{1/2}$ have the same density (`sufficient`). References in `results/deep_linear.json` serve again
   where settings, nβ and γ are the same;
2. λ(w*): an interval from the ranks of all partial products (see strata.py), often one number;
3. the published truth, the minimum of λ over all parameters with zero loss (Aoyagi 2024).

What remains against λ(w*) is split into the sampler's error, λ̂ less truth 1, and finite temperature, truth 1 less
λ(w*), of which λ_quad − rank/2 is the Gaussian part, which γ-correction takes away.

    python validation/deep_linear.py --processes 2
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from strata import hessian_rank, local_coefficient, profile
from study import Column, Row, Study, table
from theory import deep_linear

import llc
from llc.analysis.series import constant


@dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_nets: int = 200
    layers: tuple[int, int] = (2, 19)
    widths: tuple[int, int] = (2, 29)
    reduced: float = 0.5  # share of matrices whose rank is drawn
    num_data: int = 10_000
    half_range: float = 10.0  # of the inputs
    large: tuple[int, ...] | None = (200, 410, 410, 410, 200)  # 500,200 parameters, λ(w*) = 200²/2
    large_matvecs: int = 300  # Lanczos steps, which resolve the edge of its 40,000 curved directions
    large_chains: int = 2
    large_warmup: int = 1000
    large_draws: int = 500  # a chain; one is enough, its relative spread is 1 / √λ
    reference_warmup: int = 400
    reference_draws: int = 200  # a chain, the least
    reference_error: float = 0.02  # relative
    reference_virial: float = 0.03
    reference_rhat: float = 1.05
    tries: int = 64  # of the search for the largest component of the zero set


QUICK = Settings(num_nets=3, layers=(2, 3), widths=(2, 5), large=None)


class Net(NamedTuple):
    """Matrices W₁ … W_L (d₀×d₁, d₁×d₂, …), and their ranks."""

    weights: list[Float[np.ndarray, "inputs outputs"]]
    ranks: list[int]

    @property
    def widths(self) -> tuple[int, ...]:
        """d₀ … d_L."""
        return len(self.weights[0]), *(matrix.shape[1] for matrix in self.weights)


class Reference(NamedTuple):
    """E[nβK] by NUTS, with what it has to pass; `plain` without control variates."""

    value: float
    mcse: float
    plain: float
    plain_mcse: float
    virial: float
    rhat: float
    ess: float
    num_draws: int


def main() -> None:
    """Runs, prints, writes."""
    study = Study("deep_linear", __doc__, Settings(), QUICK)
    settings = study.settings
    cases = [str(i) for i in range(settings.num_nets)] + (["large"] if settings.large else [])
    rows = study.rows(run, cases)
    summary = summarize(rows, settings)
    text = f"{report(summary)}\n\n{table(rows, COLUMNS)}"
    print(text)
    study.save(rows, summary=summary, text=text, figure=plot(rows, settings))


def run(case: str, settings: Settings) -> Row:
    """The estimate and its truths for network number `case`, or for the large one."""
    large = case == "large"
    index = settings.num_nets if large else int(case)
    net = generate(settings, index, widths=settings.large if large else None)
    posterior = make_posterior(net, settings, index)
    ranks = profile(net.widths, net.ranks)
    local = local_coefficient(ranks, settings.tries)
    key, reference_key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), index))

    start = time.perf_counter()
    lengths = {}
    if large:
        posterior = sufficient(net, posterior)
        lengths = {
            "num_chains": settings.large_chains,
            "num_warmup": settings.large_warmup,
            "num_draws": settings.large_draws,
            "spectrum": llc.spectrum(posterior, num_matvecs=settings.large_matvecs, progress=False),
        }
    estimate = llc.estimate(key, posterior, progress=False, **lengths)
    seconds = {"estimate_seconds": time.perf_counter() - start}
    gamma = constant(estimate.draws, "gamma")
    row = {
        "widths": net.widths,
        "ranks": net.ranks,
        "dim": posterior.num_params,
        "product_rank": int(ranks[0, -1]),
        "hessian_rank": hessian_rank(ranks),
        "local_lower": local.lower,
        "local_upper": local.upper,
        "published": float(deep_linear(net.widths, int(ranks[0, -1])).value),
        "nbeta": constant(estimate.draws, "nbeta"),
        "gamma": gamma,
        "llc": estimate.llc.value,
        "mcse": estimate.llc.mcse,
        "ess": estimate.llc.ess,
        "corrected": estimate.corrected.value,
        "quad": estimate.quad,
        "numerical_rank": list(estimate.bounds.rank_interval),
        "shift": None if estimate.gamma_sensitivity is None else estimate.gamma_sensitivity.value,
        "accepted": estimate.gamma_converged,
        "verdict": estimate.verdict,
        "failed": [check.name for check in estimate.failed],
    }
    if not large:
        start = time.perf_counter()
        target = sufficient(net, posterior).with_scale(gamma=gamma)
        truth = committed(case, target, settings) or reference(reference_key, target, estimate.spectrum, settings)
        seconds["reference_seconds"] = time.perf_counter() - start
        row |= {f"reference_{name}": value for name, value in truth._asdict().items()}
    return row | seconds


# Networks


def generate(settings: Settings, index: int, *, widths: tuple[int, ...] | None = None) -> Net:
    """Network number `index`; with `widths` given, one of full rank."""
    rng = np.random.default_rng([settings.seed, index])
    reduced = settings.reduced if widths is None else 0.0
    if widths is None:
        num_layers = rng.integers(*settings.layers, endpoint=True)
        widths = tuple(rng.integers(*settings.widths, size=num_layers + 1, endpoint=True).tolist())
    weights, ranks = [], []
    for rows, columns in itertools.pairwise(widths):
        matrix = _truncated_normal(rng, (rows, columns)) / np.sqrt(rows)
        rank = min(rows, columns)
        if rng.random() < reduced:
            rank = int(rng.integers(1, rank, endpoint=True))
            left, values, right = np.linalg.svd(matrix, full_matrices=False)
            if rank < len(values):
                matrix = _rounded(left[:, :rank] * values[:rank]) @ _rounded(right[:rank])
        weights.append(matrix.astype(np.float32))
        ranks.append(rank)
    return Net(weights, ranks)


def _rounded(matrix: np.ndarray) -> np.ndarray:
    """Multiples of 2⁻¹¹: products below 4 then fit in float32's 24 bits, and their rank is exact."""
    return np.round(matrix * 2.0**11) / 2.0**11


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Standard normal numbers within two standard deviations, by rejection."""
    values = rng.normal(size=shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.normal(size=outside.sum())
    return values


def loss(widths: tuple[int, ...], vector: Array, batch: tuple[Array, Array]) -> Float[Array, "batch"]:
    """½‖f(x) − y‖².

    The matrices lie in one vector, which halves the compilation, and their product comes first, a tenth of the work of
    x layer by layer.
    """
    x, y = batch
    return 0.5 * jnp.sum((x @ functools.reduce(jnp.matmul, matrices(vector, widths)) - y) ** 2, axis=1)


def matrices(vector: Any, widths: Sequence[int]) -> list[Any]:
    """W₁ … W_L from one vector of all entries."""
    shapes = list(itertools.pairwise(widths))
    ends = itertools.accumulate(rows * columns for rows, columns in shapes)
    return [vector[end - a * b : end].reshape(a, b) for (a, b), end in zip(shapes, ends, strict=True)]


def make_posterior(net: Net, settings: Settings, index: int) -> llc.LocalPosterior:
    """The posterior at w*, with n inputs and the network's outputs."""
    rng = np.random.default_rng([settings.seed, index, 1])
    shape = settings.num_data, len(net.weights[0])
    inputs = rng.uniform(-settings.half_range, settings.half_range, shape).astype(np.float32)
    return _posterior(net, inputs)


def sufficient(net: Net, posterior: llc.LocalPosterior) -> llc.LocalPosterior:
    """The same density from d₀ rows √d₀ Rᵀ with XᵀX / n = R Rᵀ."""
    inputs = np.asarray(posterior.data[0], np.float64)
    root = np.linalg.cholesky(inputs.T @ inputs / len(inputs))
    return _posterior(net, np.sqrt(len(root)) * root.T, nbeta=float(posterior.nbeta))


def _posterior(net, inputs, **scale):
    targets = functools.reduce(np.matmul, net.weights, inputs.astype(np.float64))
    data = inputs.astype(np.float32), targets.astype(np.float32)
    center = np.concatenate([matrix.ravel() for matrix in net.weights])
    return llc.LocalPosterior(functools.partial(loss, net.widths), center, data, **scale)


# Truths


def reference(
    key: PRNGKeyArray, posterior: llc.LocalPosterior, spectrum: llc.Spectrum | None, settings: Settings
) -> Reference:
    """E[nβK] by NUTS, with four times the draws again while its error is too large."""
    num_draws = settings.reference_draws
    for attempt_key in jax.random.split(key, 4):
        draws = llc.sample(
            attempt_key,
            posterior,
            llc.NUTS(),
            num_warmup=settings.reference_warmup,
            num_draws=num_draws,
            spectrum=spectrum,
            progress=False,
        )
        plain = llc.mean_energy(draws)
        energy = llc.best_energy(draws)
        if energy.mcse <= settings.reference_error * energy.value:
            break
        num_draws *= 4
    virial = float(draws["sample_stats"].dataset["virial"].mean())
    return Reference(
        energy.value,
        energy.mcse,
        plain.value,
        plain.mcse,
        virial,
        plain.rhat,
        plain.ess,
        draws["posterior"].sizes["draw"],
    )


def committed(case: str, posterior: llc.LocalPosterior, settings: Settings) -> Reference | None:
    """The reference of an earlier run, if it is of the same network, nβ, γ and settings."""
    file = Path(__file__).parent / "results" / "deep_linear.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    row = next((row for row in record["rows"] if row["case"] == case and "reference_plain" in row), None)
    names = [
        name
        for name in asdict(settings)
        if name not in ("num_nets", "tries", "reference_rhat") and not name.startswith("large")
    ]
    now = json.loads(json.dumps(asdict(settings)))
    if row is None or any(record["settings"].get(name) != now[name] for name in names):
        return None
    same = (float(posterior.nbeta), row["nbeta"]), (float(posterior.gamma), row["gamma"])  # pyright: ignore[reportArgumentType]
    if not all(math.isclose(here, there, rel_tol=1e-6) for here, there in same):
        return None
    return Reference(**{name: row[f"reference_{name}"] for name in Reference._fields})


# Results

COLUMNS = (
    Column("net", "case"),
    Column("layers", lambda row: len(row["ranks"])),
    Column("d", "dim"),
    Column("rank W₁⋯W_L", "product_rank"),
    Column("rank H", "hessian_rank"),
    Column("γ/nβ", lambda row: row["gamma"] / row["nbeta"], "{:.2g}"),
    Column("(i) finite temp.", lambda row: row.get("reference_value"), "{:.2f}"),
    Column("± %", lambda row: _relative(row, "reference_mcse", "reference_value"), "{:.2f}"),
    Column("virial", lambda row: row.get("reference_virial"), "{:.3f}"),
    Column("(ii) local", lambda row: "–".join(f"{x:g}" for x in sorted({row["local_lower"], row["local_upper"]}))),
    Column("(iii) published", "published", "{:g}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("±", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("λ_corr", "corrected", "{:.2f}"),
    Column("% of (i)", lambda row: _percent(row["llc"], row.get("reference_value")), "{:+.1f}"),
    Column("λ_corr % of (ii)", lambda row: 100 * _outside(row, "corrected"), "{:+.1f}"),
    Column("less λ_corr(3γ), %", lambda row: _relative(row, "shift", "corrected"), "{:.1f}"),
    Column("accepted", lambda row: {True: "yes", False: "no", None: ""}[row.get("accepted")]),
    Column("% of (iii)", lambda row: _percent(row["llc"], row["published"]), "{:+.1f}"),
    Column("verdict", "verdict"),
    Column("failed", lambda row: " ".join(row["failed"])),
)


def kept(row: Row, settings: Settings) -> bool:
    """Whether the row has a reference that passes."""
    if "reference_virial" not in row:
        return False
    error = math.hypot(row["reference_mcse"], row["reference_plain_mcse"])
    return (
        abs(row["reference_virial"] - 1) <= settings.reference_virial
        and row["reference_mcse"] <= settings.reference_error * row["reference_value"]
        and row["reference_rhat"] <= settings.reference_rhat
        and abs(row["reference_value"] - row["reference_plain"]) <= 4 * error
    )


def ordered(estimates: list[float], truths: list[float]) -> float:
    """Share of the pairs with different truths that the estimates put in the right order."""
    first, second = np.triu_indices(len(truths), 1)
    sign = np.sign(np.subtract.outer(truths, truths))[first, second]
    right = np.sign(np.subtract.outer(estimates, estimates))[first, second] == sign
    return float(right[sign != 0].mean()) if sign.any() else np.nan


def summarize(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """Errors against each truth, order of pairs, and the split of what remains."""
    rows = [row for row in rows if "error" not in row]
    nets = [row for row in rows if row["case"] != "large"]
    good = [row for row in nets if kept(row, settings)]
    known = [row for row in nets if row["local_lower"] == row["local_upper"]]
    both = [row for row in known if kept(row, settings)]
    large = next((row for row in rows if row["case"] == "large"), None)
    finite = [row["reference_value"] for row in good]
    dead = sum(not np.isfinite(row["llc"]) for row in nets)
    told = {
        "verdict CONSISTENT": [row for row in nets if row["verdict"] == "CONSISTENT"],
        "λ_corr accepted as λ": [row for row in nets if row.get("accepted")],
    }
    local, published = [row["local_lower"] for row in known], [row["published"] for row in nets]
    return {
        "nets": len(nets),
        "references_kept": len(good),
        "dead": dead,
        "local_known": len(known),
        "llc_against_finite_temperature": _errors([row["llc"] for row in good], finite),
        "corrected_against_local": _errors([row["corrected"] for row in known], local),
        "llc_against_local": _errors([row["llc"] for row in known], local),
        "corrected_outside_of_interval": _spread([_outside(row, "corrected") for row in nets]),
        "llc_against_published": _errors([row["llc"] for row in nets], published),
        "corrected_against_published": _errors([row["corrected"] for row in nets], published),
        "split": {
            "sampler": _spread([(r["llc"] - r["reference_value"]) / r["local_lower"] for r in both]),
            "finite_temperature": _spread([r["reference_value"] / r["local_lower"] - 1 for r in both]),
            "gaussian_part": _spread([(r["quad"] - r["hessian_rank"] / 2) / r["local_lower"] for r in both]),
        },
        "told": {
            name: {"nets": len(some), "outside": sum(abs(_outside(row, "corrected")) > 0.05 for row in some)}
            for name, some in told.items()
        },
        "large": large
        and {"corrected": _percent(large["corrected"], large["local_lower"]) / 100}
        | {"llc": _percent(large["llc"], large["local_lower"]) / 100},
        "seconds": float(sum(row["estimate_seconds"] + row.get("reference_seconds", 0.0) for row in rows)),
    }


def report(summary: dict[str, Any]) -> str:
    """The summary as text, beside the published figures."""
    lines = [
        f"{summary['nets']} networks, no estimate at {summary['dead']} (an infinite error below); "
        f"{summary['references_kept']} references kept, "
        f"λ(w*) known exactly at {summary['local_known']}, an interval elsewhere",
        *(
            f"{name} at {found['nets']}; λ_corr is more than 5 % outside of λ(w*) at {found['outside']} of them"
            for name, found in summary["told"].items()
        ),
        "",
        f"{'':44}{'median |error|':>16}{'within 5 %':>12}{'median error':>14}{'order of pairs':>16}",
    ]
    names = {
        "llc_against_finite_temperature": "λ̂ against (i) finite temperature",
        "corrected_against_local": "λ_corr against (ii) λ(w*)",
        "llc_against_local": "λ̂ against (ii) λ(w*)",
        "corrected_against_published": "λ_corr against (iii) the global minimum",
        "llc_against_published": "λ̂ against (iii) the global minimum",
    }
    cells = "{:44}{:>16.1%}{:>12.0%}{:>+14.1%}{:>16.1%}"
    order = ("median_absolute", "within_5_percent", "median", "order")
    lines += [cells.format(name, *(summary[key][column] for column in order)) for key, name in names.items()]
    everywhere = summary["corrected_outside_of_interval"]
    lines.append(
        f"{'λ_corr outside of (ii), all networks':44}{'':>28}{everywhere['median']:>+14.1%}"
        + (f"  quartiles {everywhere['lower']:+.1%} … {everywhere['upper']:+.1%}")
    )
    lines += [f"{'published, λ̂ against (iii)':44}{'22 %':>16}{'':>26}{'78 %':>16}", ""]
    split = summary["split"]
    lines.append("what remains of λ̂ against (ii), median (quartiles) in units of λ(w*)")
    titles = {"sampler": "sampler", "finite_temperature": "finite temperature", "gaussian_part": "  its Gaussian part"}
    for key, title in titles.items():
        lines.append(
            f"  {title:22}{split[key]['median']:+.1%} ({split[key]['lower']:+.1%} … {split[key]['upper']:+.1%})"
        )
    if summary["large"]:
        lines += [
            "",
            "large network: λ̂ {llc:+.1%}, λ_corr {corrected:+.1%} (published −21 %)".format(**summary["large"]),
        ]
    return "\n".join(lines)


def plot(rows: list[Row], settings: Settings) -> Figure:
    """The estimate against each truth, and the split."""
    rows = [row for row in rows if "error" not in row and row["case"] != "large"]
    good = [row for row in rows if kept(row, settings)]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    values = np.array([0.8 * np.nanmin([r["llc"] for r in rows]), 1.25 * max(r["local_upper"] for r in rows)])
    for axes in (left, middle):
        axes.fill_between(values, 0.95 * values, 1.05 * values, color="0.85", label="± 5 %")
        axes.loglog(values, values, color="0.4", lw=0.8)
    left.errorbar(
        [row["reference_value"] for row in good],
        [row["llc"] for row in good],
        yerr=[2 * row["mcse"] for row in good],
        fmt="o",
        ms=3,
        lw=0.8,
        label="λ̂ ± 2 standard errors",
    )
    left.set(xlabel="(i) E[nβK] at the same nβ and γ, by NUTS", ylabel="estimate")
    bounds = np.array([[row["local_lower"], row["local_upper"]] for row in rows])
    middle.plot(
        [row["published"] for row in rows], [row["llc"] for row in rows], "x", ms=4, color="C1", label="λ̂, (iii)"
    )
    middle.errorbar(
        bounds.mean(axis=1),
        [row["corrected"] for row in rows],
        xerr=np.ptp(bounds, axis=1) / 2,
        fmt="o",
        ms=3,
        lw=0.8,
        color="C0",
        label="λ_corr, (ii)",
    )
    middle.set(xlabel="(ii) λ(w*), bars where it is an interval; (iii) global minimum")
    both = sorted(
        (r for r in good if r["local_lower"] == r["local_upper"]), key=lambda r: r["reference_value"] / r["local_lower"]
    )
    series = {
        "finite temperature": [100 * (r["reference_value"] / r["local_lower"] - 1) for r in both],
        "its Gaussian part": [100 * (r["quad"] - r["hessian_rank"] / 2) / r["local_lower"] for r in both],
        "sampler": [100 * (r["llc"] - r["reference_value"]) / r["local_lower"] for r in both],
    }
    for (label, shares), marker in zip(series.items(), ("_", ".", "."), strict=True):
        right.plot(shares, marker, ms=4, label=label)
    right.axhline(0, color="0.4", lw=0.8)
    right.set(xlabel="networks with λ(w*) known, in order", ylabel="part of the error against (ii), % of λ(w*)")
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    return figure


def _errors(estimates: list[float], truths: list[float]) -> dict[str, float]:
    errors = np.asarray(estimates) / np.asarray(truths) - 1
    errors[~np.isfinite(errors)] = -np.inf
    return {
        "median_absolute": float(np.median(np.abs(errors))),
        "within_5_percent": float(np.mean(np.abs(errors) <= 0.05)),
        "median": float(np.median(errors)),
        "order": ordered(estimates, truths),
    }


def _spread(values: list[float]) -> dict[str, float]:
    values = [value if np.isfinite(value) else -np.inf for value in values]
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75], method="nearest") if values else [np.nan] * 3
    return {"median": float(median), "lower": float(lower), "upper": float(upper)}


def _outside(row: Row, name: str) -> float:
    """Relative distance from the interval of λ(w*), with sign; 0 inside."""
    value = row[name]
    nearest = min(max(value, row["local_lower"]), row["local_upper"])
    return value / nearest - 1


def _relative(row: Row, part: str, whole: str) -> float | None:
    return None if None in (row.get(part), row.get(whole)) else 100 * row[part] / row[whole]


def _percent(value: float, truth: float | None) -> float | None:
    return None if truth is None else 100 * (value / truth - 1)


if __name__ == "__main__":
    main()
