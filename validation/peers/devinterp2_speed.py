"""Chain-steps a second of devinterp 2.0.1 (PyTorch), as one JSON line; run by a Python of its own (setup.sh).

Called by validation/speed.py. The chains of its `sample`, one after the other, without what `sample` does around them:
it takes token models only, computes L(w*) first and writes observables. Its loader is fixed ("usual" and "fastest" are
the same).
"""

import argparse
import math
import time
import warnings
from typing import Any

import torch
from devinterp.optim.sgmcmc import SGMCMC
from devinterp.slt.sampler import sample_single_chain
from speed_models import Loss, build, parse, tell
from torch import nn
from torch.utils.data import Dataset


class Rows(Dataset):
    """Rows as the dictionaries that devinterp asks for."""

    def __init__(self, tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x, y = self.tensors
        return {"input_ids": x[index], "labels": y[index]}


def main() -> None:
    args = parse(__doc__)
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    model, tensors, loss = build(args.model, args.num_data)
    _seconds(model, tensors, loss, args, num_draws=20, num_chains=1)  # warms the libraries up
    tell("devinterp", _seconds(model, tensors, loss, args), model, args)


def _seconds(
    model: nn.Module,
    tensors: tuple[torch.Tensor, torch.Tensor],
    loss: Loss,
    args: argparse.Namespace,
    *,
    num_draws: int | None = None,
    num_chains: int | None = None,
) -> float:
    """Wall time of all chains, whose losses are kept."""
    losses: list[float] = []

    def evaluate(model: nn.Module, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        return loss(model, [data["input_ids"], data["labels"]]), {}

    def keep(*, loss: torch.Tensor, **_: object) -> None:
        losses.append(float(loss))

    num_draws, num_chains = num_draws or args.num_draws, num_chains or args.num_chains
    nbeta = args.num_data / math.log(args.num_data)
    start = time.perf_counter()
    for chain in range(num_chains):
        sample_single_chain(
            model,
            Rows(tensors),
            evaluate,
            dict.fromkeys(name for name, _ in model.named_parameters()),
            num_draws=num_draws,
            sampling_method=SGMCMC.sgld,
            sampling_method_kwargs={"lr": args.step_size, "localization": args.gamma, "nbeta": nbeta},
            chain=chain,
            seed=args.seed + chain,
            callbacks=[keep],
            batch_size=args.batch_size,
        )
    seconds = time.perf_counter() - start
    if len(losses) != num_draws * num_chains:
        raise RuntimeError("devinterp left draws out")
    return seconds


if __name__ == "__main__":
    main()
