"""A reference value of E[nβK] by long NUTS chains with control variates, and what it has to pass to be one."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax
from jaxtyping import PRNGKeyArray
from study import Row

import llc


@dataclass(frozen=True)
class ReferenceLengths:
    """How long a reference samples, and what it has to pass."""

    reference_warmup: int = 400
    reference_draws: int = 200  # a chain, the least
    reference_error: float = 0.02  # relative
    reference_virial: float = 0.03
    reference_rhat: float = 1.05


class Reference(NamedTuple):
    """E[nβK] by NUTS, with what it has to pass; `plain` without control variates."""

    value: float
    mcse: float
    plain: float
    plain_mcse: float
    virial: float
    rhat: float
    ess: float
    num_draws: int


def reference(
    key: PRNGKeyArray, posterior: llc.LocalPosterior, spectrum: llc.Spectrum | None, lengths: ReferenceLengths
) -> Reference:
    """E[nβK] by NUTS, with four times the draws again while its error is too large."""
    num_draws = lengths.reference_draws
    for attempt_key in jax.random.split(key, 4):
        draws = llc.sample(
            attempt_key,
            posterior,
            llc.NUTS(),
            num_warmup=lengths.reference_warmup,
            num_draws=num_draws,
            spectrum=spectrum,
            progress=False,
        )
        plain = llc.mean_energy(draws)
        energy = llc.best_energy(draws)
        if energy.mcse <= lengths.reference_error * energy.value:
            break
        num_draws *= 4
    virial = float(draws["sample_stats"].dataset["virial"].mean())
    return Reference(
        energy.value,
        energy.mcse,
        plain.value,
        plain.mcse,
        virial,
        plain.rhat,
        plain.ess,
        draws["posterior"].sizes["draw"],
    )


def committed(
    case: str, posterior: llc.LocalPosterior, settings: ReferenceLengths, same: Sequence[str], file: Path
) -> Reference | None:
    """The reference that an earlier run left in `file`, if it is of the same case, nβ, γ and settings.

    Args:
        case: name of the row.
        posterior: with γ.
        settings: of the study, a dataclass that may have more fields than the lengths.
        same: fields of the settings that have to agree with those of the earlier run.
        file: JSON of the study's results; it may be missing.
    """
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    row = next((row for row in record["rows"] if row["case"] == case and "reference_plain" in row), None)
    now = json.loads(json.dumps(asdict(settings)))
    if row is None or any(record["settings"].get(name) != now[name] for name in same):
        return None
    here = posterior.scale
    scales = (here.nbeta, row["nbeta"]), (here.gamma, row["gamma"])
    if not all(math.isclose(*pair, rel_tol=1e-6) for pair in scales):
        return None
    return Reference(**{name: row[f"reference_{name}"] for name in Reference._fields})


def kept(row: Row, settings: ReferenceLengths) -> bool:
    """Whether the row has a reference that passes."""
    if "reference_virial" not in row:
        return False
    error = math.hypot(row["reference_mcse"], row["reference_plain_mcse"])
    return (
        abs(row["reference_virial"] - 1) <= settings.reference_virial
        and row["reference_mcse"] <= settings.reference_error * row["reference_value"]
        and row["reference_rhat"] <= settings.reference_rhat
        and abs(row["reference_value"] - row["reference_plain"]) <= 4 * error
    )
