"""Where chains and data lie: side by side in one program, one after the other, or spread over devices."""

import math

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray, PyTree

from llc.posterior.arguments import require_option
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.placement import is_committed

_CHAIN_METHODS = ("auto", "vectorized", "sequential", "parallel")
# On a CPU vmap is faster by 1.2–1.6 up to 5,000 parameters, chains one by one by 1.7 at 270,000, and in between the two
# differ little; with an accept step neither is ahead (validation/results/chain_methods.txt).
_SEQUENTIAL_PARAMS = 20_000


def choose_method(chain_method: str, posterior: LocalPosterior, num_chains: int) -> str:
    """`chain_method`, or the fastest one for `"auto"`.

    Args:
        chain_method: of `llc.sample`.
        posterior: its number of parameters decides on a CPU; one that is bound to devices is not spread over others.
        num_chains: has to be a multiple of the number of devices for `"parallel"`.

    Raises:
        ValueError: if the method is unknown or does not fit the devices.
    """
    require_option("chain_method", chain_method, _CHAIN_METHODS)
    devices = jax.device_count()
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
    small = posterior.num_params <= _SEQUENTIAL_PARAMS
    return "vectorized" if small or jax.default_backend() != "cpu" else "sequential"


def place_keys(key: PRNGKeyArray, num_chains: int, method: str) -> list[Array]:
    """A key for every chain: all of them in one array where chains run side by side, else an array each."""
    keys = jax.random.split(key, num_chains)
    if method == "sequential":
        return list(keys)
    if method == "parallel":
        keys = jax.device_put(keys, NamedSharding(_mesh(num_chains), P("chain")))
    return [keys]


def place_posterior(posterior: LocalPosterior, num_chains: int, method: str) -> LocalPosterior:
    """The posterior where chains run: on every device if they are spread over all and it is bound to some."""
    if method != "parallel" or not is_committed(posterior):
        return posterior
    arrays, rest = eqx.partition(posterior, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(_mesh(num_chains), P())), rest)


def _mesh(num_chains: int) -> Mesh:
    return jax.make_mesh((math.gcd(num_chains, jax.device_count()),), ("chain",), axis_types=(AxisType.Auto,))


def on_device(tree: PyTree) -> PyTree:
    """`tree` with its arrays on the device, moved once instead of in every segment."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays), rest)
