r"""Label noise: does SGD with noisy labels go to the flattest of all minimizers of a two-layer linear network?

$$ L = \tfrac12 \lVert B A - \Phi \rVert_F^2, \quad A \in R^{h \times M},\ B \in R^{N \times h}, \qquad
   \operatorname{tr} H = N \lVert A \rVert_F^2 + M \lVert B \rVert_F^2 \ge 2 \sqrt{N M}\, \lVert \Phi \rVert_* $$

at any minimizer, with equality where $N A A^\top = M B^\top B$ (A → G A, B → B G⁻¹ leaves BA as it is). Noise in the
labels makes SGD go down tr H along the minimizers (Blanc et al. 2020, arXiv 1904.09080; Damian et al. 2021, arXiv
2106.06530). Gradient descent without it keeps $A A^\top - B^\top B$ of its start, and is the negative control. After
the noise, gradient descent without it goes on to the minimizer beside. λ = h (M + N − h) / 2 at all minimizers with
h = rank Φ; a spare unit adds to the rank of H as long as one of its two rows of weights is not zero.

    uv run --directory validation python -m inductive_bias.label_noise --quick
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from inductive_bias.verdict import headline
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from study import Column, Row, Study, table

import llc
from llc.posterior.precision import float64


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seeds: tuple[int, ...] = tuple(range(8))
    seed: int = 0  # of Φ
    shape: tuple[int, int] = (4, 9)  # N outputs, M inputs; apart, so that the flattest is not AAᵀ = BᵀB
    rank: int = 2
    step_size: float = 0.02
    noise: float = 0.5  # standard deviation of the labels' noise
    num_steps: int = 400_000
    num_records: int = 50
    nbeta: float = 1e4
    gamma: float = 1.0


QUICK = Settings(seeds=(0, 1), num_steps=200_000)
WIDTHS = {"h = rank": 2, "a spare unit": 3}
NOISES = {"label noise": 1.0, "no noise": 0.0}
COLORS = {"label noise": "#0072B2", "no noise": "#E69F00"}


def main() -> None:
    """Runs, prints, writes."""
    study = Study("label_noise", __doc__, Settings(), QUICK, folder="inductive_bias")
    cases = [f"{w} | {n} | {seed}" for w in WIDTHS for n in NOISES for seed in study.settings.seeds]
    rows = study.rows(run, cases)
    good = [row for row in rows if "error" not in row]
    noisy = np.array([row["excess"] for row in good if row["noise"]])
    plain = np.array([row["excess"] for row in good if not row["noise"]])
    parts = [bool((noisy < 0.01).all()), bool(plain.min() > noisy.max()), len(good) == len(rows)]
    found = (
        f"tr H above its least value 2√(NM)‖Φ‖*: {noisy.mean():.2%} on average and {noisy.max():.2%} at most over "
        f"{len(noisy)} runs with label noise, {plain.min():.0%} to {plain.max():.0%} in {len(plain)} without. "
        f"‖N AAᵀ − M BᵀB‖ / ‖N AAᵀ + M BᵀB‖: at most {max(r['balance'] for r in good if r['noise']):.3f} with noise, "
        f"at least {min(r['balance'] for r in good if not r['noise']):.2f} without. Rank H with a spare unit: "
        f"{_ranks(good, noise=True)} with noise, {_ranks(good, noise=False)} without; λ_quad "
        f"{_quad(good, noise=True):.2f} and {_quad(good, noise=False):.2f} on average."
    )
    claim = "label-noise SGD on BA = Φ reaches the minimizer with N·AAᵀ = M·BᵀB, of least tr H, to 1 %"
    text = f"{headline(parts, claim, found)}\n{table(rows, COLUMNS)}"
    print(text)
    summary = {"holds": all(parts), "largest excess with noise": noisy.max(), "least without": plain.min()}
    study.save(rows, summary=summary, text=text, figure=figure(good, study.settings))


def _spare(rows: list[Row], *, noise: bool) -> list[Row]:
    return [row for row in rows if row["width"] == "a spare unit" and row["noise"] == noise]


def _ranks(rows: list[Row], *, noise: bool) -> str:
    return " or ".join(str(rank) for rank in sorted({int(row["rank"]) for row in _spare(rows, noise=noise)}))


def _quad(rows: list[Row], *, noise: bool) -> float:
    return float(np.mean([row["quad"] for row in _spare(rows, noise=noise)]))


def run(case: str, settings: Settings) -> Row:
    """One run of SGD from one start."""
    width, noise, seed = case.split(" | ")
    outputs, inputs = settings.shape
    with float64():
        phi = _target(settings)
        keys = jax.random.split(jax.random.key(int(seed)), 3)
        size = WIDTHS[width]
        start = {
            "A": 0.6 * jax.random.normal(keys[0], (size, inputs), jnp.float64),
            "B": 1.2 * jax.random.normal(keys[1], (outputs, size), jnp.float64),
        }
        params, traces = _descend(start, phi, keys[2], NOISES[noise] * settings.noise, settings)
        params = jax.tree.map(np.asarray, _settle(params, phi, settings.step_size))
        traces, phi = np.asarray(traces), np.asarray(phi)
    a, b = params["A"], params["B"]
    least = 2 * np.sqrt(outputs * inputs) * np.linalg.svdvals(phi).sum()
    posterior = llc.LocalPosterior(_loss, params, (np.eye(inputs), phi.T), nbeta=settings.nbeta, gamma=settings.gamma)
    spectrum = llc.spectrum(posterior)
    bounds = llc.rank_bounds(spectrum, nbeta=settings.nbeta, gamma=settings.gamma)
    first, second = outputs * a @ a.T, inputs * b.T @ b
    return {
        "width": width,
        "noise": bool(NOISES[noise]),
        "trace": float(spectrum.sum(lambda h: h)) * inputs,  # the loss there is a mean over the M inputs
        "excess": float((outputs * np.sum(a**2) + inputs * np.sum(b**2)) / least - 1),
        "balance": float(np.linalg.norm(first - second) / np.linalg.norm(first + second)),
        "rank": bounds.rank,
        "quad": bounds.quad,
        "residual": float(np.linalg.norm(b @ a - phi)),
        "traces": (traces / least).tolist(),
    }


def _target(settings: Settings) -> Array:
    outputs, inputs = settings.shape
    rng = np.random.default_rng(settings.seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, settings.rank)))[0] for n in (outputs, inputs))
    return jnp.asarray(left * np.linspace(2, 1, settings.rank) @ right.T)


def _loss(params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    inputs, labels = batch
    return 0.5 * jnp.sum((inputs @ params["A"].T @ params["B"].T - labels) ** 2, axis=-1)


def _step(params: dict[str, Array], target: Array, step_size: float) -> dict[str, Array]:
    error = params["B"] @ params["A"] - target
    gradient = {"A": params["B"].T @ error, "B": error @ params["A"].T}
    return jax.tree.map(lambda w, g: w - step_size * g, params, gradient)


def _descend(
    params: dict[str, Array], phi: Array, key: Array, noise: float, settings: Settings
) -> tuple[dict[str, Array], Array]:
    """SGD with labels Φ + noise, and tr H along it."""
    outputs, inputs = settings.shape

    def step(params: dict[str, Array], key: Array) -> tuple[dict[str, Array], None]:
        noisy = phi + noise * jax.random.normal(key, phi.shape, phi.dtype)
        return _step(params, noisy, settings.step_size), None

    def block(params: dict[str, Array], key: Array) -> tuple[dict[str, Array], Array]:
        trace = outputs * jnp.sum(params["A"] ** 2) + inputs * jnp.sum(params["B"] ** 2)
        return jax.lax.scan(step, params, jax.random.split(key, settings.num_steps // settings.num_records))[0], trace

    return jax.jit(lambda p: jax.lax.scan(block, p, jax.random.split(key, settings.num_records)))(params)


def _settle(params: dict[str, Array], phi: Array, step_size: float) -> dict[str, Array]:
    """To the minimizer beside, without noise."""
    return jax.jit(lambda p: jax.lax.fori_loop(0, 20_000, lambda _, w: _step(w, phi, step_size), p))(params)


COLUMNS = [
    Column("case", "case"),
    Column("tr H above the least", lambda row: row["excess"], "{:.3%}"),
    Column("imbalance", "balance", "{:.4f}"),
    Column("rank H", "rank", "{:.0f}"),
    Column("λ_quad", "quad", "{:.3f}"),
    Column("‖BA − Φ‖", "residual", "{:.1e}"),
]


def figure(rows: list[Row], settings: Settings) -> Figure:
    """Traces along the runs, in units of its least value."""
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    steps = np.arange(settings.num_records) * (settings.num_steps // settings.num_records) / 1000
    for ax, width in zip(fig.subplots(1, 2, sharey=True), WIDTHS, strict=True):
        for noise in (True, False):
            name = "label noise" if noise else "no noise"
            traces = np.array([row["traces"] for row in rows if row["width"] == width and row["noise"] == noise])
            ax.plot(steps, traces.T, color=COLORS[name], lw=0.8, alpha=0.5)
            ax.plot(steps, traces.mean(axis=0), color=COLORS[name], lw=2, label=name)
        ax.axhline(1, color="black", ls="--", lw=1, label=r"$2\sqrt{NM}\,\|\Phi\|_*$")
        ax.set(title=width, xlabel="thousand steps of SGD", yscale="log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        ax.legend(fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    fig.axes[0].set_ylabel("tr H / its least value")
    return fig


if __name__ == "__main__":
    main()
