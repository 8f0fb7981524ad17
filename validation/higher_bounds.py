r"""Bounds beyond the rank: what each closes of the interval r/2 ≤ λ ≤ r/2 + (d − r)/4, and that none is violated.

Three groups of points:

- every stratum of the two-layer linear nets up to 4×4×4, where λ(w*) is known (Aoyagi & Watanabe 2005, local). All of
  them are run as one program: arrays of 4×4 with a mask, whose masked entries count as D symmetry directions. Targets:
  no violation, mean width of the bracket <= 0.8, at least 55 % pinned to one number;
- the zoo, where λ is known too;
- trained nets: deep linear ones and tanh, fitted to the outputs of a smaller one up to 10⁻⁶, and then to its own. Where
  the certificate g ≡ 0 holds, λ = r/2 is known at a trained point, and λ_corr of `llc.estimate` has to agree with it:
  at nβ = 10⁵ instead of n / log n, which is so small that finite temperature alone takes 3 % away.

    python validation/higher_bounds.py --processes 2
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from matplotlib.figure import Figure
from study import Column, Row, Study, table
from theory import two_layer
from zoo import CASES, strata, stratum_weights

import llc
from llc.geometry.higher_order.probes import NAMES
from llc.posterior.precision import float64

STRATA, ZOO, TRAINED = "two-layer strata", "zoo", "trained"
NETS = {  # widths, those of the net whose outputs are fitted, and what stands between the layers
    "linear 4-3-4": ((4, 3, 4), (4, 3, 4), None),
    "linear 3-4-4-3": ((3, 4, 4, 3), (3, 2, 3), None),
    "linear 4-4-4-4-4": ((4, 4, 4, 4, 4), (4, 2, 4), None),
    "tanh 2-3-1 of one unit": ((2, 3, 1), (2, 1, 1), jnp.tanh),
    "tanh 2-6-1 of three units": ((2, 6, 1), (2, 3, 1), jnp.tanh),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    width: int = 4  # of the two-layer nets
    num_strata: int | None = None  # drawn at random; None takes all
    zoo: tuple[str, ...] | None = None  # None takes all
    nets: tuple[str, ...] = tuple(NETS)
    num_inputs: int = 60
    num_draws: int = 2000
    nbeta: float = 1e5  # of the estimates: at n / log n = 15 finite temperature alone takes 3 % away
    agree: float = 0.01  # of λ, to which λ_corr has to agree beside four standard errors: what γ leaves


QUICK = Settings(width=2, num_strata=12, zoo=("(y - x^2)^2 + x^10",), nets=())


def main() -> None:
    """Runs, prints, writes."""
    study = Study("higher_bounds", __doc__, Settings(), QUICK)
    settings = study.settings
    points = list(strata(settings.width))
    if settings.num_strata is not None:
        chosen = np.random.default_rng(settings.seed).choice(len(points), settings.num_strata, replace=False)
        points = [points[i] for i in sorted(chosen)]
    cases = [f"{STRATA} | {' '.join(map(str, point))}" for point in points]
    cases += [f"{ZOO} | {case.name}" for case in CASES if settings.zoo is None or case.name in settings.zoo]
    cases += [f"{TRAINED} | {name}" for name in settings.nets]
    rows = study.rows(run, cases)
    summary = {
        group: summarize(part, settings.agree) for group in (STRATA, ZOO, TRAINED) if (part := _group(rows, group))
    }
    closed = {group: closing([row for row in _group(rows, group) if "error" not in row]) for group in summary}
    text = "\n\n".join(
        [
            table([{"group": group, **values} for group, values in summary.items()], SUMMARY),
            table([{"group": group, **row} for group, part in closed.items() for row in part], CLOSING),
            table([row for row in rows if not row["case"].startswith(STRATA)], COLUMNS),
        ]
    )
    print(text)
    study.save(rows, summary=summary | {"closed": closed}, text=text, figure=figure(rows))


def run(case: str, settings: Settings) -> Row:
    """Bounds at one point, of the rank and beyond it."""
    group, name = case.split(" | ", 1)
    known, corrected, mcse, verdict, masked = None, None, None, None, 0
    key = jax.random.key(settings.seed)
    if group == STRATA:
        point = tuple(map(int, name.split()))
        posterior, known = stratum_posterior(point, settings.width), float(two_layer(*point).value)
        masked = 2 * settings.width**2 - point[1] * (point[0] + point[2])
    elif group == ZOO:
        model = next(model for model in CASES if model.name == name)
        posterior, known = model.build(key, 1000), model.learning_coefficient
    else:
        posterior = trained_posterior(name, settings)
    bounds = llc.higher_bounds(posterior, key=key)
    rank = llc.rank_bounds(llc.spectrum(posterior))
    pinned = bounds.lower == bounds.upper
    if group == TRAINED:
        cold = posterior.with_scale(nbeta=settings.nbeta)
        report = llc.estimate(key, cold, num_draws=settings.num_draws, bounds=bounds, progress=False)
        assert report.corrected is not None
        corrected, mcse, verdict = report.corrected.value, report.corrected.mcse, report.verdict
        known = bounds.lower if pinned else None
    return {
        "dim": posterior.num_params - masked,
        "rank": rank.rank,
        "known": known,
        "rank_lower": rank.lower,
        "rank_upper": rank.upper - masked / 4,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "source": bounds.source.split("; ", 1)[-1],
        "pinned": pinned,
        "bounds": {b.name: [b.status, b.lower, b.upper, b.evaluations, b.seconds] for b in bounds.records},
        "corrected": corrected,
        "mcse": mcse,
        "verdict": verdict,
    }


# Points


def stratum_posterior(point: tuple[int, ...], width: int) -> llc.LocalPosterior:
    """A two-layer net of one stratum in arrays of width × width; the mask is data, so that all are one program."""
    weights = stratum_weights(*point)  # pyright: ignore[reportArgumentType]
    masks = np.stack([_padded(np.ones_like(matrix), width) for matrix in weights])
    first, second = (_padded(matrix, width) for matrix in weights)
    data = np.eye(width), (second @ first).T, np.tile(masks, (width, 1, 1, 1))
    return llc.LocalPosterior(_linear_loss, [first, second], data, predict_fn=_linear_outputs)


def _padded(matrix, width):
    return np.pad(matrix, [(0, width - size) for size in matrix.shape])


def _linear_outputs(weights, batch):
    first, second = (mask * weight for mask, weight in zip(batch[2][0], weights, strict=True))
    return batch[0] @ first.T @ second.T


def _linear_loss(weights, batch):
    return 0.5 * jnp.sum((_linear_outputs(weights, batch) - batch[1]) ** 2, axis=-1)


def trained_posterior(name: str, settings: Settings) -> llc.LocalPosterior:
    """A net fitted to a smaller one by Levenberg–Marquardt in float64; the params are what is added to its weights.

    Params are float32 where JAX is: weights as data keep the residual at round-off.
    """
    widths, truth, activation = NETS[name]
    rng = np.random.default_rng([settings.seed, list(NETS).index(name)])
    inputs = rng.normal(size=(settings.num_inputs, widths[0]))
    targets = np.asarray(_net(_random(rng, truth), inputs, activation))
    start = _random(rng, widths)
    shapes, sizes = [w.shape for w in start], [w.size for w in start]

    def unflatten(vector):
        parts = jnp.split(vector, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def residual(vector):
        return jnp.ravel(_net(unflatten(vector), jnp.asarray(inputs), activation) - jnp.asarray(targets))

    with float64():
        functions = jax.jit(residual), jax.jit(jax.jacfwd(residual))
        as_numpy = [lambda vector, fn=fn: np.asarray(fn(jnp.asarray(vector))) for fn in functions]
        flat = np.concatenate([w.ravel() for w in start])
        fit = scipy.optimize.least_squares(as_numpy[0], flat, as_numpy[1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
        fitted = [np.asarray(w) for w in unflatten(jnp.asarray(fit.x))]
        targets = np.asarray(_net(fitted, jnp.asarray(inputs), activation))
    if fit.cost > 1e-12:  # its own outputs are the targets, so that the fit is exact
        raise ArithmeticError(f"the net did not fit: residuals of {fit.cost:.2g}")
    predict_fn = functools.partial(_moved_net, activation)

    def loss_fn(params, batch):
        return 0.5 * jnp.sum((predict_fn(params, batch) - batch["y"]) ** 2, axis=-1)

    repeated = [np.tile(w, (settings.num_inputs, 1, 1)) for w in fitted]
    data = {"x": inputs, "y": targets, "weights": repeated}
    return llc.LocalPosterior(loss_fn, [np.zeros(shape) for shape in shapes], data, predict_fn=predict_fn)


def _random(rng, widths):
    return [rng.normal(size=shape) / np.sqrt(shape[0]) for shape in itertools.pairwise(widths)]


def _net(weights, x, activation):
    for i, weight in enumerate(weights):
        x = x @ weight
        if activation is not None and i + 1 < len(weights):
            x = activation(x)
    return x


def _moved_net(activation, params, batch):
    return _net([w[0] + p for w, p in zip(batch["weights"], params, strict=True)], batch["x"], activation)


# Results


def violated(row: Row) -> bool:
    """Whether a known λ lies outside of the bracket."""
    return row["known"] is not None and not row["lower"] - 1e-9 <= row["known"] <= row["upper"] + 1e-9


def _group(rows: list[Row], group: str) -> list[Row]:
    return [row for row in rows if row["case"].startswith(group)]


def summarize(rows: list[Row], tolerance: float) -> Row:
    """Targets against what was reached."""
    good = [row for row in rows if "error" not in row]
    agree = [row for row in good if row["pinned"] and row["corrected"] is not None]
    return {
        "points": len(good),
        # λ of a trained net is known by its certificate only, which nothing can violate.
        "violations": None if all(row["case"].startswith(TRAINED) for row in good) else sum(map(violated, good)),
        "width of the rank": _mean(row["rank_upper"] - row["rank_lower"] for row in good),
        "width": _mean(row["upper"] - row["lower"] for row in good),
        "pinned": _mean(row["pinned"] for row in good),
        "agree where pinned": _mean(
            abs(r["corrected"] - r["known"]) <= 4 * r["mcse"] + tolerance * r["known"] for r in agree
        ),
        "worst error where pinned": max((abs(row["corrected"] / row["known"] - 1) for row in agree), default=None),
        "seconds": sum(record[4] for row in good for record in row["bounds"].values()),
        "errors": len(rows) - len(good),
    }


def closing(rows: list[Row]) -> list[Row]:
    """How often each bound was proven and is one of the tightest, the width that it alone leaves, and its cost."""
    result = []
    for name in NAMES:
        records = [(row, row["bounds"][name]) for row in rows if name in row["bounds"]]
        proven = [(row, record) for row, record in records if record[0] == "established"]
        left = [min(row["rank_upper"], b[2]) - max(row["rank_lower"], b[1]) for row, b in proven]
        before = [row["rank_upper"] - row["rank_lower"] for row, _ in proven]
        result.append(
            {
                "bound": name,
                "established": len(proven),
                "undecided": sum(record[0] == "undecided" for _, record in records),
                "tightest": sum(name in row["source"] for row in rows),
                "before": _mean(before),
                "left": _mean(left),
                "evaluations": float(np.median([record[3] for _, record in proven])) if proven else None,
                "seconds": float(np.median([record[4] for _, record in proven])) if proven else None,
            }
        )
    return result


def _mean(values) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


SUMMARY = [
    Column("group", "group"),
    Column("points", "points"),
    Column("violations", "violations"),
    Column("mean width, rank", "width of the rank", "{:.2f}"),
    Column("mean width, all", "width", "{:.2f}"),
    Column("pinned", "pinned", "{:.0%}"),
    Column("λ_corr agrees where pinned", "agree where pinned", "{:.0%}"),
    Column("worst |λ_corr/λ − 1| where pinned", "worst error where pinned", "{:.1%}"),
    Column("seconds", "seconds", "{:.0f}"),
    Column("errors", "errors"),
]

CLOSING = [
    Column("group", "group"),
    Column("bound", "bound"),
    Column("established", "established"),
    Column("undecided", "undecided"),
    Column("tightest", "tightest"),
    Column("width of the rank there", "before", "{:.2f}"),
    Column("width with it alone", "left", "{:.2f}"),
    Column("evaluations, median", "evaluations", "{:,.0f}"),
    Column("seconds, median", "seconds", "{:.2f}"),
]

COLUMNS = [
    Column("point", lambda row: row["case"].split(" | ", 1)[1]),
    Column("d", "dim"),
    Column("rank", "rank", "{:.0f}"),
    Column("r/2", "rank_lower", "{:.4g}"),
    Column("lower", "lower", "{:.4g}"),
    Column("λ", "known", "{:.4g}"),
    Column("upper", "upper", "{:.4g}"),
    Column("r/2 + (d−r)/4", "rank_upper", "{:.4g}"),
    Column("λ_corr", "corrected", "{:.3f}"),
    Column("±", "mcse", "{:.3f}"),
    Column("verdict", "verdict"),
    Column("sources", "source"),
]


def figure(rows: list[Row]) -> Figure:
    """Width of the bracket with the rank alone against that with all bounds, a dot a point."""
    good = [row for row in rows if "error" not in row]
    fig = Figure(figsize=(6, 5), layout="constrained")
    ax = fig.subplots()
    jitter = np.random.default_rng(0)
    for group, color in zip((STRATA, ZOO, TRAINED), ("#0072B2", "#009E73", "#D55E00"), strict=True):
        part = _group(good, group)
        before, after = (
            np.array([row[f"{side}upper"] - row[f"{side}lower"] for row in part]) for side in ("rank_", "")
        )
        ax.plot(before, after + jitter.uniform(-0.04, 0.04, len(part)), ".", ms=5, alpha=0.6, color=color, label=group)
    limit = max((row["rank_upper"] - row["rank_lower"] for row in good), default=1.0)
    ax.plot([0, limit], [0, limit], color="0.6", lw=0.8)
    ax.set(xlabel="width of the bracket, rank alone", ylabel="width with all bounds (jittered)")
    ax.legend()
    return fig


if __name__ == "__main__":
    main()
