"""Where chains and data lie: side by side in one program, one after the other, or spread over devices."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray, PyTree

from llc.posterior.arguments import require_option
from llc.posterior.gradients import gradient_bytes
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.loss import has_slow_convolutions
from llc.posterior.memory import free_memory
from llc.posterior.placement import is_committed
from llc.posterior.rows import num_rows
from llc.sampling.dispatch import num_cores
from llc.sampling.run_lengths import RunLengths

CHAIN, DATA = "chain", "data"  # axes of a mesh
_CHAIN_METHODS = ("auto", "vectorized", "sequential", "parallel")
# On two idle cores, two chains at once (dispatch.py) take .5 to .75 of the time of vmap on networks of 7,510 to 9,986
# parameters, and on smaller ones whose steps are costly: .5 on a recurrent one of 1,968, whose gradient keeps 7.7 MB
# alive, .5 on a graph network of 3,072 (1 MB). Below, vmap is as fast (2,410 parameters, .75 MB) or faster (460, .28).
# On busy cores vmap is faster up to 20,000 parameters (validation/results/chain_methods.txt). Convolutions of several
# chains are one in groups, which is slower: 42 ms a step of a residual network with 16 channels against 35.
_SEQUENTIAL_PARAMS, _SEQUENTIAL_BYTES = 5_000, 850_000
# Copies of 10⁸ params in float32 at the peak of SGLD, seen from outside (validation/memory.py): 7.1 for one chain and
# 13.1 for four one after the other, whose states wait; side by side 6.4 a chain. w* is one of them.
_SIDE_BY_SIDE, _RUNNING, _WAITING = 7, 6, 2
_SHARE = 0.8  # of the free memory


def choose_devices(
    mesh: Mesh | None, chain_method: str, posterior: LocalPosterior, lengths: RunLengths
) -> tuple[Mesh | None, str]:
    """The mesh that chains are spread over, None on one device, and the method by which they run.

    Raises:
        ValueError: if mesh, method, chains, rows and memory do not fit each other.
    """
    if mesh is not None:
        return checked_mesh(mesh, lengths, chain_method, posterior.num_data), "parallel"
    method = choose_method(chain_method, posterior, lengths)
    return mesh_of(method, lengths.num_chains), method


def choose_method(chain_method: str, posterior: LocalPosterior, lengths: RunLengths) -> str:
    """`chain_method`, or the fastest one for `"auto"`.

    Args:
        chain_method: of `llc.sample`.
        posterior: on a CPU its size and cost decide; one that is bound to devices is not spread over others.
        lengths: `num_chains` has to be a multiple of the number of devices for `"parallel"`.

    Raises:
        ValueError: if the method is unknown or does not fit the devices or their memory.
    """
    require_option("chain_method", chain_method, _CHAIN_METHODS)
    devices, num_chains = jax.device_count(), lengths.num_chains
    if chain_method == "parallel" and (devices < 2 or num_chains % devices):
        raise ValueError(
            "chain_method 'parallel' needs at least 2 devices and num_chains a multiple of them, "
            f"got {devices} devices and {num_chains} chains; "
            "take 'vectorized', or numpyro.set_host_device_count before JAX starts."
        )
    if chain_method != "auto":
        return chain_method
    if devices > 1 and num_chains % devices == 0 and not is_committed(posterior):
        return "parallel"
    apart = jax.default_backend() == "cpu" and _is_costly(posterior, lengths)
    fastest = "sequential" if apart else "vectorized"
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(posterior.position))
    return method_that_fits(fastest, num_bytes, num_chains, _free_memory())


def _is_costly(posterior: LocalPosterior, lengths: RunLengths) -> bool:
    """Whether a step is so costly that chains are faster with a program each."""
    if posterior.num_params > _SEQUENTIAL_PARAMS or has_slow_convolutions(posterior.loss_fn):
        return True
    rows = min(lengths.batch_size or posterior.num_data, num_rows(posterior.data))
    return gradient_bytes(posterior, rows) > _SEQUENTIAL_BYTES


def method_that_fits(fastest: str, num_bytes: int, num_chains: int, free: float) -> str:
    """The fastest method, or chains one after the other where side by side they would not fit in memory.

    Args:
        fastest: `"vectorized"` or `"sequential"`.
        num_bytes: of the params that move.
        num_chains: all of them.
        free: bytes that are free where chains run.

    Raises:
        ValueError: if not even one after the other they fit.
    """
    if fastest == "vectorized" and _SIDE_BY_SIDE * num_chains * num_bytes <= _SHARE * free:
        return fastest
    if (needed := (_RUNNING + _WAITING * num_chains) * num_bytes) > _SHARE * free:
        raise ValueError(
            f"num_chains = {num_chains} need {needed / 2**30:.2g} GiB of memory even one after the other, got "
            f"{free / 2**30:.2g} free; take fewer num_chains, a mask that moves fewer params, or a mesh of devices."
        )
    return "sequential"


def programs_at_once(method: str, posterior: LocalPosterior, num_chains: int) -> int:
    """Chains that can run at once on the cores of a CPU, where each has a program of its own; 1 elsewhere."""
    meshed = not jax.sharding.get_abstract_mesh().empty  # a mesh of the caller's belongs to its thread
    if method != "sequential" or jax.default_backend() != "cpu" or meshed:
        return 1
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(posterior.position))
    return most_at_once(num_bytes, num_chains, _free_memory(), num_cores())


def most_at_once(num_bytes: int, num_chains: int, free: float, num_cores: int) -> int:
    """Chains with a program each that can run at once: one a core, as far as memory allows.

    Args:
        num_bytes: of the params that move.
        num_chains: all of them.
        free: bytes that are free where chains run.
        num_cores: that may be used.
    """
    fitting = (_SHARE * free / max(num_bytes, 1) - _WAITING * num_chains) // _RUNNING
    return int(max(1, min(num_cores, num_chains, fitting)))


def _free_memory() -> float:
    """Free bytes of the device that chains run on."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free_memory()


def checked_mesh(mesh: Mesh, lengths: RunLengths, chain_method: str, num_data: int) -> Mesh:
    """The mesh with automatic axes, so that functions need not say how their results are sharded.

    Raises:
        ValueError: if it has no axis called "chain", or chains or rows can't be spread over it evenly.
    """
    if not isinstance(mesh, Mesh) or CHAIN not in mesh.axis_names:
        got = mesh.axis_names if isinstance(mesh, Mesh) else type(mesh).__name__
        raise ValueError(
            f"mesh needs to be a jax.sharding.Mesh with an axis 'chain' (and 'data', to spread rows), got {got}; "
            "jax.make_mesh((8, 1), ('chain', 'data')), for instance."
        )
    if chain_method not in ("auto", "parallel"):
        raise ValueError(f"mesh needs chain_method 'auto' or 'parallel', got {chain_method!r}; leave it out.")
    rows = ("num_data", num_data) if lengths.batch_size is None else ("batch_size", lengths.batch_size)
    for axis, name, number in ((CHAIN, "num_chains", lengths.num_chains), (DATA, *rows)):
        if number % (size := mesh.shape.get(axis, 1)):
            raise ValueError(
                f"{name} needs to be a multiple of the mesh's {size} devices along {axis!r}, got {number}; change "
                f"{name}, or make that axis of the mesh smaller."
            )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def mesh_of(method: str, num_chains: int) -> Mesh | None:
    """A mesh of as many devices as chains can be spread over evenly; None where they are not spread."""
    if method != "parallel":
        return None
    return jax.make_mesh((math.gcd(num_chains, jax.device_count()),), (CHAIN,), axis_types=(AxisType.Auto,))


def place_keys(key: PRNGKeyArray, num_chains: int, method: str, mesh: Mesh | None) -> list[Array]:
    """A key for every chain: all of them in one array where chains run side by side, else an array each."""
    keys = jax.random.split(key, num_chains)
    if method == "sequential":
        return list(keys)
    if mesh is not None:
        # In a program: device_put does not put keys on the devices of other hosts.
        keys = jax.jit(lambda: jax.random.split(key, num_chains), out_shardings=NamedSharding(mesh, P(CHAIN)))()
    return [keys]


def place_posterior(posterior: LocalPosterior, mesh: Mesh | None, *, spread_rows: bool) -> LocalPosterior:
    """The posterior where chains run, which is every device of the mesh.

    Args:
        posterior: params that are spread over other axes of the mesh than "chain" stay so.
        mesh: of `checked_mesh` or `mesh_of`; None leaves everything where it is.
        spread_rows: whether every step takes all rows, so that each device along "data" needs only its own.
    """
    if mesh is None:
        return posterior
    rows = P(DATA) if spread_rows and DATA in mesh.axis_names else P()

    def put(leaf: PyTree, spec: P) -> PyTree:
        if not eqx.is_array(leaf):
            return leaf
        own = getattr(getattr(leaf, "sharding", None), "spec", P())
        names = {name for part in own if part is not None for name in ((part,) if isinstance(part, str) else part)}
        stays = bool(names) and names <= set(mesh.axis_names) - {CHAIN}
        return jax.device_put(leaf, NamedSharding(mesh, own if stays else spec))

    placed = jax.tree.map(lambda leaf: put(leaf, P()), eqx.tree_at(lambda p: p.data, posterior, None))
    data = jax.tree.map(lambda leaf: put(leaf, rows), posterior.data)
    return eqx.tree_at(lambda p: p.data, placed, data, is_leaf=lambda x: x is None)


def over_chains[**Args, Result](
    fn: Callable[Args, Result], *, vectorize: bool, mesh: Mesh | None
) -> Callable[Args, Result]:
    """`fn` of one chain, for all that a program runs: each device has its own ones, and no word of the others."""
    if not vectorize:
        return fn
    together = jax.vmap(fn)
    if mesh is None:
        return together
    return jax.shard_map(
        together, mesh=mesh, in_specs=P(CHAIN), out_specs=P(CHAIN), axis_names=frozenset({CHAIN}), check_vma=False
    )


def split_rows(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """A minibatch, of which each device along "data" takes its part; within `over_chains`."""
    if mesh is None or DATA not in mesh.axis_names:
        return batch
    return jax.lax.with_sharding_constraint(batch, P(DATA))


def to_host(tree: PyTree) -> PyTree:
    """`tree` as NumPy arrays; of what lies on other hosts each host gets a copy."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)):
        return jax.device_get(tree)
    return process_allgather(tree, tiled=True)


def agreed(number: int) -> int:
    """The first host's `number`, on all of them: what hangs on time has to be the same everywhere."""
    return number if jax.process_count() == 1 else int(broadcast_one_to_all(np.int32(number)))


def on_device(tree: PyTree) -> PyTree:
    """`tree` with its arrays on the device, moved once instead of in every segment."""
    arrays, rest = eqx.partition(tree, lambda x: eqx.is_array(x) and getattr(x, "is_fully_addressable", True))
    return eqx.combine(jax.device_put(arrays), rest)
