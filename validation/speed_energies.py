"""What the energies of steps cost and bring: λ̂ with them and without, by CPU seconds.

Two models: a deep linear net at the matrices that made its data, and a ReLU network that reads digits, trained with
Adam. Each is sampled with SGLD and minibatches, first with a draw every ten steps on all the data, then with the
energies of steps beside draws every ten, and every hundred steps. Columns: CPU seconds of a step relative to steps
without draws, λ̂ with its standard error, and the work for the same error (its square times the CPU seconds) relative to
the first. CPU seconds count what other processes take less than wall time does.

    python validation/speed_energies.py
"""

import argparse
import dataclasses
import time
from typing import NamedTuple

import jax
import numpy as np
from real_networks import MLPSize, Training, mlp, train
from speed_problems import Settings as SpeedSettings
from speed_problems import deep_linear

import llc


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is set by hand."""

    seed: int = 0
    num_chains: int = 4
    batch_size: int = 512
    linear_steps: int = 20_000
    mlp_steps: int = 2000
    mlp: MLPSize = dataclasses.field(default_factory=MLPSize)
    linear_gamma: float = 100.0
    mlp_gamma: float = 840.0
    courant: float = 0.15  # ε (nβ h_max + γ), small enough that the chains of the MLP stay in calm places


QUICK = Settings(
    linear_steps=400,
    mlp_steps=200,
    mlp=MLPSize(widths=(784, 8, 10), num_images=600, training=Training(steps=50, batch_size=64)),
    batch_size=64,
)


class Problem(NamedTuple):
    """A posterior, and how long its chains are."""

    name: str
    posterior: llc.LocalPosterior
    num_steps: int


def problems(settings: Settings) -> list[Problem]:
    """The two models."""
    linear = deep_linear(SpeedSettings(seed=settings.seed)).posterior
    linear = linear.with_scale(gamma=settings.linear_gamma)
    network = mlp(jax.random.key(settings.seed), settings.mlp)
    trained = list(train(jax.random.key(settings.seed + 1), network).values())[-1]
    reader = llc.LocalPosterior(network.loss_fn, trained, network.data, gamma=settings.mlp_gamma)
    return [
        Problem("deep linear", linear, settings.linear_steps),
        Problem("MLP", reader, settings.mlp_steps),
    ]


def measure(problem: Problem, settings: Settings, thinning: int, *, step_energies: bool) -> tuple[llc.Estimate, float]:
    """λ̂, and the CPU seconds of its draws, without those of compilation and of the warm-up."""
    posterior = problem.posterior
    stiffest = float(posterior.nbeta) * llc.top_eigenvalue(posterior) + float(posterior.gamma)
    lengths = {"num_chains": settings.num_chains, "batch_size": settings.batch_size, "thinning": thinning}

    def sample(num_steps: int, seed: int) -> llc.Estimate:
        draws = llc.sample(
            jax.random.key(seed),
            posterior,
            llc.SGLD(settings.courant / stiffest),
            **lengths,
            num_warmup=num_steps // 5,
            num_draws=num_steps // thinning,
            step_energies=step_energies,
            progress=False,
        )
        return llc.best_energy(draws)

    sample(thinning, settings.seed)
    begin = time.process_time()
    found = sample(problem.num_steps, settings.seed + 1)
    return found, time.process_time() - begin


def table(settings: Settings) -> list[str]:
    """A line for each model and variant."""
    lines = [f"{'model':<12} {'draws':>9} {'steps':>6} {'cost':>6} {'estimate':>16} {'work':>6}"]
    for problem in problems(settings):
        longest = problem.num_steps // 2
        _, bare = measure(problem, settings, longest, step_energies=False)
        work = np.nan
        for thinning, of_steps in ((10, False), (10, True), (100, True)):
            found, seconds = measure(problem, settings, thinning, step_energies=of_steps)
            now = found.mcse**2 * seconds
            work = now if np.isnan(work) else work
            told = f"{found.value:.3f} ± {found.mcse:.3f}"
            cells = f"{'every ' + str(thinning):>9} {'yes' if of_steps else 'no':>6} {seconds / bare:>6.2f}"
            lines.append(f"{problem.name:<12} {cells} {told:>16} {now / work:>6.2f}")
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a check of the script, not of the figures")
    print("\n".join(table(QUICK if parser.parse_args().quick else Settings())))


if __name__ == "__main__":
    main()
