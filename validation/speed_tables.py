"""The tables that speed.py prints."""

import itertools
import statistics
from typing import Any


def print_throughput(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints rates and ratios; returns the ratios."""
    ratios = []
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        group = list(group)
        peers = [row["rates"] for row in group if row["tool"] not in {"llc", "scan"}]
        scans = [row["rates"] for row in group if row["tool"] == "scan"]
        print(f"{model}, {group[0]['num_params']:,} parameters: total chain-steps a second, median (range)\n")
        print(_HEAD.format("", "rate", "others", "compile", "traces", "/ usual", "/ fastest", "/ no noise"))
        for row in group:
            cells = [f"{row['tool']:17}{row['variant']}", spread(row["rates"], 0), mean_share(row["others"])]
            if row["tool"] == "llc":
                cells += [f"{row['compile_seconds'][0]:.1f} s", "{}, {}".format(*row["traces"])]
                found = _ratios(row["rates"], peers, scans[-1])
                ratios.append({"model": model, "variant": row["variant"], **found})
                cells += [spread(found[name], 2) if name in found else "" for name in ("usual", "fastest", "no noise")]
            print(_HEAD.format(*cells, *[""] * (8 - len(cells))).rstrip())
        print()
    print("compile: tracing, lowering and compiling in the first call; traces: of loss_fn in the first and second call")
    print("/ usual, / fastest: ours over devinterp's usual loader, over the fastest of all peers in the same repeat")
    print("/ no noise: ours over the scan without noise, with a chain in each core\n")
    if worst := max((share for row in rows for share in row["others"] if share > _DISTURBED), default=0.0):
        print(
            f"WARNING: other processes took up to {worst:.0%} of the machine; figures with more than 5 % are too low\n"
        )
    return ratios


def _ratios(ours: list[float], peers: list[list[float]], scan: list[float]) -> dict[str, list[float]]:
    """Ours over the first of the peers', over the fastest of them, and over a scan, within each repeat."""
    found = {"no noise": [a / b for a, b in zip(ours, scan, strict=True)]}
    if peers:
        found["usual"] = [a / b for a, b in zip(ours, peers[0], strict=True)]
        found["fastest"] = [a / max(b) for a, b in zip(ours, zip(*peers, strict=True), strict=True)]
    return found


_DISTURBED = 0.05  # share of the machine that other processes took
_HEAD = "{:56}{:>20}{:>8}{:>9}{:>8}{:>22}{:>20}{:>20}"


def print_parts(rows: list[dict[str, Any]]) -> None:
    """Prints the parts of a step."""
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        print(f"{f'{model}: microseconds a chain-step, median (range)':48}{'one chain':>30}{'chains in a vmap':>30}")
        for row in group:
            alone, vmap = (spread(row["microseconds"][label], 1) for label in ("alone", "vmap"))
            print(f"  {row['part']:46}{alone:>30}{vmap:>30}")
        print()


def print_chain_methods(rows: list[dict[str, Any]]) -> None:
    """Prints sequential against vectorized."""
    cells = "{:10}{:>12}{:>14}{:>14}{:>28}{:>10}"
    print(cells.format("sampler", "parameters", "vectorized", "sequential", "sequential is faster by", "others"))
    for row in rows:
        times = row["seconds"].values()
        factors = [vectorized / sequential for vectorized, sequential in zip(*times, strict=True)]
        medians = [f"{statistics.median(t):.3f} s" for t in times]
        size, share = f"{row['num_params']:,}", mean_share(row["others"])
        print(cells.format(row["sampler"], size, *medians, spread(factors, 2), share))


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def mean_share(values: list[float]) -> str:
    """Mean of shares as a percentage."""
    return f"{100 * statistics.fmean(values):.0f} %"
