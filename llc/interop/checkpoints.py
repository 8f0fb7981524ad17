"""Parameters from files: npz, safetensors, orbax and `.eqx`, put into the pytree of a template.

A file has arrays by name, and a template has paths such as `layers.0.weight`: the two have to be the same set, with the
same shapes. (`.eqx` has no names, and is read in the order of the template's leaves.) Nothing here unpickles, since a
pickle runs code when it is opened.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from llc.analysis.paths import expand
from llc.analysis.text import one_line
from llc.analysis.writing import write_whole
from llc.posterior.arguments import require_type
from llc.posterior.mask import path_name

_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".npy")
_SHOWN = 6  # names in a message
_ROOT = "w"  # name of a template that is one array, as in draws


def load_params(path: str | Path, like: PyTree, *, prefix: str = "") -> PyTree:
    """The parameters of a file, in the structure of `like`; its leaves that are no arrays stay.

    Args:
        path: a `.npz`, `.safetensors` or `.eqx` file, or the folder of an orbax checkpoint. `.safetensors` needs
            `pip install 'llc[checkpoints]'`, and so does orbax.
        like: params of the same model, whose paths, shapes and dtypes the arrays take: `posterior.center`.
        prefix: the part of the file that has the params, such as `"params"` of a training state; only names below it
            are read. Not for `.eqx`, which has no names.

    Raises:
        ValueError: if a leaf is missing, is one too many, or has another shape, naming its path; or if the file is a
            pickle, or no checkpoint at all.
        FileNotFoundError: if there is no such file.
        ImportError: if the file's library is not installed.

    Example:
        >>> import tempfile
        >>> like = {"layer": {"weight": np.zeros((2, 3), np.float32)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/step_1.npz", **{"layer.weight": np.ones((2, 3), np.float32)})
        ...     load_params(f"{folder}/step_1.npz", like)["layer"]["weight"].sum().item()
        6.0
    """
    require_type("path", path, (str, Path), "the path of a file or folder")
    require_type("prefix", prefix, str, "the name of a part of the file")
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}.")
    reader = _reader(path)
    if reader is None:
        if prefix:
            raise ValueError(f"prefix needs a file with names, got {path}: a .eqx file has none; leave prefix out.")
        return _from_eqx(path, like)
    return _filled(reader(path), like, str(path), prefix)


def save_params(path: str | Path, params: PyTree) -> None:
    """Writes the arrays of `params` to a `.npz` file under their paths, as `load_params` reads them.

    Args:
        path: of the file, which is replaced; it needs to end in `.npz`.
        params: a pytree; its leaves that are no arrays are left out.

    Raises:
        ValueError: if the path does not end in `.npz`, or if params have no arrays, or one that is not of numbers.
    """
    path = expand(path)
    if path.suffix != ".npz":
        raise ValueError(f"save_params needs a path that ends in .npz, got {str(path)!r}.")
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_array))
    wrong = {path_name(where): str(leaf.dtype) for where, leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.number)}
    wrong = {name: dtype for name, dtype in wrong.items() if dtype != "bool"}
    if wrong or not leaves:
        raise ValueError(f"params need at least one array, and arrays of numbers only, got {wrong or 'none'}.")
    # NumPy has no bfloat16; float32 holds each of its numbers.
    arrays = {path_name(where) or _ROOT: np.asarray(_plain(leaf)) for where, leaf in leaves}
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(path, content.getvalue())


def _plain(leaf: Any) -> Any:
    return leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _reader(path: Path) -> Callable[[Path], dict[str, Any]] | None:
    """What reads the arrays of a file by name; None for `.eqx`."""
    if path.is_dir():
        return _from_orbax
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise ValueError(
            f"checkpoints need to be .npz, .safetensors, .eqx or a folder of orbax, got {path}: such a file is a "
            "pickle, which runs code when it is opened (or an array without a name). Write it as another one where it "
            "was made: llc.save_params(path, params), or safetensors.torch.save_file(model.state_dict(), path)."
        )
    readers = {".npz": _from_npz, ".safetensors": _from_safetensors, ".eqx": None}
    if suffix not in readers:
        raise ValueError(f"checkpoints need to be .npz, .safetensors, .eqx or a folder of orbax, got {path}.")
    return readers[suffix]


def _from_npz(path: Path) -> dict[str, Any]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise TypeError("it is one array without a name; take np.savez")
        with file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive raises whatever unpacking stumbles over
        raise ValueError(
            f"{path} needs to be a .npz file of arrays of numbers, but it can't be read: {one_line(str(error))}"
        ) from error
    if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{path} needs arrays only, but what it has as {_listed(others)} is none.")
    return arrays


def _from_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.flax import load_file  # an optional extra; it needs JAX only
    except ImportError as error:
        raise ImportError(_missing("safetensors", path)) from error
    try:
        return dict(load_file(str(path)))
    except Exception as error:  # its errors are a class of its own
        raise ValueError(f"{path} needs to be a .safetensors file, but it can't be read: {error}") from error


def _from_orbax(path: Path) -> dict[str, Any]:
    try:
        import orbax.checkpoint as ocp  # an optional extra
    except ImportError as error:
        raise ImportError(_missing("orbax-checkpoint", path)) from error
    folder = path / "default" if (path / "default").is_dir() else path  # of a CheckpointManager's step
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder.resolve())
    except Exception as error:  # orbax raises whatever it stumbles over
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path} needs to be an orbax checkpoint, but it can't be read: {reason}") from error
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    numbers = ((where, np.asarray(leaf)) for where, leaf in leaves if hasattr(leaf, "dtype") or isinstance(leaf, float))
    return {path_name(where): leaf for where, leaf in numbers}


def _missing(name: str, path: Path) -> str:
    return f"{path} needs {name}, which is not installed: pip install 'llc[checkpoints]'."


def _filled(arrays: Mapping[str, Any], like: PyTree, source: str, prefix: str) -> PyTree:
    """`like` with the arrays of a file in place of its own."""
    found = {name.replace("/", "."): array for name, array in arrays.items()}
    if prefix:
        start = prefix.replace("/", ".").rstrip(".") + "."
        found = {name.removeprefix(start): array for name, array in found.items() if name.startswith(start)}
    wanted = [path_name(w) or _ROOT for w, leaf in jax.tree_util.tree_leaves_with_path(like) if eqx.is_array(leaf)]
    normal = [name.replace("/", ".") for name in wanted]
    missing, extra = [n for n in normal if n not in found], [n for n in found if n not in set(normal)]
    if missing or extra:
        said = [f"{what}: {_listed(names)}" for what, names in (("missing", missing), ("too many", extra)) if names]
        raise ValueError(
            f"{source} needs an array for each leaf of params under its path and no others, but {'; '.join(said)}. "
            "Take the params of the same model; where they are a part of the file, give its name as prefix."
        )

    def take(where: tuple[Any, ...], leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        name = path_name(where) or _ROOT
        return _fitting(found[name.replace("/", ".")], leaf, name, source)

    return jax.tree_util.tree_map_with_path(take, like)


def _listed(names: list[str]) -> str:
    return ", ".join(map(one_line, names[:_SHOWN])) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )


def _fitting(array: Any, leaf: Any, name: str, source: str) -> Any:
    """An array in the dtype of the leaf that it replaces, if it has its shape and is of real numbers."""
    if np.shape(array) != np.shape(leaf):
        raise ValueError(
            f"{source} needs shape {np.shape(leaf)} at {name}, got {np.shape(array)}; is like of another model?"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{source} needs real floating-point numbers at {name}, got {array.dtype}.")
    return np.asarray(array).astype(leaf.dtype)


def _from_eqx(path: Path, like: PyTree) -> PyTree:
    """The leaves of `eqx.tree_serialise_leaves`, one after the other."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    filled, name = [], ""
    with path.open("rb") as file:
        for where, leaf in leaves:
            name = path_name(where) or _ROOT
            try:
                value = eqx.default_deserialise_filter_spec(file, leaf)
            except Exception as error:  # NumPy raises several kinds at the end of a file, or in the middle of another
                reason = f"it ends before {name}, or is none" if not file.read(1) else str(error).partition("\n")[0]
                raise ValueError(f"{path} needs to be the .eqx file of the same model at {name}: {reason}.") from error
            filled.append(_fitting(value, leaf, name, str(path)) if eqx.is_array(leaf) else value)
        if file.read(1):
            raise ValueError(f"{path} needs no leaf after {name}, the last of params, but has more; another model?")
    return jax.tree_util.tree_unflatten(structure, filled)
