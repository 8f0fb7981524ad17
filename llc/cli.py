"""The command line: `llc demo | calibrate | sample | bounds | report`.

Flags equal the keyword names of the functions they call. A posterior is named `FILE.py:NAME`, a `LocalPosterior` or a
function without arguments that returns one.
"""

import argparse
import ast
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import lazy_loader

import llc

if TYPE_CHECKING:
    import jax
    import xarray as xr
else:  # --help answers without them
    jax = lazy_loader.load("jax")
    xr = lazy_loader.load("xarray")

_EXIT = {"CONSISTENT": 0, "UNRESOLVED": 1, "BELOW": 2, "ABOVE": 2}
_WRONG = 3  # exit status of wrong input
_SAMPLERS = {"sgld": "SGLD", "sghmc": "SGHMC", "sgnht": "SGNHT", "nuts": "NUTS", "hmc": "HMC", "mala": "MALA"}
_OF_SAMPLER = {  # flags of some samplers only
    "control_variates": ("sgld",),
    "integrator": ("sgld",),
    "preconditioner": ("sgld",),
    "friction": ("sghmc", "sgnht"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit status is 0 consistent, 1 unresolved, 2 outside of the bounds, or 3 wrong input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"llc {arguments.command}: {error}", file=sys.stderr)
        return _WRONG
    except Exception:  # of the model's file or of llc: its traceback tells, and its status must be no verdict
        traceback.print_exc()
        return _WRONG


class _Parser(argparse.ArgumentParser):
    """A parser whose errors end with the status of wrong input: argparse's own, 2, is a verdict here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_WRONG, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llc",
        description="Local learning coefficients of trained models: sampled, bounded by the geometry, and checked.",
        epilog="Exit status: 0 consistent, 1 unresolved or a check failed, 2 outside of the bounds, 3 wrong input.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "demo", _demo, "the whole way on a small real problem, in about a minute", _demo_flags)
    _add(commands, "calibrate", _calibrate, "settings for llc sample, with the reason for each", _calibrate_flags)
    _add(commands, "sample", _sample, "draws from a posterior into a netCDF file", _sample_flags)
    _add(commands, "bounds", _bounds, "spectrum of the Hessian at w*, rank and bounds on λ", _bounds_flags)
    _add(commands, "report", _report, "estimates, bounds, checks and verdict from a file", _report_flags)
    return parser


def _add(commands: Any, name: str, run: Callable, description: str, flags: Callable) -> None:
    command = commands.add_parser(
        name, help=description, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=run)
    flags(command)


def _demo_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="of training and sampling")
    command.add_argument("--out", type=Path, default=Path("llc-demo.nc"), help="draws and spectrum (netCDF)")
    command.add_argument("--figure", type=Path, default=Path("llc-demo.png"), help="dashboard")


def _demo(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.out, arguments.figure)
    print("Training a network with 6 hidden units on scikit-learn's digits to a minimum ...", flush=True)
    train_key, key = jax.random.split(jax.random.key(arguments.seed))
    posterior = llc.demo.digits_posterior(train_key)
    print(f"... {posterior.num_params} parameters, {posterior.num_data} images. Spectrum, then SGLD ...", flush=True)
    report = llc.estimate(key, posterior)
    print(f"\n{report}\n")
    llc.save(report.draws, arguments.out)
    llc.save_figure(llc.plot_report(report), arguments.figure)
    print(f"Dashboard: {arguments.figure}. Draws and spectrum: {arguments.out} (llc report {arguments.out}).")
    return 0


def _calibrate_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.add_argument("--nbeta", type=float, help="default: the posterior's (n / log n)")
    command.add_argument("--gamma", type=float, help="default: the posterior's, or chosen")
    command.add_argument("--num-chains", type=int, default=4)
    command.add_argument("--num-warmup", type=int, help="default: chosen")
    command.add_argument("--num-draws", type=int, default=2000)
    command.add_argument("--thinning", type=int, help="steps between draws; default: chosen")
    command.add_argument("--batch-size", type=int, help="default: chosen")
    command.add_argument("--budget", type=int, help="most steps of a chain; default: no limit")
    command.add_argument("--seed", type=int, default=0, help="of the pilot runs")
    command.add_argument("--out", type=Path, help="netCDF file to put the spectrum into, which llc sample keeps there")
    command.add_argument("--figure", type=Path, help="predicted bias and cost over ε and γ, with the pilots (PNG)")


def _calibrate(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.out, arguments.figure)
    posterior = _load_posterior(arguments.posterior).with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    _kept(arguments.out, posterior, spectrum=False)  # refused before the work
    names = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "budget")
    settings = {name: getattr(arguments, name) for name in names}
    calibration = llc.calibrate(jax.random.key(arguments.seed), posterior, **settings)
    print(calibration)
    flags = {"nbeta": arguments.nbeta, "step_size": getattr(calibration.sampler, "step_size", None)}
    flags |= {"gamma": calibration.posterior.gamma, **calibration.lengths.keywords()}
    flags = {name: value for name, value in flags.items() if value is not None}
    words = " ".join(
        f"--{name.replace('_', '-')} {value if isinstance(value, int) else f'{float(value):.8g}'}"
        for name, value in flags.items()
    )
    words += " --control-variates" * getattr(calibration.sampler, "control_variates", False)
    print(f"\nllc sample {arguments.posterior} {words} --out {arguments.out or 'run.nc'}")
    if arguments.out is not None:
        if arguments.out.exists() and "curvature" in llc.load(arguments.out):
            print(f"\n{arguments.out} has a spectrum, which stays.")
        else:
            _put_spectrum(arguments.out, calibration.posterior, calibration.spectrum)
            print(f"\nSpectrum written to {arguments.out}.")
    if arguments.figure is not None:
        figure = llc.plot_calibration(calibration).get_figure(root=True)
        assert figure is not None
        llc.save_figure(figure, arguments.figure)
        print(f"\nFigure: {arguments.figure}")
    return 0


def _sample_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.add_argument("--out", type=Path, required=True, help="netCDF file; a spectrum that is in it stays")
    command.add_argument("--sampler", choices=sorted(_SAMPLERS), default="sgld")
    command.add_argument("--step-size", type=float, help="default: from the curvature (sg…), adapted (others)")
    command.add_argument("--control-variates", action="store_true", default=None, help="of sgld: for noisy labels")
    command.add_argument("--integrator", choices=("leimkuhler_matthews", "euler_maruyama"), help="of sgld")
    command.add_argument("--preconditioner", choices=("identity", "rmsprop"), help="of sgld")
    command.add_argument("--friction", type=float, help="of sghmc and sgnht; default: critical at h_max")
    command.add_argument("--nbeta", type=float, help="default: the posterior's (n / log n)")
    command.add_argument("--gamma", type=float, help="default: the posterior's, or from the curvature and run length")
    command.add_argument("--num-chains", type=int, default=4)
    command.add_argument("--num-warmup", type=int, default=1000)
    command.add_argument("--num-draws", type=int, default=1000)
    command.add_argument("--thinning", type=int, default=1, help="steps between draws")
    command.add_argument("--batch-size", type=int, help="default: all data")
    command.add_argument("--eval-size", type=int, help="rows on which the loss of a draw is evaluated; default: all")
    command.add_argument("--chain-method", choices=("auto", "vectorized", "sequential", "parallel"), default="auto")
    command.add_argument("--keep-params", action="store_true", help="keep the parameters of every draw")
    command.add_argument("--seed", type=int, default=0)


def _sample(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.out)
    posterior = _load_posterior(arguments.posterior).with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    before = _kept(arguments.out, posterior, spectrum=True)
    given = {name: getattr(arguments, name) for name in _OF_SAMPLER if getattr(arguments, name) is not None}
    for name in given:
        if arguments.sampler not in _OF_SAMPLER[name]:
            flag, of = f"--{name.replace('_', '-')}", " or ".join(_OF_SAMPLER[name])
            raise ValueError(f"{flag} needs --sampler {of}, got {arguments.sampler}.")
    if "preconditioner" in given:
        given["preconditioner"] = {"identity": llc.Identity, "rmsprop": llc.RMSProp}[given["preconditioner"]]()
    stochastic = arguments.sampler in ("sgld", "sghmc", "sgnht")
    if stochastic or arguments.step_size is not None:
        given["step_size"] = arguments.step_size
    momentum = arguments.sampler in _OF_SAMPLER["friction"]
    if posterior.gamma is None or (stochastic and arguments.step_size is None) or momentum:
        num_steps = arguments.num_warmup + arguments.num_draws * arguments.thinning
        settings = llc.settings_from_curvature(posterior, llc.top_eigenvalue(posterior), num_steps)
        posterior = posterior.with_scale(gamma=settings.gamma)
        if stochastic and arguments.step_size is None:
            given["step_size"] = settings.step_size
        if momentum:
            given.setdefault("friction", 2 * (0.5 / settings.step_size) ** 0.5)  # 2 √(nβ h_max + γ)
    names = ("num_chains", "num_warmup", "num_draws", "thinning", "batch_size", "eval_size")
    names += ("chain_method", "keep_params")
    draws = llc.sample(
        jax.random.key(arguments.seed),
        posterior,
        getattr(llc, _SAMPLERS[arguments.sampler])(**given),
        **{name: getattr(arguments, name) for name in names},
    )
    if "curvature" in before:
        draws["curvature"] = before["curvature"]
    llc.save(draws, arguments.out)
    print(llc.report(draws))
    print(f"\nWritten to {arguments.out}.")
    return 0


def _bounds_flags(command: argparse.ArgumentParser) -> None:
    _posterior_flag(command)
    command.add_argument("--matrix", choices=("hessian", "ggn"), default="hessian")
    command.add_argument(
        "--method", choices=("auto", "dense", "gram", "range_finder", "sketch", "lanczos"), default="auto"
    )
    command.add_argument("--num-matvecs", type=int, help="Lanczos steps a probe; default: what resolves γ/nβ")
    command.add_argument("--num-probes", type=int, default=8)
    command.add_argument("--seed", type=int, default=0, help="of the probes")
    command.add_argument("--higher", action="store_true", help="add the bounds beyond the rank (dense, minutes)")
    command.add_argument("--nbeta", type=float, help="default: the posterior's (n / log n)")
    command.add_argument("--gamma", type=float, help="scale for λ_quad; default: the posterior's")
    command.add_argument("--out", type=Path, help="netCDF file to put the spectrum into (made, or added to)")


def _bounds(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.out)
    posterior = _load_posterior(arguments.posterior).with_scale(nbeta=arguments.nbeta, gamma=arguments.gamma)
    _kept(arguments.out, posterior, spectrum=False)  # refused before the work
    names = ("matrix", "method", "num_matvecs", "num_probes", "seed")
    spectrum = llc.spectrum(posterior, **{name: getattr(arguments, name) for name in names})
    scale = {} if posterior.gamma is None else {"nbeta": float(posterior.nbeta), "gamma": float(posterior.gamma)}
    bounds = llc.rank_bounds(spectrum, **scale)
    if arguments.higher:
        bounds = llc.higher_bounds(posterior, spectrum, bounds, key=jax.random.key(arguments.seed))
    print(bounds)
    if arguments.out is not None:
        _put_spectrum(arguments.out, posterior, spectrum, bounds)
        print(f"\nSpectrum{' and bounds' * arguments.higher} written to {arguments.out}.")
    return 0 if bounds.valid else 1


def _put_spectrum(path: Path, posterior: Any, spectrum: Any, bounds: Any = None) -> None:
    """Into the file's `curvature` group, with L(w*), by which a spectrum at another w* is told apart."""
    from llc.bounds import storage as beyond  # here, so that --help answers without it

    tree = _kept(path, posterior, spectrum=False)
    tree["curvature"] = xr.DataTree(beyond.to_dataset(spectrum, bounds))
    tree["curvature"].attrs["init_loss"] = posterior.init_loss()
    llc.save(tree, path)


def _kept(path: Path | None, posterior: Any, *, spectrum: bool) -> "xr.DataTree":
    """What stays of a file: its spectrum, or all else.

    Raises:
        ValueError: if that is of other parameters or another w*.
    """
    from llc.analysis import files  # here, so that --help answers without it

    tree = llc.load(path) if path is not None and path.exists() else xr.DataTree()
    for name in [name for name in tree.children if (name == "curvature") != spectrum]:
        del tree[name]
    written = {}
    if "curvature" in tree:
        attributes = tree["curvature"].attrs
        written = {"num_params": int(attributes["dim"]), "init_loss": float(attributes.get("init_loss", math.nan))}
    elif "constant_data" in tree:
        constants = tree["constant_data"].to_dataset()
        written = {"num_params": int(constants["num_params"]), "init_loss": float(constants["init_loss"])}
    here = {"num_params": posterior.num_params, "init_loss": posterior.init_loss()}
    if wrong := {name: value for name, value in written.items() if not files.same(value, here[name])}:
        what = "a spectrum" if spectrum else "draws"
        raise ValueError(
            f"{path} has {what} of another posterior, with {wrong} where this one has "
            f"{ {name: here[name] for name in wrong} }; remove it, or give another --out."
        )
    return tree


def _check_writable(*paths: Path | None) -> None:
    from llc.analysis import files  # here, so that --help answers without it

    files.check_writable(*paths)


def _report_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, help="netCDF file of llc sample, best with a spectrum of llc bounds")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.add_argument("--html", type=Path, help="write a self-contained page")
    command.add_argument("--figures", type=Path, help="folder for the figures (PNG)")


def _report(arguments: argparse.Namespace) -> int:
    _check_writable(arguments.html)
    report = llc.report(llc.load(arguments.file))
    print(report.to_json() if arguments.json else report)
    if arguments.html is not None:
        llc.save_html(report, arguments.html)
    if arguments.figures is not None:
        for path in llc.save_figures(report, arguments.figures):
            print(path, file=sys.stderr)
    return max(_EXIT[report.verdict], 1 if report.failed else 0)


def _posterior_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("posterior", metavar="FILE.py:NAME", help="a LocalPosterior, or a function that returns one")


def _load_posterior(name: str) -> Any:
    path, _, attribute = name.rpartition(":")
    file = Path(path)
    if not path or not attribute:
        raise ValueError(f"the posterior needs the form FILE.py:NAME, got {name!r}; for instance model.py:posterior.")
    if file.suffix != ".py" or not file.exists():
        reason = "which does not end in .py" if file.suffix != ".py" else "which does not exist"
        raise ValueError(f"the posterior needs a Python file, got {path!r}, {reason}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        raise ValueError(f"{path} needs a posterior called {attribute!r}; it has the functions {names}.")
    value = getattr(module, attribute)
    if callable(value) and not isinstance(value, llc.LocalPosterior):
        try:
            inspect.signature(value).bind()
        except TypeError as error:
            raise ValueError(f"{name} needs to be a function that can be called without arguments: {error}.") from error
        value = value()
    if not isinstance(value, llc.LocalPosterior):
        raise ValueError(f"{name} needs to be (or return) a LocalPosterior, got {type(value).__name__}.")
    return value
