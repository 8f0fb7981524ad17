r"""Simplicity bias: of a simple and a complex predictive feature, which is used, and does λ̂ tell before the test loss?

Labels ±1 of inputs with two features that predict them, and two that are noise (after Shah et al. 2020, arXiv
2006.07710). The simple feature has the sign of the label. The complex one lies in one of five slabs, in which the
label alternates, so that no threshold tells it.

* both: both features always predict. Which is used? The test loss is taken with each of them drawn anew, too.
* complex: the simple feature is noise. Networks that use the complex one should have the larger λ̂.
* partly: the simple feature is wrong for a share p of the examples. The network first comes down to 2 p (1 − p), the
  loss of the simple feature alone, then learns the complex one. A loss tells this where it comes below half of that, λ̂
  where it has made half of its rise, from its least to its greatest value after it.

What "λ̂ tells" means was changed after one start had been seen, so that the last part of the claim is no prediction. The
halves are a choice, too: the same comparison with a quarter and with three quarters stands beside it. And λ̂ tells by
its greatest value, which is known only afterwards.

The targets of the posterior are the network's own outputs at the time, so that λ̂ is that of its function.

    uv run --directory validation python -m inductive_bias.simplicity_bias --quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from inductive_bias import networks
from inductive_bias.networks import Data, Params
from inductive_bias.verdict import headline, interval, sign_part, verdict
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(6))
    widths: tuple[int, ...] = (4, 16, 16, 1)
    num_data: int = 300
    num_test: int = 2000
    wrong: float = 0.1  # p
    step_size: float = 0.003  # of Adam with all the data
    steps: tuple[int, ...] = (10, 20, 40, 80, 120, 180, 260, 400, 600, 900, 1300, 2000, 4000)
    nbeta: float = 1000.0
    gamma: float = 10.0
    num_draws: int = 800  # of SGLD, a chain


QUICK = Settings(seeds=(0, 1), steps=(20, 300, 1000), num_draws=100)
KINDS = {"both": "#0072B2", "complex": "#D55E00", "partly": "#009E73"}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("simplicity_bias", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    rows = study.rows(run, [f"{kind} | {seed}" for kind in KINDS for seed in settings.seeds])
    good = [row for row in rows if "error" not in row]
    both, other, partly = ([row for row in good if row["kind"] == kind] for kind in KINDS)
    last = [row["points"][-1] for row in both]
    uses = [p["without_simple"] > 10 * p["without_complex"] for p in last]
    ends = {row["seed"]: row["points"][-1]["llc"] for row in other}
    less = networks.paired_interval(np.array([r["points"][-1]["llc"] - ends[r["seed"]] for r in both]))
    before = {name: _earlier(partly, name, settings) for name in ("test", "train")}
    others = {share: _earlier(partly, "test", settings, share) for share in (0.25, 0.75)}
    parts = [all(uses), sign_part(less, -1), sign_part(before["test"], -1) if before["test"] else None]
    found = (
        f"Both features predict: the simple one is used in {sum(uses)} of {len(uses)} networks. Test loss with the "
        f"simple feature drawn anew {np.mean([p['without_simple'] for p in last]):.3f}, with the complex one "
        f"{np.mean([p['without_complex'] for p in last]):.3f}, with none {np.mean([p['test'] for p in last]):.3f}.\n"
        f"λ̂ less that of networks that have only the complex feature: {interval(less)} {verdict(parts[1:2])} "
        f"({np.mean([p['llc'] for p in last]):.1f} and {np.mean(list(ends.values())):.1f}).\n"
        f"Simple feature wrong in {settings.wrong:.0%}: logarithm of the step at which λ̂ tells, less that at which "
        f"the test loss tells, {_text(before['test'])} {verdict(parts[2:])}; the training loss, "
        f"{_text(before['train'])}. At other shares of the rise and the fall: "
        f"{', '.join(f'{share:.0%} {_text(value)}' for share, value in others.items())} (test loss)."
    )
    claim = "networks use the simple feature and have less λ̂ for it, and λ̂ tells before the test loss what is learnt"
    points = [point | {"case": row["case"]} for row in good for point in row["points"]]
    text = f"{headline(parts, claim, found)}\n{table(points, COLUMNS)}"
    print(text)
    study.save(
        rows, summary={"less": less, "before": before, "other shares": others}, text=text, figure=figure(good, settings)
    )


def _earlier(rows: list[Row], name: str, settings: Settings, share: float = 0.5) -> networks.Interval | None:
    """Logarithm of the step at which λ̂ tells, less that of a loss; None where one of them never tells from a start."""
    times = [(_time_of_llc(row, share), _time_of_loss(row, name, settings, share)) for row in rows]
    logs = [np.log(first / second) for first, second in times if first and second]
    return networks.paired_interval(np.array(logs)) if len(logs) == len(times) else None


def _text(found: networks.Interval | None) -> str:
    return interval(found) if found else "not from every start"


def crossing(steps: list[int], values: list[float], level: float) -> float | None:
    """First step at which the values come above the level, between records by the logarithm of the step."""
    above = np.flatnonzero(np.array(values) > level)
    if not len(above) or above[0] == 0:
        return None
    i = above[0]
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(np.exp((1 - share) * np.log(steps[i - 1]) + share * np.log(steps[i])))


def _time_of_llc(row: Row, share: float) -> float | None:
    """Step at which λ̂ has made a share of its rise."""
    steps, llcs = ([point[name] for point in row["points"]] for name in ("step", "llc"))
    least = int(np.argmin(llcs))
    return crossing(steps[least:], llcs[least:], llcs[least] + share * (max(llcs[least:]) - llcs[least]))


def _time_of_loss(row: Row, name: str, settings: Settings, share: float) -> float | None:
    """Step at which a loss has fallen by a share of what the simple feature alone leaves."""
    steps, losses = ([point[key] for point in row["points"]] for key in ("step", name))
    return crossing(steps, [-loss for loss in losses], -2 * settings.wrong * (1 - settings.wrong) * (1 - share))


def run(case: str, settings: Settings) -> Row:
    """One training run."""
    kind, seed = case.split(" | ")
    key = jax.random.key(int(seed))
    train, test = (
        _data(kind, num, [int(seed), i], settings) for i, num in enumerate((settings.num_data, settings.num_test))
    )
    optimizer = optax.adam(settings.step_size)
    params = networks.init(key, settings.widths)
    state, done, points = optimizer.init(params), 0, []
    for step in settings.steps:
        params, state = _descend(params, state, train, settings.step_size, step - done)
        done = step
        if kind == "partly" or step == settings.steps[-1]:
            points.append({"step": step} | _measured(key, jax.device_get(params), train, test, settings))
    return {"kind": kind, "seed": int(seed), "points": points}


@jax.jit
def _descend(
    params: Params, state: optax.OptState, data: Data, step_size: float, num_steps: int
) -> tuple[Params, optax.OptState]:
    def update(_: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        slope = jax.grad(networks.mean_loss)(carry[0], data)
        updates, state = optax.adam(step_size).update(slope, carry[1])
        return jax.tree.map(jnp.add, carry[0], updates), state

    return jax.lax.fori_loop(0, num_steps, update, (params, state))


def _data(kind: str, num: int, seed: list[int], settings: Settings) -> Data:
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1.0, 1.0], num)
    wrong = {"both": 0.0, "complex": 0.5, "partly": settings.wrong}[kind]
    signs = np.where(rng.random(num) < wrong, -labels, labels)
    simple = signs * rng.uniform(0.1, 1.0, num)
    slabs = np.where(labels > 0, rng.choice([-0.5, 0.5], num), rng.choice([-1.0, 0.0, 1.0], num))
    complex_ = slabs + rng.uniform(-0.15, 0.15, num)
    inputs = np.stack([simple, complex_, *rng.uniform(-1, 1, (2, num))], axis=1)
    return np.float32(inputs), np.float32(labels[:, None])


def _measured(key: Array, params: Params, train: Data, test: Data, settings: Settings) -> Row:
    labels = np.asarray(networks.predict(params, train[0]))
    posterior = llc.LocalPosterior(
        networks.loss_fn, params, (train[0], labels), nbeta=settings.nbeta, gamma=settings.gamma
    )
    return {
        "train": float(networks.mean_loss(params, train)),
        "test": float(networks.mean_loss(params, test)),
        "without_simple": _without(params, test, 0),
        "without_complex": _without(params, test, 1),
    } | networks.measure(key, posterior, num_draws=settings.num_draws)._asdict()


def _without(params: Params, data: Data, feature: int) -> float:
    """The loss where a feature is exchanged between examples, so that it predicts nothing."""
    inputs = data[0].copy()
    inputs[:, feature] = np.random.default_rng(feature).permutation(inputs[:, feature])
    return float(networks.mean_loss(params, (inputs, data[1])))


COLUMNS = [
    Column("features | start", "case"),
    Column("step", "step"),
    Column("train", "train", "{:.2e}"),
    Column("test", "test", "{:.2e}"),
    Column("simple anew", "without_simple", "{:.3f}"),
    Column("complex anew", "without_complex", "{:.3f}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
    Column("λ_quad", "quad", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """What is used where both features predict, λ̂ of it, and λ̂ and the test loss along training."""
    fig = Figure(figsize=(13, 3.6), layout="constrained")
    used, llcs, loss, along = fig.subplots(1, 4)
    names = {"test": "none", "without_simple": "the simple", "without_complex": "the complex"}
    for row in (row for row in rows if row["kind"] == "both"):
        used.plot(range(3), [row["points"][-1][name] for name in names], "o-", color=KINDS["both"], lw=0.7, ms=4)
    used.set_xticks(range(3), names.values())
    used.set(title="test loss where both predict", xlabel="feature drawn anew", ylim=(0, None))
    for i, kind in enumerate(("both", "complex")):
        ends = [row["points"][-1] for row in rows if row["kind"] == kind]
        offsets = i + np.linspace(-0.1, 0.1, len(ends))
        errors = [2 * end["mcse"] for end in ends]
        llcs.errorbar(offsets, [end["llc"] for end in ends], errors, fmt="o", ms=4, color=KINDS[kind])
    llcs.set_xticks(range(2), ["both", "complex only"])
    llcs.set(title="λ̂ ± 2 mcse at the end", xlabel="features that predict", ylim=(0, None))
    partly = [row["points"] for row in rows if row["kind"] == "partly"]
    for ax, name, title in ((loss, "test", "test loss"), (along, "llc", "λ̂")):
        values = np.array([[point[name] for point in points] for points in partly])
        ax.plot(settings.steps, values.T, color=KINDS["partly"], lw=0.6, alpha=0.6)
        error = 2 * values.std(axis=0, ddof=1) / len(values) ** 0.5
        ax.errorbar(settings.steps, values.mean(axis=0), error, fmt="o-", ms=4, color=KINDS["partly"])
        ax.set(xscale="log", xlabel="step", title=f"{title}, simple wrong in {settings.wrong:.0%}")
    loss.axhline(2 * settings.wrong * (1 - settings.wrong), color="#6E6E6E", ls="--", label="the simple feature alone")
    loss.legend(fontsize=8)
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
