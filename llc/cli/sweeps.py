"""The flags of `llc sweep` and `llc compare`; nothing here needs JAX."""

import argparse

from llc.cli import numbers
from llc.cli.terminal import path

_SAMPLERS = ("sgld", "nuts", "hmc", "mala")
_STATUS = (
    "Exit status: 0 all consistent or scale-dependent, 1 some unresolved or failed, 2 some outside of the bounds, 3 "
    "wrong input."
)


def chosen_lengths(command: argparse.ArgumentParser) -> None:
    """Lengths that calibration chooses where they are not given: of `llc calibrate` and `llc sweep`."""
    command.add_argument("--num-warmup", type=numbers.length, help="steps that are discarded; default: chosen")
    command.add_argument("--num-draws", type=numbers.count, help="recorded draws of each chain; default: chosen")
    command.add_argument("--thinning", type=numbers.count, help="steps between draws; default: chosen")
    command.add_argument("--batch-size", type=numbers.count, help="rows of a minibatch; default: chosen")
    command.add_argument(
        "--step-energies",
        action=argparse.BooleanOptionalAction,
        help="also record an energy of every step, from its minibatch; default: chosen",
    )


def sweep_flags(command: argparse.ArgumentParser) -> None:
    """Of `llc sweep`."""
    command.epilog = (
        f"{_STATUS} FILE.py is executed as a Python program, with your rights; give only files that you trust. "
        "Checkpoints are never unpickled."
    )
    command.add_argument(
        "posterior",
        metavar="FILE.py:NAME",
        help="a LocalPosterior of that file, or a function without arguments that returns one: the loss, the data, and "
        "params of the model whose checkpoints follow",
    )
    command.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help=".npz, .safetensors or .eqx files, folders of orbax, or patterns of them in quotes, such as "
        "'checkpoints/*.npz'; they are taken in natural order (step_9 before step_10) and named after their files",
    )
    command.add_argument(
        "--out", type=path, help="folder, or store that ends in .zarr; a rerun continues where it stopped"
    )
    command.add_argument("--prefix", default="", help="part of the files that holds the params, such as params")
    command.add_argument("--reference", help="item at which the settings are chosen; default: the last")
    command.add_argument(
        "--calibration",
        choices=("shared", "each"),
        default="shared",
        help="settings of the reference for all, or pilot runs for each checkpoint",
    )
    command.add_argument("--sampler", choices=_SAMPLERS, default="sgld", help="transition kernel")
    command.add_argument(
        "--nbeta", type=numbers.positive, help="inverse temperature times n; default: the posterior's (n / log n)"
    )
    command.add_argument(
        "--gamma",
        type=numbers.not_negative,
        help="localization γ of all; default: the posterior's, or chosen by calibration",
    )
    command.add_argument("--num-chains", type=numbers.count, default=4, help="independent chains of each checkpoint")
    chosen_lengths(command)
    command.add_argument(
        "--eval-size", type=numbers.count, help="rows on which the loss of a draw is evaluated; default: all"
    )
    command.add_argument(
        "--budget", type=numbers.budget, help="upper limit on gradients over all the data, per checkpoint"
    )
    command.add_argument("--seed", type=numbers.seed, default=0, help="seed of all runs")
    command.add_argument("--workers", type=numbers.count, default=1, help="processes that share the checkpoints")
    command.add_argument("--figure", type=path, help="PNG file: λ̂, bounds and loss over the checkpoints")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")


def compare_flags(command: argparse.ArgumentParser) -> None:
    """Of `llc compare`."""
    command.epilog = (
        "Exit status: 0 both runs are sound and at one scale, 1 one is unresolved or they are not at one scale, 2 one "
        "is outside of its bounds, 3 wrong input."
    )
    command.add_argument("first", type=path, help="netCDF file of llc sample, or of an item of a sweep")
    command.add_argument("second", type=path, help="another one; the difference is second − first")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
