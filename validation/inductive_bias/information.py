r"""Information passed on: do features, rank, λ̂ and its bracket fall where a layer passes on less, by how much?

Inputs are all 2ᵇ words of b bits ±1. Two networks for which all is known:

* linear: a bottleneck of r units reads r of the bits, $f = B A x$ with $A = [G, 0]$. It passes on r bits, in r
  dimensions; its features are rank J = r (M + N − r) with M = b inputs and N outputs, and λ is half of that, since the
  zero set is a manifold of the other dimensions.
* parity: a layer that passes on the r parities of groups of b / r bits, and a linear read-out of N outputs. It passes
  on r bits, and has N r features; λ = N r / 2.

The claim is that of "information loss makes basins broad" (Bushnaq et al. 2024, arXiv 2405.10927), here where the
number is predicted. The lower end of the bracket is that of `llc.rank_bounds`, the upper one half of the dimensions
that no symmetry keeps at zero loss. λ̂ is sampled at a scale where all features stand above the resolution γ/nβ, and
compared with λ_quad there.

    uv run --directory validation python -m inductive_bias.information --quick
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias import networks
from inductive_bias.verdict import headline
from jaxtyping import Array
from matplotlib.figure import Figure
from study import Column, Row, Study, table

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = (0, 1)
    seed: int = 0
    num_bits: int = 8
    num_outputs: int = 4
    passed: tuple[int, ...] = (1, 2, 4)  # bits
    nbeta: float = 1e4
    gamma: float = 1.0
    num_draws: int = 2000  # of SGLD, a chain


QUICK = Settings(seeds=(0,), num_bits=4, passed=(1, 2), num_draws=200)
KINDS = {"linear": "#0072B2", "parity": "#E69F00"}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("information", __doc__, Settings(), QUICK, folder="inductive_bias")
    settings = study.settings
    rows = study.rows(run, [f"{k} | {r} | {s}" for k in KINDS for r in settings.passed for s in settings.seeds])
    good = [row for row in rows if "error" not in row]
    exact = [row["bits"] == row["passed"] and row["rank"] == row["features"] == row["predicted"] for row in good]
    bracket = [2 * row["lower"] == row["predicted"] and row["upper"] == row["lower"] for row in good]
    z = np.array([(row["llc"] - row["quad"]) / row["mcse"] for row in good])
    largest = max(abs(row["quad"] - row["predicted"] / 2) for row in good)
    found = (
        f"Bits, features and rank are the predicted numbers in {sum(exact)} of {len(exact)} networks, and the bracket "
        f"of λ is the predicted point in {sum(bracket)}. λ̂ differs from λ_quad by at most {np.abs(z).max():.1f} mcse, "
        f"and λ_quad from the predicted λ by at most {largest:.2f}."
    )
    claim = "features, rank, λ̂ and its bracket fall by the predicted number where a layer passes on fewer bits"
    parts = [len(good) == len(rows), all(exact), all(bracket), bool((np.abs(z) < 4).all())]
    text = f"{headline(parts, claim, found)}\n{table(rows, COLUMNS)}"
    print(text)
    study.save(
        rows, summary={"exact": sum(exact), "largest z": np.abs(z).max()}, text=text, figure=figure(good, settings)
    )


def run(case: str, settings: Settings) -> Row:
    """One network."""
    kind, passed, seed = case.split(" | ")
    num_passed = int(passed)
    rng = np.random.default_rng(int(seed))
    words = np.array(list(itertools.product([-1.0, 1.0], repeat=settings.num_bits)), np.float32)
    read = rng.normal(size=(num_passed, settings.num_outputs)) / num_passed**0.5
    if kind == "linear":
        first = np.zeros((settings.num_bits, num_passed))
        first[:num_passed] = np.linalg.qr(rng.normal(size=(num_passed, num_passed)))[0]
        params, inputs = {"first": np.float32(first), "read": np.float32(read)}, words
        predicted = num_passed * (settings.num_bits + settings.num_outputs - num_passed)
    else:
        groups = words.reshape(len(words), num_passed, -1)
        params, inputs = {"read": np.float32(read)}, np.prod(groups, axis=2)
        predicted = num_passed * settings.num_outputs
    labels = np.asarray(_predict(params, inputs))
    posterior = llc.LocalPosterior(_loss, params, (inputs, labels), nbeta=settings.nbeta, gamma=settings.gamma)
    bounds = llc.rank_bounds(llc.spectrum(posterior), nbeta=settings.nbeta, gamma=settings.gamma)
    [layer] = llc.layer_information(_hidden, params, inputs)
    basis = llc.feature_basis(_predict, params, inputs)
    measured = networks.measure(jax.random.key(int(seed)), posterior, num_draws=settings.num_draws)
    symmetry = num_passed**2 if kind == "linear" else 0  # of A → G A, B → B G⁻¹: zero loss in as many dimensions
    return {
        "kind": kind,
        "passed": num_passed,
        "predicted": predicted,
        "bits": round(layer.bits, 9),
        "dimensions": layer.rank,
        "features": basis.rank,
        "participation": basis.participation,
        "rank": bounds.rank,
        "lower": bounds.lower,
        "upper": min(bounds.upper, (basis.dim - symmetry) / 2),
    } | measured._asdict()


def _hidden(params: dict[str, Array], inputs: Array) -> Array:
    return inputs @ params["first"] if "first" in params else inputs


def _predict(params: dict[str, Array], inputs: Array) -> Array:
    return _hidden(params, inputs) @ params["read"]


def _loss(params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    return 0.5 * jnp.sum((_predict(params, batch[0]) - batch[1]) ** 2, axis=-1)


COLUMNS = [
    Column("case", "case"),
    Column("bits", "bits", "{:.0f}"),
    Column("dimensions", "dimensions"),
    Column("features", "features"),
    Column("rank H", "rank", "{:.0f}"),
    Column("predicted", "predicted"),
    Column("lower", "lower", "{:.1f}"),
    Column("upper", "upper", "{:.1f}"),
    Column("λ_quad", "quad", "{:.2f}"),
    Column("λ̂", "llc", "{:.2f}"),
    Column("mcse", "mcse", "{:.2f}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """λ̂ and rank against the bits that are passed on, with the predicted lines."""
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    features, llcs = fig.subplots(1, 2)
    for kind, color in KINDS.items():
        own = [row for row in rows if row["kind"] == kind]
        x = np.array([row["passed"] for row in own])
        lines = sorted({(row["passed"], row["predicted"]) for row in own})
        features.plot(*zip(*lines, strict=True), color=color, lw=1, label=f"{kind}, predicted")
        features.plot(x, [row["features"] for row in own], "o", color=color, label=f"{kind}, found")
        llcs.plot([p for p, _ in lines], [n / 2 for _, n in lines], color=color, lw=1, label=f"{kind}, predicted λ")
        jitter = x + 0.04 * (np.arange(len(x)) % len(settings.seeds) - 1)
        errors = 2 * np.array([row["mcse"] for row in own])
        llcs.errorbar(
            jitter, [row["llc"] for row in own], errors, fmt="o", ms=4, color=color, label=f"{kind}, λ̂ ± 2 mcse"
        )
    features.set(title="independent features", xlabel="bits passed on")
    llcs.set(title="λ̂", xlabel="bits passed on")
    for ax in fig.axes:
        ax.legend(fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


if __name__ == "__main__":
    main()
