"""Settings of `sample`: what is refused before anything compiles, and how chains are run side by side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.draws import parameter_name
from llc.sampling.kernel import Sampler

_CHAIN_METHODS = ("auto", "vectorized", "sequential", "parallel")
# On a CPU vmap is faster by 1.2–1.6 up to 5,000 parameters, chains one by one by 1.7 at 270,000, and little tells them
# apart between; with an accept step neither is ahead (validation/results/chain_methods.txt).
_SEQUENTIAL_PARAMS = 20_000


def check_key(key: Any) -> None:
    """Raises ValueError if `key` is not one."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    legacy = dtype == np.uint32 and shape == jax.random.key_data(jax.random.key(0)).shape
    if not (typed or legacy):
        raise ValueError(f"key needs to be jax.random.key(seed), got {key!r}.")


def check_lengths(posterior: LocalPosterior, lengths: dict[str, Any], rows: dict[str, Any]) -> None:
    """Raises ValueError if a length of a run or a number of rows is out of range, naming it."""
    if not isinstance(posterior, LocalPosterior):
        raise ValueError(f"posterior needs to be an llc.LocalPosterior, got {type(posterior).__name__}.")
    for name, value in lengths.items():
        least = 0 if name == "num_warmup" else 1
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} needs an integer >= {least}, got {value!r}.")
    for name, value in rows.items():
        if value is not None and not (isinstance(value, (int, np.integer)) and 1 <= value <= posterior.num_data):
            raise ValueError(
                f"{name} needs an integer from 1 to n = {posterior.num_data}, got {value!r}; None takes all the data."
            )


def check_settings(
    posterior, sampler, num_chains, num_warmup, num_draws, thinning, batch_size, eval_size, keep_params
) -> None:
    """Raises ValueError if a setting of `sample` is out of range or does not fit the sampler, naming it."""
    lengths = {"num_chains": num_chains, "num_warmup": num_warmup, "num_draws": num_draws, "thinning": thinning}
    check_lengths(posterior, lengths, {"batch_size": batch_size, "eval_size": eval_size})
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler needs to be one, such as llc.SGLD(step_size) or llc.NUTS(), got {sampler!r}.")
    if sampler.needs_full_batch and batch_size not in (None, posterior.num_data):
        raise ValueError(
            f"{type(sampler).__name__} needs the full data, got batch_size = {batch_size}: its accept step is wrong on "
            "minibatches. Leave batch_size out, or take SGLD."
        )
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(posterior.position)})
    if not set(dtypes) <= {"float32", "float64"}:
        raise ValueError(
            f"sampling needs params in float32 or float64, got {dtypes}: a step is smaller than the rounding of less. "
            "Cast the params, and back inside of loss_fn if the model wants it."
        )
    default = str(jnp.result_type(float))
    if sampler.needs_full_batch and dtypes != [default]:
        raise ValueError(
            f"{type(sampler).__name__} needs params in JAX's default dtype {default}, got {dtypes}; "
            "cast them, or take SGLD."
        )
    names = [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(posterior.position)]
    if keep_params and len(set(names)) < len(names):
        raise ValueError(f"keep_params needs params with different paths, got {sorted(names)}; rename some of them.")
    if posterior.gamma is None:
        raise ValueError("sampling needs gamma, got None; give LocalPosterior(gamma=…), or let llc.estimate choose it.")
    if getattr(sampler, "friction", 0.0) is None and float(posterior.gamma) == 0:
        raise ValueError(
            f"{type(sampler).__name__} takes its friction from gamma, which is 0, so that nothing would ever be "
            f"damped; give {type(sampler).__name__}(friction=…), or a gamma above 0."
        )


def choose_method(chain_method: str, posterior: LocalPosterior, num_chains: int) -> str:
    """`chain_method`, or the fastest one for `"auto"`; ValueError if it is unknown or does not fit the devices."""
    if chain_method not in _CHAIN_METHODS:
        raise ValueError(f"chain_method needs one of {_CHAIN_METHODS}, got {chain_method!r}.")
    devices = jax.device_count()
    if chain_method == "parallel" and (devices < 2 or num_chains % devices):
        raise ValueError(
            "chain_method 'parallel' needs at least 2 devices and num_chains a multiple of them, "
            f"got {devices} devices and {num_chains} chains; "
            "take 'vectorized', or numpyro.set_host_device_count before JAX starts."
        )
    if chain_method != "auto":
        return chain_method
    if devices > 1 and num_chains % devices == 0:
        return "parallel"
    small = posterior.num_params <= _SEQUENTIAL_PARAMS
    return "vectorized" if small or jax.default_backend() != "cpu" else "sequential"
