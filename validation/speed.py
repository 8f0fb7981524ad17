"""Speed: chain-steps a second of `llc.sample` beside its PyTorch peers, and where the time of a step goes.

Four tables, the fourth from a run of its own (--sweep).

1. Throughput: total chain-steps a second of SGLD, ours and the peers' in turns (A B A B …) because machines are noisy.
   Ours is the second and later calls; the first call's compilation stands apart. A draw of ours costs an evaluation of
   the loss on all the data, a draw of a peer nothing (it records the minibatch loss of the step), so ours is shown
   with a draw at every step and at every tenth, each on all the data and on a fixed subset as large as a minibatch, and
   with the energies of all steps, as the peers' draws are. Beside them stand scans that record nothing (speed_bare.py).
2. Ratios ours / theirs, pairwise within a repeat: over devinterp's usual loader, the fastest variant of all peers, and
   the scan without noise.
3. Parts of a step, each a jitted loop of its own.
4. Sequential against vectorized chains by number of parameters, and the same for samplers with an accept step: what
   `_SEQUENTIAL_PARAMS` in llc/sampling/placement.py rests on. The committed table is of chains one after the other.

"others" is the share of the machine that other processes took meanwhile; a figure with a large share is a lower bound,
and the peers' default of one thread a core suffers most from it (its threads wait for one another).

    validation/peers/setup.sh FOLDER
    LLC_PEERS=FOLDER python validation/speed.py --json validation/results/speed.json
    python validation/speed.py --sweep --json validation/results/chain_methods.json
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from speed_methods import sweep_mcmc, sweep_sgld
from speed_parts import parts
from speed_problems import NUM_IN_PARTS, QUICK, Settings, problems
from speed_tables import print_chain_methods, print_parts, print_throughput
from speed_throughput import throughput
from timing import describe_machine


def main() -> None:
    """Measures, prints, writes."""
    arguments = _parse()
    settings = QUICK if arguments.quick else Settings()
    given = {name: getattr(arguments, name) for name in ("repeats", "tries") if getattr(arguments, name) is not None}
    settings = dataclasses.replace(settings, **given)
    machine = describe_machine()
    results = {"settings": dataclasses.asdict(settings), "machine": machine}
    print(" ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    if arguments.sweep:
        results["chain_methods"] = [*sweep_sgld(settings), *sweep_mcmc(settings)]
        print_chain_methods(results["chain_methods"])
    else:
        results |= beside_the_peers(settings, arguments.peers)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a check of the script, not of the speed")
    parser.add_argument("--sweep", action="store_true", help="table 4 instead of the others")
    parser.add_argument("--repeats", type=int, help=f"default {Settings.repeats}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all figures there")
    default = os.environ.get("LLC_PEERS", Path(__file__).parent / "peers" / ".venv")
    parser.add_argument("--peers", type=Path, default=default, metavar="FOLDER", help="of setup.sh; default $LLC_PEERS")
    parser.add_argument("--tries", type=int, help="of one measurement, until no other process disturbs it; default 1")
    return parser.parse_args()


def beside_the_peers(settings: Settings, peers: Path) -> dict[str, Any]:
    """Throughput, its ratios and the parts of a step, printed and returned."""
    pairs = problems(settings)
    rates = [row for problem, own in pairs for row in throughput(problem, own, peers)]
    ratios = print_throughput(rates)
    of_a_step = [row for problem, own in pairs[:NUM_IN_PARTS] for row in parts(problem, own)]
    print_parts(of_a_step)
    return {"throughput": rates, "ratios": ratios, "parts": of_a_step}


if __name__ == "__main__":
    main()
