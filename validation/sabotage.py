r"""Sabotage: does the report refuse a run that was spoilt, and name the reason?

Each model is run well, and spoilt in nine ways, with new data and keys in every repeat. A spoilt run counts as caught
if one of the checks that are meant for it has failed and its verdict refuses the number: UNRESOLVED, BELOW or ABOVE.
Four of the nine leave the chains sound, so that λ̂ may be right at its own nβ and γ; only λ is not what it seems. These
are "gamma far too large", where the localization hides nearly all directions, "kink", where the bounds of the rank do
not hold, and "saddle" and "untrained", where w* is no minimum. There any verdict but CONSISTENT counts, so
SCALE_DEPENDENT too. A run that was left alone passes if no check has failed and its verdict
is CONSISTENT or SCALE_DEPENDENT. Target: 95 % of the repeats of each.

L(w*) from four minibatches of 32 rows is off by a random amount, sometimes by little. "Harmless" counts the repeats in
which it moved λ̂ by less than a tenth, which nothing needs to catch; they are left out of the share.

The tanh net has directions so flat that 500 examples often don't show them: λ_quad is less than half of r/2. Left alone
it fails `localization` in most repeats, rightly, and stays in the table. "New" counts only the repeats in which the run
that was left alone had passed the check that caught the spoilt one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, sample_keywords, table
from tqdm.auto import tqdm
from verdicts import REFUSED, counts, listed

import llc

# Sabotage, and the checks of which one has to fail
EXPECTED = {
    "none": set(),
    "step size × 30": {"finite_chains", "divergences", "step_size_bias", "virial"},
    "step size / 100, 200 draws": {"rhat", "ess", "drift", "virial"},
    "L(w*) from four minibatches": {"lower_loss", "positive", "below_bounds", "above_bounds", "mean_variance"},
    "saddle": {"no_negative_curvature", "lower_loss", "positive"},
    "untrained": {"stationary", "lower_loss", "positive"},
    "dead chain": {"finite_chains"},
    "gamma far too large": {"localization"},
    "kink": {"smooth"},
    "minibatches of 2 rows": {"virial", "virial_curved"},
}
SOUND_CHAINS = {"gamma far too large", "kink", "saddle", "untrained"}  # λ̂ may be right at its nβ and γ, but not as λ
MODELS = "regression", "linear net 4-2-4", "tanh net 2-3-1"
NOISE = 1.0  # standard deviation of the labels
MARGIN = 0.1  # of λ̂, below which a wrong L(w*) is harmless


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_repeats: int = 20
    num_data: int = 500
    cases: tuple[str, ...] = tuple(f"{model} | {name}" for model in MODELS for name in EXPECTED)


QUICK = Settings(num_repeats=2, cases=("regression | step size × 30",))


def main() -> None:
    """Runs, prints, writes."""
    study = Study("sabotage", __doc__, Settings(), QUICK)
    rows = study.rows(run, study.settings.cases)
    good = [row for row in rows if "error" not in row]
    add_new(good)
    text = table(rows, COLUMNS)
    print(text)
    summary = {"cases": len(good), "caught in 95 %": sum(row["share"] >= 0.95 for row in good)}
    study.save(rows, summary=summary, text=text, figure=figure(good))


def run(case: str, settings: Settings) -> Row:
    """All repeats of one model and sabotage."""
    model, name = case.split(" | ")
    caught, harms, values, verdicts, failed = [], [], [], [], []
    for i in tqdm(range(settings.num_repeats), desc=case, leave=False):
        report, harm = spoil(model, name, i, settings)
        names = {check.name for check in report.failed}
        verdicts.append(report.verdict)
        failed.append(sorted(names))
        values.append(report.llc.value)
        harms.append(harm >= MARGIN)
        if not harms[-1]:
            continue
        caught.append(as_expected(name, report.verdict, names))
    return {
        "share": float(np.mean(caught)) if caught else math.nan,
        "counted": len(caught),
        "harmless": harms.count(False),
        "harms": harms,
        "values": values,
        "verdicts": counts(verdicts),
        "verdict_of": verdicts,
        "failed_of": failed,
        "failed": {check: sum(check in names for names in failed) for check in sorted(set().union(*failed))},
    }


def as_expected(name: str, verdict: str, failed: set[str]) -> bool:
    """Whether a spoilt run was refused for its reason, or the one that was left alone had nothing against it."""
    if name == "none":
        return verdict not in REFUSED and not failed
    refused = verdict != "CONSISTENT" if name in SOUND_CHAINS else verdict in REFUSED
    return refused and bool(failed & EXPECTED[name])


def add_new(rows: list[Row]) -> None:
    """Adds how many repeats a check caught that the run left alone had passed, and of how many that could be."""
    alone = {row["case"].split(" | ")[0]: row["failed_of"] for row in rows if row["case"].endswith("| none")}
    for row in rows:
        model, name = row["case"].split(" | ")
        if name == "none" or model not in alone:
            continue
        pairs = zip(row["failed_of"], alone[model], row["harms"], strict=True)
        pairs = [(set(spoilt), set(before)) for spoilt, before, harm in pairs if harm]
        open_to = [(spoilt, before) for spoilt, before in pairs if EXPECTED[name] - before]
        row["new"] = f"{sum(bool((spoilt - before) & EXPECTED[name]) for spoilt, before in open_to)} of {len(open_to)}"


def spoil(model: str, name: str, index: int, settings: Settings) -> tuple[llc.Report, float]:
    """A report of one repeat, and how much of λ̂ the sabotage is worth (∞ where it is always harm)."""
    extra = name if name in EXTRA else ""
    rng = np.random.default_rng([settings.seed, index])
    posterior = make_posterior(model, extra, rng, settings.num_data)
    key = jax.random.key(index)
    if name == "untrained":
        moved = jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape).astype(np.float32), posterior.center)
        posterior = llc.LocalPosterior(posterior.loss_fn, moved, posterior.data)
    if name == "gamma far too large":
        strong = 10 * float(posterior.nbeta) * llc.top_eigenvalue(posterior)
        posterior = posterior.with_scale(gamma=strong)
    if name.startswith(("step size", "minibatches")):
        return _with_wrong_settings(name, key, posterior), math.inf
    report = llc.estimate(key, posterior, progress=False)
    draws = report.draws
    if name == "dead chain":
        values = draws["posterior"]["llc"].copy()
        values[1, 300:] = np.nan
        _put_energies(draws, values)
        return llc.report(draws, spectrum=report.spectrum), math.inf
    if name != "L(w*) from four minibatches":
        return report, math.inf
    rows = rng.choice(posterior.num_data, 128, replace=False)
    offset = float(posterior.nbeta) * (posterior.init_loss() - posterior.init_loss(rows))
    for tree in (draws, draws["localized"]):  # the run at 3γ has the same L(w*)
        _put_energies(tree, tree["posterior"]["llc"] + offset)
    return llc.report(draws, spectrum=report.spectrum), abs(offset / report.llc.value)


def _put_energies(tree: xr.DataTree, energies: xr.DataArray) -> None:
    """Other energies of the same draws, and the losses that belong to them."""
    constants = tree["constant_data"].to_dataset()
    losses = constants["init_loss"].item() + energies / constants["nbeta"].item()
    tree["posterior"] = tree["posterior"].to_dataset().assign(llc=energies, loss=losses)


def _with_wrong_settings(name: str, key: jax.Array, posterior: llc.LocalPosterior) -> llc.Report:
    """The settings of calibration, with the step size, the lengths or the batch changed."""
    calibration = llc.calibrate(key, posterior)
    step_size = float(np.asarray(calibration.sampler.step_size))
    lengths = sample_keywords(calibration)
    if name.startswith("minibatches"):
        lengths["batch_size"] = 2
    elif "×" in name:
        step_size *= 30
    else:
        step_size /= 100
        lengths |= {"num_warmup": 0, "num_draws": 200, "thinning": 1}
    sampler, spectrum = llc.SGLD(step_size), calibration.spectrum
    draws = llc.sample(key, calibration.posterior, sampler, spectrum=spectrum, progress=False, **lengths)
    return llc.report(draws, spectrum=spectrum)


# Models: targets with noise, at the minimum of the loss on these data


def _regression(w: Array, x: Array) -> Array:
    return x @ w


def _linear_net(w: list[Array], x: Array) -> Array:
    return x @ w[0] @ w[1]


def _tanh_net(w: list[Array], x: Array) -> Array:
    return jnp.tanh(x @ w[0]) @ w[1]


PREDICT = {"regression": _regression, "linear net 4-2-4": _linear_net, "tanh net 2-3-1": _tanh_net}
SHAPES = {
    "regression": ((5, 1),),
    "linear net 4-2-4": ((4, 2), (2, 4)),
    "tanh net 2-3-1": ((2, 3), (3, 1)),
}
EXTRA = {"saddle": lambda v: 0.25 * (v**2 - 1) ** 2, "kink": lambda v: jnp.abs(v) ** 3}


@functools.cache
def loss_of(model: str, extra: str) -> Callable:
    """½‖f(x) − y‖² of an example, and what an extra parameter adds; one object, so one program, for all repeats."""

    def loss_fn(params: dict[str, Any], batch: tuple[Array, Array]) -> Array:
        loss = 0.5 * jnp.sum((PREDICT[model](params["w"], batch[0]) - batch[1]) ** 2, axis=-1)
        return loss + EXTRA[extra](params["v"]) if extra else loss

    return loss_fn


def make_posterior(model: str, extra: str, rng: np.random.Generator, num_data: int) -> llc.LocalPosterior:
    """Random weights and noisy labels, polished to the minimum on these data; the extra parameter is at 0."""
    weights = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES[model]]
    weights = weights[0] if model == "regression" else weights
    x = rng.normal(size=(num_data, SHAPES[model][0][0])).astype(np.float32)
    y = np.asarray(PREDICT[model](weights, x))
    y = y + NOISE * rng.normal(size=y.shape).astype(np.float32)
    posterior = llc.LocalPosterior(loss_of(model, ""), {"w": weights}, (x, y))
    trained = llc.polish(posterior, max_steps=100, progress=False).posterior
    params = trained.center | ({"v": np.zeros((), np.float32)} if extra else {})
    return llc.LocalPosterior(loss_of(model, extra), params, (x, y))


COLUMNS = [
    Column("case", "case"),
    Column("caught (none: passed)", "share", "{:.0%}"),
    Column("of", "counted"),
    Column("harmless", "harmless"),
    Column("new", "new"),
    Column("median λ̂", lambda row: float(np.median(row["values"])), "{:.3g}"),
    Column("verdicts", lambda row: listed(row["verdicts"])),
    Column("failed checks", lambda row: listed(row["failed"])),
]


def figure(rows: list[Row]) -> Figure:
    """Which checks fail, by sabotage."""
    checks = sorted(set().union(*(row["failed"] for row in rows)))
    fig = Figure(
        figsize=(1.5 + 0.45 * max(len(checks), 4) + 3.5, max(1.2 + 0.27 * len(rows), 3.2)), layout="constrained"
    )
    ax = fig.subplots()
    shares = [[row["failed"].get(check, 0) / sum(row["verdicts"].values()) for check in checks] for row in rows]
    image = ax.imshow(np.reshape(shares, (len(rows), len(checks))), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(checks)), checks, rotation=60, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), [f"{row['case']}: {row['share']:.0%}" for row in rows], fontsize=8)
    fig.colorbar(image, ax=ax, label="share of repeats")
    return fig


if __name__ == "__main__":
    main()
