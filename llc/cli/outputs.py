"""What commands write: looked at before the work, and kept somewhere whatever happens after it."""

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

import llc
from llc.analysis import files, paths, schema, writing
from llc.bounds import storage

if TYPE_CHECKING:
    from llc.bounds.rank import Bounds
    from llc.bounds.scales import ScaleSpectrum
    from llc.bounds.spectral_measure import Spectrum
    from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.whole import loss_at_center

_STARTS = {"picture": (b"\x89png",), "page": (b"<!doctype html", b"<html")}  # of a file, in small letters


def check(
    *,
    out: Path | None = None,
    figure: Path | None = None,
    page: Path | None = None,
    folder: Path | None = None,
    reads: Sequence[Path] = (),
) -> None:
    """Refuses outputs that can't be written, or would replace each other, what is read, or another kind of file.

    Args:
        out: the file of draws.
        figure: a picture.
        page: in HTML.
        folder: that is written to.
        reads: files that the command reads.

    Raises:
        ValueError: naming the path.
    """
    writing.check_writable(out, figure, page)
    writing.check_folder(folder)
    for path in (path for path in (out, figure, page) if path is not None):
        if folder is not None and writing.same_file(path, folder):
            raise ValueError(f"{path} is given for a file and for a folder; give two paths.")
        if folder is not None and path.suffix == ".png" and writing.same_file(path.parent, folder):
            raise ValueError(f"{path} may be the name of a figure in the folder {folder}; give another path.")
        if any(writing.same_file(path, read) for read in reads):
            raise ValueError(f"{path} is what the command reads, and would be lost; give another path.")
    for path, kind in ((figure, "picture"), (page, "page")):
        if path is not None and _has_content(path):
            with paths.expand(path).open("rb") as file:
                start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
            if not start.startswith(_STARTS[kind]):
                raise ValueError(f"{path} is a file of another kind than a {kind}, and would be lost; move it.")


def check_draws(path: Path | None, posterior: "LocalPosterior | None", *, keeps: str | None) -> int | None:
    """Looks at a file of draws that a command will add to.

    Args:
        path: of the file.
        posterior: whose draws or spectrum come.
        keeps: `"spectrum"` or `"draws"`, what stays of the file; None replaces all of it.

    Returns:
        A fingerprint of the draws in it; None if there are none.

    Raises:
        ValueError: if it is not of this library, or what stays is of another posterior.
    """
    if path is None or not _has_content(path):
        return None
    tree = llc.load(path)
    _check_kept(path, tree, posterior, keeps)
    return _fingerprint(tree)


def _check_kept(path: Path, tree: xr.DataTree, posterior: "LocalPosterior | None", keeps: str | None) -> None:
    if not tree.children and not tree.data_vars:
        return
    if not schema.is_of_llc(tree):
        raise ValueError(
            f"{path} is a netCDF file of another program, with the groups {sorted(tree.children)}, which would be lost "
            "or mixed up; give another --out."
        )
    written = {}
    if keeps == "spectrum" and schema.CURVATURE in tree.children:
        attributes = tree[schema.CURVATURE].attrs
        written = {"num_params": int(attributes["dim"]), "init_loss": float(attributes.get("init_loss", math.nan))}
    elif keeps == "draws" and schema.CONSTANTS in tree.children:
        written = {name: schema.constant(tree, name) for name in (schema.NUM_PARAMS, schema.INIT_LOSS)}
    if not written or posterior is None:
        return
    here = {"num_params": posterior.num_params, "init_loss": loss_at_center(posterior)}
    if wrong := {name: value for name, value in written.items() if not files.same(value, here[name])}:
        what = "a spectrum" if keeps == "spectrum" else "draws"
        raise ValueError(
            f"{path} has {what} of another posterior, with {wrong} where "
            f"this one has { {name: here[name] for name in wrong} }; remove it, or give another --out."
        )


def _fingerprint(tree: xr.DataTree) -> int | None:
    if not schema.has(tree, schema.POSTERIOR, schema.ENERGY):
        return None
    return zlib.crc32(schema.variable(tree, schema.POSTERIOR, schema.ENERGY).tobytes())


def put_draws(path: Path, posterior: "LocalPosterior", draws: xr.DataTree, before: int | None) -> Path:
    """Writes draws beside the spectrum of a file, as it is now.

    Args:
        path: the file.
        posterior: of the draws.
        draws: that replace those in it.
        before: what `check_draws` returned; if the draws are others now, somebody else's run has written them.

    Returns:
        Where the draws are: another path where they would replace what came in the meantime, or can't be written.
    """

    def change(tree: xr.DataTree) -> xr.DataTree:
        _check_kept(path, tree, posterior, "spectrum")
        if _fingerprint(tree) not in (None, before):
            raise ValueError(f"{path} has got other draws in the meantime")
        both = draws.copy()
        if schema.CURVATURE in tree.children:
            both[schema.CURVATURE] = tree[schema.CURVATURE]
        return both

    return _written(path, change)


def put_beside(path: Path, draws: xr.DataTree) -> Path:
    """Writes draws that the store `path` has no room for to a file beside it, or in the temporary folder."""
    return _kept_elsewhere(path.with_suffix(".nc"), lambda _: draws)


def put_spectrum(
    path: Path,
    posterior: "LocalPosterior",
    spectrum: "Spectrum",
    bounds: "Bounds | None" = None,
    *,
    scales: "ScaleSpectrum | None" = None,
    replace: bool = True,
) -> Path:
    """Writes a spectrum into the file's `curvature` group, with L(w*), by which one at another w* is told apart.

    Args:
        path: the file, whose draws stay.
        posterior: of the spectrum.
        spectrum: to be written.
        bounds: that were found with it.
        scales: of the loss around w*, that go with it.
        replace: whether it replaces a spectrum that is there.

    Returns:
        Where it is, as of `put_draws`.
    """

    def change(tree: xr.DataTree) -> xr.DataTree:
        _check_kept(path, tree, posterior, "draws")
        if replace or schema.CURVATURE not in tree.children:
            tree[schema.CURVATURE] = xr.DataTree(storage.to_dataset(spectrum, bounds, scales))
            tree[schema.CURVATURE].attrs["init_loss"] = loss_at_center(posterior)
        return tree

    return _written(path, change)


def has_spectrum(path: Path) -> bool:
    """Whether a file is there and has a spectrum."""
    return _has_content(path) and schema.CURVATURE in llc.load(path).children


def _has_content(path: Path) -> bool:
    path = paths.expand(path)
    return path.is_file() and path.stat().st_size > 0


def _written(path: Path, change: Callable[[xr.DataTree], xr.DataTree]) -> Path:
    """Updates a file; where that fails after the work, its result goes beside the file or to the temporary folder."""
    try:
        files.update(path, change)
    except (ValueError, OSError) as error:
        reason = str(error if isinstance(error, ValueError) else error.strerror or error).rstrip(".")
        try:
            other = _kept_elsewhere(path, change)
        except OSError as second:
            raise ValueError(f"{reason}. What was computed is lost: {second.strerror or second}") from second
        raise ValueError(f"{reason}; what was computed is in {other}.") from error
    return path


def _kept_elsewhere(path: Path, change: Callable[[xr.DataTree], xr.DataTree]) -> Path:
    path = paths.expand(path)
    beside = next(
        p for i in range(2, 10**6) if not (p := path.with_name(f"{path.stem[:200]}-{i}{path.suffix}")).exists()
    )
    content = change(xr.DataTree())
    if path.exists() and not path.is_file():  # beside a device or a pipe is no place for files
        return files.save_elsewhere(content, f"{path.stem}.nc")
    try:
        files.save(content, beside)
    except OSError:
        return files.save_elsewhere(content, beside.name)
    return beside
