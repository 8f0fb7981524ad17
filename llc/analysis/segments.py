"""Draws in segments: taken apart into what every draw has of its own and what is one for all, and put together."""

from collections.abc import Sequence

import xarray as xr


def split(tree: xr.DataTree) -> tuple[xr.DataTree, xr.DataTree]:
    """What every draw has of its own, and what is one for all."""
    draws, head = {}, {}
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        own = [name for name, x in dataset.variables.items() if "draw" in x.dims]
        rest = dataset.drop_vars([*own, *(["chain"] if own and "chain" in dataset.coords else [])])
        if own:
            draws[node.path] = dataset[[name for name in own if name not in dataset.coords]]
        if rest.variables or not own:
            head[node.path] = rest
    return xr.DataTree.from_dict(draws), xr.DataTree.from_dict(head)


def join(parts: Sequence[xr.DataTree]) -> xr.DataTree:
    """Draws of one run one after the other; of what is one for all, the last."""
    groups: dict[str, list[xr.Dataset]] = {}
    for part in parts:
        for node in part.subtree:
            groups.setdefault(node.path, []).append(node.to_dataset(inherit=False))
    return xr.DataTree.from_dict({path: _joined(datasets) for path, datasets in groups.items()})


def _joined(datasets: list[xr.Dataset]) -> xr.Dataset:
    draws = [dataset for dataset in datasets if "draw" in dataset.dims]
    heads = [dataset.drop_dims("draw", errors="ignore") for dataset in datasets if dataset.variables or dataset.attrs]
    attributes = {name: value for dataset in datasets for name, value in dataset.attrs.items()}
    if draws:
        whole = draws[0]
        if len(draws) > 1:
            whole = xr.concat(draws, "draw", data_vars="minimal", coords="minimal", compat="override", join="override")
        heads = [whole.assign_coords(draw=range(whole.sizes["draw"])), *heads]
    merged = heads[0] if heads else xr.Dataset()
    for head in heads[1:]:
        merged = merged.assign(head.data_vars).assign_coords(head.coords)
    merged.attrs = attributes
    return merged
