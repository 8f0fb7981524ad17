r"""Bounds beyond the rank at points of linear networks of three and four layers, whose λ(w*) is known.

The rest of the loss is of order 6 or 8 there, where all matrices vanish, and of order 4 where some do. Points are drawn
from all shapes up to a width with matrices of all ranks, in general position; λ(w*) is known where half of the rank,
the minimum of λ and the codimension of the zero set leave one number (strata.py). All points of a depth are one
program: arrays of width × width with a mask, whose masked entries count as symmetry directions.

Targets: no violation, at least 60 % pinned to one number.

    python validation/deep_strata.py --processes 1
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from strata import local_coefficient, profile
from study import Column, Row, Study, table

import llc

Weights = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    layers: tuple[int, ...] = (3, 4)
    width: int = 2  # of the largest nets
    num_points: int = 182  # of each depth, drawn at random; all of three layers
    tries: int = 64  # random ways to a component of the zero set, for λ


QUICK = Settings(layers=(3,), num_points=5)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("deep_strata", __doc__, Settings(), QUICK)
    rows = study.rows(run, [case for depth in study.settings.layers for case in points(depth, study.settings)])
    sound = [row for row in rows if "error" not in row]
    summary = {
        f"{depth} layers": summarize(part) for depth in study.settings.layers if (part := of_depth(sound, depth))
    }
    left = [row for row in rows if "error" in row or row["lower"] != row["upper"]]
    text = "\n\n".join(
        [table([{"points": k, **v} for k, v in summary.items()], SUMMARY), "Not pinned:", table(left, COLUMNS)]
    )
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure(sound, study.settings.layers))


def points(depth: int, settings: Settings) -> list[str]:
    """Points of this depth whose λ is known, or as many of them as are asked for."""
    found = []
    for widths in itertools.product(range(1, settings.width + 1), repeat=depth + 1):
        for ranks in itertools.product(*(range(min(pair) + 1) for pair in itertools.pairwise(widths))):
            if local_coefficient(profile(widths, ranks), settings.tries).value is not None:
                found.append(f"{' '.join(map(str, widths))} | {' '.join(map(str, ranks))}")
    chosen = np.random.default_rng(settings.seed).permutation(len(found))[: settings.num_points]
    return [found[i] for i in sorted(chosen)]


def run(case: str, settings: Settings) -> Row:
    """Bounds at one point."""
    widths, ranks = (tuple(map(int, part.split())) for part in case.split(" | "))
    depth, width = len(ranks), settings.width
    weights = general_weights(np.random.default_rng([settings.seed, *widths, *ranks]), widths, ranks)
    masks = np.stack([padded(np.ones_like(weight), width) for weight in weights])
    masked = depth * width**2 - int(masks.sum())
    posterior = masked_posterior([padded(weight, width) for weight in weights], masks)
    bounds = llc.higher_bounds(posterior, key=jax.random.key(settings.seed), progress=False)
    rank = llc.rank_bounds(llc.spectrum(posterior))
    return {
        "depth": depth,
        "known": local_coefficient(profile(widths, ranks), settings.tries).value,
        "rank_lower": rank.lower,
        "rank_upper": rank.upper - masked / 4,
        "lower": bounds.lower,
        "upper": bounds.upper,
        "order": next((b.number for b in bounds.records if b.name == "order of g"), None),
        "source": bounds.source.split("; ", 1)[-1],
    }


def general_weights(rng: np.random.Generator, widths: tuple[int, ...], ranks: tuple[int, ...]) -> Weights:
    """Matrices of these ranks in general position, with singular values of about one."""
    weights = []
    for (rows, columns), rank in zip(itertools.pairwise(widths), ranks, strict=True):
        left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for size in (rows, columns))
        weights.append((left[:, :rank] * rng.uniform(0.7, 1.4, rank)) @ right[:rank])
    return weights


def padded(matrix: np.ndarray, width: int) -> np.ndarray:
    """The matrix in one of width × width."""
    return np.pad(matrix, [(0, width - size) for size in matrix.shape])


def masked_posterior(weights: Weights, masks: np.ndarray) -> llc.LocalPosterior:
    """What is added to the weights, which are data, so that they are exact in float64; the targets are the outputs."""
    width = len(weights[0])
    inputs = np.eye(width)
    repeated = np.tile(masks, (width, 1, 1, 1)), np.tile(np.stack(weights), (width, 1, 1, 1))
    data = (inputs, functools.reduce(np.matmul, weights, inputs), *repeated)
    return llc.LocalPosterior(squared_error, [np.zeros_like(w) for w in weights], data, predict_fn=outputs)


def outputs(moves: list[Array], batch: tuple[Array, ...]) -> Array:
    """The rows of x times all matrices, moved where the mask lets them."""
    masks, weights = batch[2][0], batch[3][0]
    return functools.reduce(jnp.matmul, [w + m * v for w, m, v in zip(weights, masks, moves, strict=True)], batch[0])


def squared_error(moves: list[Array], batch: tuple[Array, ...]) -> Array:
    """½‖f(x) − y‖²."""
    return 0.5 * jnp.sum((outputs(moves, batch) - batch[1]) ** 2, axis=1)


def of_depth(rows: list[Row], depth: int) -> list[Row]:
    """The rows of nets of this depth."""
    return [row for row in rows if row["depth"] == depth]


def summarize(rows: list[Row]) -> Row:
    """What was aimed at."""
    return {
        "number": len(rows),
        "violations": sum(not row["lower"] - 1e-9 <= row["known"] <= row["upper"] + 1e-9 for row in rows),
        "pinned": sum(row["lower"] == row["upper"] for row in rows) / len(rows),
        "rank_width": float(np.mean([row["rank_upper"] - row["rank_lower"] for row in rows])),
        "width": float(np.mean([row["upper"] - row["lower"] for row in rows])),
    }


def figure(rows: list[Row], layers: tuple[int, ...]) -> Figure:
    """Widths of the brackets of each depth, of the rank and beyond it, in rising order."""
    result = Figure(figsize=(4.5 * len(layers), 3.5), layout="constrained")
    for axes, depth in zip(result.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        for name, (low, high), color in (
            ("of the rank", ("rank_lower", "rank_upper"), "#999999"),
            ("beyond it", ("lower", "upper"), "#0072B2"),
        ):
            widths = sorted(row[high] - row[low] for row in of_depth(rows, depth))
            axes.step(np.arange(1, len(widths) + 1) / len(widths), widths, where="pre", color=color, label=name)
        axes.set_xlabel("share of the points")
        axes.set_title(f"{depth} layers")
    result.axes[0].set_ylabel("width of the bracket")
    result.axes[0].legend()
    return result


SUMMARY = [
    Column("points", "points"),
    Column("number", "number"),
    Column("violations", "violations"),
    Column("pinned", "pinned", "{:.0%}"),
    Column("mean width, rank", "rank_width", "{:.2f}"),
    Column("mean width", "width", "{:.2f}"),
]
COLUMNS = [
    Column("widths | ranks", "case"),
    Column("λ", "known", "{:g}"),
    Column("order", "order"),
    Column("lower", "lower", "{:g}"),
    Column("upper", "upper", "{:g}"),
]


if __name__ == "__main__":
    main()
