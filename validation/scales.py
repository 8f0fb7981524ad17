r"""Scales: λ̂ as the orders of all directions predict it, beside the sampled one, over four decades of γ.

`llc.scale_spectrum` looks at the loss along single directions around w*, and predicts λ̂(nβ, γ) from them without a
sampler. Here that is compared with NUTS at trained networks, with and without a gap in the spectrum, and at a singular
point. λ_quad stands beside it: it is what the Hessian alone predicts. Target: the prediction within 10 % of the sampled
value, wherever R-hat is below 1.05. What couples directions is not in the prediction; `anharmonic`, the sum over
directions of what each differs from its quadratic, says where that can matter.

    python validation/scales.py --processes 2
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from higher_bounds_points import trained_posterior
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from study import Column, Row, Study, table
from zoo import CASES

import llc

NETS = "tanh 2-3-1 of one unit", "tanh 2-6-1 of three units", "linear 4-3-4", "linear 3-4-4-3"
DIGITS = "digits 16-8-10"
SINGULAR = "reduced rank 2-2-2 zero"
FAR = 0.1  # of λ̂
HARMONIC = 0.05  # of the prediction


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    cases: tuple[str, ...] = (SINGULAR, *NETS, DIGITS)
    gammas: tuple[float, ...] = (1e4, 1e3, 1e2, 1e1, 1.0)
    nbeta: float = 1000.0
    num_inputs: int = 60
    num_digits: int = 500
    decay: float = 1e-4  # of the digits network's squared weights, in its loss: it has a minimum then
    num_steps: int = 4000  # of Adam
    num_warmup: int = 250
    num_draws: int = 250
    rhat: float = 1.05


QUICK = Settings(cases=("tanh 2-3-1 of one unit",), gammas=(1e3, 1e1), num_warmup=200, num_draws=100)


def main() -> None:
    """Runs, prints, writes."""
    study = Study("scales", __doc__, Settings(), QUICK)
    rows = study.rows(run, list(study.settings.cases))
    cells = [cell for row in rows if "error" not in row for cell in row["cells"]]
    summary = summarize(cells, study.settings)
    text = table(cells, COLUMNS) + "\n\n" + "\n".join(f"{name}: {value}" for name, value in summary.items())
    print(text)
    study.save(rows, summary=summary, text=text, figure=figure([row for row in rows if "error" not in row]))


def run(case: str, settings: Settings) -> Row:
    """Prediction and NUTS at one point, for every γ."""
    posterior = point(case, settings)
    key = jax.random.key(settings.seed)
    scales = llc.scale_spectrum(key, posterior, progress=False)
    cells = []
    for i, gamma in enumerate(settings.gammas):
        lengths = {"num_warmup": settings.num_warmup, "num_draws": settings.num_draws}
        there = posterior.with_scale(gamma=gamma)
        draws = llc.sample(jax.random.fold_in(key, i), there, llc.NUTS(), progress=False, **lengths)
        sampled = llc.mean_energy(draws)
        predicted = scales.predicted_llc(gamma) if gamma >= scales.smallest_gamma else None
        value = math.nan if predicted is None else predicted.value
        cells.append(
            {
                "case": case,
                "dim": posterior.num_params,
                "gamma": gamma,
                "quad": scales.spectrum.quad(gamma / scales.nbeta),
                "predicted": value,
                "stderr": math.nan if predicted is None else predicted.stderr,
                "anharmonic": math.nan if predicted is None else predicted.anharmonic,
                "sampled": sampled.value,
                "mcse": sampled.mcse,
                "rhat": sampled.rhat,
                "relative": value / sampled.value - 1,
                "quad_relative": scales.spectrum.quad(gamma / scales.nbeta) / sampled.value - 1,
            }
        )
    return {"table": str(scales), "cells": cells}


def point(case: str, settings: Settings) -> llc.LocalPosterior:
    """The posterior of a case at the nβ of the study."""
    if case == DIGITS:
        posterior = digits(settings)
    elif case == SINGULAR:
        posterior = next(c for c in CASES if c.name == case).build(jax.random.key(0), 1000)
    else:
        posterior = trained_posterior(case, seed=settings.seed, num_inputs=settings.num_inputs)
    return posterior.with_scale(nbeta=settings.nbeta)


def digits(settings: Settings) -> llc.LocalPosterior:
    """A tanh network on 4 × 4 digits at the minimum of cross-entropy with a little weight decay."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)[: settings.num_digits] / 16
    data = images.astype(np.float32), labels[: settings.num_digits].astype(np.int32)
    rng = np.random.default_rng(settings.seed)
    start = [
        {"weight": (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32), "bias": np.zeros(b, np.float32)}
        for a, b in ((16, 8), (8, 10))
    ]

    def loss_fn(params: PyTree, batch: tuple[Array, Array]) -> Array:
        hidden = jnp.tanh(batch[0] @ params[0]["weight"] + params[0]["bias"])
        logits = hidden @ params[1]["weight"] + params[1]["bias"]
        penalty = settings.decay * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]) + penalty

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, settings.num_steps))

    def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(lambda p: jnp.mean(loss_fn(p, data)))(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, start)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=settings.num_steps)
    return llc.polish(llc.LocalPosterior(loss_fn, params, data)).posterior


def summarize(cells: list[Row], settings: Settings) -> Row:
    """Target against what was reached."""
    mixed = [cell for cell in cells if cell["rhat"] < settings.rhat and math.isfinite(cell["predicted"])]
    harmonic = [cell for cell in mixed if cell["anharmonic"] < HARMONIC * cell["predicted"]]
    worst = max(mixed, key=lambda cell: abs(cell["relative"]), default=None)
    return {
        "cells": len(cells),
        "R-hat below the limit, and predicted": len(mixed),
        "prediction within 10 %": sum(abs(cell["relative"]) <= FAR for cell in mixed),
        "prediction within 10 % or 3 mcse": sum(_agrees(cell) for cell in mixed),
        "anharmonic part below 5 %": len(harmonic),
        "of them within 10 % or 3 mcse": sum(_agrees(cell) for cell in harmonic),
        "λ_quad within 10 %": sum(abs(cell["quad_relative"]) <= FAR for cell in mixed),
        "prediction worst": None if worst is None else [worst["case"], worst["gamma"], worst["relative"]],
        "median error of the prediction": float(np.median([abs(cell["relative"]) for cell in mixed])),
        "median error of λ_quad": float(np.median([abs(cell["quad_relative"]) for cell in mixed])),
    }


def _agrees(cell: Row) -> bool:
    return abs(cell["predicted"] - cell["sampled"]) <= max(FAR * cell["sampled"], 3 * cell["mcse"])


COLUMNS = [
    Column("case", "case"),
    Column("d", "dim"),
    Column("γ", "gamma", "{:g}"),
    Column("λ_quad", "quad", "{:.4g}"),
    Column("predicted", "predicted", "{:.4g}"),
    Column("± rays, sample", "stderr", "{:.2g}"),
    Column("anharmonic", "anharmonic", "{:.2g}"),
    Column("sampled", "sampled", "{:.4g}"),
    Column("mcse", "mcse", "{:.2g}"),
    Column("R-hat", "rhat", "{:.3f}"),
    Column("error", "relative", "{:+.1%}"),
    Column("of λ_quad", "quad_relative", "{:+.1%}"),
]


def figure(rows: list[Row]) -> Figure:
    """λ̂ over γ, a panel a point."""
    columns = min(len(rows), 4)
    shape = math.ceil(len(rows) / max(columns, 1)), columns
    fig = Figure(figsize=(3.6 * shape[1], 3.0 * shape[0]), layout="constrained")
    axes = np.atleast_1d(fig.subplots(*shape, squeeze=False)).ravel()
    for ax, row in zip(axes, rows, strict=False):
        cells = row["cells"]
        gammas = [cell["gamma"] for cell in cells]
        ax.plot(gammas, [cell["quad"] for cell in cells], color="#0072B2", label="λ_quad")
        predicted, error = ([cell[name] for cell in cells] for name in ("predicted", "stderr"))
        ax.errorbar(gammas, predicted, yerr=2 * np.array(error), color="#D55E00", ls="--", label="predicted")
        sampled, error = ([cell[name] for cell in cells] for name in ("sampled", "mcse"))
        ax.errorbar(gammas, sampled, yerr=2 * np.array(error), fmt="o", ms=4, color="black", label="NUTS, ± 2 mcse")
        ax.set_xscale("log")
        ax.set_title(f"{cells[0]['case']}, d = {cells[0]['dim']}", fontsize=9)
        ax.set(xlabel="γ", ylabel="λ̂", ylim=(0, None))
    for ax in axes[len(rows) :]:
        ax.set_axis_off()
    if rows:
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return fig


if __name__ == "__main__":
    main()
