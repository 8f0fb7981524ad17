"""What commands read: the posterior of a Python file, which is executed."""

import ast
import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import llc
from llc.analysis.paths import expand
from llc.cli.terminal import streams

if TYPE_CHECKING:
    from llc.posterior.local_posterior import LocalPosterior

_OWN = "__executed_by_llc__"  # marks the modules that were made here


def model_file(name: str) -> Path:
    """The file of `FILE.py:NAME`, as far as there is one."""
    return expand(_split(name)[0], "the posterior")


def _split(name: str) -> tuple[str, str]:
    path, _, attribute = name.rpartition(":")
    if not path or not attribute:
        raise ValueError(f"the posterior needs the form FILE.py:NAME, got {name!r}; for instance model.py:posterior.")
    return path, attribute


class Model(NamedTuple):
    """What a model file has: the posterior, and what is to be recorded of its draws (its variable `observables`)."""

    posterior: "LocalPosterior"
    observables: Mapping[str, Any] | None


def load_posterior(name: str) -> "LocalPosterior":
    """The posterior `FILE.py:NAME`; the file is executed.

    Raises:
        ValueError: as of `load_model`.
    """
    return load_model(name).posterior


def load_model(name: str) -> Model:
    """The posterior `FILE.py:NAME` and the file's `observables`; the file is executed.

    Raises:
        ValueError: if there is no such file or name, or it is no posterior.
    """
    path, attribute = _split(name)
    file = expand(path, "the posterior").absolute()
    with _kept_surroundings():
        return _model(file, attribute, name)


@contextlib.contextmanager
def _kept_surroundings() -> Iterator[None]:
    """What a model's file prints is no output of the command, and where it goes is not where the command writes."""
    with contextlib.ExitStack() as stack:
        stack.callback(streams.reopen)
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(sys.stderr))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError):  # the folder may be gone
            stack.enter_context(contextlib.chdir(Path.cwd()))
        yield


def _model(file: Path, attribute: str, name: str) -> Model:
    module = _execute(file)
    if not hasattr(module, attribute):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        raise ValueError(f"{file} needs a posterior called {attribute!r}; it has the functions {names}.")
    value = getattr(module, attribute)
    if callable(value) and not isinstance(value, llc.LocalPosterior):
        try:
            inspect.signature(value).bind()
        except TypeError as error:
            raise ValueError(f"{name} needs to be a function that can be called without arguments: {error}.") from error
        value = value()
    if not isinstance(value, llc.LocalPosterior):
        raise ValueError(f"{name} needs to be (or return) a LocalPosterior, got {type(value).__name__}.")
    return Model(value, getattr(module, "observables", None))


def _execute(file: Path) -> ModuleType:
    """The file as a module, with its own folder on the path, as `python FILE.py` would have it."""
    if file.suffix != ".py" or not file.is_file():
        reason = "which does not exist" if not file.exists() else "which is a folder"
        reason = "which does not end in .py" if file.suffix != ".py" else reason
        raise ValueError(f"the posterior needs a Python file, got {str(file)!r}, {reason}.")
    # Dataclasses, pickles and annotations look a module up by its name; one that is taken, as json, stays what it is.
    taken = file.stem in sys.modules and not hasattr(sys.modules[file.stem], _OWN)
    name = f"_model_{file.stem}" if taken else file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    setattr(module, _OWN, True)
    sys.path.insert(0, str(file.parent.resolve()))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
