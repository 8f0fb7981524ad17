"""Peak memory of SGLD, in copies of the params: what chains take side by side, and one after the other.

Each case is a process of its own. It makes a linear model of 8 rows, and takes the largest resident size of the process
since then, less its size before the params were made. The params themselves are one of the copies; the probes of
`LocalPosterior`, which are over before sampling, are not counted.

At 10⁷ params the memory of JAX itself, about 50 MB, is one of the copies, or more; at 10⁸ nothing is seen of it.

    python validation/memory.py --params 1e7 1e8 --json validation/results/memory.json
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

CASES = ((1, "sequential"), (4, "sequential"), (4, "vectorized"))
_CASE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, llc

side, num_chains, method, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def loss_fn(params, batch):
    outputs = batch.astype(dtype) @ params.astype(dtype)
    return 0.5 * jnp.mean(outputs.astype(jnp.float32) ** 2, axis=-1)

data = np.random.default_rng(0).normal(size=(8, side)).astype(np.float32)
before = kib("VmRSS")
posterior = llc.LocalPosterior(loss_fn, jnp.zeros((side, side)), data, gamma=1.0)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
llc.sample(jax.random.key(0), posterior, llc.SGLD(1e-4), num_chains=num_chains, num_warmup=1, num_draws=3,
           chain_method=method, progress=False)
print((kib("VmHWM") - before) * 1024 / (4 * side**2))
"""


def copies(num_params: float, num_chains: int, method: str, dtype: str) -> float:
    """Copies of the params at the peak."""
    command = [sys.executable, "-c", _CASE, str(round(num_params**0.5)), str(num_chains), method, dtype]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=float, nargs="+", default=[1e7], help="parameters of the models")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    rows = []
    for params, dtype, (num_chains, method) in itertools.product(arguments.params, ("float32", "bfloat16"), CASES):
        peak = copies(params, num_chains, method, dtype)
        row = {"params": params, "loss": dtype, "num_chains": num_chains, "method": method, "copies": round(peak, 2)}
        rows.append(row)
        print(
            f"{params:.0e} {dtype:9} {num_chains} chains {method:11} {peak:6.2f} copies, {peak / num_chains:5.2f} a "
            "chain",
            flush=True,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
