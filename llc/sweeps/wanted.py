"""What a sweep was asked for: its items, its reference and its settings, as one record."""

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from llc.sampling.draws import describe
from llc.sampling.kernel import Sampler
from llc.sampling.run_lengths import RequestedLengths
from llc.sweeps.items import Item
from llc.sweeps.plan import Calibrated
from llc.sweeps.store import RESERVED


@dataclass(frozen=True)
class Wanted:
    """What a sweep was asked for.

    Attributes:
        items: in order.
        reference: the name of one, or None.
        calibration: `"shared"` or `"each"`.
        sampler: that was given, or None.
        nbeta: that was given, or None.
        gamma: that was given, or None.
        asked: the lengths.
    """

    items: tuple[Item, ...]
    reference: str | None
    calibration: Calibrated
    sampler: Sampler | None
    nbeta: float | None
    gamma: float | None
    asked: RequestedLengths

    def __post_init__(self) -> None:
        names = [item.name for item in self.items]
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference needs the name of an item, one of {names}, got {self.reference!r}.")
        if taken := [name for name in names if name in RESERVED]:
            raise ValueError(f"items need other names than {taken}, which the sweep's own files have.")
        own = {float(item.template.gamma) for item in self.items if item.template.gamma is not None}
        if len(own) > 1 and self.gamma is None:
            raise ValueError(
                f"posteriors need one gamma, as λ̂ at different ones can't be compared, got {sorted(own)}; give "
                "gamma=…, or settings={name: {'gamma': …}} where scales are what you compare."
            )

    def item(self, name: str | None) -> Item:
        """An item by name, the last one without."""
        return next((item for item in self.items if item.name == name), self.items[-1])

    def identity(self, key: PRNGKeyArray) -> dict[str, Any]:
        """All settings that decide the numbers, as plain data."""
        template = self.items[-1].template
        return {
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "loss_fn": getattr(template.loss_fn, "fingerprint", ""),
            "data": _checksum(template.data),
            "calibration": self.calibration,
            "sampler": None if self.sampler is None else describe(self.sampler),
            "nbeta": self.nbeta,
            "gamma": self.gamma,
            **asdict(self.asked),
        }


def _checksum(data: PyTree) -> str:
    value = 0
    for leaf in jax.tree.leaves(data):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
        value = zlib.crc32(array.tobytes(), zlib.crc32(repr(array.shape).encode(), value))
    return f"{value:08x}"
