"""Where params and data lie: on one device, or spread over one mesh, so that one program can take them together."""

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree


def on_common_devices(center: PyTree, data: PyTree) -> tuple[PyTree, PyTree]:
    """Params and data where one program can take them together; what lies so already stays as it is.

    A mesh with explicit axes, JAX's default, becomes the same mesh with automatic ones: rows stay where they are, and
    functions need not say how their results are sharded. Arrays that are committed to different devices follow the
    largest one: onto its device, or copied to all devices of its mesh.
    """
    placed = [x for x in jax.tree.leaves((center, data)) if _is_committed(x)]
    if not placed:
        return center, data
    largest = max(placed, key=lambda x: (len(x.sharding.device_set), x.nbytes))
    target = _automatic(largest)
    elsewhere = NamedSharding(target.mesh, P()) if isinstance(target, NamedSharding) else target

    def place(x: jax.Array) -> jax.Array:
        if not _is_committed(x):
            return x
        same = x.sharding.device_set == largest.sharding.device_set
        return jax.device_put(x, _automatic(x) if same else elsewhere)

    return jax.tree.map(place, center), jax.tree.map(place, data)


def is_committed(tree: PyTree) -> bool:
    """Whether an array of `tree` is bound to devices, so that it can't follow others."""
    return any(_is_committed(x) for x in jax.tree.leaves(tree))


def _is_committed(x: object) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.committed


def _automatic(x: jax.Array) -> jax.sharding.Sharding:
    """The sharding of `x`, on a mesh without explicit axes."""
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return sharding
    mesh = sharding.mesh
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(automatic, sharding.spec)
