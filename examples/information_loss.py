"""Do networks that throw away information early have broader basins?

Three ReLU networks 4-6-6-1 compute one and the same function of the first two of their four inputs. They differ only
in the place where information about the other two inputs is lost. It is layer 1 where its spare units are dead. It is
layer 2 where the spare units of layer 1 carry these inputs, but those of layer 2 are dead. It is the output where all
units are alive, but the output does not read the spare ones. The targets are that function, so each network is a
minimum of loss zero. Saves a figure; about a minute on two cores.

    uv run python examples/information_loss.py --seed 1
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    num_data: int = 200
    width: int = 6  # units of each hidden layer
    core: int = 3  # of them compute the function
    nbeta: float = 1e5  # far above n / log n, for a look from near the zero set; the same for all
    gamma: float = 100.0  # localization; the same for all
    num_draws: int = 400  # of NUTS, a chain
    seed: int = 0
    out: Path = Path("information_loss.png")


PLACES = "layer 1", "layer 2", "output"
DEAD = -100.0  # bias of a unit that no input reaches


def main(settings: Settings) -> dict[str, tuple[llc.BehavioralGradients, llc.Report]]:
    rng = np.random.default_rng(settings.seed)
    networks = build(rng, settings.width, settings.core)
    inputs = rng.normal(size=(settings.num_data, 4)).astype(np.float32)
    targets = predict(networks["layer 1"], inputs)
    found = {}
    for key, (place, params) in zip(jax.random.split(jax.random.key(settings.seed), 3), networks.items(), strict=True):
        gradients = llc.behavioral_gradients(predict, params, inputs)
        posterior = llc.LocalPosterior(loss_fn, params, (inputs, targets), nbeta=settings.nbeta, gamma=settings.gamma)
        report = llc.estimate(key, posterior, sampler=llc.NUTS(), num_warmup=200, num_draws=settings.num_draws)
        found[place] = gradients, report
    scale = settings.gamma / settings.nbeta
    print(f"γ/nβ = {scale:.2g}; volume: share of the localization's Gaussian with an excess loss below about 1/nβ")
    print("information ends  rank G (of each layer)  N − rank G            λ̂   λ_quad         bounds  log₁₀ volume")
    for place, (gradients, report) in found.items():
        ranks, bounds = [layer.rank for layer in llc.layer_ranks(gradients)], report.bounds
        print(
            f"{place:<16} {gradients.rank:7} {ranks!s:<15} {gradients.max_manifold_dim:11} {report.llc.value:8.2f} ± "
            f"{report.llc.mcse:.2f} {report.quad:8.2f} [{bounds.lower:5.4g}, {bounds.upper:5.4g}] "
            f"{volume(report, scale):12.1f}  {report.verdict} {', '.join(check.name for check in report.failed)}"
        )
    ranks, llcs = [g.rank for g, _ in found.values()], [r.llc.value for _, r in found.values()]
    holds = ranks == sorted(set(ranks)) and llcs == sorted(llcs)
    print(f"\nThe earlier it ends, the lower rank G and λ̂: {'yes' if holds else 'not here'}")
    draw(found, scale, settings.nbeta).savefig(settings.out, dpi=150)
    return found


def build(rng: np.random.Generator, width: int, core: int) -> dict[str, list[dict[str, np.ndarray]]]:
    """One function three times: the first `core` units of a layer compute it, the spare ones get the other inputs."""
    shapes = (4, width), (width, width), (width, 1)
    full = [{"weight": rng.normal(size=shape), "bias": 0.3 * rng.normal(size=shape[1])} for shape in shapes]
    full[0]["weight"][2:, :core] = full[1]["weight"][core:, :core] = full[2]["weight"][core:] = 0
    networks = {place: jax.tree.map(np.float32, full) for place in PLACES}
    for place, layer in (("layer 1", 0), ("layer 1", 1), ("layer 2", 1)):
        networks[place][layer]["bias"][core:] = DEAD
    return networks


def predict(params: list[dict[str, np.ndarray]], inputs: np.ndarray) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["weight"] + layer["bias"])
    return (inputs @ last["weight"] + last["bias"])[:, 0]


def loss_fn(params: list[dict[str, np.ndarray]], batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    return 0.5 * (predict(params, batch[0]) - batch[1]) ** 2


def volume(report: llc.Report, scale: float) -> float:
    """log₁₀ Π (1 + h / scale)^(−½); its slope in log scale is λ_quad."""
    return report.spectrum.sum(lambda h: -0.5 * np.log10(1 + np.maximum(h, 0) / scale))


def draw(found: dict[str, tuple[llc.BehavioralGradients, llc.Report]], scale: float, nbeta: float) -> Figure:
    features, basins = (fig := Figure(figsize=(10, 4.2), layout="constrained")).subplots(1, 2)
    losses = np.geomspace(1e-2, 1e3, 100) / nbeta
    for (place, (gradients, report)), color in zip(found.items(), ("#0072B2", "#009E73", "#D55E00"), strict=True):
        sizes = gradients.feature_sizes[: gradients.rank]
        features.semilogy(np.arange(1, len(sizes) + 1), sizes, "o-", ms=4, color=color, label=f"{place}: {len(sizes)}")
        sampled = f"{place}: $\\hat\\lambda$ = {report.llc.value:.2f} ± {report.llc.mcse:.2f}"
        basins.semilogx(losses, [volume(report, scale * nbeta * e) for e in losses], color=color, label=sampled)
    features.axhline(scale, color="#6E6E6E", ls="--", label="γ/nβ, seen by the sampler")
    basins.axvline(1 / nbeta, color="#6E6E6E", ls="--", label="1/nβ")
    features.set(title="Independent features", xlabel="index", ylabel="size σ²/n")
    basins.set(
        title="Volume of the basin", xlabel="excess loss", ylabel="log₁₀ share of the localization's Gaussian below it"
    )
    for ax in (features, basins):
        ax.legend(title="information ends in", fontsize=9)
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    main(Settings(**vars(parser.parse_args())))
