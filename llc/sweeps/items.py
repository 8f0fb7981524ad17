"""The items of a sweep: which posterior each is, made only when it is run, so that checkpoints need not fit in memory.

An item is a template with another w* (of an array or a file), another mask, or other settings; or a posterior of its
own. All products of checkpoints, masks and settings are items, those of one mask and setting one after the other.
"""

import itertools
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from llc.interop.checkpoints import load_params
from llc.posterior.arguments import require_flag, require_integer, require_number, require_type
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.mask import normalize_mask
from llc.posterior.validation import check_center, check_finite
from llc.sampling.kernel import Sampler

LENGTHS = ("num_warmup", "num_draws", "thinning", "batch_size", "eval_size", "step_energies")  # an item's own
SETTINGS = ("nbeta", "gamma", "sampler", *LENGTHS)
_FORBIDDEN = re.compile(r"[^\w.+=@, -]|^[. ]|[. ]$")  # in a name, which is that of a file and of a group too
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Item:
    """One posterior of a sweep.

    Attributes:
        name: by which results, files and failures are called.
        template: loss, data and what else is the same for all items.
        params: w* of this item, or the file that has it; None takes the template's.
        prefix: of the params in that file.
        mask: which parameters move; None takes the template's.
        settings: what is another than in the rest of the sweep.
        labels: the names of its checkpoint, mask and settings, as far as there are such.
    """

    name: str
    template: LocalPosterior
    params: PyTree = None
    prefix: str = ""
    mask: PyTree = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def posterior(self) -> LocalPosterior:
        """Its posterior.

        Raises:
            ValueError: if its params or its mask are not those of the template's model, or its loss is not finite.
        """
        posterior = self.unchecked_posterior()
        check_finite(posterior.position)
        if not math.isfinite(loss := posterior.init_loss()):
            raise ValueError(f"item {self.name!r} needs a finite loss at its w*, got {loss}.")
        return posterior

    def unchecked_posterior(self) -> LocalPosterior:
        """The same, with nothing computed: neither params nor loss need to be finite."""
        posterior = self.template
        if self.params is not None:
            posterior = _recentered(posterior, self.params, self.name, self.prefix)
        if self.mask is not None:
            mask = normalize_mask(self.mask, posterior.center)
            posterior = eqx.tree_at(lambda p: p.mask, posterior, mask, is_leaf=lambda x: x is None)
        return posterior


def digest(posterior: LocalPosterior) -> str:
    """Of w* and of what moves: another checkpoint of the same name has another one."""
    value = 0
    for leaf in jax.tree.leaves((posterior.center, posterior.mask)):
        if eqx.is_array(leaf) or isinstance(leaf, bool):
            value = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).tobytes(), value)
    return f"{value:08x}"


def make_items(
    posteriors: LocalPosterior | Sequence[LocalPosterior] | Mapping[str, LocalPosterior],
    *,
    checkpoints: Mapping[str, PyTree] | Sequence[PyTree] | None = None,
    masks: Mapping[str, PyTree] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    prefix: str = "",
) -> tuple[Item, ...]:
    """All items, in order.

    Args:
        posteriors: as of `llc.sweep`.
        checkpoints: as of `llc.sweep`.
        masks: as of `llc.sweep`.
        settings: as of `llc.sweep`.
        prefix: as of `llc.load_params`.

    Raises:
        ValueError: if there are none, two have one name, or one has settings that a sweep does not know.
    """
    points = _points(posteriors, checkpoints, prefix)
    _check_mapping("masks", masks, "pytrees or paths, such as {'attention': 'blocks.*.attn'}")
    _check_mapping("settings", settings, "settings, such as {'hot': {'nbeta': 10.0}}")
    kinds = itertools.product((masks or {"": None}).items(), (settings or {"": _NOTHING}).items())
    several = masks is not None or settings is not None
    items = []
    for (mask_name, mask), (setting, values) in kinds:
        _check_settings(setting, values, min(point.template.num_data for point in points))
        for point in points:
            _check_mask(mask_name, mask, point.template)
            names = [point.name if checkpoints is not None or not isinstance(posteriors, LocalPosterior) else ""]
            labels = {"mask": mask_name} if masks is not None else {}
            labels |= {"setting": setting} if settings is not None else {}
            name = ", ".join(filter(None, [*names, mask_name, setting])) if several else point.name
            items.append(
                Item(name, point.template, point.params, prefix, mask, dict(values), {"point": point.name} | labels)
            )
    _check_names([item.name for item in items])
    return tuple(items)


def _points(posteriors: Any, checkpoints: Any, prefix: str) -> list[Item]:
    """The posteriors before masks and settings."""
    if isinstance(posteriors, LocalPosterior):
        if checkpoints is None:
            return [Item("center", posteriors)]
        named = checkpoints_by_name(checkpoints)
        if not named:
            raise ValueError("checkpoints need at least one, got none.")
        if empty := [name for name, params in named.items() if params is None]:
            raise ValueError(f"checkpoints need params or a file by name, got None for {empty}.")
        return [Item(name, posteriors, params, prefix) for name, params in named.items()]
    if checkpoints is not None:
        raise ValueError("checkpoints need one posterior as their template, got several; give the one or the others.")
    if not isinstance(posteriors, Mapping | Sequence) or not posteriors:
        raise ValueError(
            "posteriors need to be an llc.LocalPosterior (a template for checkpoints, masks or settings), or a list or "
            f"dict of them, got {type(posteriors).__name__}."
        )
    named = posteriors if isinstance(posteriors, Mapping) else {str(i): p for i, p in enumerate(posteriors)}
    for name, posterior in named.items():
        require_type(f"posteriors[{name!r}]", posterior, LocalPosterior, "an llc.LocalPosterior")
    return [Item(str(name), posterior) for name, posterior in named.items()]


def checkpoints_by_name(checkpoints: Any) -> dict[str, Any]:
    """Checkpoints by name: those of a dict, or the names of files, or numbers.

    Args:
        checkpoints: as of `llc.sweep`.
    """
    if isinstance(checkpoints, Mapping):
        return {str(name): params for name, params in checkpoints.items()}
    if isinstance(checkpoints, str | Path) or not isinstance(checkpoints, Sequence):
        raise ValueError(
            "checkpoints need a dict by name, or a list of files or params, got "
            f"{type(checkpoints).__name__}; of a pattern take sorted(glob.glob(…)), or `llc sweep`."
        )
    if checkpoints and all(isinstance(x, str | Path) for x in checkpoints):
        paths = [Path(x) for x in checkpoints]
        return dict(zip(_names_of(paths), paths, strict=True))
    return {str(i): params for i, params in enumerate(checkpoints)}


def in_natural_order(paths: Sequence[Path]) -> list[Path]:
    """Paths with the numbers in them in order of size: step_9 before step_10."""

    def parts(path: Path) -> list[tuple[int, int, str]]:
        pieces = re.split(r"(\d+)", str(path))
        return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]

    return sorted(paths, key=parts)


def step_of(name: str) -> float:
    """The last number in a name, by which a training run is plotted; nan where there is none."""
    numbers = re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", name)
    return float(numbers[-1]) if numbers else math.nan


def _names_of(paths: list[Path]) -> list[str]:
    """The files' names without their endings, with as many folders before them as tell them apart."""
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["-".join([*path.parts[-depth:-1], path.stem if path.suffix else path.name]) for path in paths]
        if len(set(names)) == len(names):
            break
    else:
        names = [str(path) for path in paths]
    return [_FORBIDDEN.sub("_", name) for name in names]


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    wrong = [name for name in names if not name or _FORBIDDEN.search(name)]
    if twice or wrong:
        raise ValueError(
            "the items of a sweep need different names of letters, digits and .+=@,_- (they are those of files), got "
            f"{twice or wrong}."
        )


def _check_mapping(name: str, value: Any, what: str) -> None:
    if value is not None and not (isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value)):
        raise ValueError(f"{name} needs a dict from names to {what}, got {type(value).__name__}.")


def _check_settings(name: str, values: Any, num_data: int) -> None:
    got = sorted(set(values) - set(SETTINGS)) if isinstance(values, Mapping) else type(values).__name__
    if got:
        raise ValueError(f"settings[{name!r}] needs a dict with some of {SETTINGS}, got {got}.")
    for key, value in values.items():
        label = f"settings[{name!r}][{key!r}]"
        if key in ("nbeta", "gamma"):
            require_number(label, value, strict=key == "nbeta", optional=True)
        elif key == "sampler":
            require_type(label, value, Sampler, "a sampler, such as llc.NUTS()")
        elif key == "step_energies":
            require_flag(label, value)
        else:
            rows = key in ("batch_size", "eval_size")
            most = num_data if rows else 2**31 - 1
            require_integer(label, value, least=int(key != "num_warmup"), most=most, optional=rows)


def _check_mask(name: str, mask: PyTree, template: LocalPosterior) -> None:
    try:
        normalize_mask(mask, template.center)
    except ValueError as error:
        raise ValueError(f"masks[{name!r}] needs to be a mask of the params: {error}") from error


def _recentered(template: LocalPosterior, params: PyTree, name: str, prefix: str) -> LocalPosterior:
    """The template around other params of the same structure and shapes."""
    if isinstance(params, str | Path):
        params = load_params(params, template.center, prefix=prefix)
    check_center(params)
    here, there = (jax.tree_util.tree_leaves_with_path(x) for x in (template.center, params))
    same = jax.tree.structure(template.center) == jax.tree.structure(params)
    wrong = [jax.tree_util.keystr(w) for (w, a), (_, b) in zip(here, there, strict=False) if np.shape(a) != np.shape(b)]
    if not same or wrong:
        where = f"other shapes at {wrong[:6]}" if same else "another structure"
        raise ValueError(f"checkpoint {name!r} needs params like those of the template, got {where}.")
    like = jax.tree.map(lambda a, b: np.asarray(b).astype(a.dtype) if eqx.is_array(a) else b, template.center, params)
    return eqx.tree_at(lambda p: p.center, template, like)
