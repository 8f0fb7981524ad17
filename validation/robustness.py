"""A soak: random cases of four kinds until the time is over, each right, refused by name, or something else.

- values: E[nβ(L(w) − L(w*))] of random posteriors against exact values (robustness_values.py);
- arguments: a wrong value for a random argument of a random public function (robustness_arguments.py);
- files: damaged files of draws (robustness_files.py);
- kills: `llc sample` and `llc bounds`, stopped at a random moment (robustness_kills.py).

Targets: nothing else than right and refused; of the mean energies with a definite verdict, 95 ± 4 % of the 95 %
intervals contain the exact value (λ̂ itself has control variates: on a quadratic its error bounds the rounding, and
covers more often). A case is repeated from its kind and number: `--only values --first 17 --cases 1`.

    python validation/robustness.py --minutes 20
"""

import argparse
import datetime
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import robustness_arguments
import robustness_files
import robustness_kills
import robustness_values
from robustness_outcome import Outcome
from study import commit, versions

from llc.analysis.writing import write_whole

SHARES = {"values": 0.5, "arguments": 0.1, "files": 0.15, "kills": 0.25}  # of the time
REPEATS = 8  # posteriors of one structure: they share what was compiled
CALLS, DAMAGES = 20, 5  # in a row
PROGRAMS = 40  # structures after which programs are dropped, or the process would hold too many memory maps
WIDTH = robustness_values.WIDTH

Case = tuple[str, Outcome]


def values(rng: np.random.Generator) -> Iterator[Case]:
    """Posteriors of one structure."""
    yield from robustness_values.check(rng, REPEATS)


def arguments(rng: np.random.Generator) -> Iterator[Case]:
    """Wrong arguments."""
    calls = list(robustness_arguments.calls())
    for index in rng.integers(0, len(calls), CALLS):
        yield calls[index].function, robustness_arguments.outcome(calls[index])


def damages(rng: np.random.Generator) -> Iterator[Case]:
    """Damaged files."""
    for _ in range(DAMAGES):
        yield robustness_files.check(rng, robustness_files.full())


def kills(rng: np.random.Generator) -> Iterator[Case]:
    """A command that is stopped."""
    yield robustness_kills.check(rng)


KINDS: dict[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "values": values,
    "arguments": arguments,
    "files": damages,
    "kills": kills,
}


def main() -> None:
    """Runs, prints, writes."""
    given, code = _arguments(), commit()
    jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation
    rows = list(soak(given.minutes, given.seed, given.only, given.first, given.cases))
    record = summary(rows) | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": given.minutes,
        "seed": given.seed,
        "load": round(os.getloadavg()[2], 1),
        "commit": code,
        "versions": versions(),
    }
    text = table(record)
    print(text)
    if given.out is not None:
        write_whole(given.out / "robustness.json", (json.dumps(record, indent=1) + "\n").encode())
        write_whole(given.out / "robustness.txt", (text + "\n").encode())
    raise SystemExit(bool(record["others"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="when no new case begins any more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS), nargs="*", default=list(KINDS), help="kinds of cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--cases", type=int, help="draws of cases, at most")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of robustness.json and .txt; default: none")
    return parser.parse_args()


def soak(
    minutes: float, seed: int, only: Sequence[str], first: int = 0, most: int | None = None
) -> Iterator[tuple[str, str, Outcome]]:
    """Kind, part and outcome of random cases; the kind that is furthest behind its share of the time comes next."""
    end = time.monotonic() + 60 * minutes
    spent, numbers = dict.fromkeys(only, 0.0), {kind: itertools.count(first) for kind in only}
    for done in itertools.count():
        if time.monotonic() > end or (most is not None and done >= most):
            return
        kind = min(only, key=lambda kind: spent[kind] / SHARES[kind])
        number, begin = next(numbers[kind]), time.monotonic()
        for part, outcome in KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind), number])):
            if outcome.kind == "other":
                print(f"{kind} {number}, {part}: {outcome.detail}", flush=True)
            yield kind, part, outcome
        spent[kind] += time.monotonic() - begin
        if kind == "values" and number % PROGRAMS == PROGRAMS - 1:
            jax.clear_caches()


def summary(rows: Sequence[tuple[str, str, Outcome]]) -> dict[str, Any]:
    """Counts of each kind and part, coverage, and all that is neither right nor refused."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for kind, part, outcome in rows:
        parts = counts.setdefault(kind, {})
        for name in ("all", part):
            row = parts.setdefault(name, {"cases": 0, "right": 0, "refused": 0, "other": 0})
            row["cases"] += 1
            row[outcome.kind] += 1
    definite = [outcome for _, _, outcome in rows if outcome.z is not None]
    found = {
        name: [abs(getattr(outcome, field) or 0.0) for outcome in definite]
        for name, field in (("λ̂", "z"), ("mean energy", "of_energy"))
    }
    coverage = {
        name: {"intervals": len(z), "covered": float(np.mean(np.array(z) <= WIDTH)), "largest": max(z)}
        for name, z in found.items()
        if z
    }
    others = [f"{kind}, {part}: {outcome.detail}" for kind, part, outcome in rows if outcome.kind == "other"]
    return {"counts": counts, "coverage": coverage, "others": others}


def table(record: dict[str, Any]) -> str:
    """The counts as text."""
    lines = [f"{'':30} {'cases':>6} {'right':>6} {'refused by name':>16} {'others':>7}"]
    for kind, parts in record["counts"].items():
        for part, row in parts.items() if kind != "arguments" else [("all", parts["all"])]:
            name = kind if part == "all" else f"  {part}"
            lines.append(f"{name:30} {row['cases']:6} {row['right']:6} {row['refused']:16} {row['other']:7}")
    for name, row in record["coverage"].items():
        share, largest = f"{row['covered']:.1%}", f"{row['largest']:.2f}"
        lines.append(f"{name}: {share} of {row['intervals']} 95 % intervals cover, largest |z| {largest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
