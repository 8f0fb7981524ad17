"""Chain-steps a second of devinterp 1.3.2 (PyTorch), as one JSON line; run by the peer's own Python (setup.sh).

Called by validation/speed.py. Two loaders: "usual" is the one its documentation shows, "fastest" indexes tensors by a
fresh permutation an epoch, with no workers and no collation. A draw of devinterp is the loss of the minibatch of the
step, which costs nothing; its `init_loss` is given, so that no time goes into it.
"""

import argparse
import functools
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch
from devinterp.optim import SGLD
from devinterp.slt.llc import LLCEstimator
from devinterp.slt.sampler import sample
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Loss = Callable[[nn.Module, list[torch.Tensor]], torch.Tensor]


class TensorLoader(DataLoader):
    """Minibatches indexed out of tensors; a DataLoader because devinterp insists on one."""

    def __init__(self, dataset: TensorDataset, batch_size: int) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=True)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        """One epoch."""
        order = torch.randperm(len(self.dataset))
        for i in range(len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield [tensor[rows] for tensor in self.dataset.tensors]


def squared_error(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.mse_loss(model(x), y) * (y.shape[1] / 2)


def cross_entropy(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def build(name: str, num_data: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Loss]:
    """Model, data and loss function of the same shapes as in validation/speed.py."""
    if name == "deep linear":
        model = nn.Sequential(*[nn.Linear(20, 20, bias=False) for _ in range(4)])
        return model, (torch.randn(num_data, 20), torch.randn(num_data, 20)), squared_error
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, (torch.randn(num_data, 784), torch.randint(0, 10, (num_data,))), cross_entropy


def main() -> None:
    args = _parse()
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    model, tensors, evaluate = build(args.model, args.num_data)
    dataset = TensorDataset(*tensors)
    if args.loader == "usual":
        loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    else:
        loader = TensorLoader(dataset, args.batch_size)
    measured = functools.partial(_seconds, model, loader, evaluate, args)
    measured(num_draws=20, num_chains=1, processes=1)  # warms the libraries up
    seconds = measured(num_draws=args.num_draws, num_chains=args.num_chains, processes=args.processes)
    record = {
        "seconds": seconds,
        "rate": args.num_chains * args.num_draws / seconds,
        "num_params": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {
            "devinterp": version("devinterp"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(record))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("deep linear", "MLP"), required=True)
    parser.add_argument("--loader", choices=("usual", "fastest"), required=True)
    parser.add_argument("--processes", type=int, default=1)
    for name in ("seed", "num-data", "batch-size", "num-chains", "num-draws"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("step-size", "gamma"):
        parser.add_argument(f"--{name}", type=float, required=True)
    return parser.parse_args()


def _seconds(
    model: nn.Module,
    loader: DataLoader,
    evaluate: Loss,
    args: argparse.Namespace,
    *,
    num_draws: int,
    num_chains: int,
    processes: int,
) -> float:
    """Wall time of one call."""
    nbeta = args.num_data / math.log(args.num_data)
    start = time.perf_counter()
    results = sample(
        model=model,
        loader=loader,
        callbacks=[LLCEstimator(num_chains, num_draws, init_loss=1.0, nbeta=nbeta)],
        evaluate=evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={"lr": args.step_size, "localization": args.gamma, "nbeta": nbeta},
        num_draws=num_draws,
        num_chains=num_chains,
        init_loss=1.0,
        cores=processes,
        seed=args.seed,
        verbose=False,
    )
    if not (results["loss/trace"] > 0).all():
        raise RuntimeError("devinterp left draws out")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
