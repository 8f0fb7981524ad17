"""Damaged files: flipped bits, cut ends, and a structure that is not what it was.

Every file is read and reported on: the outcome is the report of the whole file, another report that a reader would
expect of what is there (of a foreign file, without checksums), or a `ValueError` in one line that names the file.
Nothing else may be raised, and no escape of a terminal may come through.
"""

import functools
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from robustness_outcome import Outcome

import llc
from llc.analysis import files
from llc.bounds.storage import to_dataset

NAME = "run.nc"
GROUPS = (
    "posterior",
    "sample_stats",
    "warmup_posterior",
    "warmup_sample_stats",
    "constant_data",
    "pointwise",
    "curvature",
    "localized/posterior",
    "localized/sample_stats",
    "localized/constant_data",
)
NUMBERS = (0.0, -1.0, np.nan, np.inf, 1e300, 0.5, 7.0)
TEXTS = (
    "",
    "null",
    "[]",
    "{}",
    "3",
    '{"sampler": null}',
    '{"sampler": {"name": 3}}',
    '{"sampler": {"name": "SGLD"}}',
    '{"sampler": {"name": "SGLD", "preconditioner": [], "step_size": "x", "integrator": 1}}',
    '{"sampler": {"name": "NUTS"}, "thinning": "$\\\\frac$"}',
    '{"records": 3, "assumptions": []}',
    '{"records": [{"status": 1}], "assumptions": [{"name": "$x$", "holds": "yes", "message": "\\u001b[2J"}]}',
    "[" * 100_000,
    "\x1b[31m red \x9b2J $\\frac{$",
)
VARIABLE_DAMAGE: Mapping[str, Callable[[xr.Variable, float], xr.Variable | None]] = {
    "dropped": lambda x, value: None,  # noqa: ARG005
    "renamed": lambda x, value: None,  # noqa: ARG005
    "text": lambda x, value: xr.Variable(x.dims, np.full(x.shape, "text")),  # noqa: ARG005
    "transposed": lambda x, value: x.transpose(),  # noqa: ARG005
    "other dimensions": lambda x, value: xr.Variable([f"other_{dim}" for dim in x.dims], x.values),  # noqa: ARG005
    "one more": lambda x, value: x.expand_dims("more"),  # noqa: ARG005
    "scalar": lambda x, value: xr.Variable((), value),  # noqa: ARG005
    "filled": lambda x, value: x.copy(data=np.full(x.shape, value)),
    "integers": lambda x, value: x.copy(data=np.zeros(x.shape, np.int8)),  # noqa: ARG005
    "empty": lambda x, value: xr.Variable(x.dims, np.zeros((0,) * x.ndim)) if x.ndim else x,  # noqa: ARG005
}


class Whole(NamedTuple):
    """A file before it is damaged.

    Attributes:
        content: as `llc.save` writes it.
        foreign: as a program writes it that knows no checksums.
        report: on it, as JSON.
    """

    content: bytes
    foreign: bytes
    report: str

    def tree(self) -> xr.DataTree:
        """A copy, to be damaged."""
        with xr.open_datatree(io.BytesIO(self.foreign), engine="h5netcdf") as opened:
            return opened.load()


def whole(draws: xr.DataTree) -> Whole:
    """The file of some draws."""
    content = files.to_bytes(draws)
    return Whole(content, foreign_bytes(draws), llc.report(files.from_bytes(content, NAME)).to_json())


def damaged(rng: np.random.Generator, of: Whole) -> tuple[str, bytes]:
    """A kind of damage, and a file that has it."""
    kind = str(rng.choice(["flipped bits", "cut", "variable", "attribute", "group", "several"]))
    if kind == "flipped bits":
        places = [(int(rng.integers(0, 2**20)), int(rng.integers(0, 8))) for _ in range(rng.integers(1, 9))]
        return kind, flipped(of.content, places)
    if kind == "cut":
        end, tail = int(rng.integers(0, len(of.content))), [b"", b"\0" * 999, b"text"][rng.integers(0, 3)]
        return kind, of.content[:end] + tail
    tree = of.tree()
    if kind in ("variable", "several"):
        place = str(rng.choice(GROUPS)), int(rng.integers(0, 12)), str(rng.choice(sorted(VARIABLE_DAMAGE)))
        damage_variable(tree, *place, float(rng.choice(NUMBERS)))
    if kind in ("attribute", "several"):
        values = [None, *TEXTS, *NUMBERS, ["a", "b"]]
        place = str(rng.choice(["/", "curvature", "localized"])), int(rng.integers(0, 14))
        damage_attribute(tree, *place, values[rng.integers(0, len(values))])
    if kind in ("group", "several"):
        parent, _, name = str(rng.choice(GROUPS)).rpartition("/")
        if rng.random() < 0.5:
            del tree[parent or "/"][name]
        else:
            tree[f"{parent}/{name}"] = xr.DataTree()
    return kind, foreign_bytes(tree)


def outcome(content: bytes, whole: str) -> Outcome:
    """What `llc` makes of a file.

    Args:
        content: of the file.
        whole: the report of the file before it was damaged, as JSON; empty where others may come of it.
    """
    try:
        report = llc.report(files.from_bytes(content, NAME))
        text = f"{report}{report.to_json()}"
    except ValueError as error:
        named = str(error).startswith(NAME) or "draws" in str(error)
        text, kind = str(error), "refused" if named and "\n" not in str(error) else "other"
    except Exception as error:
        return Outcome("other", f"{type(error).__name__}: {error}"[:300])
    else:
        kind = "right" if not whole or report.to_json() == whole else "other"
    if {"\x1b", "\x9b"} & set(text):
        return Outcome("other", "an escape came through")
    return Outcome(kind, text[:300])


def check(rng: np.random.Generator, of: Whole) -> tuple[str, Outcome]:
    """One random damage, and what came of it."""
    kind, content = damaged(rng, of)
    return kind, outcome(content, of.report if kind in ("flipped bits", "cut") else "")


def flipped(content: bytes, places: list[tuple[int, int]]) -> bytes:
    """The bytes with one bit flipped at each (byte, bit); bytes count from the start, modulo the length."""
    changed = bytearray(content)
    for byte, bit in places:
        changed[byte % len(changed)] ^= 1 << bit
    return bytes(changed)


def damage_variable(tree: xr.DataTree, group: str, index: int, kind: str, value: float) -> None:
    """Changes variable number `index` (modulo how many there are) of a group."""
    node = tree[group].to_dataset(inherit=False)
    names = sorted(map(str, node.data_vars))
    if not names:
        return
    name = names[index % len(names)]
    changed = VARIABLE_DAMAGE[kind](node[name].variable, value)
    rest = {str(other): x.variable for other, x in node.data_vars.items() if other != name}
    if kind == "renamed":
        rest[f"{name}_other"] = node[name].variable
    if kind == "empty":
        rest = {}  # of other sizes
    if changed is not None:
        rest = {other: x for other, x in rest.items() if _fits(x, changed)}
        rest[name] = changed
    tree[group] = xr.DataTree(xr.Dataset(rest, attrs=node.attrs), children=dict(tree[group].children))


def _fits(variable: xr.Variable, other: xr.Variable) -> bool:
    return all(variable.sizes[dim] == other.sizes[dim] for dim in set(variable.dims) & set(other.dims))


def damage_attribute(tree: xr.DataTree, group: str, index: int, value: object) -> None:
    """Changes attribute number `index` of a group; None removes it."""
    attributes = tree[group].attrs
    name = sorted(attributes)[index % len(attributes)] if attributes else "settings"
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def foreign_bytes(tree: xr.DataTree) -> bytes:
    """The file as a program writes it that knows no checksums."""
    with warnings.catch_warnings(action="ignore"):  # of what the damage is
        return bytes(tree.to_netcdf(engine="h5netcdf"))


@functools.cache
def full() -> Whole:
    """A file with everything that one can have."""
    data = np.ones(6, np.float32)
    posterior = llc.LocalPosterior(_loss, jnp.zeros(2), data, nbeta=100.0, gamma=1.0)
    spectrum = llc.spectrum(posterior)
    bounds = llc.higher_bounds(posterior, spectrum, key=jax.random.key(1), progress=False)
    lengths: dict[str, Any] = {"num_chains": 2, "num_warmup": 9, "num_draws": 30, "progress": False}
    draws, localized = (
        llc.sample(jax.random.key(2), p, llc.SGLD(0.01), spectrum=spectrum, **lengths)
        for p in (posterior, posterior.with_scale(gamma=3.0))
    )
    draws["curvature"] = xr.DataTree(to_dataset(spectrum, bounds))
    draws["curvature"].attrs["init_loss"] = posterior.init_loss()
    draws["localized"] = localized
    draws.attrs["calibration"] = "gamma 1.5  chosen"
    return whole(draws)


def _loss(params: Any, batch: Any) -> jax.Array:
    return 0.5 * (batch * params[0]) ** 2 + 0.25 * params[1] ** 4
