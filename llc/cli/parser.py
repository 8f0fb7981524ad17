"""The parser of the command line, and `main`, which turns what happens into an exit status.

Flags equal the keyword names of the functions they call. `llc --help` answers without JAX, so nothing that needs it is
imported here.
"""

import argparse
import importlib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llc.analysis.text import one_line
from llc.cli import numbers, sweeps, terminal
from llc.cli.compile_cache import keep_compiled
from llc.cli.terminal import path

_WRONG = 3  # exit status of wrong input
_PACKAGE = str(Path(__file__).parents[1])
_LEADING = (str(Path(__file__).parent), "<frozen importlib")  # files of the frames before those of a model's file
_SIGNAL = 128  # and the number of the signal: the exit status of a command that was stopped
_SAMPLERS = ("hmc", "mala", "nuts", "sghmc", "sgld", "sgnht")
_NBETA = "inverse temperature times n; default: the posterior's (n / log n)"
_EXECUTED = "FILE.py is executed as a Python program, with your rights; give only files that you trust."
_EXIT = (
    "Exit status: 0 consistent or scale-dependent, 1 unresolved, 2 outside of the bounds, 3 wrong input, 130 stopped "
    "by Ctrl-C, 143 by SIGTERM (llc sample then writes the draws so far). Compiled programs are kept in your cache "
    "folder; LLC_NO_CACHE=1 turns that off."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after `llc`; None takes those of the process.

    Returns:
        The exit status: 0 consistent or scale-dependent, 1 unresolved, 2 outside of the bounds, 3 wrong input, 130
        stopped by Ctrl-C, 143 by SIGTERM.
    """
    terminal.accept_all_characters()
    arguments = parser().parse_args(argv)
    keep_compiled()
    stops = terminal.Stops()
    with terminal.streams.kept(), stops.handled():
        try:
            # Here, so that --help is instant and an interrupted import is told as such.
            module = "llc.cli.sweep_commands" if arguments.command in ("sweep", "compare") else "llc.cli.commands"
            return getattr(importlib.import_module(module), arguments.command)(arguments)
        except BaseException as error:  # whatever the model's file raises, its status must be no verdict
            stops.under_way()
            return _status(error, f"llc {arguments.command}", stops.received)


def _status(error: BaseException, command: str, signal: int | None) -> int:
    """Says what happened and returns the exit status."""
    if isinstance(error, KeyboardInterrupt) or signal is not None:
        # An import that was interrupted may raise anything.
        terminal.complain(f"{command}: {(isinstance(error, KeyboardInterrupt) and str(error)) or 'interrupted'}.")
        return _SIGNAL + (2 if signal is None else signal)
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        terminal.complain(
            f"{command}: {one_line(error.strerror)}"
        )  # one of ours, which names the path: no "[Errno 28]"
    elif isinstance(error, (ValueError, ImportError, OSError, MemoryError)) and str(error):
        terminal.complain(f"{command}: {one_line(str(error)) if _is_ours(error) else error}")
    elif isinstance(error, SystemExit):
        terminal.complain(f"{command}: the model's file called sys.exit({error.code!r}); remove it.")
    else:
        terminal.complain(_trace(error))
    return _WRONG


def _is_ours(error: BaseException) -> bool:
    """Whether `llc` itself raised it: its messages are one line, and line breaks in them are those of names."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return last[0].f_code.co_filename.startswith(_PACKAGE)


def _trace(error: BaseException) -> str:
    """The traceback from where the model's file begins, without the steps that led there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_LEADING):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, and end with the status of wrong input: argparse's own, 2, is a verdict."""

    def print_help(self, file: Any = None) -> None:
        """Help that can't be written is an error, as argparse would not say; to another file it goes as ever."""
        if file is not None:
            super().print_help(file)
            return
        try:
            terminal.say(self.format_help().rstrip())
        except OSError as error:
            terminal.complain(f"{self.prog}: {error.strerror}")
            self.exit(_WRONG)

    def error(self, message: str) -> NoReturn:
        terminal.complain(f"{one_line(f'{self.prog}: {message}')}\n({self.prog} --help lists the options)")
        self.exit(_WRONG)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are values; None, a flag that is off and an empty text say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == ""
        return action.help if nothing else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="llc",
        description="Local learning coefficients of trained models: sampled, bounded by the geometry, and checked.",
        epilog=f"{_EXIT} {_EXECUTED}",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description, flags in (
        ("demo", "estimate the LLC of a small network, in about a minute", _demo_flags),
        ("calibrate", "settings for llc sample, with the reason for each", _calibrate_flags),
        ("sample", "draws from a posterior into a netCDF file or a store", _sample_flags),
        ("bounds", "spectrum of the Hessian at w*, its rank, and bounds on λ", _bounds_flags),
        ("report", "estimates, bounds, checks and verdict from a file", _report_flags),
        ("sweep", "λ̂ of many checkpoints at one scale, and their differences", sweeps.sweep_flags),
        ("compare", "difference of two runs, its error, and whether they are at one scale", sweeps.compare_flags),
    ):
        _add(subparsers, name, description, flags)
    return parser


def _add(
    subparsers: "argparse._SubParsersAction[_Parser]",
    name: str,
    description: str,
    flags: Callable[[argparse.ArgumentParser], None],
) -> None:
    command = subparsers.add_parser(name, help=description, description=description, formatter_class=_HelpFormatter)
    flags(command)


def _demo_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=numbers.seed, default=0, help="seed of training and sampling")
    command.add_argument("--out", type=path, default=Path("llc-demo.nc"), help="netCDF file for draws and spectrum")
    command.add_argument("--figure", type=path, default=Path("llc-demo.png"), help="PNG file for the dashboard")


def _calibrate_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.add_argument("--nbeta", type=numbers.positive, help=_NBETA)
    command.add_argument(
        "--gamma", type=numbers.not_negative, help="localization γ; default: the posterior's, or chosen by calibration"
    )
    command.add_argument("--num-chains", type=numbers.count, default=4, help="independent chains")
    sweeps.chosen_lengths(command)
    command.add_argument(
        "--budget",
        type=numbers.budget,
        help="upper limit on the work of all chains, in gradients over all the data; default: no limit",
    )
    command.add_argument("--seed", type=numbers.seed, default=0, help="seed of the pilot runs")
    command.add_argument("--out", type=path, help="netCDF file for the spectrum; llc sample can add draws to it")
    command.add_argument("--figure", type=path, help="PNG file: predicted bias and cost over ε and γ, with the pilots")


def _sample_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.epilog = f"{_EXECUTED} A variable observables in it, a dict of functions, is recorded (see llc.sample)."
    command.add_argument("--out", type=path, help="netCDF file; a spectrum in it is kept")
    command.add_argument(
        "--store", type=path, help="folder in which the run is saved as it goes; the same command continues it"
    )
    command.add_argument("--sampler", choices=_SAMPLERS, default="sgld", help="transition kernel")
    command.add_argument(
        "--step-size",
        type=numbers.positive,
        help="step size ε; default: from the curvature (sgld, sghmc, sgnht), or adapted in the warm-up",
    )
    command.add_argument(
        "--control-variates",
        action="store_true",
        default=None,
        help="sgld only: subtract the minibatch's gradient at w*, for less gradient noise where labels are noisy",
    )
    command.add_argument(
        "--integrator",
        choices=("leimkuhler_matthews", "euler_maruyama"),
        help="sgld only: integrator; default: leimkuhler_matthews",
    )
    command.add_argument(
        "--preconditioner", choices=("identity", "rmsprop"), help="sgld only: preconditioner; default: identity"
    )
    command.add_argument(
        "--friction",
        type=numbers.positive,
        help="sghmc and sgnht only: friction α; default: critical damping at the largest curvature h_max",
    )
    command.add_argument("--nbeta", type=numbers.positive, help=_NBETA)
    command.add_argument(
        "--gamma",
        type=numbers.not_negative,
        help="localization γ; default: the posterior's, or from the curvature and the run length",
    )
    command.add_argument("--num-chains", type=numbers.count, default=4, help="independent chains")
    command.add_argument("--num-warmup", type=numbers.length, default=1000, help="steps that are discarded")
    command.add_argument("--num-draws", type=numbers.count, default=1000, help="recorded draws of each chain")
    command.add_argument("--thinning", type=numbers.count, default=1, help="steps between draws")
    command.add_argument("--batch-size", type=numbers.count, help="rows of a minibatch; default: all data")
    command.add_argument(
        "--eval-size", type=numbers.count, help="rows on which the loss of a draw is evaluated; default: all"
    )
    command.add_argument(
        "--step-energies", action="store_true", help="also record an energy of every step, from its minibatch"
    )
    command.add_argument(
        "--chain-method",
        choices=("auto", "vectorized", "sequential", "parallel"),
        default="auto",
        help="whether chains run as one program, one after the other, or on several devices",
    )
    command.add_argument("--keep-params", action="store_true", help="keep the parameters of every draw")
    command.add_argument("--seed", type=numbers.seed, default=0, help="seed of the run")


def _bounds_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.add_argument(
        "--matrix", choices=("hessian", "ggn"), default="hessian", help="the Hessian, or the Gauss–Newton matrix"
    )
    command.add_argument(
        "--method",
        choices=("auto", "dense", "gram", "range_finder", "sketch", "lanczos"),
        default="auto",
        help="how the spectrum is computed",
    )
    command.add_argument(
        "--num-matvecs", type=numbers.count, help="Lanczos steps of each probe; default: as many as resolve γ/nβ"
    )
    command.add_argument("--num-probes", type=numbers.count, default=8, help="random vectors that estimate traces")
    command.add_argument("--seed", type=numbers.seed, default=0, help="seed of the probes")
    command.add_argument("--higher", action="store_true", help="add the bounds beyond the rank (minutes)")
    command.add_argument(
        "--memory",
        type=numbers.positive,
        help="with --higher: most GiB of memory; default: 8, and no more than is free",
    )
    command.add_argument(
        "--budget",
        type=numbers.budget,
        help="with --higher: most matrix–vector products of one bound; default: no limit",
    )
    command.add_argument(
        "--scales",
        action="store_true",
        help="add rank, bracket and orders of directions at every scale (see llc.plot_scales)",
    )
    command.add_argument("--nbeta", type=numbers.positive, help=_NBETA)
    command.add_argument(
        "--gamma",
        type=numbers.not_negative,
        help="localization γ at which λ_quad is computed; default: the posterior's",
    )
    command.add_argument("--out", type=path, help="netCDF file for the spectrum; draws in it are kept")


def _report_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=path, help="netCDF file or store, preferably with a spectrum from llc bounds")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.add_argument("--html", type=path, help="HTML file for the report as one self-contained page")
    command.add_argument("--figures", type=path, help="folder for the figures (PNG)")
    command.add_argument(
        "--reference-loss",
        type=numbers.finite,
        metavar="LOSS",
        help="loss of a model that has learnt nothing, in nats per example; default: that of all parameters at zero",
    )
    command.add_argument(
        "--require-converged", action="store_true", help="exit with status 1 where the verdict is SCALE_DEPENDENT"
    )


def _posterior_flag(command: argparse.ArgumentParser) -> None:
    command.epilog = _EXECUTED
    text = "a LocalPosterior of that file, or a function without arguments that returns one; the file is executed"
    command.add_argument("posterior", metavar="FILE.py:NAME", help=text)
