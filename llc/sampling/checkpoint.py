"""What chains need to go on in another process: their states as arrays, and the settings that decide their bits.

Keys need no state of their own: step number k of a chain takes its key with k folded in (`loop`), so that the run's key
and the number of draws that are done say all. Nothing is pickled: states are stored leaf by leaf and put back into the
structure that the same settings make.
"""

import contextlib
import hashlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from types import FrameType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import PyTree

from llc.analysis.stored_run import StoredRun
from llc.bounds.spectral_measure import Spectrum
from llc.posterior.local_posterior import LocalPosterior
from llc.sampling.draws import Sums, describe
from llc.sampling.kernel import Sampler
from llc.sampling.observables import Recorded
from llc.sampling.run_lengths import RunLengths
from llc.sampling.standing import Standing

_WRITING, _LOST = 0.05, 0.02  # most shares of a run's time that writing takes, and that a kill loses
_LARGE = 2**20  # bytes of a leaf that is an array of its own
_FEW_ROWS = 64  # on which the loss near w* is compared


class Keeper:
    """Keeps chains on the disk: now and then while they run, and when they stop.

    Args:
        run: the folder of the run.
        settings: of `deciding_settings`.

    Raises:
        ValueError: if the run is there with other settings, or runs on several hosts.
    """

    def __init__(self, run: StoredRun, settings: dict[str, Any]) -> None:
        if jax.process_count() > 1:
            raise ValueError(
                f"store needs a run of one process, got {jax.process_count()}; leave store out, and llc.save the draws "
                "of the first process at the end."
            )
        self.run, self.manifest = run, run.open(settings)
        self.begin = self.last = time.monotonic()
        self.cost = 0.0  # seconds of the last writing
        self.stored = self.manifest.done
        self._before: xr.DataTree | None = None

    @property
    def asked(self) -> int:
        """Draws after the warm-up that the run was asked for."""
        return self.manifest.asked

    def resumed(self, standing: Standing, *, vectorize: bool) -> Standing:
        """Where the run stood at its last checkpoint; `standing`, at w*, where it has none.

        Args:
            standing: of chains at w*.
            vectorize: whether programs have an axis of chains.
        """
        if not self.manifest.checkpoints:
            return standing
        point, recorder = self.manifest.checkpoints[-1], standing.recorder
        numbers = point.numbers["blocks"]
        block = _host(standing.moments, vectorize=vectorize)
        like = (standing.states, standing.moments, [block] * len(numbers), np.zeros(point.numbers["num_chains"]))
        states, moments, blocks, last = _unpacked(like, self.run.state().to_dataset())
        recorder.end = recorder.offset = point.done
        recorder.before = last.astype(point.numbers["dtype"])
        recorder.num_draws, recorder.num_blocks = point.numbers["num_draws"], point.numbers["num_blocks"]
        recorder.moments = dict(zip(numbers, blocks, strict=True))
        recorder.counts = dict(zip(numbers, point.numbers["counts"], strict=True))
        return Standing(states, moments, recorder, point.done)

    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""
        now = time.monotonic()
        pause = max(self.run.seconds, self.cost / _WRITING, _LOST * (now - self.begin)) if self.run.seconds else 0.0
        return now - self.last >= pause

    def keep(self, standing: Standing, tree: xr.DataTree) -> None:
        """Writes a checkpoint.

        Args:
            standing: of the chains.
            tree: of the recorder's draws since the last checkpoint.
        """
        begin = time.monotonic()
        recorder = standing.recorder
        blocks, last = sorted(recorder.moments), recorder.last_deltas
        numbers = {
            "num_draws": recorder.num_draws,
            "num_blocks": recorder.num_blocks,
            "num_chains": len(last),
            "dtype": str(last.dtype),
            "blocks": blocks,
            "counts": [recorder.counts[number] for number in blocks],
        }
        moments = [recorder.moments[number] for number in blocks]
        state = _packed((standing.states, standing.moments, moments, last.astype(np.float64)))
        self.run.append(standing.done, tree, xr.DataTree(state), numbers)
        self.stored, self.last = standing.done, time.monotonic()
        self.cost = self.last - begin

    def draws(self) -> xr.DataTree:
        """The draws that were there when the run was opened."""
        if self._before is None:
            self._before = self.run.first_draws(self.manifest.done)
        return self._before


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, unless the program has a handler of its own for it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def deciding_settings(
    key: jax.Array,
    posterior: LocalPosterior,
    sampler: Sampler,
    lengths: RunLengths,
    *,
    spectrum: Spectrum | None,
    method: str,
    keep_params: bool,
    observables: Mapping[str, Recorded],
) -> dict[str, Any]:
    """Everything that the bits of a run's draws rest on, but for their number, as plain data."""
    near = jax.tree.map(lambda x: 1.01 * x + 0.01, posterior.position)
    moved = eqx.tree_at(lambda p: p.center, posterior, posterior.params_at(near))
    rows = np.arange(min(_FEW_ROWS, posterior.resident().num_data))
    versions = {f"version of {name}": version(name) for name in ("llc", "jax", "jaxlib", "numpyro")}
    return {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "loss at w*": repr(posterior.init_loss()),
        "loss near w*": repr(moved.init_loss(rows)),
        "num_params": posterior.num_params,
        "num_data": posterior.num_data,
        "params": _digest(posterior.center),
        "data": _digest(posterior.data),
        "mask": _digest(posterior.mask),
        "nbeta": posterior.scale.nbeta,
        "gamma": posterior.scale.gamma,
        **_flat("sampler", describe(sampler)),
        "arrays of the sampler": _digest([leaf for leaf in jax.tree.leaves(sampler) if np.size(leaf) > 1]),
        "spectrum": None if spectrum is None else _digest((spectrum.vectors, spectrum.nodes)),
        "num_chains": lengths.num_chains,
        "num_warmup": lengths.num_warmup,
        "thinning": lengths.thinning,
        "batch_size": lengths.batch_size,
        "eval_size": lengths.eval_size,
        **({"step_energies": True} if lengths.step_energies else {}),
        "keep_params": keep_params,
        **{f"observable {name}": _digest_of(one) for name, one in sorted(observables.items())},
        "chain_method": method,
        "jax_enable_x64": bool(jax.config.jax_enable_x64),
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "device": jax.devices()[0].device_kind,
        **versions,
    }


def _digest_of(observable: Recorded) -> str:
    """Of the function's program, its data, and what is kept of it."""
    kept = (observable.fn.fingerprint, *observable.dims, *observable.partners, observable.moments)
    return _digest((*kept, observable.rows, observable.center))


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {inner: x for key, item in value.items() for inner, x in _flat(f"{name}.{key}", item).items()}


def _digest(tree: PyTree) -> str:
    """Of the arrays and numbers of a pytree, and where they stand in it."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            array = _plain(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
        else:
            shown = repr(leaf) if isinstance(leaf, (bool, int, float, str)) else type(leaf).__name__
            digest.update(f"{jax.tree_util.keystr(path)} {shown}".encode())
    return digest.hexdigest()


def _plain(leaf: Any) -> np.ndarray:
    """An array of numbers that every file format has: keys as their integers, bfloat16 as its bits."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(jax.device_get(leaf))
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _host(moments: list[Sums], *, vectorize: bool) -> Sums:
    """Zeros like the sums of a block on the host, of the chains of all programs."""

    def joined(*parts: jax.Array) -> np.ndarray:
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:]) if vectorize else (len(parts), *parts[0].shape)
        return np.zeros(shape, parts[0].dtype)

    return jax.tree.map(joined, *moments)


def _packed(tree: PyTree) -> xr.Dataset:
    """The leaves one after the other: small ones in one array, as each array takes files of its own."""
    arrays = [_plain(leaf) for leaf in jax.tree.leaves(tree)]
    small = [np.frombuffer(x.tobytes(), np.uint8) for x in arrays if x.nbytes < _LARGE]
    large = {f"leaf_{i}": x for i, x in enumerate(arrays) if x.nbytes >= _LARGE}
    variables = {name: ([f"{name}_{axis}" for axis in range(x.ndim)], x) for name, x in large.items()}
    return xr.Dataset({"small": ("byte", np.concatenate([np.zeros(0, np.uint8), *small])), **variables})


def _unpacked(like: PyTree, dataset: xr.Dataset) -> PyTree:
    """The stored arrays in the structure, the types and the places of `like`."""
    leaves, structure = jax.tree.flatten(like)
    small, start, arrays = dataset["small"].to_numpy(), 0, []
    for i, leaf in enumerate(leaves):
        plain = _plain(leaf)
        if plain.nbytes >= _LARGE:
            arrays.append(_placed(dataset[f"leaf_{i}"].to_numpy(), leaf))
            continue
        content = small[start : start + plain.nbytes].tobytes()
        start += plain.nbytes
        arrays.append(_placed(np.frombuffer(content, plain.dtype).reshape(plain.shape), leaf))
    return jax.tree.unflatten(structure, arrays)


def _placed(array: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return array
    where = like.sharding if like.committed else None
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like)), where)
    return jax.device_put(array if array.dtype == like.dtype else array.view(like.dtype), where)
