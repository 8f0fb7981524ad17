"""Does a layer that passes on less information leave fewer features, and a smaller λ̂?

A linear network 8-r-4 reads r of its 8 bits. All is known of it: it passes on r bits, has r (8 + 4 − r) independent
features, and λ is half of that. The study is `validation/inductive_bias/information.py`, and what it found is told in
docs/simplicity.md. Saves a figure; about a minute on two cores.

    uv run python examples/information_loss.py --passed 1 3
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name."""

    passed: tuple[int, ...] = (1, 2, 4)  # bits
    num_bits: int = 8
    num_outputs: int = 4
    nbeta: float = 1e4
    gamma: float = 10.0  # γ/nβ is far below all features
    num_draws: int = 400  # of NUTS, a chain
    seed: int = 0
    out: Path = Path("information_loss.png")


Params = dict[str, np.ndarray]


def main(settings: Settings) -> dict[int, tuple[llc.FeatureBasis, llc.Report]]:
    words = np.array(list(itertools.product([-1.0, 1.0], repeat=settings.num_bits)), np.float32)
    rng = np.random.default_rng(settings.seed)
    found = {}
    keys = jax.random.split(jax.random.key(settings.seed), len(settings.passed))
    for key, passed in zip(keys, settings.passed, strict=True):
        params = build(rng, passed, settings)
        posterior = llc.LocalPosterior(
            loss_fn, params, (words, predict(params, words)), nbeta=settings.nbeta, gamma=settings.gamma
        )
        report = llc.estimate(key, posterior, sampler=llc.NUTS(), num_warmup=200, num_draws=settings.num_draws)
        basis = llc.feature_basis(predict, params, words)
        [layer] = llc.layer_information(lambda params, inputs: {"hidden": inputs @ params["first"]}, params, words)
        found[passed] = basis, report
        print(
            f"{layer.bits:.2f} bits in {layer.rank} dimensions: {basis.rank} features, λ̂ {report.llc.value:.2f} ± "
            f"{report.llc.mcse:.2f}, at least {report.bounds.lower:g}; {report.verdict}"
        )
    draw(found, settings).savefig(settings.out, dpi=150)
    return found


def build(rng: np.random.Generator, passed: int, settings: Settings) -> Params:
    """A bottleneck that reads the first bits, turned at random, and a random read-out."""
    first = np.zeros((settings.num_bits, passed))
    first[:passed] = np.linalg.qr(rng.normal(size=(passed, passed)))[0]
    read = rng.normal(size=(passed, settings.num_outputs)) / passed**0.5
    return {"first": np.float32(first), "read": np.float32(read)}


def predict(params: Params, inputs: np.ndarray) -> np.ndarray | jax.Array:
    return inputs @ params["first"] @ params["read"]


def loss_fn(params: Params, batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    return 0.5 * ((predict(params, batch[0]) - batch[1]) ** 2).sum(axis=1)


def draw(found: dict[int, tuple[llc.FeatureBasis, llc.Report]], settings: Settings) -> Figure:
    ax = (fig := Figure(figsize=(5.5, 4), layout="constrained")).subplots()
    bits = np.array(list(found))
    llcs = [report.llc for _, report in found.values()]
    errors = [2 * estimate.mcse for estimate in llcs]
    ax.plot(bits, bits * (settings.num_bits + settings.num_outputs - bits) / 2, "k--", label="predicted")
    ax.plot(bits, [basis.rank / 2 for basis, _ in found.values()], "s", ms=9, mfc="none", label="features / 2")
    ax.errorbar(bits, [estimate.value for estimate in llcs], errors, fmt="o", capsize=3, label="λ̂ ± 2 mcse")
    ax.set(xlabel="bits passed on, r", ylabel="learning coefficient", ylim=(0, None))
    ax.legend()
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        kind = {"type": int, "nargs": "+"} if field.name == "passed" else {"type": type(field.default)}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    main(Settings(**vars(parser.parse_args())))
