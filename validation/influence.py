r"""Influence: do covariances over draws say what retraining says? Beside classical influence functions, on digits.

Three truths, on networks small enough to be trained to a minimum again and again (Newton's method from w*):

1. Leave one out: the change of every query's loss where one training image is left out, against −nβ V / n with V from
   `llc.influence`, and against the classical influence ∇ℓ_j·H⁻¹∇ℓ_i / n.
2. Linear datamodeling score (Park et al. 2023): over random halves of the training images, the rank correlation of a
   query's loss after retraining on the half with the sum of the influences of what the half holds.
3. The same draws with control variates (`llc.influence_controls`): both estimates have one mean, and their difference
   from gᵀΣg + ½ tr(ΣHΣH), and from its first term, is what a Gaussian and a linear picture leave out.

The cost is that of susceptibilities: gradient evaluations (of all data) that one component's row of an image takes for
an error of 5 % of the root mean square over images, from the run of the component and its share of that of the whole.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import xarray as xr
from influence_models import Model, derivatives, gaussian_covariances, make_model, retrained
from matplotlib.figure import Figure
from scipy import stats
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_train: int = 150
    num_queries: int = 20
    num_features: int = 6  # principal components of the images
    hidden: int = 5  # units of the network
    decay: float = 0.02  # of the weights, so that the minimum is a point
    gamma: float = 1.0
    num_chains: int = 4
    num_warmup: int = 300
    num_draws: int = 800
    num_left_out: int = 40
    num_halves: int = 40
    newton_steps: int = 8


CASES = "softmax regression", "network"
QUICK = Settings(num_draws=150, num_warmup=100, num_left_out=8, num_halves=16)


def main() -> None:
    study = Study("influence", __doc__, Settings(), QUICK)
    rows = study.rows(run, CASES[:1] if study.quick else CASES)
    text = table(rows, COLUMNS)
    print(text)
    good = [row for row in rows if "error" not in row]
    summary = {row["case"]: {name: row[name] for name in SUMMARY} for row in good}
    study.save(rows, summary=summary, text=text, figure=figure(good))


def run(case: str, settings: Settings) -> Row:
    """One model: covariances, retraining, and costs."""
    model = make_model(case, settings)
    posterior = llc.LocalPosterior(
        model.loss_fn, model.center, model.train, nbeta=settings.num_train, gamma=settings.gamma
    )
    observables = {"train": model.loss_fn, "query": llc.Observable(model.loss_fn, data=model.queries)}
    controls = llc.influence_controls(posterior, llc.spectrum(posterior), {"train": None, "query": model.queries})
    draws = _sample(posterior, observables | controls.observables, settings, 0)
    plain = llc.influence(draws, "train", "query")
    found = llc.influence(draws, "train", "query", controls=controls.forms)
    exact = derivatives(model)
    classical = -exact.train @ np.linalg.solve(exact.hessian, exact.queries.T)
    gaussian, first = gaussian_covariances(exact, settings)
    value = found["value"].to_numpy()
    differs = (found["value"] - plain["value"]) / np.hypot(found["mcse"], plain["mcse"])
    left_out = np.random.default_rng(settings.seed).permutation(settings.num_train)[: settings.num_left_out]
    truth = _left_out(model, settings, left_out)
    score = _datamodeling(model, settings, (value, classical, plain["value"].to_numpy()))
    predicted = {"bayesian": -value[left_out], "classical": -classical[left_out] / settings.num_train}
    predicted["plain"] = -plain["value"].to_numpy()[left_out]
    row: Row = {
        "num_params": posterior.num_params,
        "z_of_controls": float(np.sqrt(np.mean(differs**2))),
        "beyond_gaussian": float(np.sqrt(np.mean((value + gaussian) ** 2) / np.mean(value**2))),
        "beyond_first": float(np.sqrt(np.mean((value + first) ** 2) / np.mean(value**2))),
        "relative_error": _relative(plain),
        "controlled_error": _relative(found),
        "gradients": _gradients(draws),
        "lds_bayesian": float(np.mean(score[0])),
        "lds_classical": float(np.mean(score[1])),
        "lds_plain": float(np.mean(score[2])),
        "lds_difference_error": float(np.std(score[0] - score[1], ddof=1) / np.sqrt(len(score[0]))),
        "points": {name: _rounded(x) for name, x in {"truth": truth, **predicted}.items()},
    }
    for name, x in predicted.items():
        row[f"loo_{name}"] = float(np.corrcoef(truth.ravel(), x.ravel())[0, 1])
        row[f"slope_{name}"] = float(truth.ravel() @ x.ravel() / (x.ravel() @ x.ravel()))
    return row | _susceptibilities(model, draws, settings)


def _sample(posterior: llc.LocalPosterior, observables: dict[str, Any], settings: Settings, number: int) -> xr.DataTree:
    lengths = {name: getattr(settings, name) for name in ("num_chains", "num_warmup", "num_draws")}
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    return llc.sample(key, posterior, llc.NUTS(), observables=observables, progress=False, **lengths)


def _query_losses(model: Model, params: Any) -> np.ndarray:
    return np.asarray(model.loss_fn(params, model.queries), np.float64)


def _left_out(model: Model, settings: Settings, left_out: np.ndarray) -> np.ndarray:
    """Change of the queries' losses where one image is left out."""
    start = retrained(model, np.ones(settings.num_train), settings.newton_steps)
    before, changes = _query_losses(model, start), []
    for i in left_out:
        weights = np.ones(settings.num_train)
        weights[i] = 0
        changes.append(_query_losses(model, retrained(model, weights, settings.newton_steps)) - before)
    return np.array(changes)


def _datamodeling(model: Model, settings: Settings, influences: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """The linear datamodeling score of every query."""
    rng, halves, losses = np.random.default_rng(settings.seed + 1), [], []
    for _ in range(settings.num_halves):
        weights = (rng.permutation(settings.num_train) < settings.num_train // 2).astype(float)
        halves.append(weights)
        losses.append(_query_losses(model, retrained(model, weights, 3 * settings.newton_steps)))
    actual = np.array(losses)
    sums = [np.array(halves) @ x for x in influences]
    return [np.array([stats.spearmanr(x[:, j], actual[:, j]).statistic for j in range(actual.shape[1])]) for x in sums]


def _rounded(values: np.ndarray) -> list[float]:
    """Numbers of a figure, in a file that stays small."""
    return [float(f"{x:.3g}") for x in values.ravel()]


def _relative(found: xr.Dataset) -> float:
    return float(np.sqrt(np.mean(found["mcse"] ** 2) / np.mean(found["value"] ** 2)))


def _gradients(draws: xr.DataTree) -> float:
    groups = ("sample_stats", "warmup_sample_stats")
    return float(sum(draws[group]["num_gradients"].sum() for group in groups))


def _susceptibilities(model: Model, whole: xr.DataTree, settings: Settings) -> dict[str, Any]:
    """χ of every component to every training image, and what it cost."""
    rows, errors, gradients, ratios = [], [], _gradients(whole), []
    for number, (name, mask) in enumerate(model.components.items()):
        part = llc.LocalPosterior(
            model.loss_fn, model.center, model.train, nbeta=settings.num_train, gamma=settings.gamma, mask=mask
        )
        draws = _sample(part, {"train": model.loss_fn}, settings, number + 1)
        found = llc.susceptibility(whole, "train", component=draws, shifts=(1 / settings.num_train, 0.1))
        rows.append(f"{name} {found['linear'].sel(shift=1 / settings.num_train).mean().item():.0%}")
        errors.append(_relative(found))
        gradients += _gradients(draws)
        ratios.append(found["linear"].sel(shift=0.1).mean().item())
    error = float(np.sqrt(np.mean(np.square(errors))))
    number = len(model.components) * settings.num_train
    return {
        "susceptibility_error": error,
        "linear": ", ".join(rows),
        "linear_tenth": float(np.mean(ratios)),
        "gradients_a_row": gradients / number * (error / 0.05) ** 2,
    }


SUMMARY = ("lds_bayesian", "lds_classical", "loo_bayesian", "loo_classical", "gradients_a_row")
COLUMNS = [
    Column("case", "case"),
    Column("d", "num_params"),
    Column("error", "relative_error", "{:.1%}"),
    Column("with controls", "controlled_error", "{:.1%}"),
    Column("rms z of the two", "z_of_controls", "{:.2f}"),
    Column("beyond Gaussian", "beyond_gaussian", "{:.1%}"),
    Column("beyond first order", "beyond_first", "{:.1%}"),
    Column("LOO r, plain", "loo_plain", "{:.3f}"),
    Column("with controls", "loo_bayesian", "{:.3f}"),
    Column("classical", "loo_classical", "{:.3f}"),
    Column("slope", "slope_bayesian", "{:.2f}"),
    Column("classical", "slope_classical", "{:.2f}"),
    Column("LDS, plain", "lds_plain", "{:.3f}"),
    Column("with controls", "lds_bayesian", "{:.3f}"),
    Column("classical", "lds_classical", "{:.3f}"),
    Column("± of difference", "lds_difference_error", "{:.3f}"),
    Column("χ: linear at h = 1/n", "linear"),
    Column("at h = .1", "linear_tenth", "{:.0%}"),
    Column("error", "susceptibility_error", "{:.1%}"),
    Column("gradients a component-row at 5 %", "gradients_a_row", "{:.0f}"),
]


def figure(rows: list[Row]) -> Figure:
    """Predicted against actual change of a query's loss where an image is left out."""
    fig = Figure(figsize=(4.6 * len(rows), 4.2), layout="constrained")
    for ax, row in zip(np.ravel(fig.subplots(1, len(rows), squeeze=False)), rows, strict=True):
        truth = np.array(row["points"]["truth"])
        for name, color in (("classical", "#E69F00"), ("bayesian", "#0072B2")):
            label = f"{name}, r = {row[f'loo_{name}']:.3f}"
            ax.plot(row["points"][name], truth, ".", ms=3, alpha=0.5, color=color, label=label)
        low, high = truth.min(), truth.max()
        ax.plot([low, high], [low, high], color="black", lw=0.8)
        ax.set_title(f"{row['case']}, d = {row['num_params']}")
        ax.set(xlabel="predicted change (nats)", ylabel="after retraining")
        ax.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    main()
