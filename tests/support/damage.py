"""Damage to files of draws: flipped bits, cut ends, and a structure that is not what it was."""

import io

import numpy as np
import xarray as xr

from tests.support.files import full_draws

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
VARIABLE_DAMAGE = {
    "dropped": lambda x, value: None,
    "renamed": lambda x, value: None,
    "text": lambda x, value: xr.Variable(x.dims, np.full(x.shape, "text")),
    "transposed": lambda x, value: x.transpose(),
    "other dimensions": lambda x, value: xr.Variable([f"other_{dim}" for dim in x.dims], x.values),
    "one more": lambda x, value: x.expand_dims("more"),
    "scalar": lambda x, value: xr.Variable((), value),
    "filled": lambda x, value: x.copy(data=np.full(x.shape, value)),
    "integers": lambda x, value: x.copy(data=np.zeros(x.shape, np.int8)),
    "empty": lambda x, value: xr.Variable(x.dims, np.zeros((0,) * x.ndim)) if x.ndim else x,
}


def flipped(content, places):
    """The bytes with one bit flipped at each (byte, bit); bytes count from the start, modulo the length."""
    damaged = bytearray(content)
    for byte, bit in places:
        damaged[byte % len(damaged)] ^= 1 << bit
    return bytes(damaged)


def damage_variable(tree, group, index, kind, value):
    """Changes variable number `index` (modulo how many there are) of a group."""
    node = tree[group].to_dataset(inherit=False)
    names = sorted(map(str, node.data_vars))
    if not names:
        return
    name = names[index % len(names)]
    changed = VARIABLE_DAMAGE[kind](node[name].variable, value)
    rest = {other: x.variable for other, x in node.data_vars.items() if other != name}
    if kind == "renamed":
        rest[f"{name}_other"] = node[name].variable
    if kind == "empty":
        rest = {}  # of other sizes
    if changed is not None:
        rest = {other: x for other, x in rest.items() if _fits(x, changed)}
        rest[name] = changed
    tree[group] = xr.DataTree(xr.Dataset(rest, attrs=node.attrs), children=tree[group].children)


def _fits(variable, other):
    return all(variable.sizes[dim] == other.sizes[dim] for dim in set(variable.dims) & set(other.dims))


def damage_attribute(tree, group, index, value):
    """Changes attribute number `index` of a group; None removes it."""
    attributes = tree[group].attrs
    name = sorted(attributes)[index % len(attributes)] if attributes else "settings"
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def foreign_bytes(tree):
    """The file as a program writes it that knows no checksums."""
    return bytes(tree.to_netcdf(engine="h5netcdf"))


FULL = full_draws()


def copy_of_full():
    """The draws of `FULL`, to be damaged."""
    return xr.open_datatree(io.BytesIO(_CONTENT), engine="h5netcdf").load()


_CONTENT = foreign_bytes(FULL)
