"""λ̂ of devinterp 1.3.2 (PyTorch) on one model of validation/peers/losses.py; run by the peer's own Python (setup.sh).

Called by validation/peer_accuracy.py with the model's arrays and a list of runs; prints a JSON line for each of them,
in order. nβ, γ and w*, which say what is estimated, are given in every run. A run without settings leaves all else to
devinterp's defaults; in the others the exact loss at w* is given too where there are data, because the default (the
mean of a few minibatches) adds an error of its own.
"""

import argparse
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from losses import LOSSES
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Loss = Callable[..., torch.Tensor]


class TensorLoader(DataLoader):
    """Minibatches indexed out of tensors, without end; a DataLoader because devinterp insists on one."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        """All rows again and again if a batch holds them, else epochs in new orders."""
        rows, size = len(self.dataset), self.batch_size
        while True:
            order = torch.randperm(rows) if size < rows else None
            for start in range(0, rows - size + 1, size):
                chosen = slice(None) if order is None else order[start : start + size]
                yield [tensor[chosen] for tensor in self.dataset.tensors]


class Point(nn.Module):
    """The parameters, as one vector."""

    def __init__(self, center: np.ndarray) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(center, dtype=torch.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=LOSSES, required=True)
    parser.add_argument("--arrays", required=True, help=".npz with center and the loss's arrays in order")
    parser.add_argument("--population", action="store_true", help="the arrays are constants, not data")
    parser.add_argument("--runs", required=True, help="JSON list of settings: {} or {step_size, num_chains, …}")
    for name in ("seed", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("nbeta", "gamma"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    files = np.load(args.arrays)
    arrays = [torch.tensor(files[f"arr_{i}"], dtype=torch.float32) for i in range(len(files.files) - 1)]
    point = Point(files["center"])
    loss = functools.partial(LOSSES[args.model], torch)
    if args.population:
        evaluate = functools.partial(_population, loss, arrays)
        loader = TensorLoader(TensorDataset(torch.zeros(args.batch_size, 1)), args.batch_size)
    else:
        evaluate = functools.partial(_of_batch, loss)
        loader = TensorLoader(TensorDataset(*arrays), args.batch_size)
    with torch.no_grad():
        init_loss = None if args.population else float(loss(point.w, *arrays))
    _estimate(point, loader, evaluate, args, {"num_chains": 1, "num_draws": 20})  # warms the libraries up
    for run in json.loads(args.runs):
        options = run | {"init_loss": init_loss} if run else {}
        print(json.dumps(run | _estimate(point, loader, evaluate, args, options)), flush=True)


def _population(loss: Loss, constants: list[torch.Tensor], model: Point, _: object) -> torch.Tensor:
    return loss(model.w, *constants)


def _of_batch(loss: Loss, model: Point, batch: list[torch.Tensor]) -> torch.Tensor:
    return loss(model.w, *batch)


def _estimate(
    point: Point, loader: DataLoader, evaluate: Loss, args: argparse.Namespace, options: dict[str, Any]
) -> dict[str, Any]:
    """λ̂, the reported error, wall and CPU seconds; or what went wrong."""
    optimizer_kwargs = {"nbeta": args.nbeta, "localization": args.gamma}
    if "step_size" in options:
        optimizer_kwargs["lr"] = options["step_size"]
    options = {name: value for name, value in options.items() if name != "step_size"}
    start, cpu = time.perf_counter(), time.process_time()
    record = {"version": version("devinterp"), "value": None, "error": None}
    try:
        results = estimate_learning_coeff_with_summary(
            point, loader, evaluate=evaluate, optimizer_kwargs=optimizer_kwargs, verbose=False, **options
        )
        value, error = float(results["llc/mean"]), float(results["llc/std"])
        if np.isfinite([value, error]).all():
            record |= {"value": value, "error": error}
        else:
            record["failure"] = "not finite"
    except RuntimeError as failure:  # devinterp's answer to a NaN
        record["failure"] = str(failure)
    return record | {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
