"""What sampling refuses before anything compiles; the lengths of a run check themselves (run_lengths.py)."""

import contextlib
from collections.abc import Iterator

import jax

from llc.posterior.gradients import require_differentiable
from llc.posterior.keys import check_key as check_key
from llc.posterior.local_posterior import LocalPosterior
from llc.posterior.memory import require_memory
from llc.posterior.whole import with_whole
from llc.sampling.draws import parameter_name
from llc.sampling.kernel import Sampler
from llc.sampling.placement import on_device
from llc.sampling.run_lengths import RunLengths
from llc.sampling.step_energies import check_step_energies

_BYTES_OF_A_DRAW = 200  # of a chain: eleven numbers in float32, and in float64
_COPIES = 1.3  # of the params: what is recorded, and the buffers of a segment
CURE = "microbatch_size=… of LocalPosterior, a smaller batch_size, fewer num_chains, or chain_method='sequential'"
_BYTES_OF_A_ROW = 160  # of a chain: five blocks of three moments or more, on the host twice and once on the device


def ready_to_sample(
    posterior: LocalPosterior, sampler: Sampler, lengths: RunLengths, *, keep_params: bool
) -> LocalPosterior:
    """The posterior on the device, in JAX's precision; of a stream, with L(w*) and ∇L(w*) over all its rows."""
    ready = on_device(posterior)
    check_settings(ready, sampler, lengths, keep_params=keep_params)
    ready = ready if posterior.stream is None else on_device(with_whole(posterior))
    check_memory(ready, lengths, keep_params=keep_params)
    return ready


def check_settings(posterior: LocalPosterior, sampler: object, lengths: RunLengths, *, keep_params: bool) -> None:
    """Raises ValueError if a setting of `sample` is out of range or does not fit the sampler, naming it."""
    require_differentiable(posterior)
    posterior.check_precision()
    lengths.check_rows(posterior.num_data)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler needs to be a sampler, such as llc.SGLD(step_size) or llc.NUTS(), got {sampler!r}.")
    if sampler.needs_full_batch and lengths.batch_size not in (None, posterior.num_data):
        raise ValueError(
            f"{type(sampler).__name__} needs the full data, got batch_size = {lengths.batch_size}: its accept step is "
            "wrong on minibatches. Leave batch_size out, or take SGLD."
        )
    _check_params(posterior, sampler, keep_params=keep_params)
    if posterior.gamma is None:
        raise ValueError("sampling needs gamma, got None; give LocalPosterior(gamma=…), or let llc.estimate choose it.")
    if lengths.step_energies:
        check_step_energies(sampler)
    if getattr(sampler, "friction", 0.0) is None and posterior.scale.gamma == 0:
        raise ValueError(
            f"{type(sampler).__name__} takes its friction from gamma, which is 0, so that the momentum would "
            f"never be damped; give {type(sampler).__name__}(friction=…), or a gamma above 0."
        )


def check_memory(posterior: LocalPosterior, lengths: RunLengths, *, keep_params: bool) -> None:
    """Raises ValueError if the draws of a run do not fit in the memory that is free, naming the setting to change."""
    num_draws = lengths.num_chains * (lengths.num_warmup_draws + lengths.num_draws)
    position = jax.tree.leaves(posterior.position)
    statistics = num_draws * _BYTES_OF_A_DRAW
    require_memory(statistics, f"{num_draws:,} draws of num_chains · num_draws", "fewer num_draws or num_chains")
    if keep_params:
        params = num_draws * sum(leaf.nbytes for leaf in position)
        require_memory(
            int(_COPIES * params) + statistics,
            f"the params of {num_draws:,} draws, which keep_params keeps,",
            "keep_params=False, fewer num_draws, or a larger thinning",
        )
    size = posterior.num_data if lengths.eval_size is None else lengths.eval_size
    if posterior.per_example or size < posterior.num_data:
        require_memory(
            size * lengths.num_chains * _BYTES_OF_A_ROW,
            f"the moments of the losses of {size:,} rows in {lengths.num_chains} chains",
            "a smaller eval_size, fewer num_chains, or a loss_fn that returns the mean",
        )


@contextlib.contextmanager
def told_what_to_change() -> Iterator[None]:
    """A device that runs out of memory says which settings take less.

    Raises:
        MemoryError: where a compiled program finds too little.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"the device has too little memory for the chains; take {CURE}.") from error


def require_fine_params(posterior: LocalPosterior) -> None:
    """Raises ValueError if params that move are so coarse that a step would be lost in their rounding."""
    dtypes = _dtypes(posterior)
    if not set(dtypes) <= {"float32", "float64"}:
        raise ValueError(
            f"sampling needs params in float32 or float64, got {dtypes}: a step is smaller than the rounding of a "
            "coarser dtype. Cast the params, and cast them back inside of loss_fn if the model needs that."
        )


def _dtypes(posterior: LocalPosterior) -> list[str]:
    return sorted({str(leaf.dtype) for leaf in jax.tree.leaves(posterior.position)})


def _check_params(posterior: LocalPosterior, sampler: Sampler, *, keep_params: bool) -> None:
    require_fine_params(posterior)
    dtypes = _dtypes(posterior)
    default = str(jax.dtypes.canonicalize_dtype(float))
    if sampler.needs_full_batch and dtypes != [default]:
        raise ValueError(
            f"{type(sampler).__name__} needs params in JAX's default dtype {default}, got {dtypes}; "
            "cast them, or take SGLD."
        )
    names = [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(posterior.position)]
    if keep_params and len(set(names)) < len(names):
        raise ValueError(f"keep_params needs params with different paths, got {sorted(names)}; rename some of them.")
