"""How does λ̂ move while a small transformer first learns modular addition by heart, and then learns to add?

Follows λ̂ of the loss on the training pairs along the training of `modular_addition.py`, with bounds and errors, at one
scale. The loss on the other pairs falls long after that on the training pairs: the network groks. Says what λ̂ did
meanwhile, and saves a figure.

    uv run python examples/training_run.py
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import modular_addition
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from modular_addition import accuracy, loss_fn, measured_loss

import llc
from llc.analysis.sweep_table import table_text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be set, each as a flag of the same name; the network's own are in modular_addition.py."""

    p: int = modular_addition.Settings.p  # the modulus
    width: int = modular_addition.Settings.width  # of the residual stream
    hidden: int = modular_addition.Settings.hidden  # units of the multilayer perceptron
    steps: int = 5000  # of training
    num_checkpoints: int = 8  # at even ratios, from a fiftieth of the steps to all
    nbeta: float | None = None  # None: n / log n
    # None takes the γ at which the last checkpoint is nearly quadratic; with its loss near 0 that hides all (λ̂ < .01).
    gamma: float | None = 400.0
    num_draws: int = 300
    seed: int = 0
    out: Path = Path("training_run.png")
    folder: Path | None = None  # for checkpoints and draws; a rerun goes on where it was stopped


def main(settings: Settings) -> tuple[xr.DataTree, dict[int, float]]:
    network = modular_addition.Settings(settings.p, settings.width, settings.hidden, seed=settings.seed)
    data, others = modular_addition.split(network)
    steps = np.geomspace(max(settings.steps // 50, 1), settings.steps, settings.num_checkpoints).round().astype(int)
    run = modular_addition.trained(data, network, steps.tolist())
    posterior = llc.LocalPosterior(loss_fn, run[settings.steps], data, nbeta=settings.nbeta)
    tree = llc.sweep(
        jax.random.key(settings.seed),
        posterior,
        checkpoints={f"step_{step}": params for step, params in run.items()},
        gamma=settings.gamma,
        num_draws=settings.num_draws,
        out=None if settings.folder is None else settings.folder / "sweep",
    )
    print(table_text(tree.to_dataset()))
    losses = {step: measured_loss(params, others) for step, params in run.items()}
    conclude(tree, {step: accuracy(params, data) for step, params in run.items()}, losses)
    figure(tree, losses).savefig(settings.out, dpi=110)
    return tree, losses


def conclude(tree: xr.DataTree, right: dict[int, float], losses: dict[int, float]) -> None:
    """Prints what changed from the checkpoint at which the training pairs were known by heart to the last one.

    Args:
        tree: of `llc.sweep`.
        right: share of the training pairs that are right, by step.
        losses: on the other pairs, by step.
    """
    steps = list(losses)
    first, last = next((step for step in steps[:-1] if right[step] > 0.99), steps[-2]), steps[-1]
    found = llc.compare(*(tree["draws"][f"step_{step}"] for step in (first, last)))
    moved = "does not move beyond its error" if abs(found.value) < 2 * found.mcse else "rises"
    moved = "falls" if found.value < -2 * found.mcse else moved
    print(f"\nAt step {first} {right[first]:.0%} of the training pairs are right, with a loss on the other pairs of")
    print(f"{losses[first]:.3g}; at step {last} that loss is {losses[last]:.3g}. Between the two λ̂ {moved}: it is")
    print(f"{found.first.value:.4g}, then {found.second.value:.4g}, by {found.value:+.3g} ± {found.mcse:.2g} in pairs.")
    print(tree.attrs["scale"])


def figure(tree: xr.DataTree, losses: dict[int, float]) -> Figure:
    """That of the sweep, and the loss on the other pairs."""
    fig = llc.plot_sweep(tree)
    fig.axes[2].plot(list(losses), list(losses.values()), ".-", color="#D55E00", label="L(w*) of the other pairs")
    fig.axes[2].legend(fontsize=8)
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        kind = Path if field.name == "folder" else float if field.name == "nbeta" else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    main(Settings(**vars(parser.parse_args())))
