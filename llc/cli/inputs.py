"""What commands read and keep: the posterior of a Python file, and what stays of a netCDF file."""

import ast
import importlib.util
import inspect
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import lazy_loader

import llc

if TYPE_CHECKING:
    import xarray as xr

    from llc.bounds.rank import Bounds
    from llc.bounds.spectral_measure import Spectrum
    from llc.posterior.local_posterior import LocalPosterior
else:  # --help answers without it
    xr = lazy_loader.load("xarray")


def load_posterior(name: str) -> "LocalPosterior":
    """The posterior `FILE.py:NAME`; the file is executed.

    Raises:
        ValueError: if there is no such file or name, or it is no posterior.
    """
    path, _, attribute = name.rpartition(":")
    if not path or not attribute:
        raise ValueError(f"the posterior needs the form FILE.py:NAME, got {name!r}; for instance model.py:posterior.")
    module = _execute(Path(path))
    if not hasattr(module, attribute):
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
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


def _execute(file: Path) -> ModuleType:
    """The file as a module, with its own folder on the path, as `python FILE.py` would have it."""
    if file.suffix != ".py" or not file.exists():
        reason = "which does not end in .py" if file.suffix != ".py" else "which does not exist"
        raise ValueError(f"the posterior needs a Python file, got {str(file)!r}, {reason}.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def kept(path: Path | None, posterior: "LocalPosterior", *, spectrum: bool) -> "xr.DataTree":
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


def put_spectrum(path: Path, posterior: "LocalPosterior", spectrum: "Spectrum", bounds: "Bounds | None" = None) -> None:
    """Into the file's `curvature` group, with L(w*), by which a spectrum at another w* is told apart."""
    from llc.bounds import storage as beyond  # here, so that --help answers without it

    tree = kept(path, posterior, spectrum=False)
    tree["curvature"] = xr.DataTree(beyond.to_dataset(spectrum, bounds))
    tree["curvature"].attrs["init_loss"] = posterior.init_loss()
    llc.save(tree, path)


def check_writable(*paths: Path | None) -> None:
    """Raises ValueError if a file can't be written there, before the work."""
    from llc.analysis import files  # here, so that --help answers without it

    files.check_writable(*paths)
